// Tokens in a row of lines: one is selected, by click or by keys; only that one is a stop of the Tab key.

/**
 * @param {HTMLElement} root    holds the tokens, in order
 * @param {HTMLElement[]} items the tokens
 * @param {(index: number, byHand: boolean) => void} chosen called whenever another one is selected
 */
export class Strip {
  constructor(root, items, chosen) {
    this.root = root;
    this.items = items;
    this.chosen = chosen;
    this.at = -1;
    this.places = new Map(items.map((item, i) => [item, i]));
    for (const item of items) item.setAttribute("tabindex", "-1");
    if (items.length) items[0].setAttribute("tabindex", "0");
    this.stopped = new AbortController();
    const { signal } = this.stopped;
    root.addEventListener("click", (event) => this.#onClick(event), { signal });
    root.addEventListener("keydown", (event) => this.#onKey(event), { signal });
  }

  /** Forget the listeners: other tokens take the place of these. */
  close() {
    this.stopped.abort();
  }

  /** Select a token; `byHand` also moves the focus there. */
  select(index, byHand = false) {
    if (index < 0 || index >= this.items.length) return;
    const before = this.items[this.at < 0 ? 0 : this.at];
    before.setAttribute("tabindex", "-1");
    before.removeAttribute("aria-current");
    this.at = index;
    const item = this.items[index];
    item.setAttribute("tabindex", "0");
    item.setAttribute("aria-current", "true");
    if (byHand) {
      item.focus({ preventScroll: true });
      item.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    this.chosen(index, byHand);
  }

  #onClick(event) {
    const item = event.target.closest("[data-i]");
    if (item && this.places.has(item)) this.select(this.places.get(item), true);
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const at = this.places.get(event.target);
    if (at === undefined) return;
    const to = this.#target(event.key, at);
    if (to === null) return;
    event.preventDefault();
    event.stopPropagation();
    this.select(to, true);
  }

  #target(key, at) {
    const last = this.items.length - 1;
    const back = getComputedStyle(this.root).direction === "rtl" ? 1 : -1;
    switch (key) {
      case "ArrowLeft": return Math.min(Math.max(at + back, 0), last);
      case "ArrowRight": return Math.min(Math.max(at - back, 0), last);
      case "ArrowUp": return this.#line(at, -1);
      case "ArrowDown": return this.#line(at, 1);
      case "Home": return 0;
      case "End": return last;
      case "Enter":
      case " ": return at;
      default: return null;
    }
  }

  /** The token above (-1) or below (1) the one at `at`: of the next line, the one nearest to it. */
  #line(at, step) {
    const here = box(this.items[at]);
    let best = at, line = null;
    for (let i = at + step; i >= 0 && i < this.items.length; i += step) {
      const there = box(this.items[i]);
      if (Math.abs(there.y - here.y) < 2) continue;
      if (line === null) line = there.y;
      if (Math.abs(there.y - line) >= 2) break;
      if (best === at || Math.abs(there.x - here.x) < Math.abs(box(this.items[best]).x - here.x)) best = i;
    }
    return best;
  }
}

/** Where a token stands: the middle of its first line box. */
function box(item) {
  const rect = item.getClientRects()[0] || item.getBoundingClientRect();
  return { x: rect.left + rect.width / 2, y: rect.top + rect.height / 2 };
}

/** The class of a shade: tenths of the unit, rounded up; empty where nothing fires. */
export function shade(level) {
  return level > 0 ? `l${Math.min(10, Math.max(1, Math.ceil(10 * level - 1e-9)))}` : "";
}
