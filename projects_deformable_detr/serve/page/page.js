"use strict";

const LOWEST = 0.05; // score threshold of requests; the slider selects among the detections in the response
const find = (id) => document.getElementById(id);
const percent = (score) => `${Math.round(100 * score)}%`;
const images = []; // {file, name, result, entries, bitmap, error, selected, explanation}
const hidden = new Set(); // names of classes
let model = null;
let current = null;

async function request(path, options) {
  for (;;) {
    const response = await fetch(path, options).catch(() => {
      throw new Error("The server does not respond.");
    });
    if (response.status !== 503) {
      const result = await response.json();
      if (!response.ok) throw new Error(result.detail);
      return result;
    }
    find("caption").textContent = "The server is busy; waiting.";
    await new Promise((resume) => setTimeout(resume, 1000 * (response.headers.get("Retry-After") || 1)));
  }
}

function form(image, fields = {}) {
  const body = new FormData();
  body.set("image", image.file, image.name);
  body.set("score_threshold", LOWEST);
  for (const [name, value] of Object.entries(fields)) body.set(name, value);
  return { method: "POST", body };
}

async function add(files) {
  find("error").textContent = "";
  const added = [...files].map((file) => ({ file, name: file.name || "image", selected: null }));
  images.push(...added);
  render();
  for (const image of added) {
    await detect(image);
    if (!image.error && (!current || added.indexOf(current) < 0)) current = image;
    render();
  }
}

async function detect(image) {
  try {
    model ??= await request("/model"); // the image was chosen before the first response
    if (image.file.size > model.max_bytes) {
      throw new Error(`${image.name} has ${image.file.size} bytes, more than the limit of ${model.max_bytes}.`);
    }
    const result = await request("/detect", form(image));
    const orientation = model.exif_orientation ? "from-image" : "none";
    image.bitmap = await createImageBitmap(image.file, { imageOrientation: orientation }).catch(() => null);
    image.entries = entries(result);
    image.result = result;
  } catch (error) {
    image.error = error.message;
    const text = find("error").textContent;
    find("error").textContent = text ? `${text} — ${image.error}` : image.error;
  }
}

// Detections, and segments of stuff classes, which have no boxes.
function entries(result) {
  const color = (label) => model.colors[label % model.colors.length];
  const found = result.scores.map((score, index) => ({
    index, score, name: result.names[index], box: result.boxes[index], color: color(result.labels[index]),
    runs: result.masks ? decode(result.masks[index].counts) : null,
  }));
  const stuff = (result.segments || []).filter((segment) => !segment.isthing);
  return found.concat(stuff.map((segment) => ({
    index: null, score: segment.score, name: segment.name, box: null, color: color(segment.category_id),
    runs: decode(segment.mask.counts),
  })));
}

