"use strict";
// Keeps what the rater enters in this browser and saves it as CSV. All data are read from the page; nothing is sent.
(() => {
  const sheet = document.body.dataset.sheet;
  const key = "seamark-ratings-" + sheet;
  const at = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll("article[data-code]")].map((article) => ({
    article,
    code: article.dataset.code,
    radios: [...article.querySelectorAll("input[type=radio]")],
    comment: article.querySelector(".comment input"),
  }));
  const rating = (card) => card.radios.find((radio) => radio.checked)?.value ?? "";

  const state = () => ({
    rater: at("rater").value,
    cards: Object.fromEntries(cards.filter((c) => rating(c) || c.comment.value).map((c) => [c.code, [rating(c), c.comment.value]])),
  });

  let saved = "";
  let kept = true;
  const told = () => {
    const n = cards.filter((card) => rating(card)).length;
    at("progress").value = `${n} of ${cards.length} rated`;
    at("next").disabled = n === cards.length;
    for (const card of cards) card.article.classList.toggle("rated", rating(card) !== "");
  };
  const keep = () => {
    try {
      localStorage.setItem(key, JSON.stringify(state()));
      kept = true;
    } catch {
      kept = false;
      at("storage").textContent = "This browser does not keep entries: download your ratings before you close the page.";
    }
    told();
  };
  const restore = () => {
    let old = null;
    try {
      old = JSON.parse(localStorage.getItem(key) ?? "null");
    } catch {
      // Nothing readable was kept: the sheet starts empty, and the first entry tells whether this browser keeps any.
    }
    if (old === null || typeof old !== "object") return;
    at("rater").value = String(old.rater ?? "");
    for (const card of cards) {
      const [value, comment] = Array.isArray(old.cards?.[card.code]) ? old.cards[card.code] : ["", ""];
      for (const radio of card.radios) radio.checked = radio.value === String(value ?? "");
      if (!rating(card)) card.radios[0].checked = true;
      card.comment.value = String(comment ?? "");
    }
  };

  // Spreadsheet programs run what looks like a formula, also behind a separator they take for theirs.
  const harmless = (text) => text.replace(/(^|[;,\t\r\n"'|])(\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])/g, "$1$2'");
  const cell = (text) => `"${harmless(text).replaceAll('"', '""')}"`;
  const download = () => {
    const rows = cards.map((card) => [card.code, rating(card), card.comment.value]);
    const lines = [["code", "rating", "comment"], ...rows].map((row) => row.map(cell).join(",") + "\r\n");
    const link = document.createElement("a");
    const rater = at("rater").value.trim().replace(/[^\p{L}\p{N}_-]+/gu, "-") || "rater";
    link.href = URL.createObjectURL(new Blob(["\ufeff", ...lines], { type: "text/csv;charset=utf-8" }));
    link.download = `ratings-${sheet}-${rater}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    saved = JSON.stringify(state());
  };

  const go = (card) => {
    card.article.scrollIntoView({ block: "start" });
    (card.radios.find((radio) => radio.checked) ?? card.radios[0]).focus({ preventScroll: true });
  };
  const digits = (event) => {
    if (event.target.type !== "radio" || !/^[0-5]$/.test(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = cards.findIndex((card) => card.radios.includes(event.target));
    const value = event.key === "0" ? "" : event.key;
    cards[index].radios.find((radio) => radio.value === value).checked = true;
    event.preventDefault();
    keep();
    go(value && index + 1 < cards.length ? cards[index + 1] : cards[index]);
  };

  restore();
  for (const part of document.querySelectorAll(".script")) part.hidden = false;
  document.addEventListener("change", (event) => event.target.id === "reveal" || keep());
  document.addEventListener("keydown", digits);
  at("download").addEventListener("click", download);
  at("next").addEventListener("click", () => {
    const card = cards.find((c) => !rating(c));
    if (card) go(card);
  });
  addEventListener("beforeunload", (event) => {
    if (!kept && JSON.stringify(state()) !== saved) event.preventDefault();
  });
  told();
})();
