// The page in a real browser: a run that trains, is killed and goes on; a broken connection; 10,000 steps; a phone.

import { once } from "node:events";
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import t from "tap";
import { canonicalJson, parseConfigObject } from "../../../lib/config/index.js";
import { WatchServer } from "../../../lib/watch/server.js";
import { findChromium } from "../../../scripts/chromium.mjs";
import { startCli, tiny, writeRows } from "../../train/helpers.js";
import { lines, step, steps } from "../helpers.js";
import { openChromium, openPage } from "./chromium.js";

const found = findChromium();
const options = found === undefined ? { skip: "no Chromium: install Debian's chromium, or name one by CHROMIUM" } : {};
process.env.LONGSEQ_CACHE_DIR = mkdtempSync(join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true, force: true }));
let browser: Browser;
if (found !== undefined) {
  browser = await openChromium(found);
  t.teardown(() => browser.close());
}

const textOf = (page: Page, selector: string) => page.locator(selector).first().textContent();

/** Waits until the first element's text fits, or a minute, which is for ever. */
async function says(page: Page, selector: string, pattern: RegExp): Promise<void> {
  const fits = ([where, source, flags]: [string, string, string]) =>
    new RegExp(source, flags).test(document.querySelector(where)?.textContent ?? "");
  try {
    await page.waitForFunction(fits, [selector, pattern.source, pattern.flags] as [string, string, string], {
      timeout: 60_000,
    });
  } catch (error) {
    throw new Error(`${selector} says ${JSON.stringify(await textOf(page, selector))}, not ${pattern}: ${error}`);
  }
}

/** How many pixels of a chart have its run's colour. */
const inked = (page: Page, column: string) =>
  page.evaluate((name) => {
    const canvas = document.querySelector<HTMLCanvasElement>(`[data-chart="${name}"] canvas`);
    const dot = document.querySelector<HTMLElement>(".run .dot");
    if (canvas === null || dot === null) return 0;
    const [r, g, b] = Array.from(getComputedStyle(dot).backgroundColor.matchAll(/\d+/g), Number);
    const { data } = (canvas.getContext("2d") as CanvasRenderingContext2D).getImageData(
      0,
      0,
      canvas.width,
      canvas.height,
    );
    let count = 0;
    for (let i = 0; i < data.length; i += 4)
      if (data[i] === r && data[i + 1] === g && data[i + 2] === b && data[i + 3] === 255) count++;
    return count;
  }, column);

t.test("a run is watched, killed, goes on, and is finished", options, async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(join(folder, "rows.jsonl"), 400);
  const runs = join(folder, "runs");
  const dir = join(runs, "first");
  const config = tiny(rows, dir, {
    hidden: 64,
    layers: 4,
    data: { eval: [rows], sequenceLength: 1024 },
    train: { steps: 40, batchSize: 4, evalEvery: 10 },
    output: { saveEvery: 5 },
  });
  const file = join(folder, "run.json");
  writeFileSync(file, canonicalJson(parseConfigObject(config)));
  const server = await WatchServer.open({ folders: [runs] });
  t.teardown(() => server.close());
  const { page, complaints, asked } = await openPage(browser, 1280);
  await page.goto(server.url);
  await says(page, "#notes", /no such folder yet.*waiting for a run/s);

  const child = startCli(["train", file, "--quiet"]);
  const closed = once(child, "close");
  await says(page, ".run .where", /^step (1[2-9]|[23]\d) of 40/);
  child.kill("SIGKILL");
  await closed;
  await says(page, ".run .state", /^stopped/);
  const before = Number(/step (\d+)/.exec((await textOf(page, ".run .where")) ?? "")?.[1]);
  t.ok(before >= 12, "the last step before it was killed");
  t.ok(existsSync(join(dir, "checkpoints")), readdirSync(dir).join());
  t.ok((await inked(page, "loss")) > 50, "the loss is drawn");
  t.match(await textOf(page, '.run [data-figure="device"]'), /[KM]iB/);

  const again = startCli(["train", file, "--quiet"]);
  const over = once(again, "close");
  await says(page, ".run .state", /^running/);
  await says(page, ".run .state", /^finished/);
  t.equal((await over)[0], 0);
  t.match(await textOf(page, ".run .where"), /^step 40 of 40/);
  t.match(await textOf(page, '.run [data-figure="evaluation"]'), /^\d\.\d{4}$/);
  t.match(await textOf(page, '[data-chart="loss"] .readout'), /^now: \d\.\d{4}$/);
  const figures = await page
    .locator(".chart:not([hidden])")
    .evaluateAll((charts) => (charts as HTMLElement[]).map(({ dataset }) => dataset.chart));
  for (const wanted of ["loss", "gradNorm", "learningRate", "tokensPerSecond", "devicePeakBytes", "rssPeakBytes"])
    t.ok(figures.includes(wanted), wanted);
  t.notOk(figures.includes("mfu"), "a CPU's peak rate is not known, so there is no MFU");
  t.same(complaints, []);
  const { origin } = new URL(server.url);
  t.same(
    asked.filter((url) => !url.startsWith(origin) && !url.startsWith("data:")),
    [],
    "nothing from elsewhere",
  );
  await page.context().close();
});

