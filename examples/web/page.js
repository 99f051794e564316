let sampling;   // sampler.js, which says what it cannot run with
const element = (id) => document.getElementById(id);
const [canvas, progress, message] = [element("canvas"), element("progress"), element("message")];
const samplers = new Map();
let sampled = null;   // the pictures of the upper form, which can be rubbed out: { pictures, width, height }
let rubbedTo = null;  // where the pointer was last, while it rubs

function say(text, isError = false) {
  message.textContent = text;
  message.classList.toggle("error", isError);
}

const columnsOf = (pictures) => Math.ceil(Math.sqrt(pictures.length));

function draw(target, { pictures, width, height }) {
  const columns = columnsOf(pictures);
  [target.width, target.height] = [columns * width, Math.ceil(pictures.length / columns) * height];
  const context = target.getContext("2d");
  pictures.forEach((pixels, index) =>
    context.putImageData(new ImageData(pixels, width, height), (index % columns) * width,
                         Math.floor(index / columns) * height));
}

/** Samples, drawing every evaluation; resolves with the last pictures. Restores `torn` pictures, if there are any. */
export async function sample(seedText, stepsText, labelText, choice, target = canvas, torn = null) {
  const [seeds, steps] = [sampling.parseSeeds(seedText), sampling.parseSteps(stepsText, choice)];
  const label = sampling.parseLabel(labelText, choice);
  if (torn && torn.length > 1 && torn.length !== seeds.length)
    throw new Error(`${torn.length} pictures, ${seeds.length} seeds to restore them with: give one for each`);
  if (!samplers.has(choice.file)) {
    say("loading");
    samplers.set(choice.file, await sampling.Sampler.load(choice.file, choice.noise_nodes));
  }
  const begin = performance.now();
  let shown;
  for await (const { index, remaining, x_mean } of samplers.get(choice.file).run(seeds, steps, label, torn)) {
    shown = { pictures: sampling.toPixels(x_mean), width: x_mean.dims[3], height: x_mean.dims[2] };
    draw(target, shown);
    const elapsed = performance.now() - begin;
    const [made, all] = [index + 1, index + 1 + remaining];
    progress.value = made / all;
    say(`evaluation ${made} of ${all}, ${(elapsed / made).toFixed(1)} ms each, ` +
        `${(elapsed / seeds.length).toFixed(0)} ms an image`);
    await new Promise(requestAnimationFrame);
  }
  return shown;
}

/** Rubs out the pixels of a disc, around a place of the canvas in its own pixels. */
function rub([x, y]) {
  const { pictures, width, height } = sampled;
  const [columns, radius] = [columnsOf(pictures), width / 10];
  pictures.forEach((pixels, index) => {
    const [left, top] = [(index % columns) * width, Math.floor(index / columns) * height];
    for (let place = 0; place < width * height; place++)
      if (Math.hypot(left + place % width + 0.5 - x, top + Math.floor(place / width) + 0.5 - y) <= radius)
        pixels[place * 4 + 3] = 0;
  });
}

const placeOf = ({ clientX, clientY }) => {
  const box = canvas.getBoundingClientRect();
  return [(clientX - box.left) * canvas.width / box.width, (clientY - box.top) * canvas.height / box.height];
};

/** Rubs from where the pointer was to where it is. */
function rubTo(event) {
  const [from, to] = [rubbedTo, placeOf(event)];
  const parts = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])));
  for (let part = 1; part <= parts; part++) rub(from.map((begin, axis) => begin + (to[axis] - begin) * part / parts));
  rubbedTo = to;
  draw(canvas, sampled);
}

const chosen = () => JSON.parse(element("sampler").value);
const asked = (seeds, ...pictures) =>
  sample(element(seeds).value, element("steps").value, element("label").value, chosen(), ...pictures);

function propose() {
  element("steps").value = chosen().steps;
  element("labels").hidden = !chosen().labels;
  element("restoration").hidden = chosen().operator !== "mask";
}

async function start() {
  const before = sampled?.pictures.length;
  element("restored").hidden = true;
  sampled = await asked("seeds", canvas);
  const count = sampled.pictures.length;
  if (count !== before) element("fill").value = `100-${99 + (count === 1 ? 16 : count)}`;   // of one picture several
}

async function restore() {
  element("restored").hidden = false;
  await asked("fill", element("restored"), sampled.pictures);
}

/** Does what a form is for, while neither form can be sent again and nothing is rubbed out. */
async function answer(event, make) {
  event.preventDefault();
  rubbedTo = null;
  for (const id of ["start", "restore"]) element(id).disabled = true;
  try {
    await make();
  } catch (error) {
    say(error.message, true);
  } finally {
    element("start").disabled = false;
    element("restore").disabled = !sampled;
  }
}

try {
  sampling = await import("./sampler.js");
  element("where").textContent = sampling.provider === "webgpu" ? "on the GPU (WebGPU)" : "on one core (WebAssembly)";
} catch (error) {
  say(error.message, true);
  throw error;
}
try {
  for (const choice of await (await fetch("samplers.json")).json())
    element("sampler").add(new Option(choice.solver, JSON.stringify(choice)));
  propose();
  element("sampler").addEventListener("change", propose);
  element("sampling").addEventListener("submit", (event) => answer(event, start));
  element("restoration").addEventListener("submit", (event) => answer(event, restore));
  canvas.addEventListener("pointerdown", (event) => {
    if (element("restore").disabled || element("restoration").hidden) return;
    canvas.setPointerCapture(event.pointerId);
    rubbedTo = placeOf(event);
    rubTo(event);
  });
  canvas.addEventListener("pointermove", (event) => rubbedTo && rubTo(event));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (rubbedTo = null));
  element("start").disabled = false;
} catch (error) {
  say(`samplers.json cannot be read: ${error.message}`, true);
}
