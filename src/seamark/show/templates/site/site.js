"use strict";
// Shows blurred texts that are clicked, and searches. Data come from scripts of data/; they are only ever set as text.
const seamark = { root: document.body ? document.body.dataset.root : "", about: null, chunks: [], waiting: new Map() };

// Called by data/site.js and data/index-*.js.
function seamarkAbout(about) {
  seamark.about = about;
}
function seamarkIndex(n, rows) {
  seamark.chunks[n] = rows;
  seamark.waiting.get(n)?.done(rows);
}

const SAE = 0, LATENT = 1, LABEL = 2, STATE = 3, DOMAINS = 4, SCORE = 5, RATING = 6, WORDS = 7, SENSITIVE = 8;

const load = (n) => {
  if (seamark.chunks[n]) return Promise.resolve(seamark.chunks[n]);
  const known = seamark.waiting.get(n);
  if (known) return known.promise;
  const wait = {};
  wait.promise = new Promise((done, fail) => Object.assign(wait, { done, fail }));
  seamark.waiting.set(n, wait);
  const script = document.createElement("script");
  script.src = `${seamark.root}data/index-${n}.js`;
  script.onerror = () => {
    seamark.waiting.delete(n);
    wait.fail(new Error(`data/index-${n}.js cannot be read`));
  };
  document.head.append(script);
  return wait.promise;
};
const row = async (i) => (await load(Math.floor(i / seamark.about.size)))[i % seamark.about.size];

const element = (name, text, kind) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const NONE = { masked: "masked in its source (***)", null: "no explanation could be given", failed: "its explanation failed" };
const said = (entry) => {
  if (entry[STATE] !== "text") return element("span", NONE[entry[STATE]] ?? "not explained", "muted");
  const span = element("span", entry[LABEL], entry[SENSITIVE] ? "plain veil" : "plain");
  span.dir = "auto";
  return span;
};
const path = (entry) => `${seamark.root}features/${entry[SAE]}/${entry[LATENT]}.html`;
const card = (entry) => {
  const item = element("li", undefined, "card");
  const link = element("a", undefined, "id");
  link.href = path(entry);
  link.append(element("bdi", seamark.about.saes[entry[SAE]] ?? ""), ` #${entry[LATENT]}`);
  const text = element("p", undefined, "said");
  text.append(said(entry));
  const meta = element("p", undefined, "meta");
  for (const i of entry[DOMAINS]) {
    const chip = element("span", seamark.about.domains[i], "chip");
    chip.dir = "auto";
    meta.append(chip);
  }
  meta.append(entry[SCORE] === null ? element("span", "no score", "muted") : element("span", `score ${entry[SCORE]}`));
  if (entry[RATING] !== null) meta.append(element("span", `safety ${entry[RATING]} of 5`));
  item.append(link, text, meta);
  arm(item);
  return item;
};

// Blurred texts can be clicked, or reached with the keyboard.
const arm = (within) => {
  for (const veil of within.querySelectorAll(".veil:not([tabindex])")) {
    veil.tabIndex = 0;
    veil.setAttribute("role", "button");
    veil.setAttribute("aria-label", "Show sensitive text");
  }
};
const unveil = (veil) => {
  veil.classList.add("open");
  for (const name of ["role", "aria-label", "tabindex"]) veil.removeAttribute(name);
};
document.addEventListener("click", (event) => {
  const veil = event.target.closest?.(".veil:not(.open)");
  if (veil) unveil(veil);
});
document.addEventListener("keydown", (event) => {
  const veil = event.target.matches?.(".veil:not(.open)") ? event.target : null;
  if (veil && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    unveil(veil);
  }
});

const remember = () => {
  const box = document.getElementById("reveal");
  try {
    box.checked = localStorage.getItem("seamark-reveal") === "1";
    box.addEventListener("change", () => localStorage.setItem("seamark-reveal", box.checked ? "1" : "0"));
  } catch {
    // This browser keeps nothing for files: the box works on this page.
  }
};

const PAGE = 60;
const search = () => {
  const at = (id) => document.getElementById(id);
  const about = seamark.about;
  const choose = (select, names) => names.forEach(([value, name]) => {
    const option = element("option", name);
    option.value = value;
    select.append(option);
  });
  choose(at("domain"), about.domains.map((name, i) => [i, name]));
  choose(at("sae"), Object.entries(about.saes));
  let asked = 0;
  let shown = [];
  const more = () => {
    at("results").append(...shown.splice(0, PAGE).map(card));
    at("more").hidden = !shown.length;
  };
  const go = async () => {
    const mine = ++asked;
    const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const domain = at("domain").value === "" ? null : Number(at("domain").value);
    const sae = at("sae").value === "" ? null : Number(at("sae").value);
    const found = [];
    for (let n = 0; n < about.chunks; n++) {
      const rows = await load(n);
      if (mine !== asked) return;
      for (const entry of rows) {
        if ((domain === null || entry[DOMAINS].includes(domain)) && (sae === null || entry[SAE] === sae)
          && words.every((word) => entry[WORDS].includes(word))) found.push(entry);
      }
    }
    at("results").replaceChildren();
    shown = found.sort((a, b) => (b[SCORE] ?? -2) - (a[SCORE] ?? -2)); // rows come by autoencoder and latent
    at("found").textContent = `${found.length.toLocaleString("en")} features`;
    more();
  };
  const run = () => go().catch((error) => { at("found").textContent = error.message; });
  let timer = 0;
  at("words").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(run, 150);
  });
  for (const id of ["domain", "sae"]) at(id).addEventListener("change", run);
  at("more").addEventListener("click", more);
  at("words").value = new URLSearchParams(location.hash.slice(1)).get("q") ?? "";
  at("search").hidden = false;
  run();
};

addEventListener("DOMContentLoaded", () => {
  arm(document);
  remember();
  for (const box of document.querySelectorAll("input.go")) {
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") location.href = `${seamark.root}search.html#${new URLSearchParams({ q: box.value })}`;
    });
  }
  if (document.getElementById("search") && seamark.about) search();
});
