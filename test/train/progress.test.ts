// What a run tells while it goes on: the plan, progress within a step, metrics, traces; and stopping inside a long step.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import t from "tap";
import { canonicalJson, parseConfigObject } from "../../lib/config/index.js";
import type { ProgressEvent, RunItem } from "../../lib/report/events.js";
import { metricsKeys } from "../../lib/report/metrics.js";
import { Trainer } from "../../lib/train/trainer.js";
import { bits, ended, figures, run, startCli, tiny, writeRows } from "./helpers.js";

process.env.LONGSEQ_CACHE_DIR = mkdtempSync(path.join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true }));

// A step of seconds in few, long ops: enqueued in a moment on any machine, so that all of it is told while it runs.
const sequenceLength = 6000;
const batchSize = 10;

t.test("plan, progress, metrics", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 1500);
  const config = tiny(rows, path.join(folder, "run"), {
    hidden: 64,
    layers: 4,
    data: { sequenceLength },
    train: { steps: 2, batchSize, warmupSteps: 0 },
  });
  const items: RunItem[] = [];
  for await (const item of new Trainer(config).run()) items.push(item);
  t.match(items[0], { event: "plan", steps: 2, startStep: 0, parameters: Number, tileMlp: 1500, tileLoss: 1500 });
  const progress = items.filter((item): item is ProgressEvent => item.event === "progress");
  t.match(items[1], { event: "progress", step: 1, fraction: 0 }, "from before the first step");
  t.ok(
    progress.some(({ fraction }) => fraction > 0),
    `${progress.length} progress events`,
  );
  t.ok(
    progress.every(({ fraction }) => fraction >= 0 && fraction <= 1),
    "fractions",
  );
  for (const [i, { step, fraction }] of progress.entries()) {
    const before = progress[i - 1];
    t.ok(before === undefined || step > before.step || fraction > before.fraction, `forward: ${step} ${fraction}`);
  }
  for (const { phase } of progress)
    t.ok(["forward", "backward", "update", "done"].includes(phase as string), String(phase));
  for (const { layer, layers } of progress)
    t.ok(layer === undefined || (layers === 4 && layer >= 1 && layer <= 4), `layer ${layer} of ${layers}`);

  const lines = readFileSync(path.join(folder, "run/metrics.jsonl"), "utf8").trim().split("\n");
  const steps = lines.map((line) => JSON.parse(line)).filter(({ event }) => event === undefined);
  t.equal(steps.length, 2);
  for (const step of steps) {
    t.equal(Object.keys(step).length, metricsKeys.length);
    for (const [key, value] of Object.entries(step)) {
      if (key === "mfu") t.equal(value, null, "no bfloat16 rate is known");
      else if (key === "skipped") t.equal(value, false);
      else if (key === "host_peak_bytes") t.ok((value as number) >= 0);
      else t.ok((value as number) > 0, `${key} ${value}`);
    }
    t.ok(Math.abs(step.tokens_per_second * step.seconds - step.tokens) < 1e-6 * step.tokens);
    t.ok(step.hardware_tflops >= step.model_tflops, "recomputation counts in one of the two");
    t.ok(step.rss_peak_bytes > step.device_live_bytes);
  }
});

t.test("traces of the first steps", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  await run(tiny(rows, path.join(folder, "run"), { output: { traceSteps: 2 } }));
  t.same(readdirSync(path.join(folder, "run/trace")).sort(), ["step-1.json", "step-2.json"]);
  const trace = JSON.parse(readFileSync(path.join(folder, "run/trace/step-2.json"), "utf8"));
  const names = new Set((trace.traceEvents ?? trace).map(({ name }: { name: string }) => name));
  for (const name of ["matmul", "attention", "attention_backward", "adamw"]) t.ok(names.has(name), name);
  await run(tiny(rows, path.join(folder, "plain")));
  t.same(figures(path.join(folder, "run")), figures(path.join(folder, "plain")), "a trace changes no number");
});

t.test("a signal inside a long step: the step is given up, and the resumed run is the same", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 1500);
  const file = (name: string) => {
    const config = tiny(rows, path.join(folder, name), {
      hidden: 64,
      layers: 4,
      data: { sequenceLength },
      train: { steps: 2, batchSize, warmupSteps: 0 },
    });
    writeFileSync(path.join(folder, `${name}.json`), canonicalJson(parseConfigObject(config)));
    return path.join(folder, `${name}.json`);
  };
  const child = startCli(["train", file("parts"), "--json"]);
  let lines = "";
  child.stdout?.on("data", (chunk: Buffer) => {
    lines += chunk.toString();
    if (/"event":"progress","step":1,"fraction":0\.\d/.test(lines)) child.kill("SIGTERM");
  });
  const stopped = await ended(child);
  t.equal(stopped.code, 143, stopped.err.slice(-500));
  t.same(readdirSync(path.join(folder, "parts/checkpoints")), ["step-0"], "the state before the step that was running");
  t.same(figures(path.join(folder, "parts")), []);
  const rest = await ended(startCli(["train", file("parts")]));
  t.equal(rest.code, 0, rest.err.slice(-500));
  await ended(startCli(["train", file("whole")]));
  t.same(figures(path.join(folder, "parts")), figures(path.join(folder, "whole")));
  t.same(bits(path.join(folder, "parts/model")), bits(path.join(folder, "whole/model")));
});
