// Inspect: sends a text to the server once, then shows what fires at each token. The text is kept nowhere.

import { el, number, sendJson, thousands, visible } from "./lib.js";
import { Strip, shade } from "./strip.js";
import { showTrajectory } from "./trajectory.js";

const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 10, ROW = 18;
const NAMES = { prompt: "Prompt", response: "Answer", template: "Template" };
const STOPPED = { end: "it ended", length: "the limit was reached", time: "time was up" };

const form = document.getElementById("inspect");
const byId = (id) => document.getElementById(id);
const watched = byId("watched");
let waiting = null;
let shown = null; // { answer, strip, buttons }

// ---- asking

function flag(name) {
  const box = form.elements[name];
  return Boolean(box && box.checked);
}

function asked() {
  const plain = flag("plain"), write = flag("write") && !plain;
  const value = (name) => Number(form.elements[name].value);
  const answer = form.elements.answer.value;
  return {
    prompt: form.elements.prompt.value,
    answer: plain || write || answer === "" ? null : answer,
    chat: !plain,
    generate: write
      ? { max_new_tokens: value("max_new_tokens"), temperature: value("temperature"), seed: value("seed") }
      : null,
    watch: watched ? [{ sae: watched.dataset.sae, latent: Number(watched.dataset.latent) }] : [],
  };
}

function fitForm() {
  const plain = flag("plain");
  if (form.elements.write) form.elements.write.disabled = plain;
  const write = flag("write") && !plain;
  const writing = byId("writing");
  if (writing) writing.hidden = writing.disabled = !write;
  byId("answer-field").hidden = form.elements.answer.disabled = plain || write;
}

async function ask(path, sent, then) {
  tell("", "Reading …");
  disable(true);
  byId("stop").hidden = false;
  waiting = new AbortController();
  try {
    then(await sendJson(path, sent, "POST", waiting.signal));
    tell("", "");
  } catch (error) {
    if (error.name === "AbortError") tell("", "Stopped waiting; the server finishes what it has begun.");
    else tell(error.message, "");
  } finally {
    waiting = null;
    disable(false);
    byId("stop").hidden = true;
  }
}

function disable(on) {
  byId("read").disabled = on;
  if (byId("trace")) byId("trace").disabled = on;
}

/** Links between features of the text that is in the form now. */
function askTrajectory() {
  const { watch, ...sent } = asked();
  ask("/api/v1/trajectory", sent, showTrajectory);
}

function tell(problem, status) {
  byId("problem").textContent = visible(problem);
  byId("problem").hidden = problem === "";
  byId("status").textContent = status;
}

// ---- showing

function show(answer) {
  const { inspection } = answer;
  if (shown) shown.strip.close();
  byId("result").hidden = false;
  byId("summary").textContent = summary(inspection);
  fillNotes(inspection);
  fillChoices(answer);
  const buttons = inspection.tokens.map(makeToken);
  byId("tokens").replaceChildren(...parts(inspection.tokens, buttons));
  shown = { answer, buttons, strip: new Strip(byId("tokens"), buttons, (i) => showToken(i)) };
  fillHeat();
  colour();
  const first = inspection.tokens.findIndex((token) => token.span !== "template");
  shown.strip.select(Math.max(0, first));
  document.documentElement.dataset.inspected = String(inspection.tokens.length);
}

function summary(inspection) {
  const special = inspection.tokens.filter((token) => token.special).length;
  const words = [`${thousands(inspection.tokens.length)} tokens, ${thousands(special)} of them special`];
  words.push(`${thousands(inspection.features.length)} features are among the ${inspection.top} strongest of a token`);
  if (inspection.reward !== null) words.push(`reward ${number(inspection.reward, 3)}`);
  return `${words.join("; ")}. Activations come from ${inspection.read}.`;
}

function fillNotes(inspection) {
  const notes = [];
  if (inspection.truncated) {
    notes.push(`The text was too long: its first ${thousands(inspection.truncated)} tokens were cut off before it was read.`);
  }
  const { generated } = inspection;
  if (generated) {
    const how = generated.how.temperature > 0 ? `drawn at temperature ${generated.how.temperature}` : "the likeliest each time";
    notes.push(`The model wrote ${thousands(generated.tokens)} tokens (${how}) until ${STOPPED[generated.stopped]}.`);
  }
  for (const sae of inspection.saes) {
    if (sae.with_q === 0) notes.push(`Q is not known for ${visible(sae.id)}: its activations are shown as they are.`);
  }
  if (inspection.kind === "reward" && inspection.reward === null) notes.push(`No reward: ${inspection.reward_reason}.`);
  byId("notes").replaceChildren(...notes.map((text) => el("li", {}, text)));
  byId("notes").hidden = notes.length === 0;
}

