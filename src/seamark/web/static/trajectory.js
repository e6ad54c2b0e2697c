// Trajectories on the page Inspect: features by token and layer, and what each adds to the later ones.

import { cut, el, number, thousands, visible } from "./lib.js";
import { Strip } from "./strip.js";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 110, STEP = 26, GAP = 18, ROW = 84, TOP = 40, FOOT = 84, SIZE = 8;
const LEVELS = { word: "word-level", concept: "concept-level" };
const byId = (id) => document.getElementById(id);
let shown = null; // { answer, places, nodes, lines, strip }

export function showTrajectory(answer) {
  if (shown && shown.strip) shown.strip.close();
  const { trajectory } = answer;
  byId("trajectory").hidden = false;
  byId("trajectory-summary").textContent = summary(trajectory);
  byId("trajectory-problem").textContent = trajectory.nodes.length ? "" : "No feature fires in this text.";
  shown = { answer, strip: null };
  draw();
  fillPaths();
  byId("trajectory-panel").hidden = trajectory.nodes.length === 0;
  if (trajectory.nodes.length) {
    shown.strip = new Strip(byId("graph"), shown.nodes, (i) => select(shown.order[i]));
    const [path] = trajectory.paths;
    goTo(path ? path.nodes[path.nodes.length - 1] : shown.order[0], false);
    const graph = byId("graph"), mark = graph.querySelector("[aria-current]").getBoundingClientRect();
    graph.scrollLeft += mark.left - graph.getBoundingClientRect().left - graph.clientWidth / 2;
  }
  document.documentElement.dataset.traced = String(trajectory.nodes.length);
}

/** Select the feature with this place in the trajectory. */
function goTo(node, byHand = true) {
  shown.strip.select(shown.order.indexOf(node), byHand);
}

// ---- words

function estimate({ value, low, high, reason }, write) {
  if (value === null) return `not available (${reason})`;
  return low === null ? write(value) : `${write(value)} (95 % interval ${write(low)} to ${write(high)})`;
}

const percent = (value) => `${number(100 * value, 3)} %`;

function summary(trajectory) {
  const words = [`${thousands(trajectory.nodes.length)} features and ${thousands(trajectory.links.length)} links in ${outputOf(trajectory)}`];
  const { between } = trajectory;
  if (between.links) {
    words.push(`Of the links between features ${thousands(between.links)} were checked by ablation: rank correlation `
      + `${estimate(between.spearman, (value) => number(value))}, same sign ${estimate(between.same_sign, percent)}`);
  } else words.push("No link was checked by ablation");
  const { features, checks } = trajectory.left_out;
  if (features || checks) {
    words.push(`Out of time: no links into ${thousands(features)} features were looked for, and ${thousands(checks)} ablations were left out`);
  }
  return `${words.join(". ")}.`;
}

function outputOf({ output, output_reason: reason }) {
  if (output === null) return `a text without an output (${reason})`;
  if (output.kind === "reward") return `a text with the reward ${number(output.value, 3)}`;
  return `a text with the logit ${number(output.value, 3)} of “${piece(output.token)}” behind token ${thousands(output.at + 1)}`;
}

const nameOf = (node) => `${visible(node.sae)} ${node.latent}`;

function tokenOf(node) {
  return piece(shown.answer.trajectory.tokens[node.token].text);
}

/** A token on one line: white space alone shows as signs. */
function piece(text) {
  const seen = visible(text);
  return seen.trim().replaceAll("\n", "⏎") || seen.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "·";
}

function strengthOf(node) {
  return node.normalised === null ? `z ${number(node.activation)}` : `${number(node.normalised)} of Q`;
}

/** What a link adds, in words. */
function effectOf(link) {
  const { nodes } = shown.answer.trajectory;
  const write = (value) => {
    const text = link.target === null ? number(value) : percent(value / nodes[link.target].activation);
    return value > 0 ? `+${text}` : text;
  };
  return link.ablation === null ? write(link.effect) : `${write(link.effect)}, ablation ${write(link.ablation)}`;
}

function spoken(node, i) {
  const link = shown.answer.links[i];
  const label = node.label && !link.sensitive && link.note === "" ? `, ${cut(visible(node.label), 120)}` : "";
  const level = node.level.level ? `, ${LEVELS[node.level.level]}` : "";
  return `${nameOf(node)} at “${tokenOf(node)}”, ${node.hookpoint}${label}${level}, ${strengthOf(node)}`;
}

// ---- the graph

