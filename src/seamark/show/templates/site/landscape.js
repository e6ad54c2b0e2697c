"use strict";
// Points on a canvas: drag to move, wheel to zoom, Shift and drag to list, click to open. Data: data/points-*.js.
const layouts = [];
function seamarkPoints(n, points) {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const numbers = (text, kind) => new kind(bytes(text).buffer);
  layouts[n] = {
    x: numbers(points.x, Uint16Array), y: numbers(points.y, Uint16Array), row: numbers(points.row, Uint32Array), rank: numbers(points.rank, Uint32Array),
    domain: numbers(points.domain, Uint8Array), sae: numbers(points.sae, Uint16Array),
  };
  window.dispatchEvent(new CustomEvent("seamark-points", { detail: n }));
}

addEventListener("DOMContentLoaded", () => {
  const at = (id) => document.getElementById(id);
  const about = seamark.about;
  const canvas = at("map");
  if (!about || !canvas) return;
  const context = canvas.getContext("2d");
  const hidden = new Set();
  const FULL = 65535, COLOURS = 8, NONE_ = 255, LISTED = 60;
  let data = null, view = { x: 0, y: 0, size: FULL }, sae = null, box = null, asked = 0, scale = 1;

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (domain) => style(domain === NONE_ ? "--none" : `--d${domain % COLOURS}`);
  const visible = (i) => !hidden.has(data.domain[i]) && (sae === null || data.sae[i] === sae);
  const screenX = (x) => (x - view.x) * scale;
  const screenY = (y) => canvas.clientHeight - (y - view.y) * scale;
  const dataX = (x) => x / scale + view.x;
  const dataY = (y) => (canvas.clientHeight - y) / scale + view.y;

  let due = false;
  const draw = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      const ratio = window.devicePixelRatio || 1;
      const width = canvas.clientWidth, height = canvas.clientHeight;
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      scale = Math.min(width, height) / view.size;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      if (!data) return;
      const dot = Math.min(6, Math.max(1.5, 2.2 * Math.sqrt((FULL / view.size) * Math.min(1, 20000 / data.row.length))));
      for (const domain of [NONE_, ...about.domains.keys()]) {
        context.fillStyle = colour(domain);
        for (let i = 0; i < data.row.length; i++) {
          if (data.domain[i] !== domain || !visible(i)) continue;
          const x = screenX(data.x[i]), y = screenY(data.y[i]);
          if (x > -dot && y > -dot && x < width + dot && y < height + dot) context.fillRect(x - dot / 2, y - dot / 2, dot, dot);
        }
      }
      if (box) {
        context.strokeStyle = style("--ink");
        context.strokeRect(Math.min(box.x0, box.x1), Math.min(box.y0, box.y1), Math.abs(box.x1 - box.x0), Math.abs(box.y1 - box.y0));
      }
    });
  };
  const nearest = (x, y, reach) => {
    let best = -1, least = reach * reach;
    for (let i = 0; data && i < data.row.length; i++) {
      const dx = screenX(data.x[i]) - x, dy = screenY(data.y[i]) - y, far = dx * dx + dy * dy;
      if (far < least && visible(i)) {
        least = far;
        best = i;
      }
    }
    return best;
  };
  const tell = async (i) => {
    const mine = ++asked;
    if (i < 0) {
      at("tip").hidden = true;
      return;
    }
    const entry = await row(data.row[i]);
    if (mine !== asked) return;
    at("tip").replaceChildren(element("strong", `${about.saes[entry[SAE]] ?? ""} #${entry[LATENT]} `), said(entry));
    at("tip").hidden = false;
  };
  const list = async () => {
    const [x0, x1] = [box.x0, box.x1].map(dataX).sort((a, b) => a - b);
    const [y0, y1] = [box.y0, box.y1].map(dataY).sort((a, b) => a - b);
    const found = [];
    for (let i = 0; i < data.row.length; i++) {
      if (visible(i) && data.x[i] >= x0 && data.x[i] <= x1 && data.y[i] >= y0 && data.y[i] <= y1) found.push(i);
    }
    found.sort((a, b) => data.rank[a] - data.rank[b]); // best scores first
    const entries = await Promise.all(found.slice(0, LISTED).map((i) => row(data.row[i])));
    at("results").replaceChildren(...entries.map(card));
    at("found").textContent = `${found.length.toLocaleString("en")} features in the box${found.length > LISTED ? `, the first ${LISTED} are listed` : ""}`;
  };

  let from = null;
  const place = (event) => {
    const edge = canvas.getBoundingClientRect();
    return [event.clientX - edge.left, event.clientY - edge.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event);
    from = { x, y, view: { ...view }, moved: false };
    if (event.shiftKey) box = { x0: x, y0: y, x1: x, y1: y };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (!from) {
      tell(nearest(x, y, 12)).catch(() => {});
      return;
    }
    from.moved ||= Math.hypot(x - from.x, y - from.y) > 4;
    if (box) Object.assign(box, { x1: x, y1: y });
    else Object.assign(view, { x: from.view.x - (x - from.x) / scale, y: from.view.y + (y - from.y) / scale });
    draw();
  });
  canvas.addEventListener("pointerup", async (event) => {
    const [x, y] = place(event);
    const was = from;
    from = null;
    if (!data || !was) return;
    if (box) {
      await list();
      box = null;
    } else if (!was.moved) {
      const i = nearest(x, y, 12);
      if (i >= 0) location.href = path(await row(data.row[i]));
    }
    draw();
  });
  const zoom = (factor, x, y) => {
    const [kx, ky] = [dataX(x), dataY(y)];
    view.size = Math.min(2 * FULL, Math.max(FULL / 500, view.size * factor));
    scale = Math.min(canvas.clientWidth, canvas.clientHeight) / view.size;
    view.x = kx - x / scale;
    view.y = ky - (canvas.clientHeight - y) / scale;
    draw();
  };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, ...place(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (step) {
      view.x += (step[0] * view.size) / 10;
      view.y += (step[1] * view.size) / 10;
    } else if (event.key === "+" || event.key === "-") {
      zoom(event.key === "-" ? 1.2 : 1 / 1.2, canvas.clientWidth / 2, canvas.clientHeight / 2);
    } else return;
    event.preventDefault();
    draw();
  });
  const whole = () => {
    scale = Math.min(canvas.clientWidth, canvas.clientHeight) / FULL;
    view = { x: FULL / 2 - canvas.clientWidth / scale / 2, y: FULL / 2 - canvas.clientHeight / scale / 2, size: FULL };
    draw();
  };

  const legend = () => {
    const used = new Set(data.domain);
    at("legend").replaceChildren(...[...about.domains.keys(), NONE_].filter((d) => used.has(d)).map((domain) => {
      const button = element("button");
      const mark = element("i");
      mark.style.background = colour(domain);
      const name = element("bdi", domain === NONE_ ? "no tag" : about.domains[domain]);
      button.type = "button";
      button.setAttribute("aria-pressed", String(!hidden.has(domain)));
      button.append(mark, name);
      button.addEventListener("click", () => {
        if (!hidden.delete(domain)) hidden.add(domain);
        button.setAttribute("aria-pressed", String(!hidden.has(domain)));
        draw();
      });
      return button;
    }));
  };
  const show = (n) => {
    if (!layouts[n]) {
      const script = element("script");
      script.src = `${seamark.root}data/points-${n}.js`;
      document.head.append(script);
      return;
    }
    data = layouts[n];
    at("found").textContent = `${data.row.length.toLocaleString("en")} points`;
    legend();
    whole();
  };
  addEventListener("seamark-points", (event) => Number(at("layout").value) === event.detail && show(event.detail));
  at("layout").addEventListener("change", () => show(Number(at("layout").value)));
  for (const [number, name] of Object.entries(about.saes)) {
    const option = element("option", name);
    option.value = number;
    at("sae").append(option);
  }
  at("sae").addEventListener("change", () => {
    sae = at("sae").value === "" ? null : Number(at("sae").value);
    draw();
  });
  at("whole").addEventListener("click", whole);
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => data && (legend(), draw()));
  at("tools").hidden = false;
  show(0);
});
