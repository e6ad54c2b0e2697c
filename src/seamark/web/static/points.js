// The points of a landscape: how they come, where they lie, and which of them are near a place or within a shape.

const KINDS = { uint16: Uint16Array, int16: Int16Array, int32: Int32Array, float64: Float64Array };
const CELLS = 160;

/** Header and columns of what `seamark.web.packing` packs. */
export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const columns = {};
  let at = 4 + length;
  for (const about of header.arrays) {
    const Kind = KINDS[about.type];
    const bytes = header.n * Kind.BYTES_PER_ELEMENT;
    columns[about.name] = { ...about, values: new Kind(buffer.slice(at, at + bytes)) };
    at += Math.ceil(bytes / 4) * 4;
  }
  return { header, columns };
}

/** Positions [2n] as x, y, x, y, …, and the box they lie in. */
export function positions({ header, columns }) {
  const { x, y } = columns;
  const xy = new Float32Array(2 * header.n);
  const box = { left: Infinity, right: -Infinity, low: Infinity, high: -Infinity };
  for (let i = 0; i < header.n; i++) {
    const px = (xy[2 * i] = x.start + x.step * x.values[i]);
    const py = (xy[2 * i + 1] = y.start + y.step * y.values[i]);
    box.left = Math.min(box.left, px);
    box.right = Math.max(box.right, px);
    box.low = Math.min(box.low, py);
    box.high = Math.max(box.high, py);
  }
  return { xy, box };
}

/** Points sorted into cells, so that what is under the pointer is found without looking at all of them. */
export class Grid {
  constructor(xy, box) {
    this.xy = xy;
    this.box = box;
    this.width = Math.max(box.right - box.left, 1e-9) / CELLS;
    this.height = Math.max(box.high - box.low, 1e-9) / CELLS;
    const n = xy.length / 2;
    const cells = new Uint32Array(n);
    this.starts = new Uint32Array(CELLS * CELLS + 1);
    for (let i = 0; i < n; i++) {
      cells[i] = this.column(xy[2 * i]) + CELLS * this.row(xy[2 * i + 1]);
      this.starts[cells[i] + 1] += 1;
    }
    for (let c = 0; c < CELLS * CELLS; c++) this.starts[c + 1] += this.starts[c];
    this.items = new Uint32Array(n);
    const next = this.starts.slice(0, -1);
    for (let i = 0; i < n; i++) this.items[next[cells[i]]++] = i;
  }

  column(x) {
    return Math.min(CELLS - 1, Math.max(0, Math.floor((x - this.box.left) / this.width)));
  }

  row(y) {
    return Math.min(CELLS - 1, Math.max(0, Math.floor((y - this.box.low) / this.height)));
  }

  /** Indices of the points in a box, for which `keep` is true. */
  within(left, right, low, high, keep) {
    const found = [];
    for (let row = this.row(low); row <= this.row(high); row++) {
      for (let column = this.column(left); column <= this.column(right); column++) {
        const cell = column + CELLS * row;
        for (let k = this.starts[cell]; k < this.starts[cell + 1]; k++) {
          const i = this.items[k];
          const x = this.xy[2 * i], y = this.xy[2 * i + 1];
          if (x >= left && x <= right && y >= low && y <= high && keep(i)) found.push(i);
        }
      }
    }
    return found;
  }

  /** The nearest point within `reach` of a place; -1: none is so near. */
  nearest(x, y, reach, keep) {
    let best = -1, least = reach * reach;
    for (const i of this.within(x - reach, x + reach, y - reach, y + reach, keep)) {
      const far = (this.xy[2 * i] - x) ** 2 + (this.xy[2 * i + 1] - y) ** 2;
      if (far <= least) [best, least] = [i, far];
    }
    return best;
  }

  /** Indices of the points inside a closed line of [x, y] corners. */
  inside(corners, keep) {
    const xs = corners.map((c) => c[0]), ys = corners.map((c) => c[1]);
    const box = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    return this.within(...box, (i) => keep(i) && encloses(corners, this.xy[2 * i], this.xy[2 * i + 1]));
  }
}

function encloses(corners, x, y) {
  let inside = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [xi, yi] = corners[i], [xj, yj] = corners[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}
