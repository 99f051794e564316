// Fills in the page's forms in headless Chromium, once for every case, and prints what the page shows.
//
//     node drive.js URL '[{"seeds": "0-15", "file": "pc.onnx"}, ...]'
//
// A case has a file as in samplers.json, and may have steps and a label. If it has `rub`, places on the canvas in its own
// pixels, the pointer is drawn along them, and the page restores what is left, with the seeds `fill` if there are any.
// WEBGPU in the environment: "software" for WebGPU on Chromium's own Vulkan, "gpu" for this machine's; else there is none.
import { chromium } from "playwright-core";

const [url, cases] = process.argv.slice(2);
const graphics = {
  software: ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan,WebGPU",
             "--use-vulkan=swiftshader"],
  gpu: ["--enable-unsafe-webgpu", "--enable-features=Vulkan,WebGPU"],
}[process.env.WEBGPU] ?? ["--disable-gpu"];
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", ...graphics, "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"],
});
const requests = [];
try {
  const page = await browser.newPage();
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url);
  await page.waitForFunction(() => document.querySelectorAll("option").length > 0 ||
                                   document.querySelector("#message.error"));

  const send = async (button) => {
    await page.click(button);
    await page.waitForFunction(() => !document.querySelector("#start").disabled, null, { timeout: 300_000 });
  };
  const pictures = (selector) => page.evaluate((selector) => {
    const canvas = document.querySelector(selector);
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return { width: canvas.width, height: canvas.height, pixels: Array.from(pixels) };
  }, selector);
  const rub = async (places) => {
    await page.locator("#canvas").scrollIntoViewIfNeeded();
    const box = await page.locator("#canvas").boundingBox();
    const { width, height } = await pictures("#canvas");
    const moves = places.map(([x, y]) => [box.x + x * box.width / width, box.y + y * box.height / height]);
    await page.mouse.move(...moves[0]);
    await page.mouse.down();
    for (const move of moves) await page.mouse.move(...move);
    await page.mouse.up();
  };

  const said = () => page.evaluate(() => {
    const message = document.querySelector("#message");
    return { message: message.textContent, error: message.classList.contains("error"),
             where: document.querySelector("#where").textContent };
  });

  const loaded = await said();
  const shown = [];
  for (const { seeds, file, steps, label, rub: places, fill } of JSON.parse(cases)) {
    await page.fill("#seeds", seeds);
    const value = await page.locator("option").evaluateAll(
      (options, file) => options.map((option) => option.value).find((value) => JSON.parse(value).file === file), file);
    await page.selectOption("#sampler", value);
    if (steps) await page.fill("#steps", steps);
    if (label) await page.fill("#label", label);
    await send("#start");
    let restored = null;
    if (places) {
      await rub(places);
      if (fill) await page.fill("#fill", fill);
      await send("#restore");
      restored = await pictures("#restored");
    }
    shown.push({ ...await pictures("#canvas"), restored, ...await said() });
  }
  if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT, fullPage: true });
  console.log(JSON.stringify({ loaded, shown, requests }));
} finally {
  await browser.close();
}
