import { Sampler, parseLabel, parseSeeds, parseSteps, toPixels } from "./sampler.js";

const element = (id) => document.getElementById(id);
const [form, canvas, progress, message] = [document.forms[0], element("canvas"), element("progress"), element("message")];
const samplers = new Map();

function say(text, isError = false) {
  message.textContent = text;
  message.classList.toggle("error", isError);
}

function draw(pictures, width, height) {
  const columns = Math.ceil(Math.sqrt(pictures.length));
  [canvas.width, canvas.height] = [columns * width, Math.ceil(pictures.length / columns) * height];
  const context = canvas.getContext("2d");
  pictures.forEach((pixels, index) =>
    context.putImageData(new ImageData(pixels, width, height), (index % columns) * width,
                         Math.floor(index / columns) * height));
}

/** Samples, drawing every evaluation; resolves with the last pictures. */
export async function sample(seedText, stepsText, labelText, choice) {
  const [seeds, steps] = [parseSeeds(seedText), parseSteps(stepsText, choice)];
  const label = parseLabel(labelText, choice);
  if (!samplers.has(choice.file)) {
    say("loading");
    samplers.set(choice.file, await Sampler.load(choice.file));
  }
  const begin = performance.now();
  let pictures;
  for await (const { index, remaining, x_mean } of samplers.get(choice.file).run(seeds, steps, label)) {
    pictures = toPixels(x_mean);
    draw(pictures, x_mean.dims[3], x_mean.dims[2]);
    const elapsed = performance.now() - begin;
    const [made, all] = [index + 1, index + 1 + remaining];
    progress.value = made / all;
    say(`evaluation ${made} of ${all}, ${(elapsed / made).toFixed(1)} ms each, ` +
        `${(elapsed / seeds.length).toFixed(0)} ms an image`);
    await new Promise(requestAnimationFrame);
  }
  return pictures;
}

const chosen = () => JSON.parse(element("sampler").value);

function propose() {
  element("steps").value = chosen().steps;
  element("labels").hidden = !chosen().labels;
}

async function start(event) {
  event?.preventDefault();
  const button = element("start");
  button.disabled = true;
  try {
    await sample(element("seeds").value, element("steps").value, element("label").value, chosen());
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

try {
  for (const choice of await (await fetch("samplers.json")).json())
    element("sampler").add(new Option(choice.solver, JSON.stringify(choice)));
  propose();
  element("sampler").addEventListener("change", propose);
  form.addEventListener("submit", start);
  element("start").disabled = false;
} catch (error) {
  say(`samplers.json cannot be read: ${error.message}`, true);
}
