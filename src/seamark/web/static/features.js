// Search as you type. Without it the form and the links do the same by loading pages.

import { makeCard } from "./cards.js";
import { debounced, getJson, thousands } from "./lib.js";

const form = document.getElementById("search");
const words = document.getElementById("words");
const cards = document.getElementById("cards");
const template = document.getElementById("card");
const count = document.getElementById("count");
const DEFAULTS = { sort: "score", descending: "true" };
let running = null;

/** What the form asks for, without what is empty or the default: the same address that the server writes. */
function asked() {
  const given = [...new FormData(form)].filter(([name, value]) => value !== "" && DEFAULTS[name] !== value);
  return new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
}

function matchConcepts() {
  const domain = form.elements.domain.value;
  const select = form.elements.concept;
  for (const group of select.querySelectorAll("optgroup")) {
    const fits = domain === "" || group.dataset.domain === domain;
    group.hidden = group.disabled = !fits;
    if (!fits && group.contains(select.selectedOptions[0])) select.value = "";
  }
}

async function update() {
  const query = asked();
  if (running) running.abort();
  running = new AbortController();
  const { signal } = running;
  const address = query.size ? `/features?${query}` : "/features";
  history.replaceState(null, "", address);
  cards.setAttribute("aria-busy", "true");
  try {
    query.set("previews", "true");
    const found = await getJson(`/api/v1/features?${query}`, signal);
    show(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    count.textContent = error.message;
  }
  cards.removeAttribute("aria-busy");
}

function show(found) {
  cards.replaceChildren(...found.cards.map((card, i) => makeCard(template, card, found.previews[i])));
  const many = `${found.capped ? "More than " : ""}${thousands(found.total)} ${found.total === 1 ? "feature" : "features"}`;
  count.textContent = found.total === 0 ? "No feature fits." : many;
  const first = found.query.offset + 1;
  document.getElementById("range").textContent =
    found.cards.length ? `${thousands(first)}–${thousands(first + found.cards.length - 1)}` : "";
  link("previous", found.previous);
  link("next", found.next);
  document.documentElement.dataset.found = String(found.total);
}

function link(id, query) {
  const node = document.getElementById(id);
  node.hidden = query === null;
  if (query === null) node.removeAttribute("href");
  else node.setAttribute("href", query ? `/features?${query}` : "/features");
}

const soon = debounced(update, 90);
form.addEventListener("input", (event) => {
  if (event.target.id === "more") return;
  if (event.target.name === "domain") matchConcepts();
  if (event.target.matches("select")) update();
  else soon();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  soon.cancel();
  update();
});
words.addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    soon.cancel();
    update();
  } else if (event.key === "ArrowDown") {
    const first = cards.querySelector("[data-slot=link]");
    if (first) {
      event.preventDefault();
      first.focus();
    }
  }
});
matchConcepts();
document.documentElement.dataset.ready = "features";
performance.mark("seamark-ready");