t.test("through a tunnel that breaks: the page comes back with what it missed", options, async (t) => {
  const folder = t.testdir({ first: {} });
  const file = join(folder, "first/metrics.jsonl");
  writeFileSync(file, lines({ event: "plan", steps: 100 }, ...steps(1, 10)));
  const server = await WatchServer.open({ folders: [folder] });
  t.teardown(() => server.close());
  const sockets = new Set<Socket>();
  let sent = "";
  const tunnel = createServer((near) => {
    const far = connect(server.port, "127.0.0.1");
    near.on("data", (bytes: Buffer) => {
      sent += bytes.toString("latin1");
    });
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on("error", () => {}).pipe(to);
      from.on("close", () => to.destroy());
    }
  });
  tunnel.listen(0, "127.0.0.1");
  await once(tunnel, "listening");
  t.teardown(() => tunnel.close());
  const { page, complaints } = await openPage(browser, 1280);
  const { pathname } = new URL(server.url);
  await page.goto(`http://localhost:${(tunnel.address() as AddressInfo).port}${pathname}`);
  await says(page, ".run .where", /^step 10 of 100/);
  appendFileSync(file, lines(step(11)));
  await says(page, ".run .where", /^step 11 of 100/);
  sent = "";
  for (const socket of sockets) socket.destroy();
  appendFileSync(file, lines(step(12), { event: "warning", message: "missed" }));
  await says(page, ".run .where", /^step 12 of 100/);
  t.match(sent, /^Last-Event-ID: [\da-f]{12}-\d+\r$/im, "it says what it had");
  await says(page, ".run .warnings", /1 warning.*missed/s);
  t.equal(await page.locator(".run").count(), 1);
  t.same(
    complaints.filter((text) => !/net::ERR_/.test(text)),
    [],
  );
  await page.context().close();
});