// Run lengths of COCO's compressed RLE: 5-bit digits of differences from the length two positions before.
function decode(counts) {
  const runs = [];
  for (let i = 0; i < counts.length; ) {
    let value = 0, shift = 0, digit;
    do {
      digit = counts.charCodeAt(i++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function isShown(entry) {
  return entry.score >= Number(find("threshold").value) && !hidden.has(entry.name);
}

async function select(index) {
  const image = current;
  image.selected = index;
  image.explanation = null;
  render();
  if (index === null) return;
  try {
    const explanation = await request("/explain", form(image, { detection: index }));
    const count = explanation.maps ? explanation.maps.length : 1 + Math.max(...explanation.points.map(({ layer }) => layer));
    if (find("layer").length !== count) {
      find("layer").replaceChildren(...Array.from({ length: count }, (_, layer) => new Option(layer + 1, layer)));
      find("layer").value = count - 1;
    }
    if (image.selected === index) image.explanation = explanation;
    find("error").textContent = "";
  } catch (error) {
    find("error").textContent = error.message;
  }
  render();
}

// Replaces the items of a list; the focus stays on the item at the same position.
function fill(list, items) {
  const focused = [...list.children].findIndex((item) => item.contains(document.activeElement));
  list.replaceChildren(...items);
  if (focused >= 0) items[focused]?.querySelector("button, input")?.focus();
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function button(text, isPressed, onclick, className = "") {
  const made = element("button", { type: "button", onclick, className }, ...[text].flat());
  made.setAttribute("aria-pressed", isPressed);
  return element("li", {}, made);
}

function swatch(color) {
  const made = element("span", { className: "color" });
  made.style.background = color;
  return made;
}

function render() {
  fill(find("images"), images.map((image) => {
    const state = image.error ? "failed" : image.result ? image.entries.filter(isShown).length : "…";
    const show = () => { if (image.result) current = image; else find("error").textContent = image.error || ""; render(); };
    return button(`${image.name} (${state})`, image === current, show, image.error ? "failed" : "");
  }));
  find("figure").hidden = find("controls").hidden = !current;
  if (!current) return;
  const all = current.entries.filter((entry) => entry.score >= Number(find("threshold").value));
  const shown = all.filter(isShown);
  find("value").textContent = Number(find("threshold").value).toFixed(2);
  const stuff = shown.filter((entry) => !entry.box).length, things = shown.length - stuff;
  find("count").textContent = counted(things, "detection") + (stuff ? `, ${counted(stuff, "stuff segment")}` : "");
  const classes = new Map(current.entries.map((entry) => [entry.name, entry.color]));
  fill(find("classes"), model.classes.filter((name) => classes.has(name)).map((name) => {
    const box = element("input", { type: "checkbox", checked: !hidden.has(name) });
    box.onchange = () => { box.checked ? hidden.delete(name) : hidden.add(name); render(); };
    const count = all.filter((entry) => entry.name === name).length;
    return element("li", {}, element("label", {}, box, swatch(classes.get(name)), `${name} (${count})`));
  }));
  fill(find("detections"), shown.map((entry) => {
    const isSelected = entry.index === current.selected;
    const text = [swatch(entry.color), entry.name, element("span", { className: "score" }, percent(entry.score))];
    if (!entry.box) return element("li", { className: "stuff" }, ...text);
    return button(text, isSelected, () => select(isSelected ? null : entry.index));
  }));
  draw(find("canvas"), current, shown);
}

function draw(canvas, image, shown) {
  const [height, width] = image.result.size;
  const enlarged = Math.min(Math.ceil(480 / Math.min(height, width)), Math.floor(4096 / Math.max(height, width)));
  const factor = Math.max(1, enlarged);
  canvas.width = factor * width;
  canvas.height = factor * height;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = "#808080";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (image.bitmap) pen.drawImage(image.bitmap, 0, 0, canvas.width, canvas.height);
  const drawn = [...shown].sort((a, b) => a.score - b.score);
  const masks = drawn.filter((entry) => entry.runs);
  if (masks.length) pen.drawImage(tint(masks, width, height), 0, 0, canvas.width, canvas.height);
  const unit = Math.max(1, Math.min(canvas.width, canvas.height) / 500);
  const selected = drawn.find((entry) => entry.box && entry.index === image.selected);
  pen.globalAlpha = selected ? 0.35 : 1;
  for (const entry of drawn) if (entry.box && entry !== selected) drawBox(pen, entry, factor, unit);
  pen.globalAlpha = 1;
  if (selected) {
    if (image.explanation) drawAttention(pen, image.explanation, factor, unit);
    drawBox(pen, selected, factor, unit);
    if (image.explanation) drawLayerBox(pen, image.explanation, factor, unit); // over the box that it often equals
  }
  for (const entry of selected ? [selected] : drawn) drawLabel(pen, entry, factor, unit, height);
  canvas.setAttribute("aria-label", `${image.name} with ${find("count").textContent}`);
  find("layers").hidden = !(selected && image.explanation);
  find("caption").replaceChildren(...selected ? describe(selected, image.explanation)
    : [image.bitmap ? "Click a box, or an item of the list, to show its sampling points or attention map."
    : "The browser cannot display this image format; the detections are drawn on gray."]);
}

// A canvas with the masks in the colors of their classes, half transparent; runs go down the columns.
function tint(masks, width, height) {
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  for (const { color, runs } of masks) {
    const rgb = parseInt(color.slice(1), 16);
    const word = (128 << 24) | ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16);
    let position = 0;
    runs.forEach((length, index) => {
      for (const end = position + length; position < end; position++) {
        if (index % 2) words[(position % height) * width + Math.floor(position / height)] = word;
      }
    });
  }
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function drawBox(pen, { box, color }, factor, unit) {
  const [x1, y1, x2, y2] = box.map((value) => value * factor);
  for (const [width, style] of [[5, "#141414"], [3, color]]) {
    pen.lineWidth = width * unit;
    pen.strokeStyle = style;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

// A position inside a mask: the middle of its longest run.
function inside(runs, height) {
  let position = 0, longest = 0, middle = 0;
  runs.forEach((length, index) => {
    if (index % 2 && length > longest) [longest, middle] = [length, position + (length >> 1)];
    position += length;
  });
  return [Math.floor(middle / height), middle % height];
}

// Above the box, or on the mask of stuff.
function drawLabel(pen, { box, runs, color, name, score }, factor, unit, rows) {
  const [x1, y1, , y2] = (box || [...inside(runs, rows), 0, 0]).map((value) => value * factor);
  const text = `${name} ${percent(score)}`;
  pen.font = `${13 * unit}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  const width = pen.measureText(text).width + 6 * unit;
  const height = 17 * unit;
  const x = Math.max(0, Math.min(x1, pen.canvas.width - width));
  const y = y1 >= height ? y1 - height : Math.min(y2, pen.canvas.height - height);
  pen.fillStyle = color;
  pen.fillRect(x, y, width, height);
  pen.fillStyle = "#000000";
  pen.fillText(text, x + 3 * unit, y + 2 * unit);
}

function drawAttention(pen, explanation, factor, unit) {
  const layer = Number(find("layer").value);
  if (explanation.maps) {
    const rows = explanation.maps[layer], values = rows.flat();
    drawMap(pen, { values, h: rows.length, w: rows[0].length, top: Math.max(...values) }, pen.canvas.width, pen.canvas.height);
  }
  const points = (explanation.points || []).filter((point) => point.layer === layer);
  const highest = Math.max(...points.map((point) => point.weight));
  const radius = Math.max(2 * unit, Math.min(5 * unit, spread(points) * factor / 5));
  pen.lineWidth = unit;
  for (const { x, y, weight, level } of points.sort((a, b) => a.weight - b.weight)) {
    marker(pen, x * factor, y * factor, radius, level, weight / highest);
  }
}

function drawLayerBox(pen, explanation, factor, unit) {
  const layer = Number(find("layer").value);
  pen.lineWidth = 2 * unit;
  pen.strokeStyle = "#ffffff";
  pen.setLineDash([6 * unit, 4 * unit]);
  const [x1, y1, x2, y2] = explanation.layer_boxes[Math.min(layer, explanation.layer_boxes.length - 1)].map((value) => value * factor);
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  pen.setLineDash([]);
}

function describe({ name, score }, explanation) {
  const title = `${name} ${percent(score)}`;
  if (!explanation) return [title];
  const layer = Number(find("layer").value);
  const points = (explanation.points || []).filter((point) => point.layer === layer);
  const levels = [...new Set(points.map((point) => point.level))].sort((a, b) => a - b);
  const what = points.length ? `${points.length} sampling points of levels ` : "attention of all heads, ";
  const legend = levels.flatMap((level) => [symbol(level), `${level + 1}, `]);
  const highest = points.length ? Math.max(...points.map((point) => point.weight)) : Math.max(...explanation.maps[layer].flat());
  return [`${title}: ${what}`, ...legend, `color by weight from blue (0) to yellow (${highest.toPrecision(2)}). Dashed: box of this layer.`];
}

function save(blob, suffix) {
  const link = element("a", { href: URL.createObjectURL(blob), download: `${current.name.replace(/\.\w+$/, "")}${suffix}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function shownResult() {
  const { result } = current;
  const kept = current.entries.filter((entry) => entry.box && isShown(entry)).map((entry) => entry.index);
  const lists = ["boxes", "scores", "labels", "names", "masks"].filter((name) => result[name]);
  const picked = Object.fromEntries(lists.map((name) => [name, kept.map((index) => result[name][index])]));
  const segments = result.segments ? { segments: result.segments.filter(isShown) } : {};
  return { ...result, ...picked, ...segments };
}

find("json").onclick = () => save(new Blob([JSON.stringify(shownResult())], { type: "application/json" }), ".json");
find("png").onclick = () => find("canvas").toBlob((blob) => save(blob, "_detections.png"));
find("threshold").oninput = render;
find("layer").onchange = render;
find("file").onchange = (event) => { add(event.target.files); event.target.value = ""; };
find("canvas").onclick = (event) => {
  const scale = current.result.size[1] / event.target.clientWidth;
  const [x, y] = [event.offsetX * scale, event.offsetY * scale];
  const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  const hits = current.entries.filter(isShown).filter(
    ({ box }) => box && box[0] <= x && x <= box[2] && box[1] <= y && y <= box[3]);
  select(hits.length ? hits.reduce((a, b) => (area(a) <= area(b) ? a : b)).index : null);
};
document.onpaste = (event) => { if (event.clipboardData.files.length) add(event.clipboardData.files); };
document.onkeydown = (event) => { if (event.key === "Escape" && current) select(null); };
document.ondragover = (event) => { event.preventDefault(); find("drop").classList.add("over"); };
document.ondragleave = () => find("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  add(event.dataTransfer.files);
};

request("/model").then((result) => {
  model = result;
  find("model").textContent = `${model.classes.length} classes: ${model.classes.slice(0, 6).join(", ")}`
    + (model.classes.length > 6 ? ", …" : "");
}).catch((error) => { find("error").textContent = error.message; });
