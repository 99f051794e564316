// Runs sampler files under onnxruntime-node: node run_files.mjs FOLDER. cases.json and NAME.json (inputs, expected image)
// lie in the folder; prints JSON as run_files.py does.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const folder = process.argv[2];
const require = createRequire(join(process.cwd(), "package.json"));   // of the folder that has the package
const ort = require("onnxruntime-node");
const { version } = require("onnxruntime-node/package.json");

const cases = {};
for (const name of JSON.parse(readFileSync(join(folder, "cases.json"), "utf8"))) {
  const { inputs, image } = JSON.parse(readFileSync(join(folder, `${name}.json`), "utf8"));
  if (!image) continue;
  try {
    const session = await ort.InferenceSession.create(join(folder, `${name}.onnx`));
    const feeds = Object.fromEntries(Object.entries(inputs).map(([input, values]) =>
      [input, new ort.Tensor("int64", BigInt64Array.from(values.map(BigInt)), [values.length])]));
    const { image: { data } } = await session.run(feeds, ["image"]);
    const differences = Array.from(data, (value, place) => Math.abs(value - image[place]));
    cases[name] = {
      equal: differences.filter((difference) => difference === 0).length / image.length,
      largest: Math.max(...differences),
    };
  } catch (error) {
    cases[name] = { error: error.message.slice(-300) };
  }
}
console.log(JSON.stringify({ version, cases }));
