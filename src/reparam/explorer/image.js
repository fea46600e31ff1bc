// ---- draw and upload

const canvas = element("image"), brush = element("brush");
const pencil = { x: width / 2, y: height / 2 };
brush.value = Math.min(height, width) / 20;

function stroke(from, to) {
  const ink = element("ink").value, levels = [1, 3, 5].map(start => parseInt(ink.slice(start, start + 2), 16));
  const colours = channels < 3 ? Array(channels).fill(0.299 * levels[0] + 0.587 * levels[1] + 0.114 * levels[2]) : levels;
  const radius = brush.valueAsNumber, parts = Math.ceil(2 * Math.hypot(to.x - from.x, to.y - from.y)) + 1;
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    let nearest = Infinity;
    for (let i = 0; i <= parts; i++) {
      const [px, py] = [from.x + (to.x - from.x) * i / parts, from.y + (to.y - from.y) * i / parts];
      nearest = Math.min(nearest, Math.hypot(x + 0.5 - px, y + 0.5 - py));
    }
    const cover = clamp(radius + 0.5 - nearest, 0, 1); // a soft edge of one pixel
    for (let c = 0; c < channels; c++) {
      const at = (y * width + x) * channels + c;
      image[at] = Math.round(image[at] + cover * (colours[c] - image[at]));
    }
  }
  see(image);
}

function pointAt(event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width * width, y: (event.clientY - box.top) / box.height * height };
}
function draw(event) {
  const to = pointAt(event);
  stroke(event.type === "pointerdown" ? to : { ...pencil }, to);
  Object.assign(pencil, to);
}
canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); draw(event); });
canvas.addEventListener("pointermove", event => { if (event.buttons) draw(event); });
canvas.addEventListener("pointerup", drawMapSoon);
canvas.addEventListener("keydown", event => {
  const by = ARROWS[event.key];
  if (!by && event.key !== " ") return;
  event.preventDefault();
  if (by) Object.assign(pencil, { x: clamp(pencil.x + by[0], 0, width), y: clamp(pencil.y - by[1], 0, height) });
  else stroke({ ...pencil }, pencil);
  element("brush-place").hidden = false;
  element("brush-place").textContent = `Brush at column ${Math.round(pencil.x)}, row ${Math.round(pencil.y)}`;
});
element("clear").addEventListener("click", () => { see(image.fill(0)); drawMapSoon(); });
element("invert").addEventListener("click", () => { see(image.map(value => 255 - value)); drawMapSoon(); });
element("upload").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (file) await upload(file);
  event.target.value = ""; // so that the same file can be chosen again
});

// The middle of a picture, in the size and colours of the model.
async function upload(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    element("problem").textContent = `${file.name}: wanted a picture that this browser can read, found another file.`;
    element("problem").hidden = false;
    return;
  }
  element("problem").hidden = true;
  const scale = Math.min(picture.width / width, picture.height / height), small = document.createElement("canvas");
  Object.assign(small, { width, height });
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (picture.width - scale * width) / 2, (picture.height - scale * height) / 2, scale * width, scale * height, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  see(image.map((_, at) => {
    const [red, green, blue] = data.subarray(4 * Math.floor(at / channels));
    return channels < 3 ? Math.round(0.299 * red + 0.587 * green + 0.114 * blue) : [red, green, blue][at % channels];
  }));
  drawMapSoon();
}
