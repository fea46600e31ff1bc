// ---- samples and interpolation

const samples = Array.from({ length: SAMPLES }, (_, i) => {
  const sample = { part: 0, draw: null, code: null };
  sample.canvas = tile("samples", `Sample ${i + 1}`, () => { set(sample.code); drawMapSoon(); });
  return sample;
});
function showSamples() {
  const temperature = element("temperature").valueAsNumber;
  element("heat").textContent = temperature.toFixed(2);
  for (const sample of samples) {
    const means = facts.prior.means[sample.part], deviations = facts.prior.deviations[sample.part];
    sample.code = sample.draw.map((value, i) => means[i] + deviations[i] * value * temperature);
    paint(sample.canvas, decoded([sample.code]));
  }
}
function sampleAgain() {
  for (const sample of samples) {
    const level = Math.random();
    sample.part = Math.max(0, facts.prior.shares.findIndex(share => level < share)); // sums of shares are rounded
    sample.draw = Float32Array.from({ length: facts.latent_size }, noise);
  }
  showSamples();
}
element("temperature").addEventListener("input", showSamples);
element("again").addEventListener("click", sampleAgain);

const path = Array.from({ length: STEPS }, (_, i) => {
  const step = { code: null };
  step.canvas = tile("path", `Step ${i + 1} of ${STEPS}`, () => { set(step.code); drawMapSoon(); });
  return step;
});
function showPath() {
  path.forEach((step, i) => {
    const part = i / (STEPS - 1);
    step.code = ends[0].map((value, j) => value * (1 - part) + ends[1][j] * part);
    paint(step.canvas, decoded([step.code]));
  });
}
["start-here", "end-here"].forEach((id, i) => element(id).addEventListener("click", () => { ends[i].set(code); showPath(); }));

// ---- the class

function choose(label) {
  classes.selectedIndex = label;
  if (facts.prior) showSamples();
  showPath();
}
classes.addEventListener("change", () => {
  choose(classes.selectedIndex);
  if (seen) see(image);
  else show();
  drawMapSoon();
});

// ---- the start

const examples = Array.from({ length: facts.examples.count }, (_, i) =>
  bytes(facts.examples.pixels).subarray(i * image.length, (i + 1) * image.length));
const { labels } = facts.examples;
function take(i) {
  if (labels && labels[i] !== classes.selectedIndex) choose(labels[i]);
  see(examples[i]);
  drawMapSoon();
}
if (encode) {
  if (labels) classes.selectedIndex = labels[0];
  examples.forEach((pixels, i) => {
    const name = labels ? `Example ${i + 1}: ${facts.classes[labels[i]]}` : `Example ${i + 1}`;
    paint(tile("examples", name, () => take(i)), pixels);
  });
} else {
  element("image-card").hidden = true;
}
element("units").textContent = facts.units;
element("middle").addEventListener("click", () => { set(middle); drawMapSoon(); });
element("samples-card").hidden = !facts.prior;
if (facts.prior) sampleAgain();
if (encode && examples.length > 1) examples.slice(0, 2).forEach((pixels, i) => ends[i].set(encoded(pixels, labels?.[i])));
else if (facts.prior) samples.slice(0, 2).forEach((sample, i) => ends[i].set(sample.code));
showPath();
set(middle);
if (encode) see(examples[0] ?? image);
drawMapSoon();
