"use strict";
// Drawing of attention weights in [0, 1], for the page of an explanation and that of the server.
const RAMP = ["#0d0887", "#6a00a8", "#b12a90", "#e16462", "#fca636", "#f0f921"], DARK = "#141414";
const SHAPES = [[0, 0], [4, 45], [3, 0], [4, 0], [5, 0], [3, 180], [6, 0], [8, 0]]; // sides and rotation of each level
const rgb = RAMP.map(color => [1, 3, 5].map(start => parseInt(color.slice(start, start + 2), 16)));

function colorOf(value) {
  const place = Math.min(Math.max(value, 0), 1) * (rgb.length - 1), low = Math.min(Math.floor(place), rgb.length - 2);
  return rgb[low].map((part, i) => Math.round(part + (rgb[low + 1][i] - part) * (place - low)));
}
const css = value => `rgb(${colorOf(value).join(",")})`;

function outline(x, y, radius, level) {
  const [sides, rotation] = SHAPES[level % SHAPES.length], steps = sides || 24;
  return Array.from({length: steps}, (_, i) => {
    const angle = (2 * i / steps + (sides % 2 === 0 && sides ? 1 / sides : 0) + rotation / 180) * Math.PI;
    const r = sides ? 1.15 * radius : radius;
    return [x + r * Math.sin(angle), y - r * Math.cos(angle)];
  });
}

function marker(pen, x, y, radius, level, value) {
  pen.beginPath();
  outline(x, y, radius, level).forEach(([a, b], i) => i ? pen.lineTo(a, b) : pen.moveTo(a, b));
  pen.closePath();
  pen.fillStyle = css(value); pen.strokeStyle = value < .4 ? "#fff" : DARK;
  pen.fill(); pen.stroke();
}

function spread(points) { // markers of a small object overlap less if they are smaller
  const deviation = axis => {
    const mean = points.reduce((sum, point) => sum + point[axis], 0) / points.length;
    return Math.sqrt(points.reduce((sum, point) => sum + (point[axis] - mean) ** 2, 0) / points.length);
  };
  return (deviation("x") + deviation("y")) / 2;
}

// The marker of a level in a legend.
function symbol(level) {
  const made = document.createElement("span"), shape = outline(8, 8, 6, level).map(p => p.map(v => v.toFixed(1)).join(",")).join(" ");
  made.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><polygon points="${shape}"/></svg>`;
  return made.firstChild;
}

// Draws a map of h x w weights over the whole canvas.
function drawMap(pen, {values, h, w, top}, width, height) {
  const small = document.createElement("canvas"), target = small.getContext("2d");
  small.width = w; small.height = h;
  const pixels = target.createImageData(w, h);
  values.forEach((value, i) => pixels.data.set([...colorOf(value / top), Math.round(217 * Math.sqrt(value / top))], 4 * i));
  target.putImageData(pixels, 0, 0);
  pen.fillStyle = "rgba(0,0,0,.45)"; pen.fillRect(0, 0, width, height);
  pen.imageSmoothingEnabled = true;
  pen.drawImage(small, 0, 0, width, height);
}
