// On every page: theme, sensitive text, keys. Two cookies remember the settings; nothing else is kept.

const root = document.documentElement;
const settings = document.getElementById("settings");
const YEAR = 365 * 24 * 3600;

function remember(name, value) {
  document.cookie = `${name}=${value}; Path=/; SameSite=Strict; Max-Age=${YEAR}`;
}

function setTheme(theme) {
  root.dataset.theme = theme;
  document.querySelector("meta[name=color-scheme]").content = theme === "auto" ? "light dark" : theme;
  remember("seamark_theme", theme);
}

function setReveal(on) {
  root.toggleAttribute("data-reveal", on);
  settings.elements.reveal.checked = on;
  for (const note of document.querySelectorAll("[data-reveal-note]")) note.hidden = on;
  remember("seamark_reveal", on ? "1" : "0");
}

settings.addEventListener("submit", (event) => event.preventDefault());
settings.addEventListener("change", (event) => {
  if (event.target.name === "theme") setTheme(event.target.value);
  if (event.target.name === "reveal") setReveal(event.target.checked);
});

document.addEventListener("click", (event) => {
  const menu = settings.closest("details");
  if (menu.open && !menu.contains(event.target)) menu.open = false;
  if (event.target.closest("[data-reveal-all]")) setReveal(true);
  const text = event.target.closest(".sensitive");
  if (text && !event.target.closest("a, button, summary")) text.classList.add("shown");
});

function typing(target) {
  return target.closest("input, textarea, select, [contenteditable]") !== null;
}

function step(by) {
  const links = [...document.querySelectorAll(".card [data-slot=link]")];
  if (links.length === 0) return;
  const card = document.activeElement.closest(".card");
  const at = card ? links.findIndex((link) => card.contains(link)) : by > 0 ? -1 : links.length;
  const link = links[Math.min(Math.max(at + by, 0), links.length - 1)];
  link.focus({ preventScroll: true });
  link.closest(".card").scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") settings.closest("details").open = false;
  if (typing(event.target)) return;
  if (event.key === "/") {
    event.preventDefault();
    const search = document.querySelector("[data-search]");
    if (search) search.select();
    else location.assign("/features#words");
  } else if (event.key === "j" || event.key === "k") {
    step(event.key === "j" ? 1 : -1);
  }
});

const wanted = location.hash === "#words" && document.querySelector("[data-search]");
if (wanted) wanted.focus();
