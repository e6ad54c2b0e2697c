// Pairs: marks are sent at once; a word, once selected, shows the features that fire at it.

import { cut, el, getJson, number, sendJson, visible } from "./lib.js";
import { Strip } from "./strip.js";

const list = document.getElementById("pairs");
const articles = [...list.querySelectorAll("article.pair")];
const evidence = new Map(); // pair id -> promise of its evidence
const strips = new Map(); // tokens -> Strip
const choose = document.getElementById("choose");
const scan = decodeURIComponent(list.dataset.scan);
const features = decodeURIComponent(list.dataset.features);
const idOf = (article) => decodeURIComponent(article.dataset.pair);

// ---- marks

/** Marks of one pair go out one after the other, so that the last one said is the one kept. */
const last = new Map();

function mark(article, value) {
  const earlier = last.get(article) || Promise.resolve();
  const now = earlier.then(() => save(article, value));
  last.set(article, now);
  return now;
}

async function save(article, value) {
  const form = article.querySelector(".judge");
  const told = form.querySelector(".said");
  if (form.querySelector("[data-mark=wrong]").disabled) return;
  told.textContent = "Saving …";
  try {
    const kept = await sendJson("/api/v1/marks", {
      scan, pair: idOf(article), mark: value, note: form.elements.note.value,
    });
    showMark(article, kept.mark);
    told.textContent = kept.mark === null ? "mark taken back" : `marked as ${kept.mark}, saved`;
  } catch (error) {
    showMark(article, article.dataset.markNow || null);
    told.textContent = `Not saved. ${visible(error.message)}`;
    told.classList.add("problem");
    return;
  }
  told.classList.remove("problem");
}

function showMark(article, value) {
  article.dataset.markNow = value || "";
  for (const button of article.querySelectorAll(".judge [data-mark]")) {
    if (button.dataset.mark) button.setAttribute("aria-pressed", String(button.dataset.mark === value));
    else button.hidden = value === null;
  }
}

list.addEventListener("click", (event) => {
  const button = event.target.closest(".judge [data-mark]");
  if (button) mark(button.closest("article"), button.dataset.mark || null);
});
list.addEventListener("submit", (event) => {
  event.preventDefault();
  const article = event.target.closest("article");
  if (article.dataset.markNow) mark(article, article.dataset.markNow);
});
list.addEventListener("change", (event) => {
  if (event.target.name !== "note") return;
  const article = event.target.closest("article");
  if (article.dataset.markNow) mark(article, article.dataset.markNow);
  else article.querySelector(".said").textContent = "A note is kept with a mark: say wrong or fine.";
});

// ---- keys

const KEYS = { w: "wrong", f: "fine", u: null };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, textarea, select")) return;
  const key = event.key.toLowerCase();
  if (key === "j" || key === "k") {
    go(key === "j" ? 1 : -1);
    event.preventDefault();
  } else if (key in KEYS) {
    const article = event.target.closest("article.pair") || (articles.length === 1 ? articles[0] : null);
    if (article) mark(article, KEYS[key]);
  }
});

function go(by) {
  if (articles.length === 0) return;
  const here = articles.indexOf(document.activeElement.closest("article.pair"));
  const at = here < 0 ? (by > 0 ? 0 : articles.length - 1) : Math.min(Math.max(here + by, 0), articles.length - 1);
  articles[at].focus({ preventScroll: true });
  articles[at].scrollIntoView({ block: "start" });
}

// ---- words

list.addEventListener("focusin", (event) => {
  const tokens = event.target.closest(".side .tokens");
  if (!tokens || strips.has(tokens)) return;
  const items = [...tokens.querySelectorAll("[data-i]")];
  for (const item of items) item.setAttribute("role", "button");
  const strip = new Strip(tokens, items, (i) => showWord(tokens, items[i]));
  strips.set(tokens, strip);
  tokens.classList.add("shown");
  tokens.removeAttribute("tabindex");
  if (event.target !== tokens) return;
  const strongest = items.findIndex((item) => item.classList.contains("t"));
  strip.select(Math.max(0, strongest), true);
});
// A click gives the focus to the words first, and only then selects one.
list.addEventListener("mousedown", (event) => {
  const item = event.target.closest(".side .tokens [data-i]");
  const tokens = item && item.closest(".tokens");
  if (!item || strips.has(tokens)) return;
  event.preventDefault();
  tokens.focus({ preventScroll: true });
  const strip = strips.get(tokens);
  if (strip) strip.select(strip.places.get(item), true);
});

function details(pair) {
  if (!evidence.has(pair)) {
    const query = new URLSearchParams({ scan, pair, features });
    const asked = getJson(`/api/v1/pair?${query}`);
    asked.catch(() => evidence.delete(pair));
    evidence.set(pair, asked);
  }
  return evidence.get(pair);
}

async function showWord(tokens, item) {
  const article = tokens.closest("article");
  const place = article.querySelector(".word");
  place.hidden = false;
  place.dataset.wanted = `${tokens.closest(".side").dataset.side} ${item.dataset.i}`;
  const wanted = place.dataset.wanted;
  try {
    const { pair, features: known } = await details(idOf(article));
    if (place.dataset.wanted !== wanted) return; // another word was selected meanwhile
    const side = pair[tokens.closest(".side").dataset.side];
    fillWord(place, side, Number(item.dataset.i), known);
  } catch (error) {
    place.replaceChildren(el("p", { class: "problem" }, visible(error.message)));
  }
}

function fillWord(place, side, i, known) {
  const word = el("code", { dir: "auto" }, visible(side.tokens[i]).trim() || "␣");
  const parts = side.contributions[i] || [];
  const head = el("p", { class: "word-head" }, word, ` ${signed(side.values[i])}`);
  if (side.scoring[i]) head.append(el("span", { class: "muted" }, " counts in the answer's score"));
  const nothing = el("p", { class: "note" }, "None of the chosen features fires here.");
  place.replaceChildren(head, parts.length ? el("ul", { class: "parts" }, ...parts.map((part) => row(part, known))) : nothing);
}

function row([index, value], known) {
  const feature = known[index];
  const name = `${visible(feature.sae)} ${feature.latent}`;
  const node = el("li", {}, el("span", { class: `n ${value > 0 ? "for" : "against"}` }, signed(value)), " ");
  node.append(feature.url ? el("a", { href: feature.url }, name) : name);
  if (feature.label) {
    const label = el("span", { class: "label", dir: "auto" }, cut(visible(feature.label), 200));
    if (feature.sensitive) {
      label.classList.add("sensitive");
      label.setAttribute("tabindex", "0");
    }
    node.append(" ", label);
  }
  return node;
}

function signed(value) {
  return value > 0 ? `+${number(value, 3)}` : number(value, 3);
}

// ---- wiring

choose.addEventListener("change", () => choose.requestSubmit());
choose.addEventListener("submit", () => {
  for (const field of choose.elements) if (field.name && field.value === "") field.disabled = true;
});
window.addEventListener("pageshow", () => {
  for (const field of choose.elements) field.disabled = false;
});
document.documentElement.dataset.ready = "pairs";