function makeToken(token, i) {
  const text = visible(token.text);
  const button = el("button", { type: "button", class: "tok", "data-i": String(i), dir: "auto" });
  if (token.special) button.classList.add("special");
  if (text === "") {
    button.classList.add("empty");
    button.setAttribute("aria-label", "part of a character");
    button.textContent = "·";
  } else {
    if (text.trim() === "") button.setAttribute("aria-label", text.includes("\n") ? "line break" : "space");
    button.textContent = text.replaceAll("\n", "⏎\n");
  }
  return button;
}

/** Tokens in groups of one part of the conversation, each with its name. */
function parts(tokens, buttons) {
  const groups = [];
  for (const [i, token] of tokens.entries()) {
    if (i === 0 || tokens[i - 1].span !== token.span) {
      const name = NAMES[token.span];
      const group = el("div", { class: `part ${token.span}`, role: "group", "aria-label": name });
      group.append(el("span", { class: "part-name", "aria-hidden": "true" }, name));
      groups.push(group);
    }
    groups[groups.length - 1].append(buttons[i]);
  }
  return groups;
}

function showToken(i) {
  const { inspection, links } = shown.answer;
  const token = inspection.tokens[i];
  const text = visible(token.text);
  byId("token-title").textContent = `Token ${thousands(i + 1)} of ${thousands(inspection.tokens.length)}`;
  const kind = token.special ? "special token, stands for no text" : NAMES[token.span].toLowerCase();
  byId("token-about").replaceChildren(el("code", { dir: "auto" }, text || "·"), ` ${kind}, id ${token.id}`);
  const known = token.firings.filter(([, , normalised]) => normalised !== null);
  const raw = token.firings.filter(([, , normalised]) => normalised === null);
  const row = (firing) => makeRow(firing, inspection.features[firing[0]], links[firing[0]]);
  byId("features").replaceChildren(...known.map(row));
  byId("raw-features").replaceChildren(...raw.map(row));
  byId("raw").hidden = raw.length === 0;
  const left = token.n_firing - token.firings.length;
  byId("left-out").textContent =
    token.n_firing === 0 ? "No feature fires here." : left ? `${thousands(left)} weaker features are left out.` : "";
  byId("spoken").textContent = spoken(token, inspection, links);
  for (const mark of document.querySelectorAll("#heat-rows .here")) mark.setAttribute("x", String(i * COLUMN));
}

/** What a screen reader says of a token; the list behind it is there to be read. */
function spoken(token, inspection, links) {
  const [first] = token.firings;
  if (!first) return "No feature fires here.";
  const feature = inspection.features[first[0]];
  const name = links[first[0]].sensitive || !feature.label ? `${feature.sae} ${feature.latent}` : feature.label;
  const strength = first[2] === null ? `activation ${number(first[1])}` : `${number(first[2])} of Q`;
  return `${thousands(token.n_firing)} features. Strongest: ${visible(name)}, ${strength}.`;
}

function makeRow([, activation, normalised], feature, link) {
  const node = byId("feature-row").content.firstElementChild.cloneNode(true);
  const slot = (name) => node.querySelector(`[data-slot=${name}]`);
  const name = slot("link");
  name.textContent = `${visible(feature.sae)} ${feature.latent}`;
  if (link.url) name.setAttribute("href", link.url);
  slot("hookpoint").textContent = feature.hookpoint;
  slot("value").textContent = normalised === null ? `z ${number(activation)}` : number(normalised);
  if (normalised === null) slot("bar").remove();
  else slot("bar").lastElementChild.setAttribute("width", String(Math.min(100, 100 * normalised)));
  const label = slot("label");
  label.textContent = link.note || visible(feature.label || "");
  label.classList.toggle("none", link.note !== "");
  if (link.sensitive) {
    label.classList.add("sensitive");
    label.setAttribute("tabindex", "0");
  }
  slot("tags").replaceChildren(
    ...feature.domains.map((domain, k) => el("li", { class: `tag k${link.colours[k] % 8}` }, visible(domain))),
  );
  const about = [];
  if (normalised !== null) about.push(`z ${number(activation)}, Q ${number(feature.q)}`);
  if (feature.score !== null) about.push(`score ${number(feature.score)}`);
  if (feature.rating !== null) about.push(`safety rating ${feature.rating}`);
  slot("about").textContent = about.join(" · ");
  return node;
}

// ---- colours

function fillChoices({ inspection }) {
  const before = byId("shade").value;
  const choices = inspection.watched.map((w, i) => [`watched:${i}`, `${visible(w.sae)} ${w.latent}`]);
  choices.push(["strongest", "the strongest feature"]);
  for (const domain of new Set(inspection.heat.map((row) => row.domain))) choices.push([`domain:${domain}`, visible(domain)]);
  byId("shade").replaceChildren(...choices.map(([value, name]) => el("option", { value }, name)));
  if (choices.some(([value]) => value === before)) byId("shade").value = before;
}

