const facts = JSON.parse(document.getElementById("facts").textContent);
const encode = facts.encoder && network(facts.encoder), decode = network(facts.decoder);
const [height, width, channels] = facts.image;
const dimensions = facts.latents;
const STEPS = 9; // of an interpolation, and of each side of the plane
const SAMPLES = 24;

const element = id => document.getElementById(id);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const spell = value => value.toFixed(2).replace("-", "\u2212");

// ---- the model

const classes = element("class"); // none, if the model takes no labels
facts.classes.forEach(name => classes.add(new Option(name)));
element("class-card").hidden = !facts.classes.length;

// The further input of a conditional model, for some images.
function labelsOf(count, label = classes.selectedIndex) {
  return facts.classes.length ? { label: tensor([count], new Float32Array(count).fill(label)) } : {};
}

// Codes -> images as levels from 0 to 255, one after the other.
function decoded(codes) {
  const latents = Float32Array.from(codes.flatMap(code => [...code]));
  return decode({ latents: tensor([codes.length, ...facts.latent_shape], latents), ...labelsOf(codes.length) }).images.data;
}

// One image as levels from 0 to 255 -> its code.
function encoded(image, label) {
  return encode({ images: tensor([1, height, width, channels], Float32Array.from(image)), ...labelsOf(1, label) }).mean.data;
}

// Numbers from N(0, 1). Source: Box & Muller 1958.
function noise() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

// ---- pictures

function paint(canvas, image) {
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = image[i * channels + (channels < 3 ? 0 : c)];
    pixels.data[4 * i + 3] = 255;
  }
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function tile(group, label, choose) {
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  button.type = "button";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", choose);
  button.append(canvas);
  element(group).append(button);
  return canvas;
}

// ---- the code, which everything shows

const code = new Float32Array(facts.latent_size);
const image = new Float32Array(height * width * channels);
const middle = new Float32Array(facts.latent_size);
for (const dimension of dimensions) middle[dimension.index] = dimension.middle;
const ends = [middle.slice(), middle.slice()];
let seen = null; // the image that the code is of

function set(values, of = null) {
  code.set(values);
  seen = of;
  show();
}

function show() {
  const found = decoded([code]);
  paint(element("decoded"), found);
  const error = seen && Math.sqrt(found.reduce((sum, value, i) => sum + (value - seen[i]) ** 2, 0) / found.length);
  element("error").textContent = error === null ? "" : `Differs by ${error.toFixed(1)} of 255 levels (root mean square).`;
  for (const { index, input, value } of sliders) {
    input.value = code[index];
    value.textContent = spell(code[index]);
    input.setAttribute("aria-valuetext", spell(code[index]));
  }
  showPlace();
}

function see(pixels) {
  image.set(pixels);
  paint(element("image"), image);
  if (encode) set(encoded(image), Float32Array.from(image));
}

// ---- sliders

const sliders = dimensions.map(({ index, middle, reach, deviation }) => {
  const label = document.createElement("label"), name = document.createElement("span"), note = document.createElement("span");
  const input = document.createElement("input"), value = document.createElement("output");
  name.textContent = `z${index}`;
  note.textContent = deviation === null ? "" : `varies by ${spell(deviation)}`;
  note.className = "soft";
  Object.assign(input, { type: "range", min: middle - reach, max: middle + reach, step: reach / 300 });
  input.addEventListener("input", () => {
    code[index] = input.valueAsNumber;
    seen = null;
    show();
    drawMapSoon();
  });
  label.append(name, note, value, input);
  element("sliders").append(label);
  return { index, input, value };
});

// Says which sliders are in sight, if not all are.
function showInSight() {
  const list = element("sliders").getBoundingClientRect(), hint = element("in-sight");
  const inSight = sliders.map(({ input }) => input.parentElement.getBoundingClientRect())
    .map(({ top, bottom }) => top >= list.top - 1 && bottom <= list.bottom + 1);
  hint.hidden = !inSight.includes(true) || !inSight.includes(false);
  const [first, last] = [inSight.indexOf(true) + 1, inSight.lastIndexOf(true) + 1];
  hint.textContent = `${first} to ${last} of ${sliders.length} shown: scroll for the others.`;
}
new ResizeObserver(showInSight).observe(element("sliders"));
element("sliders").addEventListener("scroll", showInSight);

// ---- the plane

const axes = ["across", "up"].map((id, i) => {
  const select = element(id);
  for (const { index } of dimensions) select.add(new Option(`z${index}`, index));
  select.selectedIndex = Math.min(i, dimensions.length - 1);
  select.addEventListener("change", () => { showPlace(); drawMapSoon(); });
  return () => dimensions[select.selectedIndex];
});
const share = ({ index, middle, reach }) => clamp((code[index] - middle) / (2 * reach) + 0.5, 0, 1);

function showPlace() {
  const [across, up] = axes.map(axis => axis());
  Object.assign(element("cursor").style, { left: `${100 * share(across)}%`, top: `${100 - 100 * share(up)}%` });
  element("place").textContent = [across, up].map(({ index }) => `z${index} = ${spell(code[index])}`).join(", ");
}

function moveTo(right, above) {
  const [across, up] = axes.map(axis => axis());
  for (const [{ index, middle, reach }, at] of [[up, above], [across, right]]) {
    code[index] = middle + (2 * clamp(at, 0, 1) - 1) * reach;
  }
  seen = null;
  show();
}

// Some tiles at a time, so that the page answers meanwhile; a newer map ends an older one.
let newest = 0;
function drawMapSoon() {
  const own = ++newest, map = element("map"), one = document.createElement("canvas");
  const [across, up] = axes.map(axis => axis()), at = (axis, i) => axis.middle + (2 * (i + 0.5) / STEPS - 1) * axis.reach;
  let next = 0;
  const drawSome = () => {
    const until = performance.now() + 30;
    while (own === newest && next < STEPS * STEPS && performance.now() < until) {
      const row = Math.floor(next / STEPS), column = next++ % STEPS, its = code.slice();
      its[up.index] = at(up, STEPS - 1 - row);
      its[across.index] = at(across, column);
      paint(one, decoded([its]));
      map.getContext("2d").drawImage(one, column * width, row * height);
    }
    if (own === newest && next < STEPS * STEPS) setTimeout(drawSome);
  };
  setTimeout(drawSome, 60);
}
Object.assign(element("map"), { width: STEPS * width, height: STEPS * height });

const plane = element("plane");
plane.style.aspectRatio = `${width} / ${height}`;
function follow(event) {
  const box = plane.getBoundingClientRect();
  moveTo((event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height);
}
plane.addEventListener("pointerdown", event => { plane.setPointerCapture(event.pointerId); follow(event); });
plane.addEventListener("pointermove", event => { if (event.buttons) follow(event); });
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
plane.addEventListener("keydown", event => {
  const by = ARROWS[event.key];
  if (!by) return;
  event.preventDefault();
  const [right, above] = axes.map(axis => share(axis()));
  moveTo(right + by[0] / 40, above + by[1] / 40);
});
