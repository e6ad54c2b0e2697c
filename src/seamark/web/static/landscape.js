// The landscape: move, zoom, look, and choose points by box or lasso; its state lies in the address.

import { makeCard } from "./cards.js";
import { drawerFor } from "./drawing.js";
import { cut, debounced, getJson, number, thousands, visible } from "./lib.js";
import { Grid, decode, positions } from "./points.js";

const GREY = 8;
const HOVER = 9, CLICK = 4; // pixels
const LISTED = 50; // cards fetched at once
const KNOWN = 2000; // cards kept in memory

const map = document.getElementById("map");
const overlay = document.getElementById("overlay");
const form = document.getElementById("filters");
const tip = document.getElementById("tip");
const status = document.getElementById("status");
const chosen = document.getElementById("chosen");
const template = document.getElementById("card");

class Landscape {
  constructor(buffer) {
    this.data = decode(buffer);
    this.n = this.data.header.n;
    const { xy, box } = positions(this.data);
    this.xy = xy;
    this.box = box;
    this.grid = new Grid(xy, box);
    this.colours = this.colourOfPoints();
    this.looks = new Uint8Array(2 * this.n);
    this.drawer = drawerFor(document.getElementById("canvas"), xy, this.order());
    this.canvas = this.drawer.canvas;
    this.tool = "pan";
    this.path = [];
    this.hovered = -1;
    this.selection = [];
    this.cards = new Map();
    this.view = { x: 0, y: 0, scale: 1 };
    this.readColours();
    this.resize();
    this.look(new FormData(form).get("at"));
    this.filter();
  }

  /** Colour of each point: that of its first domain. */
  colourOfPoints() {
    const of = this.data.header.domains.map((domain) => domain.colour % GREY);
    const domains = this.data.columns.domain.values;
    return Uint8Array.from(domains, (domain) => (domain < 0 ? GREY : of[domain]));
  }

  /** Points in the order they are drawn: those without a domain lie below the others. */
  order() {
    const order = new Uint32Array(this.n);
    let at = 0;
    for (const below of [true, false]) {
      for (let i = 0; i < this.n; i++) if ((this.colours[i] === GREY) === below) order[at++] = i;
    }
    return order;
  }

  id(i) {
    return this.data.columns.id.values[i];
  }

  score(i) {
    const { values, start, step } = this.data.columns.score;
    return values[i] === this.data.header.missing_score ? NaN : start + step * values[i];
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    const parts = (name) => {
      const hex = style.getPropertyValue(name).trim();
      return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    };
    const palette = ["0", "1", "2", "3", "4", "5", "6", "7", "n"].map((name) => parts(`--k${name}`));
    this.ink = style.getPropertyValue("--ink").trim();
    this.drawer.setColours(palette, parts("--card"));
    this.redraw();
  }

  resize() {
    const { width, height } = map.getBoundingClientRect();
    this.width = Math.max(1, width);
    this.height = Math.max(1, height);
    this.ratio = Math.min(window.devicePixelRatio || 1, 3);
    for (const canvas of [this.canvas, overlay]) {
      canvas.width = Math.round(this.width * this.ratio);
      canvas.height = Math.round(this.height * this.ratio);
    }
    this.redraw();
  }

  get whole() {
    const { left, right, low, high } = this.box;
    const scale = 0.9 * Math.min(this.width / Math.max(right - left, 1e-6), this.height / Math.max(high - low, 1e-6));
    return this.n ? { x: (left + right) / 2, y: (low + high) / 2, scale } : { x: 0, y: 0, scale: 1 };
  }

  /** Look at "x,y,zoom", zoom 1 being all of it; at all of it where that makes no sense. */
  look(at) {
    const [x, y, zoom] = String(at || "").split(",").map(Number);
    this.view = this.whole;
    if ([x, y, zoom].every(Number.isFinite) && zoom > 0) this.view = { x, y, scale: this.view.scale * zoom };
    this.moved();
  }

  moved() {
    const { scale } = this.whole;
    this.view.scale = Math.min(Math.max(this.view.scale, scale / 4), scale * 2000);
    this.redraw();
    rememberSoon();
  }

  place([px, py]) {
    return [this.view.x + (px - this.width / 2) / this.view.scale, this.view.y - (py - this.height / 2) / this.view.scale];
  }

  pixel(i) {
    const { x, y, scale } = this.view;
    return [this.width / 2 + (this.xy[2 * i] - x) * scale, this.height / 2 - (this.xy[2 * i + 1] - y) * scale];
  }

