// Drives an evaluation file of `sde-onnx embed --kind evaluation` in ONNX Runtime for the web, on the GPU where there is
// one that the browser's WebGPU gives, else in WebAssembly. `?provider=webgpu` and `?provider=wasm` decide it.
const asked = new URL(location.href).searchParams.get("provider");
const adapter = asked === "wasm" ? null : await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
if (asked === "webgpu" && !adapter) throw new Error("this browser offers no WebGPU: leave ?provider=webgpu out");
const inSoftware = adapter?.info?.isFallbackAdapter ?? adapter?.isFallbackAdapter;   // where older browsers say it
const onGpu = Boolean(adapter) && (asked === "webgpu" || !inSoftware);

/** What runs the networks: "webgpu" or "wasm". */
export const provider = onGpu ? "webgpu" : "wasm";
const ort = await import(`./ort/ort.${provider}.min.mjs`);
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1;   // more need headers that a static host does not send

/** Seeds of a list like "0-3,8" as the int64 that the graph takes: their 64 bits in two's complement. */
export function parseSeeds(text) {
  const seeds = [];
  for (const part of text.split(",").map((part) => part.trim())) {
    const match = /^(\d+)(?:-(\d+))?$/.exec(part);
    if (!match) throw new Error(`"${part}" is no seed: expected whole numbers, like 7 or 0-15 or 0-3,8`);
    const [first, last] = [BigInt(match[1]), BigInt(match[2] ?? match[1])];
    if (last >= 1n << 64n) throw new Error(`seed ${last} does not fit 64 bits`);
    if (last < first) throw new Error(`"${part}" runs backwards`);
    if (last - first + BigInt(seeds.length) >= 64n) throw new Error("more than 64 images at a time");
    for (let seed = first; seed <= last; seed++) seeds.push(BigInt.asIntN(64, seed));
  }
  return seeds;
}

/** A number of steps, refused unless it is whole and between the two. */
export function parseSteps(text, { min_steps, max_steps }) {
  const steps = /^\d+$/.test(text.trim()) ? Number(text) : NaN;
  if (!(steps >= min_steps && steps <= max_steps))
    throw new Error(`steps is "${text.trim()}", expected a whole number from ${min_steps} to ${max_steps}`);
  return steps;
}

/** A class, refused unless the file has it; -1, none, where the file has no labels or one may be left out. */
export function parseLabel(text, { labels = 0, label_optional = false }) {
  if (!labels || (label_optional && !text.trim())) return -1;
  const label = /^\d+$/.test(text.trim()) ? Number(text) : NaN;
  if (!(label < labels)) throw new Error(`label is "${text.trim()}", expected a whole number from 0 to ${labels - 1}`);
  return label;
}

export class Sampler {
  /** Loads an evaluation file. Its metadata `sde_onnx_noise_nodes` names the nodes that a GPU leaves to the CPU. */
  static async load(url, noiseNodes = []) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url} cannot be loaded: ${response.status} ${response.statusText}`);
    let session;
    try {
      session = await ort.InferenceSession.create(await response.arrayBuffer(), {
        executionProviders: onGpu ? [{ name: "webgpu", forceCpuNodeNames: noiseNodes }] : ["wasm"],
      });
    } catch (error) {
      const reason = String(error.message ?? error).split("\n")[0];
      const what = /find an implementation/.test(reason) ? "for CUDA or another device, not for a browser" : "damaged";
      throw new Error(`${url} is ${what}: ${reason}`);
    }
    const has = (names, all) => all.every((name) => names.includes(name));
    if (!has(session.inputNames, ["x", "index", "seed", "steps"]) || !has(session.outputNames, ["x_mean", "remaining"]))
      throw new Error(`${url} is no evaluation file of this version: make one with ` +
                      "sde-onnx embed --kind evaluation --max-steps 100");
    return new Sampler(session);
  }

  constructor(session) {
    this.session = session;
  }

  /**
   * The state after every evaluation: { index, remaining, x_mean: { data, dims: [N, C, H, W] } }.
   * Of a file with labels `label` is that of all images; -1 is none, where a label may be left out. A file for a mask
   * restores `pictures`: one for all seeds, or one for each, as toPixels gives them, with alpha 0 where a pixel is missing.
   */
  async *run(seeds, steps, label = -1, pictures = null) {
    const [, ...shape] = this.session.inputMetadata.find((input) => input.name === "x").shape;
    const states = this.session.inputNames.filter((name) => this.session.outputNames.includes(`${name}_next`));
    const dims = [seeds.length, ...shape];
    const start = new Float32Array(dims.reduce((product, size) => product * size));   // the first evaluation makes its own
    let feeds = Object.fromEntries(states.map((name) => [name, new ort.Tensor("float32", start, dims)]));
    const integers = (...values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [values.length]);
    const fixed = { seed: integers(...seeds), steps: integers(steps) };
    if (this.session.inputNames.includes("label")) fixed.label = integers(...seeds.map(() => label));
    if (this.session.inputNames.includes("mask")) {
      const known = pictures ?? [new Uint8ClampedArray(shape[1] * shape[2] * 4)];   // or nothing: alpha is 0
      const [mask, measurement] = fromPixels(known, shape);
      fixed.mask = new ort.Tensor("float32", mask, [known.length, 1, ...shape.slice(1)]);
      fixed.measurement = new ort.Tensor("float32", measurement, [known.length, ...shape]);
    }
    for (let index = 0, remaining = 1; remaining > 0; index++) {
      const results = await this.session.run({ ...feeds, ...fixed, index: integers(index) });
      feeds = Object.fromEntries(states.map((name) => [name, results[`${name}_next`]]));
      remaining = Number(results.remaining.data[0]);
      yield { index, remaining, x_mean: results.x_mean };
    }
  }
}

/** Images as 8 bits, [N][H * W * 4] with alpha; halves go to even, as in numpy. */
export function toPixels({ data, dims: [count, channels, height, width] }) {
  const area = height * width;
  return Array.from({ length: count }, (_, image) => {
    const pixels = new Uint8ClampedArray(area * 4).fill(255);   // stores rounded, halves to even
    for (let channel = 0; channel < 3; channel++)
      for (let place = 0; place < area; place++)
        pixels[place * 4 + channel] =
          Math.fround(Math.min(1, Math.max(0, data[(image * channels + (channel % channels)) * area + place])) * 255);
    return pixels;
  });
}

/** The mask and the measurement of pictures of toPixels, whose missing pixels have alpha 0. */
function fromPixels(pictures, [channels, height, width]) {
  const area = height * width;
  if (pictures.some((pixels) => pixels.length !== area * 4))
    throw new Error("the file makes pictures of another size than those that are to be restored");
  const [mask, measurement] = [1, channels].map((size) => new Float32Array(pictures.length * size * area));
  pictures.forEach((pixels, image) => {
    for (let place = 0; place < area; place++) {
      mask[image * area + place] = pixels[place * 4 + 3] > 0 ? 1 : 0;
      for (let channel = 0; channel < channels; channel++)
        measurement[(image * channels + channel) * area + place] = pixels[place * 4 + channel] / 255;
    }
  });
  return [mask, measurement];
}
