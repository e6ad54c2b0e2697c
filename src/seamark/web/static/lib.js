// What several pages share. No side effects: importing it changes nothing.

// The characters that show/html.py marks; a test compares the two.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\u{1bca0}-\u{1bca3}\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}\u{f0000}-\u{10ffff}]/gu;

/** Text with every character that acts unseen replaced by a mark, as `seamark.show.html.visible` does. */
export function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(HIDDEN, (sign) => {
    const code = sign.codePointAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "␡" : `⟦U+${code.toString(16).toUpperCase().padStart(4, "0")}⟧`;
  });
}

/** The first `limit` characters (code points) of a text, and an ellipsis where more were left out. */
export function cut(text, limit) {
  if (text.length <= limit) return text;
  const signs = Array.from(text);
  return signs.length <= limit ? text : `${signs.slice(0, limit).join("")}…`;
}

/** A number with `digits` significant digits, as `show.numbers.number` writes it; a dash where there is none. */
export function number(value, digits = 2) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const text = Math.abs(value) >= 10 ** (digits - 1) ? Math.round(value).toLocaleString("en") : value.toPrecision(digits);
  return text.replace("-", "−");
}

/** A whole number with thousands. */
export function thousands(value) {
  return value.toLocaleString("en");
}

/** An element with attributes and children; text becomes text nodes. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** JSON of this server's API. Throws an error whose message says what is wrong. */
export async function getJson(url, signal) {
  const response = await fetch(url, { signal, headers: { Accept: "application/json" } });
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Error(explain(body, response.status));
  return body;
}

/** Send JSON to this server's API, in the one way in which it takes what may change something. */
export async function sendJson(url, value, method = "POST", signal = undefined) {
  const headers = { Accept: "application/json", "Content-Type": "application/json", "X-Seamark": "1" };
  const response = await fetch(url, { method, signal, headers, body: JSON.stringify(value) });
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Error(explain(body, response.status));
  return body;
}

function explain(body, status) {
  const wrong = body && body.error;
  if (!wrong) return `The server answered with ${status}`;
  return [wrong.where, wrong.what, wrong.fix].filter(Boolean).join(". ");
}

/** `run` once things have been quiet for `wait` milliseconds. */
export function debounced(run, wait) {
  let timer = 0;
  const later = (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...given), wait);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