  move(dx, dy) {
    this.view.x -= dx / this.view.scale;
    this.view.y += dy / this.view.scale;
    this.moved();
  }

  zoom(by, [px, py] = [this.width / 2, this.height / 2]) {
    const [x, y] = this.place([px, py]);
    this.view.scale *= by;
    this.moved();
    const [nx, ny] = this.place([px, py]);
    this.view.x += x - nx;
    this.view.y += y - ny;
    this.moved();
  }

  /** Which points are shown, by the form. */
  filter() {
    const { header, columns } = this.data;
    const asked = new FormData(form);
    const shown = new Set(asked.getAll("show"));
    const domains = [...header.domains.map((domain) => shown.has(domain.name))];
    const bare = shown.has("-");
    const layer = asked.get("layer"), sae = asked.get("sae") || "";
    const saes = header.saes.map((one) => (!layer || String(one.layer) === layer) && (!sae || one.id === sae));
    const least = Number(asked.get("min_score"));
    let count = 0;
    for (let i = 0; i < this.n; i++) {
      const domain = columns.domain.values[i];
      const keep = saes[columns.sae.values[i]] && (domain < 0 ? bare : domains[domain]) &&
        (least <= -1 || this.score(i) >= least);
      this.looks[2 * i] = this.colours[i];
      this.looks[2 * i + 1] = keep ? 1 : 0;
      count += keep;
    }
    for (const i of this.selection) if (this.looks[2 * i + 1]) this.looks[2 * i + 1] = 2;
    this.drawer.setLooks(this.looks);
    map.dataset.shown = count;
    linkList();
    const missing = Math.max(0, Number(map.dataset.features) - this.n);
    status.textContent = (count === this.n ? `${thousands(count)} features` : `${thousands(count)} of ${thousands(this.n)} features`)
      + (missing ? `; ${thousands(missing)} more have no place in this layout` : "");
    this.redraw();
  }

  kept = (i) => this.looks[2 * i + 1] > 0;

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  draw() {
    const zoom = this.view.scale / this.whole.scale;
    const base = this.n > 50000 ? 2.6 : this.n > 10000 ? 3.4 : this.n > 1000 ? 5 : 8;
    const roomy = Math.min(2.2, Math.max(1, Math.sqrt((this.width * this.height) / 1.2e6)));
    const size = Math.min(14 * roomy, base * roomy * Math.max(1, Math.sqrt(zoom) ** 0.8));
    const plain = this.n > 10000 ? 0.45 : 0.75; // points without a domain: many must not hide the others
    const dim = this.selection.length ? 0.5 : 1;
    this.drawer.draw({ ...this.view, width: this.width, height: this.height, ratio: this.ratio, size, dim, plain });
    // In plain memory: Chromium with WebGL in software now and then keeps what was cleared on a second GPU canvas.
    const pen = overlay.getContext("2d", { willReadFrequently: true });
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    pen.strokeStyle = this.ink;
    if (this.hovered >= 0) {
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.arc(...this.pixel(this.hovered), size / 2 + 3, 0, 2 * Math.PI);
      pen.stroke();
    }
    if (this.path.length > 1) {
      pen.lineWidth = 1.25;
      pen.setLineDash([5, 3]);
      pen.beginPath();
      for (const corner of this.corners()) pen.lineTo(...corner);
      pen.closePath();
      pen.stroke();
      pen.globalAlpha = 0.06;
      pen.fillStyle = this.ink;
      pen.fill();
      pen.globalAlpha = 1;
      pen.setLineDash([]);
    }
  }

  corners() {
    if (this.drawn !== "box") return this.path;
    const [x0, y0] = this.path[0], [x1, y1] = this.path.at(-1);
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
  }

  nearest(at, reach) {
    return this.grid.nearest(...this.place(at), reach / this.view.scale, this.kept);
  }

  hover(at) {
    const i = at ? this.nearest(at, HOVER) : -1;
    if (i === this.hovered) return;
    this.hovered = i;
    this.redraw();
    this.canvas.classList.toggle("on-point", i >= 0);
    tip.hidden = i < 0;
    if (i < 0) return;
    this.fillTip(i);
    tellSoon(this, i);
  }

