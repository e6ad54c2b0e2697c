// Drawing points: WebGL 2 where there is any, else a 2-D canvas. Both are told positions, colours and states.

const VERTEX = `#version 300 es
in vec2 place;
in vec2 look; // colour, state: 0 hidden, 1 shown, 2 chosen
uniform vec2 centre, reach;
uniform float size;
uniform vec3 colours[9];
uniform float dim;
uniform float plain;
out vec4 colour;
out float edge; // where a point begins to fade, as a share of its size; small ones are squares
void main() {
  gl_Position = look.y < 0.5 ? vec4(2.0, 2.0, 2.0, 1.0) : vec4((place - centre) / reach, 0.0, 1.0);
  bool chosen = look.y > 1.5;
  gl_PointSize = chosen ? size * 1.5 : size;
  edge = gl_PointSize < 4.0 ? 1.0 : 0.5 - 1.0 / gl_PointSize;
  float alpha = chosen ? 1.0 : (look.x > 7.5 ? plain : 0.8) * dim;
  colour = vec4(colours[int(look.x)] * alpha, alpha);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 colour;
in float edge;
out vec4 shown;
void main() {
  float far = length(gl_PointCoord - 0.5);
  shown = edge > 0.5 ? colour : colour * smoothstep(0.5, edge, far);
}`;

/** Something that can draw, for a canvas: its `kind` is "webgl2" or "2d". */
export function drawerFor(canvas, xy, order) {
  const gl = canvas.getContext("webgl2", { antialias: false, powerPreference: "low-power" });
  if (gl) {
    const drawer = new WebGLDrawer(gl, xy, order);
    if (drawer.works) return drawer;
    const fresh = canvas.cloneNode(true);
    canvas.replaceWith(fresh);
    return new PlainDrawer(fresh, xy, order);
  }
  return new PlainDrawer(canvas, xy, order);
}

class WebGLDrawer {
  constructor(gl, xy, order) {
    this.kind = "webgl2";
    this.canvas = gl.canvas;
    this.gl = gl;
    this.xy = xy;
    this.order = order;
    this.looks = new Uint8Array(xy.length);
    this.works = this.prepare();
    this.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    this.canvas.addEventListener("webglcontextrestored", () => {
      this.works = this.prepare();
      this.canvas.dispatchEvent(new Event("redraw"));
    });
  }

  prepare() {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return false;
    gl.useProgram(program);
    this.at = {};
    for (const name of ["centre", "reach", "size", "colours", "dim", "plain"]) this.at[name] = gl.getUniformLocation(program, name);
    this.attribute(program, "place", this.xy, gl.FLOAT);
    this.lookBuffer = this.attribute(program, "look", this.looks, gl.UNSIGNED_BYTE);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, this.order, gl.STATIC_DRAW);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    return true;
  }

  attribute(program, name, values, kind) {
    const { gl } = this;
    const buffer = gl.createBuffer();
    const at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, 2, kind, false, 0, 0);
    return buffer;
  }

  setLooks(looks) {
    this.looks = looks;
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.lookBuffer);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, looks, this.gl.DYNAMIC_DRAW);
  }

  setColours(colours) {
    this.gl.uniform3fv(this.at.colours, colours.flat().map((part) => part / 255));
  }

  draw({ x, y, scale, width, height, ratio, size, dim, plain }) {
    const { gl } = this;
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(this.at.centre, x, y);
    gl.uniform2f(this.at.reach, width / 2 / scale, height / 2 / scale);
    gl.uniform1f(this.at.size, size * ratio);
    gl.uniform1f(this.at.dim, dim);
    gl.uniform1f(this.at.plain, plain);
    gl.drawElements(gl.POINTS, this.order.length, gl.UNSIGNED_INT, 0);
  }
}

/** Without WebGL: pixels are mixed here, which for many points is much faster than a canvas's own shapes. */
class PlainDrawer {
  constructor(canvas, xy, order) {
    this.kind = "2d";
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.xy = xy;
    this.order = order;
    this.looks = new Uint8Array(xy.length);
    this.colours = [];
    this.paper = [255, 255, 255];
    this.image = null;
  }

  setLooks(looks) {
    this.looks = looks;
  }

  setColours(colours, paper) {
    this.colours = colours;
    this.paper = paper;
  }

  clean() {
    const { width, height } = this.canvas;
    if (!this.image || this.image.width !== width || this.image.height !== height) {
      this.image = this.context.createImageData(width, height);
    }
    const [red, green, blue] = this.paper;
    const pixel = new Uint8ClampedArray([red, green, blue, 255]);
    new Uint32Array(this.image.data.buffer).fill(new Uint32Array(pixel.buffer)[0]);
  }

  draw({ x, y, scale, width, height, ratio, size, dim, plain }) {
    this.clean();
    const { xy, looks, colours } = this;
    for (const i of this.order) {
      const state = looks[2 * i + 1];
      if (state === 0) continue;
      const colour = looks[2 * i];
      const px = (width / 2 + (xy[2 * i] - x) * scale) * ratio, py = (height / 2 - (xy[2 * i + 1] - y) * scale) * ratio;
      const alpha = state === 2 ? 1 : (colour === 8 ? plain : 0.8) * dim;
      this.dot(px, py, ((state === 2 ? 1.5 : 1) * size * ratio) / 2, colours[colour], alpha);
    }
    this.context.putImageData(this.image, 0, 0);
  }

  dot(px, py, radius, [red, green, blue], alpha) {
    const { width, height, data } = this.image;
    const left = Math.max(0, Math.ceil(px - radius)), right = Math.min(width - 1, Math.floor(px + radius));
    const top = Math.max(0, Math.ceil(py - radius)), bottom = Math.min(height - 1, Math.floor(py + radius));
    const round = radius > 1.5 ? radius * radius : Infinity;
    for (let row = top; row <= bottom; row++) {
      for (let column = left; column <= right; column++) {
        if ((column - px) ** 2 + (row - py) ** 2 > round) continue;
        const at = 4 * (row * width + column);
        data[at] += (red - data[at]) * alpha;
        data[at + 1] += (green - data[at + 1]) * alpha;
        data[at + 2] += (blue - data[at + 2]) * alpha;
      }
    }
  }
}
