// Fills in the page's form in headless Chromium, once for every four arguments, and prints what the page shows.
//
//     node drive.js URL SEEDS FILE STEPS LABEL [...]      FILE as in samplers.json; the page's own STEPS if ""; LABEL if any
import { chromium } from "playwright-core";

const [url, ...fields] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"],
});
const requests = [];
try {
  const page = await browser.newPage();
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url);
  await page.waitForFunction(() => document.querySelectorAll("option").length > 0 ||
                                   document.querySelector("#message.error"));
  const shown = [];
  for (let index = 0; index < fields.length; index += 4) {
    const [seeds, file, steps, label] = fields.slice(index, index + 4);
    await page.fill("#seeds", seeds);
    const value = await page.locator("option").evaluateAll(
      (options, file) => options.map((option) => option.value).find((value) => JSON.parse(value).file === file), file);
    await page.selectOption("#sampler", value);
    if (steps) await page.fill("#steps", steps);
    if (label) await page.fill("#label", label);
    await page.click("#start");
    await page.waitForFunction(() => !document.querySelector("#start").disabled, null, { timeout: 300_000 });
    shown.push(await page.evaluate(() => {
      const canvas = document.querySelector("canvas");
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const message = document.querySelector("#message");
      return { width: canvas.width, height: canvas.height, pixels: Array.from(pixels), message: message.textContent,
               error: message.classList.contains("error") };
    }));
  }
  if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT, fullPage: true });
  console.log(JSON.stringify({ shown, requests }));
} finally {
  await browser.close();
}