t.test("10,000 steps: little memory, at most ten drawings a second, and zoom", options, async (t) => {
  const folder = t.testdir({ first: {}, second: {} });
  const file = (name: string) => join(folder, name, "metrics.jsonl");
  const plan = lines({ event: "plan", steps: 10_000 });
  const own = (from: number, to: number) =>
    lines(...steps(from, to).map((each) => ({ ...each, loss: 3 + Math.sin(each.step / 300) })));
  writeFileSync(file("first"), plan + own(1, 4000));
  writeFileSync(file("second"), plan + lines(...steps(1, 10_000)));
  const server = await WatchServer.open({ folders: [folder] });
  t.teardown(() => server.close());
  const { page, complaints } = await openPage(browser, 1280);
  const session = await page.context().newCDPSession(page);
  await session.send("Performance.enable");
  const heap = async () => {
    const { metrics } = await session.send("Performance.getMetrics");
    return metrics.find(({ name }) => name === "JSHeapUsedSize")?.value as number;
  };
  await page.goto(server.url);
  await says(page, "[data-run='1'] .where", /^step 4000 of/);
  const count = () => page.evaluate(() => [Number(document.body.dataset.frames), performance.now()] as const);
  const [framesBefore, before] = await count();
  let most = 0;
  for (let at = 4000; at < 10_000; at += 100) {
    appendFileSync(file("first"), own(at + 1, at + 100));
    await new Promise((resolve) => setTimeout(resolve, 60));
    most = Math.max(most, await heap());
  }
  await says(page, "[data-run='1'] .where", /^step 10000 of/);
  await says(page, "[data-run='2'] .where", /^step 10000 of/);
  const [framesAfter, after] = await count();
  const frames = framesAfter - framesBefore;
  t.ok(frames >= 3, `${frames} drawings`);
  // A timer never comes early, so that more would be a mistake on any machine.
  t.ok(frames <= (after - before) / 100 + 2, `${frames} drawings in ${Math.round(after - before)} ms`);
  most = Math.max(most, await heap());
  t.ok(most < 200e6, `${Math.round(most / 1e6)} MB of JavaScript heap`);
  t.comment(`${Math.round(most / 1e6)} MB of JavaScript heap, ${frames} drawings in ${Math.round(after - before)} ms`);

  const plot = page.locator('[data-chart="loss"] .u-over');
  const box = (await plot.boundingBox()) as { x: number; y: number; width: number; height: number };
  await page.mouse.move(box.x + 0.5 * box.width, box.y + 60);
  await page.mouse.down();
  await page.mouse.move(box.x + 0.6 * box.width, box.y + 60, { steps: 4 });
  await page.mouse.up();
  await page.locator("#whole-range").waitFor({ state: "visible" });
  await page.mouse.move(box.x + 0.5 * box.width, box.y + 60);
  await says(page, '[data-chart="loss"] .readout', /^step 5[45]\d\d: /);
  await page.mouse.move(1, 1);
  await page.locator("#whole-range").click();
  await page.locator("#whole-range").waitFor({ state: "hidden" });
  await page.locator("#smoothing").fill("0.9");
  await page.locator('[data-chart="loss"] button').click();
  await page.locator("#across").selectOption("totalTokens");
  await page.locator("#log-x").check();
  await page.locator("#range").selectOption("0.1");
  await page.mouse.move(box.x + 0.5 * box.width, box.y + 60);
  await says(page, '[data-chart="loss"] .readout', /^9\.\d+M: first \d/);
  t.ok((await inked(page, "loss")) > 20, "drawn with logarithmic scales");
  await page.locator("[data-run='1'] input").uncheck();
  await says(page, '[data-chart="loss"] .readout', /^now: 0\.\d+$/);
  t.same(complaints, []);
  await page.context().close();
});

t.test("on a phone, with names that are HTML: one column, nothing beside it", options, async (t) => {
  const evil = "<img src=x onerror=document.title=1>&amp;";
  const folder = t.testdir({ runs: { [evil]: {}, [`a-${"long-".repeat(30)}`]: {} } });
  const runs = join(folder, "runs");
  const spread = (max: number) => ({ min: 1, max, maxRank: 2, each: [1, 1, max, 1] });
  for (const name of readdirSync(runs)) {
    mkdirSync(join(runs, name), { recursive: true });
    writeFileSync(
      join(runs, name, "metrics.jsonl"),
      lines(
        { event: "plan", steps: 50, device: evil, memory: "x".repeat(300), deviceLimitBytes: 80 * 2 ** 30 },
        ...steps(1, 19),
        step(20, {
          mfu: 0.4,
          hostPeakBytes: 5e9,
          ranks: { seconds: spread(2), devicePeakBytes: spread(5e9), hostPeakBytes: spread(1) },
        }),
        { event: "warning", message: `${evil} ${"y".repeat(200)}` },
        { event: "progress", step: 21, fraction: 0.5, phase: "backward", layer: 3, layers: 16 },
      ),
    );
  }
  const server = await WatchServer.open({ folders: [runs] });
  t.teardown(() => server.close());
  const { page, complaints } = await openPage(browser, 390);
  await page.goto(server.url);
  await says(page, ".run .where", /^step 21 of 50: backward, layer 3 of 16, 50%; \d+s left$/);
  await page.locator(".run .warnings summary").first().click();
  t.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 390), "no wider than the window");
  const lefts = await page
    .locator(".card:not([hidden])")
    .evaluateAll((cards) => [...new Set(cards.map((card) => card.getBoundingClientRect().left))].length);
  t.equal(lefts, 1, "one column");
  t.equal(await page.locator("img").count(), 0, "a name is text");
  t.equal(await page.title(), "longseq watch");
  t.ok((await page.locator(".run h2").allTextContents()).includes(evil));
  t.match(await textOf(page, ".run .warnings li"), "<img");
  t.same(
    await page.locator(".run").first().locator(".most").allTextContents(),
    ["2.0s", "4.66 GiB"],
    "rank 2 stands out",
  );
  t.same(complaints, []);
  await page.context().close();
});