  fillTip(i) {
    const { header, columns } = this.data;
    const known = this.cards.get(this.id(i));
    const domain = columns.domain.values[i];
    const part = (name) => tip.querySelector(`[data-tip=${name}]`);
    part("name").textContent = known ? `${visible(known.card.sae)} ${known.card.latent}` : visible(header.saes[columns.sae.values[i]].id);
    const label = part("label");
    label.textContent = known ? visible(known.preview.note || cut(known.card.label || "", 160)) : "…";
    label.classList.toggle("sensitive", Boolean(known && known.preview.sensitive && !known.preview.note));
    const facts = [domain < 0 ? "no domain" : visible(header.domains[domain].name), `score ${number(this.score(i))}`];
    part("more").textContent = facts.join(" · ");
    const [x, y] = this.pixel(i);
    const side = x > this.width / 2 ? `calc(${x}px - 100% - 14px)` : `${x + 14}px`;
    tip.style.translate = `${side} ${Math.min(Math.max(y - 20, 4), this.height - 90)}px`;
  }

  async know(ids) {
    const missing = ids.filter((id) => !this.cards.has(id));
    if (missing.length) {
      const found = await getJson(`/api/v1/cards?ids=${missing.join(",")}`);
      if (this.cards.size > KNOWN) this.cards.clear();
      found.cards.forEach((card, k) => this.cards.set(card.id, { card, preview: found.previews[k] }));
    }
    return ids.map((id) => this.cards.get(id)).filter(Boolean);
  }

  /** Mark points and list them, those with the best scores first. */
  async choose(points, title) {
    const scores = new Map(points.map((i) => [i, this.score(i)]));
    const rank = (i) => (Number.isNaN(scores.get(i)) ? -2 : scores.get(i));
    this.selection = points.sort((a, b) => rank(b) - rank(a) || a - b);
    this.filter();
    map.dataset.chosen = points.length;
    chosen.hidden = points.length === 0;
    const heading = document.getElementById("chosen-title");
    heading.textContent = `${title}: ${thousands(points.length)}`;
    const list = document.getElementById("cards");
    list.replaceChildren();
    if (points.length) await this.list(list, 0);
  }

  async list(place, from) {
    const selection = this.selection;
    const some = selection.slice(from, from + LISTED);
    try {
      const known = await this.know(some.map((i) => this.id(i)));
      if (selection !== this.selection) return; // chosen anew meanwhile
      place.append(...known.map(({ card, preview }) => makeCard(template, card, preview)));
    } catch (error) {
      status.textContent = error.message;
      return;
    }
    const left = selection.length - from - some.length;
    if (left <= 0) return;
    const more = document.createElement("button");
    more.type = "button";
    more.textContent = `${thousands(left)} more`;
    more.addEventListener("click", () => {
      const last = place.querySelectorAll("[data-slot=link]").length;
      more.remove();
      this.list(place, from + LISTED).then(() => place.querySelectorAll("[data-slot=link]")[last]?.focus());
    });
    place.append(more);
  }

