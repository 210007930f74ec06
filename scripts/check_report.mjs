// Opens a run's report in headless Chromium and looks at what is drawn; ends with `N passed, N failed`.
//
// node scripts/check_report.mjs [REPORT.html] [--screenshot NAME]
//
// Without a file a tiny model is trained and its report made. Chromium is Debian's (apt-get install chromium), or what
// CHROMIUM names. --screenshot writes NAME-light.png, NAME-dark.png and NAME-narrow.png.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";
import { findChromium } from "./chromium.mjs";
import { root } from "./hash.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { screenshot: { type: "string" } },
});

function fail(message) {
  console.error(message);
  console.log("0 passed, 1 failed");
  process.exit(1);
}

function command(name, args) {
  const result = spawnSync(name, args, { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
  if (result.error || result.status !== 0)
    fail(`${name} ${args.join(" ")} failed: ${result.error?.message ?? `exit code ${result.status}`}`);
}

const executablePath = findChromium();
if (executablePath === undefined) fail("Chromium is missing; run: sudo apt-get install -y chromium");

const scratch = mkdtempSync(join(tmpdir(), "longseq-report-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));

/** Trains a tiny model with two recorded steps and makes its report. */
function makeReport() {
  const rows = Array.from({ length: 24 }, (_, i) =>
    JSON.stringify({ input_ids: Array.from({ length: 128 }, (_, j) => (i * 7 + j * j) % 61) }),
  );
  const data = join(scratch, "rows.jsonl");
  writeFileSync(data, `${rows.join("\n")}\n`);
  const config = {
    model: {
      init: {
        model_type: "llama",
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 256,
      },
    },
    data: { train: [data], eval: [data], sequence_length: 128, packing: false },
    train: { steps: 8, eval_every: 4, learning_rate: 0.01 },
    output: { dir: join(scratch, "tiny"), trace_steps: 2 },
  };
  const file = join(scratch, "tiny.yaml");
  writeFileSync(file, JSON.stringify(config));
  const bin = join(root, "bin/longseq.mjs");
  command(process.execPath, [bin, "train", file, "--quiet"]);
  command(process.execPath, [bin, "report", config.output.dir]);
  return join(config.output.dir, "report.html");
}

const report = resolve(positionals[0] ?? makeReport());
if (!existsSync(report)) fail(`${report}: there is no such file`);

let passed = 0;
let failed = 0;
function check(name, good, found = "") {
  if (good) passed++;
  else {
    failed++;
    console.log(`not right: ${name}${found === "" ? "" : `: ${JSON.stringify(found)}`}`);
  }
}

const browser = await chromium.launch({
  executablePath,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
});

/** The share of each colour ("r,g,b") among the pixels of a PNG; drawn on a page of its own, without the report's rules. */
async function colours(png) {
  const page = await browser.newPage();
  try {
    return await page.evaluate(async (data) => {
      const image = new Image();
      image.src = `data:image/png;base64,${data}`;
      await image.decode();
      const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const { data: bytes } = context.getImageData(0, 0, image.width, image.height);
      const counts = {};
      for (let i = 0; i < bytes.length; i += 4) {
        const key = `${bytes[i]},${bytes[i + 1]},${bytes[i + 2]}`;
        counts[key] = (counts[key] ?? 0) + 1 / (bytes.length / 4);
      }
      return counts;
    }, png.toString("base64"));
  } finally {
    await page.close();
  }
}

/** "rgb(1, 2, 3)" as "1,2,3". */
const plain = (colour) => colour.replace(/[^\d,]/g, "");

try {
  for (const [scheme, width] of [
    ["light", 1200],
    ["dark", 1200],
    ["light", 390],
  ]) {
    const name = width < 600 ? "narrow" : scheme;
    const context = await browser.newContext({ colorScheme: scheme, viewport: { width, height: 900 }, offline: true });
    const page = await context.newPage();
    const requests = [];
    const complaints = [];
    page.on("request", (request) => requests.push(request.url()));
    page.on("console", (message) => complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(String(error)));
    await page.goto(pathToFileURL(report).href);
    check(`${name}: one file and nothing else is loaded`, requests.length === 1, requests);

    const layout = await page.evaluate(() => ({
      wide: document.documentElement.scrollWidth,
      background: getComputedStyle(document.body).backgroundColor,
      text: getComputedStyle(document.body).color,
      cards: [...document.querySelectorAll(".card")].filter((card) => card.getClientRects().length > 0).length,
      cut: [...document.querySelectorAll("svg.chart")]
        .filter((svg) => svg.getClientRects().length > 0)
        .flatMap((svg) => {
          const box = svg.getBoundingClientRect();
          return [...svg.querySelectorAll("text")]
            .filter((text) => {
              const own = text.getBoundingClientRect();
              return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1;
            })
            .map((text) => text.textContent);
        }),
    }));
    check(`${name}: no wider than the window`, layout.wide <= width, layout.wide);
    check(`${name}: all parts are there`, layout.cards >= 6, layout.cards);
    check(`${name}: no label is cut off`, layout.cut.length === 0, layout.cut);
    const brightness = (colour) =>
      plain(colour)
        .split(",")
        .reduce((sum, part) => sum + Number(part), 0);
    check(
      `${name}: ${scheme} page`,
      brightness(layout.background) > brightness(layout.text) === (scheme === "light"),
      layout,
    );

    for (const label of ["Loss", "Tokens per second", "Memory"]) {
      const line = page.locator(`svg[aria-label="${label} over steps"] path.line`).first();
      const box = await line.boundingBox();
      check(`${name}: ${label} is a line across its drawing`, box !== null && box.width > 120, box);
      if (label === "Loss") check(`${name}: the loss moves`, box !== null && box.height > 20, box);
    }

    const falls = page.locator(".trace:not([hidden]) .waterfall");
    check(`${name}: one recorded step is shown at a time`, (await falls.count()) === 1, await falls.count());
    const fall = falls.first();
    const drawn = await fall.evaluate((element) => {
      const row = element.querySelector('.queue[data-queue="compute"]');
      const svg = row.querySelector("svg").getBoundingClientRect();
      const rects = [...row.querySelectorAll("rect")];
      return {
        count: rects.length,
        covered: rects.reduce((sum, rect) => sum + rect.getBoundingClientRect().width, 0) / svg.width,
        height: svg.height,
        colour: getComputedStyle(rects[0]).fill,
        // What the page says of it: a loaded machine leaves gaps, so no fixed share can be asked for.
        busy: Number(/(\d+)% busy/.exec(row.textContent)?.[1] ?? Number.NaN) / 100,
      };
    });
    check(`${name}: the compute queue has its blocks`, drawn.count >= 10 && drawn.height >= 20, drawn);
    check(
      `${name}: they cover the busy time and no more`,
      drawn.covered > drawn.busy - 0.01 && drawn.covered < 1.1,
      drawn,
    );
    const fallColours = await colours(await fall.screenshot());
    const ops = Object.keys(fallColours).filter((colour) => {
      const parts = colour.split(",").map(Number);
      return Math.max(...parts) - Math.min(...parts) > 60 && fallColours[colour] > 0.0002;
    });
    check(`${name}: blocks of several colours can be seen`, ops.length >= 2, ops);

    const hills = page.locator(".trace:not([hidden]) svg.hill");
    check(`${name}: a hill of memory is drawn`, (await hills.count()) >= 1);
    const hill = hills.first();
    const shape = await hill.evaluate((svg) => ({
      peak: svg.querySelector(".peak").getBoundingClientRect().top,
      areas: [...svg.querySelectorAll(".area")].map((area) => {
        const box = area.getBoundingClientRect();
        // How much of the drawing it fills: one that is high for a moment only fills almost nothing.
        const { width, height } = svg.viewBox.baseVal;
        let share = 0;
        for (let i = 0.5; i < 100; i++)
          for (let j = 0.5; j < 60; j++)
            if (area.isPointInFill(new DOMPoint((i / 100) * width, (j / 60) * height))) share += 1 / 6000;
        return { category: area.dataset.category, top: box.top, fill: getComputedStyle(area).fill, share };
      }),
    }));
    const top = Math.min(...shape.areas.map((area) => area.top));
    check(`${name}: the highest area touches the flat line`, Math.abs(top - shape.peak) < 1.5, shape);
    const seen = await colours(await hill.screenshot());
    const large = shape.areas.filter(({ share }) => share > 0.02);
    check(`${name}: something fills the hill`, large.length > 0, shape.areas);
    for (const area of large)
      check(`${name}: ${area.category} is seen in its colour`, (seen[plain(area.fill)] ?? 0) > area.share / 4, [
        area,
        seen[plain(area.fill)],
      ]);

    const tip = page.locator("#tip");
    check(`${name}: no tooltip before anything is pointed at`, !(await tip.isVisible()));
    for (const [target, pattern] of [
      [page.locator('svg[aria-label="Loss over steps"]'), /^step \d+\s*training\s*[\d.]+/],
      [hill, /at [\d.]+ (µs|ms|s)|start of the step/],
      [fall.locator("rect").first(), /(µs|ms|s), from/],
    ]) {
      await target.scrollIntoViewIfNeeded();
      await target.hover();
      const text = (await tip.isVisible()) ? await tip.textContent() : "";
      check(`${name}: a tooltip like ${pattern}`, pattern.test(text), text);
      const box = await tip.boundingBox();
      check(
        `${name}: the tooltip lies in the window`,
        box !== null && box.x >= 0 && box.x + box.width <= width && box.y >= 0 && box.y + box.height <= 900,
        box,
      );
      await page.mouse.move(1, 1);
      check(`${name}: the tooltip goes`, !(await tip.isVisible()));
    }

    await page.locator(".trace:not([hidden]) .zoom button").last().click();
    const zoomed = await fall.evaluate((element) => element.clientWidth / element.parentElement.clientWidth);
    check(`${name}: zoom widens the waterfall`, Math.abs(zoomed - 16) < 0.1, zoomed);
    const marks = await fall.evaluate((element) => {
      const { left, right } = element.parentElement.getBoundingClientRect();
      const shown = [...element.querySelectorAll(".times span")].filter((mark) => {
        const box = mark.getBoundingClientRect();
        return box.width > 0 && box.left >= left && box.right <= right;
      });
      return { times: shown.map((mark) => mark.textContent), from: element.parentElement.scrollLeft };
    });
    check(`${name}: the middle stays in view, with its times`, marks.times.length >= 2 && marks.from > 0, marks);
    const after = await page.evaluate(() => document.documentElement.scrollWidth);
    check(`${name}: it widens nothing else`, after <= width, after);
    await page.locator(".trace:not([hidden]) .zoom button").first().click();
    const steps = page.locator("#steps button");
    if ((await steps.count()) > 1) {
      await steps.first().click();
      const shown = await page.locator(".trace:not([hidden])").evaluateAll((all) => all.map((one) => one.dataset.step));
      check(`${name}: another step can be chosen`, shown.join() === (await steps.first().textContent()), shown);
      await steps.last().click();
    }
    check(`${name}: the browser complains of nothing`, complaints.length === 0, complaints);
    if (values.screenshot !== undefined)
      await page.screenshot({ path: `${values.screenshot}-${name}.png`, fullPage: true });
    await context.close();
  }

  const still = await browser.newContext({ javaScriptEnabled: false, offline: true });
  const page = await still.newPage();
  await page.goto(pathToFileURL(report).href);
  check(
    "without scripts: every recorded step is shown",
    (await page.locator(".trace .waterfall").first().boundingBox()) !== null,
  );
  check("without scripts: the loss is drawn", (await page.locator("#loss path.line").first().boundingBox()) !== null);
} finally {
  await browser.close();
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
