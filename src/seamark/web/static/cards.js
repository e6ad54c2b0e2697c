// Cards of features: copies of the page's own template, filled with text only.

import { cut, el, number, visible } from "./lib.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 96, HEIGHT = 32;

/** A card for a feature: `card` and `preview` as the API gives them. */
export function makeCard(template, card, preview) {
  const node = template.content.firstElementChild.cloneNode(true);
  const slot = (name) => node.querySelector(`[data-slot=${name}]`);
  node.dataset.id = card.id;
  slot("link").setAttribute("href", preview.url);
  slot("sae").textContent = visible(card.sae);
  slot("latent").textContent = card.latent;
  slot("tags").replaceChildren(
    ...card.domains.map((name, i) => el("li", { class: `tag k${preview.colours[i] % 8}` }, visible(name))),
  );
  const label = slot("label");
  label.textContent = visible(preview.note || cut(card.label || "", 400));
  label.classList.toggle("none", preview.note !== "");
  if (preview.sensitive && !preview.note) blur(label);
  slot("score").textContent = number(card.score);
  slot("rated").hidden = card.rating === null;
  slot("rating").textContent = card.rating === null ? "–" : card.rating;
  fillSign(slot("signed"), slot("sign"), card.sign);
  fillContext(slot("context"), slot("tokens"), preview);
  fillSketch(slot("sketch"), preview.bars);
  return node;
}

function blur(node) {
  node.classList.add("sensitive");
  node.setAttribute("tabindex", "0");
}

function fillSign(row, place, sign) {
  row.hidden = sign === null;
  if (sign === null) return;
  const words = document.querySelector(`select[name=sign] option[value="${sign}"]`);
  const name = words ? words.textContent : sign > 0 ? "preferred answers" : "rejected answers";
  place.replaceChildren(el("span", { class: `sign ${sign > 0 ? "for" : "against"}` }, `${sign > 0 ? "▲" : "▼"} ${name}`));
}

function fillContext(row, place, preview) {
  row.hidden = preview.pieces.length === 0;
  if (preview.sensitive) blur(row);
  const spans = preview.pieces.map((piece) => {
    const text = visible(piece.text);
    return piece.shade ? el("span", { class: `t for l${piece.shade}`, title: piece.title }, text) : text;
  });
  if (preview.before) spans.unshift(el("i", { class: "note" }, "… "));
  if (preview.after) spans.push(el("i", { class: "note" }, " …"));
  place.replaceChildren(...spans);
}

function fillSketch(row, bars) {
  row.hidden = bars.length === 0;
  const step = WIDTH / Math.max(1, bars.length);
  const rects = bars.map((height, i) => {
    const rect = document.createElementNS(SVG, "rect");
    const sizes = { x: i * step, y: HEIGHT * (1 - height), width: step * 0.86, height: HEIGHT * height };
    for (const [name, value] of Object.entries(sizes)) rect.setAttribute(name, value.toFixed(2));
    return rect;
  });
  row.querySelector("svg").replaceChildren(...rects);
}