  setTool(tool) {
    this.tool = tool;
    map.dataset.tool = tool;
    for (const button of map.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
  }

  async listView() {
    const [left, high] = this.place([0, 0]), [right, low] = this.place([this.width, this.height]);
    await this.choose(this.grid.within(left, right, low, high, this.kept), "In view");
    chosen.focus();
  }
}

/** What the address says, from what the page shows. */
function remember(land) {
  const asked = new FormData(form);
  const query = new URLSearchParams();
  if (form.elements.layout) query.set("layout", asked.get("layout"));
  for (const name of ["layer", "sae"]) if (asked.get(name)) query.set(name, asked.get(name));
  if (Number(asked.get("min_score")) > -1) query.set("min_score", asked.get("min_score"));
  for (const box of form.querySelectorAll("[name=show]")) if (!box.checked) query.append("hide", box.value);
  const zoom = land.view.scale / land.whole.scale;
  const { x, y } = land.whole;
  const near = Math.abs(zoom - 1) < 1e-3 && Math.hypot(land.view.x - x, land.view.y - y) * land.view.scale < 1;
  if (!near) query.set("at", [land.view.x.toPrecision(5), land.view.y.toPrecision(5), zoom.toPrecision(4)].join(","));
  const [first] = form.elements.layout ? form.elements.layout.options : [{ value: "" }];
  if (query.size === 1 && query.get("layout") === first.value) query.delete("layout"); // says nothing
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

/** The link to the same features as a list. */
function linkList() {
  const asked = new FormData(form);
  const list = new URLSearchParams();
  for (const name of ["layer", "sae"]) if (asked.get(name)) list.set(name, asked.get(name));
  if (Number(asked.get("min_score")) > -1) list.set("min_score", asked.get("min_score"));
  const shown = asked.getAll("show");
  if (shown.length === 1 && shown[0] !== "-") list.set("domain", shown[0]);
  document.getElementById("as-list").setAttribute("href", list.size ? `/features?${list}` : "/features");
}

let land = null;
const rememberSoon = debounced(() => land && remember(land), 250);
const tellSoon = debounced(async (from, i) => {
  await from.know([from.id(i)]).catch(() => []);
  if (from.hovered === i) from.fillTip(i);
}, 40);

function at(event) {
  const { left, top } = map.getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
}

/** Pointers: one moves or draws, two pinch. */
function listenToPointers(land) {
  const { canvas } = land;
  const down = new Map();
  let start = null, moved = false, spread = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, at(event));
    if (down.size === 1) {
      start = at(event);
      moved = false;
      land.drawn = event.shiftKey && land.tool === "pan" ? "box" : land.tool;
      land.path = land.drawn === "pan" ? [] : [start];
    } else land.path = [];
    spread = 0;
    land.hover(null);
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event);
    const before = down.get(event.pointerId);
    if (!before) return land.hover(now);
    down.set(event.pointerId, now);
    if (Math.hypot(now[0] - start[0], now[1] - start[1]) > CLICK) moved = true;
    if (down.size === 2) {
      const [a, b] = [...down.values()];
      const wide = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) land.zoom(wide / spread, [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]);
      spread = wide;
    } else if (land.drawn === "pan") land.move(now[0] - before[0], now[1] - before[1]);
    else {
      land.path.push(now);
      land.redraw();
    }
  });
  const end = (event) => {
    if (!down.delete(event.pointerId)) return;
    const { path } = land;
    const corners = path.length > 1 ? land.corners().map((corner) => land.place(corner)) : [];
    land.path = [];
    land.redraw();
    if (event.type === "pointercancel" || down.size) return;
    if (!moved) {
      const i = land.nearest(at(event), HOVER);
      land.choose(i < 0 ? [] : [i], "Chosen");
    } else if (corners.length) land.choose(land.grid.inside(corners, land.kept), land.drawn === "box" ? "In the box" : "In the lasso");
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => land.hover(null));
  canvas.addEventListener("redraw", () => land.readColours());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    land.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), at(event));
  }, { passive: false });
}

function listenToKeys(land) {
  const far = () => Math.min(land.width, land.height) / 8;
  const keys = {
    ArrowLeft: () => land.move(far(), 0), ArrowRight: () => land.move(-far(), 0),
    ArrowUp: () => land.move(0, far()), ArrowDown: () => land.move(0, -far()),
    "+": () => land.zoom(1.4), "=": () => land.zoom(1.4), "-": () => land.zoom(1 / 1.4), 0: () => land.look(""),
    v: () => land.setTool("pan"), b: () => land.setTool("box"), o: () => land.setTool("lasso"),
    l: () => land.listView(), Escape: () => land.choose([], ""),
  };
  land.canvas.addEventListener("keydown", (event) => {
    const run = keys[event.key];
    if (!run || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    run();
  });
}

function listenToControls(land) {
  map.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.tool) land.setTool(button.dataset.tool);
    if (button.dataset.zoom === "all") land.look("");
    else if (button.dataset.zoom) land.zoom(button.dataset.zoom === "in" ? 1.6 : 1 / 1.6);
    if (button.dataset.list !== undefined) land.listView();
  });
  form.addEventListener("input", (event) => {
    if (event.target.name === "layout") {
      remember(land);
      location.reload();
      return;
    }
    if (event.target.name === "min_score") {
      const value = Number(event.target.value);
      document.getElementById("score-out").textContent = value <= -1 ? "any" : number(value);
    }
    land.filter();
    rememberSoon();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  const recolour = () => land.readColours();
  new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  new ResizeObserver(() => land.resize()).observe(map);
}

async function begin() {
  status.textContent = "Loading…";
  const response = await fetch(map.dataset.points);
  if (!response.ok) throw new Error(`The points could not be loaded (${response.status})`);
  land = new Landscape(await response.arrayBuffer());
  map.dataset.renderer = land.drawer.kind;
  land.setTool("pan");
  listenToPointers(land);
  listenToKeys(land);
  listenToControls(land);
  requestAnimationFrame(() => {
    land.draw();
    document.documentElement.dataset.ready = "landscape";
    performance.mark("seamark-ready");
  });
}

begin().catch((error) => {
  status.textContent = error.message;
  document.documentElement.dataset.ready = "failed";
});