/** What colours each token, and the unit that is the full shade. */
function levels() {
  const { inspection } = shown.answer;
  const [kind, rest] = byId("shade").value.split(/:(.*)/s);
  if (kind === "domain") return { values: ofDomain(rest), own: false };
  if (kind === "watched") {
    const feature = inspection.watched[Number(rest)];
    return scaled(feature.activations, feature.q);
  }
  const strongest = inspection.tokens.map((token) => token.firings[0]);
  if (strongest.some((firing) => firing && firing[2] !== null)) {
    return { values: strongest.map((firing) => (firing && firing[2]) || 0), own: false };
  }
  return scaled(strongest.map((firing) => (firing ? firing[1] : 0)), null);
}

function scaled(values, unit) {
  const full = unit || Math.max(...values, 0) || 1;
  return { values: values.map((value) => value / full), own: unit === null };
}

function ofDomain(domain) {
  const { inspection } = shown.answer;
  const rows = inspection.heat.filter((row) => row.domain === domain);
  return inspection.tokens.map((_, i) => Math.max(0, ...rows.map((row) => row.values[i] || 0)));
}

function colour() {
  const { values, own } = levels();
  byId("unit").textContent = own ? "as a share of the strongest here" : "as a share of Q";
  for (const [i, button] of shown.buttons.entries()) {
    button.classList.remove("t", "for", ...[...button.classList].filter((name) => /^l\d+$/.test(name)));
    const name = shade(values[i]);
    if (name) button.classList.add("t", "for", name);
    button.title = name ? `${number(values[i])} ${own ? "of the strongest here" : "of Q"}` : "";
  }
}

// ---- domains

function fillHeat() {
  const { inspection, colours } = shown.answer;
  byId("heat").hidden = inspection.heat.length === 0;
  byId("heat-rows").replaceChildren(...heatRows(inspection).map((row) => makeHeatRow(row, colours[row.domain] || 0)));
}

function heatRows(inspection) {
  if (byId("by-hookpoint").checked) {
    return inspection.heat.map((row) => ({ ...row, name: `${visible(row.domain)} at ${row.hookpoint}` }));
  }
  const domains = [...new Set(inspection.heat.map((row) => row.domain))];
  return domains.map((domain) => {
    const rows = inspection.heat.filter((row) => row.domain === domain);
    const values = inspection.tokens.map((_, i) => {
      const known = rows.map((row) => row.values[i]);
      const best = Math.max(0, ...known.map((value) => value || 0));
      return best === 0 && known.includes(null) ? null : best;
    });
    return { domain, name: visible(domain), values };
  });
}

function makeHeatRow(row, number_) {
  const n = row.values.length;
  const svg = document.createElementNS(SVG, "svg");
  const size = { class: "heat-row", width: n * COLUMN, height: ROW, viewBox: `0 0 ${n * COLUMN} ${ROW}`, "aria-hidden": "true" };
  for (const [name, value] of Object.entries(size)) svg.setAttribute(name, String(value));
  svg.append(rect("here", Math.max(0, shown.strip ? shown.strip.at : 0) * COLUMN, COLUMN));
  for (const [i, value] of row.values.entries()) {
    if (value === 0) continue;
    const cell = rect(value === null ? "unknown" : `c${number_ % 8}`, i * COLUMN, COLUMN - 1);
    if (value !== null) cell.setAttribute("fill-opacity", (0.2 + 0.8 * Math.min(1, value)).toFixed(2));
    svg.append(cell);
  }
  svg.addEventListener("click", (event) => {
    const place = svg.getBoundingClientRect();
    shown.strip.select(Math.min(n - 1, Math.floor(((event.clientX - place.left) / place.width) * n)), true);
  });
  const most = Math.max(...row.values.map((value) => value || 0));
  return el("tr", {}, el("th", { scope: "row" }, row.name), el("td", { class: "n" }, number(most)), el("td", {}, svg));
}

function rect(name, x, width) {
  const node = document.createElementNS(SVG, "rect");
  const size = { class: name, x, y: 0, width, height: ROW };
  for (const [key, value] of Object.entries(size)) node.setAttribute(key, String(value));
  return node;
}

// ---- wiring

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (waiting) return;
  if (byId("trajectory")) byId("trajectory").hidden = true;
  ask("/api/v1/inspect", asked(), show);
});
form.addEventListener("change", fitForm);
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
byId("stop").addEventListener("click", () => waiting && waiting.abort());
if (byId("trace")) byId("trace").addEventListener("click", () => !waiting && form.reportValidity() && askTrajectory());
byId("shade").addEventListener("change", colour);
byId("by-hookpoint").addEventListener("change", () => shown && fillHeat());
fitForm();
document.documentElement.dataset.ready = "inspect";