function make(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** Where each node stands: a column for each token that has any, a row for each hookpoint, the last one on top. */
function placed({ nodes, hookpoints }) {
  const cells = new Map();
  for (const [i, node] of nodes.entries()) {
    const key = `${node.token} ${node.hookpoint}`;
    cells.set(key, [...(cells.get(key) || []), i]);
  }
  const columns = [];
  let x = LEFT;
  for (const token of [...new Set(nodes.map((node) => node.token))].sort((a, b) => a - b)) {
    const widest = Math.max(...hookpoints.map((name) => (cells.get(`${token} ${name}`) || []).length));
    columns.push({ token, x: x + (widest * STEP) / 2 });
    for (const [row, name] of hookpoints.entries()) {
      const here = cells.get(`${token} ${name}`) || [];
      const from = x + ((widest - here.length + 1) * STEP) / 2;
      for (const [k, i] of here.entries()) cells.set(i, { x: from + k * STEP, y: TOP + ROW * (hookpoints.length - row) });
    }
    x += widest * STEP + GAP;
  }
  return { columns, width: x, at: nodes.map((_, i) => cells.get(i)) };
}

function draw() {
  const { trajectory } = shown.answer;
  const { nodes, hookpoints, links, output, tokens } = trajectory;
  const { columns, width, at } = placed(trajectory);
  const height = TOP + ROW * hookpoints.length + FOOT;
  const out = { x: LEFT + (width - LEFT) / 2, y: TOP };
  const back = hookpoints.map((name, row) => {
    const y = TOP + ROW * (hookpoints.length - row);
    return make("g", { "aria-hidden": "true" }, make("line", { class: "row", x1: LEFT - 10, x2: width, y1: y, y2: y }),
      make("text", { class: "row-name", x: LEFT - 18, y: y + 4, "text-anchor": "end" }, name));
  });
  const feet = columns.map(({ token, x }) => make("text", { class: "foot", "aria-hidden": "true", "text-anchor": "end",
    transform: `translate(${x + 4} ${TOP + ROW * hookpoints.length + 22}) rotate(-40)` }, cut(piece(tokens[token].text), 12)));
  shown.lines = links.map((link) => line(link, at[link.source], link.target === null ? out : at[link.target]));
  shown.order = nodes.map((_, i) => i).sort((a, b) => at[a].y - at[b].y || at[a].x - at[b].x);
  shown.nodes = shown.order.map((i, place) => mark(nodes[i], i, place, at[i]));
  const top = output === null ? [] : [make("g", { class: "output", "aria-hidden": "true" },
    make("path", { d: `M${out.x} ${out.y - 9}l9 9l-9 9l-9 -9z` }),
    make("text", { x: out.x, y: out.y - 16, "text-anchor": "middle" }, output.kind === "reward" ? `reward ${number(output.value, 3)}`
      : `“${cut(piece(output.token), 12)}” ${number(output.value, 3)}`))];
  byId("graph").replaceChildren(make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Features by token and layer" },
    ...back, ...feet, ...shown.lines, ...top, ...shown.nodes));
}

function line(link, from, to) {
  const half = (from.y + to.y) / 2;
  const sign = link.effect > 0 ? "more" : "less";
  const width = link.share === null ? 1.5 : Math.min(6, 1 + 5 * Math.abs(link.share));
  return make("path", { class: `link ${sign}${link.ablation === null ? "" : " checked"}`, "stroke-width": width.toFixed(1), "aria-hidden": "true",
    d: `M${from.x} ${from.y}C${from.x} ${half} ${to.x} ${half} ${to.x} ${to.y}` });
}

function mark(node, i, place, { x, y }) {
  const shape = node.level.level === "word"
    ? make("rect", { x: x - SIZE + 1, y: y - SIZE + 1, width: 2 * SIZE - 2, height: 2 * SIZE - 2 })
    : make("circle", { cx: x, cy: y, r: SIZE });
  const name = spoken(node, i);
  return make("g", { class: `node ${node.level.level || "unknown"}`, "data-i": place, role: "button", "aria-label": name },
    make("title", {}, name), make("circle", { class: "reach", cx: x, cy: y, r: 13 }), shape);
}

// ---- one feature

function select(i) {
  const { trajectory, links: pages } = shown.answer;
  const node = trajectory.nodes[i], page = pages[i];
  for (const [k, link] of trajectory.links.entries()) shown.lines[k].classList.toggle("on", link.source === i || link.target === i);
  const name = byId("node-link");
  name.textContent = nameOf(node);
  if (page.url) name.setAttribute("href", page.url);
  else name.removeAttribute("href");
  const label = byId("node-label");
  label.textContent = page.note || visible(node.label || "");
  label.className = `label${page.note ? " none" : ""}${page.sensitive ? " sensitive" : ""}`;
  if (page.sensitive) label.setAttribute("tabindex", "0");
  else label.removeAttribute("tabindex");
  const { level } = node;
  const fires = level.level === null ? `level not available: ${level.reason}`
    : `${LEVELS[level.level]}: ${thousands(level.types)} different tokens in ${thousands(level.firings)} firings, the commonest ${percent(level.commonest)}`;
  byId("node-about").textContent = `${node.hookpoint}, at “${tokenOf(node)}”, ${strengthOf(node)}; ${fires}.`;
  fillLinks("node-from", trajectory.links.filter((link) => link.target === i), (link) => link.source);
  fillLinks("node-to", trajectory.links.filter((link) => link.source === i), (link) => link.target);
}

function fillLinks(id, links, other) {
  const { nodes } = shown.answer.trajectory;
  const items = links.map((link) => el("li", {}, jump(other(link)), ` ${effectOf(link)}`));
  byId(id).replaceChildren(...(items.length ? items : [el("li", { class: "muted" }, nodes.length ? "none that is shown" : "")]));
}

/** A button that selects a feature; the output is no feature. */
function jump(i) {
  if (i === null) return el("b", {}, "the output");
  const node = shown.answer.trajectory.nodes[i];
  const button = el("button", { type: "button", class: "plain", dir: "auto" }, `${nameOf(node)} at “${cut(tokenOf(node), 20)}”`);
  button.addEventListener("click", () => goTo(i));
  return button;
}

function fillPaths() {
  const { paths, output } = shown.answer.trajectory;
  const items = paths.map((path) => {
    const item = el("li", {});
    for (const [k, i] of path.nodes.entries()) item.append(...(k ? [" → "] : []), jump(i));
    if (path.reaches_output && output !== null) item.append(" → ", jump(null));
    return item;
  });
  byId("paths").replaceChildren(...(items.length ? items : [el("li", {}, "No feature is linked to another.")]));
}
