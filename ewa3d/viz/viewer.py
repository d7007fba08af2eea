"""The page that `html.page` fills in: a small WebGL viewer, written for ewa3d and needing nothing else.

All panels turn together: one camera, one WebGL canvas that draws panel after panel and is copied to each panel's own.
A point is a square that the shader cuts and shades as a ball, as `scene` paints its balls.
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%TITLE%</title>
<style>
  body { margin: 1.5rem; font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; }
  h1 { font-size: 1.15rem; margin: 0; }
  #hint { margin: 0 0 1rem; color: #6b7280; }
  #grid { display: grid; gap: 1.2rem .6rem; grid-template-columns: repeat(var(--columns), minmax(0, 24rem)); }
  @media (max-width: 40rem) { #grid { grid-template-columns: minmax(0, 24rem); } }
  figure { margin: 0; text-align: center; }
  canvas { width: 100%; aspect-ratio: 1 / .85; display: block; cursor: grab; touch-action: none; }
  canvas:active { cursor: grabbing; }
  .wrong { color: %WRONG%; font-weight: 600; }
  .legend span { display: inline-block; margin: 0 .5em; }
  .legend i { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .35em; }
</style>
</head>
<body>
<h1>%TITLE%</h1>
<p id="hint">Drag to turn, wheel or pinch to zoom, double click to go back.</p>
<div id="grid"></div>
<script id="scene" type="application/json">%SCENE%</script>
<script>
"use strict";
const scene = JSON.parse(document.getElementById("scene").textContent);
const look = scene.look;
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));

// one hidden canvas draws, twice as large as shown, so that edges are smooth
const stage = document.createElement("canvas");
const gl = stage.getContext("webgl2", { antialias: false, alpha: false });

const vertexShader = `#version 300 es
in vec3 point; in vec3 color; in float radius;
uniform mat3 turn; uniform vec3 center; uniform float extent, eyeDistance, height, fog; uniform vec2 focal;
out vec3 base; out vec2 depths;
void main() {
  vec3 seen = turn * (point - center);                 // right, up, towards the eye
  float away = eyeDistance - seen.z;
  float depth = -seen.z / (1.5 * extent);              // -1 nearest, 1 farthest
  gl_Position = vec4(seen.xy * focal, depth * away, away);
  gl_PointSize = radius * focal.y / away * height;
  base = mix(color, vec3(1), fog * clamp(0.5 - seen.z / (2.0 * extent), 0.0, 1.0));
  depths = vec2(depth, radius / (1.5 * extent));
}`;
const fragmentShader = `#version 300 es
precision highp float;
in vec3 base; in vec2 depths; uniform vec3 light; uniform float ambient, shine; out vec4 pixel;
void main() {
  vec2 place = vec2(2.0, -2.0) * (gl_PointCoord - 0.5);
  float flat2 = dot(place, place);
  if (flat2 > 1.0) discard;
  vec3 normal = vec3(place, sqrt(1.0 - flat2));
  float lit = dot(normal, light);
  vec3 color = base * (ambient + (1.0 - ambient) * clamp(0.5 + 0.6 * lit, 0.0, 1.0));
  pixel = vec4(mix(color, vec3(1), shine * pow(max(lit, 0.0), 10.0)), 1);
  gl_FragDepth = 0.5 + 0.5 * (depths.x - normal.z * depths.y);
}`;

function makeProgram() {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertexShader], [gl.FRAGMENT_SHADER, fragmentShader]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  gl.clearColor(1, 1, 1, 1);
  return program;
}

function upload(program, panel) {
  const cloud = gl.createVertexArray();
  gl.bindVertexArray(cloud);
  for (const [name, text, width, type] of [
    ["point", panel.points, 3, gl.FLOAT], ["color", panel.colors, 3, gl.UNSIGNED_BYTE],
    ["radius", panel.radii, 1, gl.FLOAT]]) {
    const where = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, bytes(text), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(where);
    gl.vertexAttribPointer(where, width, type, true, 0, 0);
  }
  return cloud;
}

function makeFigure(panel) {
  const figure = document.getElementById("grid").appendChild(document.createElement("figure"));
  const caption = figure.appendChild(document.createElement("figcaption"));
  caption.textContent = panel.caption;
  caption.className = panel.wrong ? "wrong" : "";
  const canvas = figure.appendChild(document.createElement("canvas"));
  const legend = figure.appendChild(document.createElement("div"));
  legend.className = "legend";
  for (const [name, color] of panel.legend) {
    const entry = legend.appendChild(document.createElement("span"));
    entry.appendChild(document.createElement("i")).style.background = `rgb(${color})`;
    entry.appendChild(document.createTextNode(name));
  }
  return canvas;
}

const start = { azimuth: look.azimuth, elevation: look.elevation, zoom: 1 };
const eye = { ...start };
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function drawAll(program, views) {
  const uniform = name => gl.getUniformLocation(program, name), radians = Math.PI / 180;
  const [sa, ca] = [Math.sin(eye.azimuth * radians), Math.cos(eye.azimuth * radians)];
  const [se, ce] = [Math.sin(eye.elevation * radians), Math.cos(eye.elevation * radians)];
  // its rows are right, up and towards the eye; WebGL takes columns
  gl.uniformMatrix3fv(uniform("turn"), false, [ca, -sa * se, sa * ce, 0, ce, se, -sa, -ca * se, ca * ce]);
  gl.uniform3fv(uniform("light"), look.light);
  for (const name of ["ambient", "shine", "fog"]) gl.uniform1f(uniform(name), look[name]);
  const half = look.fieldOfView / 2 * radians, scale = window.devicePixelRatio || 1;
  for (const { panel, canvas, cloud } of views) {
    const width = Math.max(1, Math.round(canvas.clientWidth * scale));
    const height = Math.max(1, Math.round(canvas.clientHeight * scale));
    for (const [sheet, times] of [[canvas, 1], [stage, 2]])
      if (sheet.width !== times * width || sheet.height !== times * height)
        [sheet.width, sheet.height] = [times * width, times * height];
    const focal = eye.zoom * Math.min(width, height) / Math.tan(half);
    gl.viewport(0, 0, stage.width, stage.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniform3fv(uniform("center"), panel.center);
    gl.uniform1f(uniform("extent"), panel.extent);
    gl.uniform1f(uniform("eyeDistance"), 1.08 * panel.extent / Math.sin(half));
    gl.uniform1f(uniform("height"), stage.height);
    gl.uniform2f(uniform("focal"), focal / width, focal / height);
    gl.bindVertexArray(cloud);
    gl.drawArrays(gl.POINTS, 0, panel.count);
    canvas.getContext("2d").drawImage(stage, 0, 0, width, height);
  }
}

function listen(canvas, redraw) {
  const fingers = new Map();
  const spread = () => {
    const [one, two] = [...fingers.values()];
    return Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY);
  };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
  });
  canvas.addEventListener("pointermove", event => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const before = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, event);
    if (before) eye.zoom = clamp(eye.zoom * spread() / before, 0.2, 20);
    else {
      eye.azimuth -= (event.clientX - last.clientX) / 2;
      eye.elevation = clamp(eye.elevation + (event.clientY - last.clientY) / 2, -90, 90);
    }
    redraw();
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, event => fingers.delete(event.pointerId));
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    eye.zoom = clamp(eye.zoom * Math.exp(-event.deltaY / 700), 0.2, 20);
    redraw();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { Object.assign(eye, start); redraw(); });
}

const grid = document.getElementById("grid");
grid.style.setProperty("--columns", scene.columns);
if (gl) {
  const program = makeProgram();
  const views = scene.panels.map(panel => ({ panel, canvas: makeFigure(panel), cloud: upload(program, panel) }));
  let asked = false;
  const redraw = () => {
    if (!asked) requestAnimationFrame(() => { asked = false; drawAll(program, views); });
    asked = true;
  };
  for (const { canvas } of views) listen(canvas, redraw);
  new ResizeObserver(redraw).observe(grid);
} else document.getElementById("hint").textContent = "This browser cannot draw in three dimensions: it has no WebGL 2.";
</script>
</body>
</html>
"""
