// Runs that cannot go on: values that are not finite, too little memory, data and folders that cannot be used.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import t from "tap";
import { SafetensorsWriter } from "../../lib/checkpoint/safetensors.js";
import { ArgumentError, CancelledError, ConfigError, IoError, TrainingError } from "../../lib/errors.js";
import type { StepMetrics } from "../../lib/report/events.js";
import { Trainer } from "../../lib/train/trainer.js";
import { bits, golden, run, tiny, writeRows } from "./helpers.js";

process.env.LONGSEQ_CACHE_DIR = mkdtempSync(path.join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true }));

/** A copy of a golden model with one value of one tensor replaced. */
async function spoiled(folder: string, name: string, value: number): Promise<string> {
  const { openModelFolder } = await import("../../lib/checkpoint/safetensors.js");
  const source = path.join(golden, "models/llama3/model");
  const target = path.join(folder, "model");
  mkdirSync(target);
  writeFileSync(path.join(target, "config.json"), readFileSync(path.join(source, "config.json")));
  using model = await openModelFolder(source);
  const entries = [...model.entries.values()];
  const writer = await SafetensorsWriter.create(path.join(target, "model.safetensors"), entries);
  for (const entry of entries) {
    const bytes = await model.readBytes(entry.name);
    if (entry.name === name) new DataView(bytes).setFloat32(0, value, true);
    await writer.write(entry.name, new Uint8Array(bytes));
  }
  await writer.finish();
  return target;
}

t.test("weights that are not finite", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18, 32);
  const name = "model.layers.1.mlp.down_proj.weight";
  const model = await spoiled(folder, name, Number.NaN);
  const dir = path.join(folder, "run");
  const config = { ...tiny(rows, dir, { train: { steps: 20 } }), model: { path: model } };
  const seen: StepMetrics[] = [];
  await t.rejects(run(config, { onItem: (item) => item.event === undefined && seen.push(item) }), {
    constructor: TrainingError,
    message: /not finite in 5 steps in a row, 1 to 5[\s\S]*model\.layers\.1\.mlp\.down_proj\.weight[\s\S]*look at/,
  });
  t.same(
    seen.map(({ skipped }) => skipped),
    [true, true, true, true, true],
    "each was left out",
  );
  const lines = readFileSync(path.join(dir, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  t.match(
    lines.find(({ step }) => step === 1),
    { loss: null, grad_norm: null, skipped: true },
  );
});

t.test("a model that is broken is not saved, however few its steps are", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18, 32);
  const model = await spoiled(folder, "model.norm.weight", Number.NaN);
  for (const saveEvery of [0, 1]) {
    const dir = path.join(folder, `run-${saveEvery}`);
    const config = { ...tiny(rows, dir, { train: { steps: 3 }, output: { saveEvery } }), model: { path: model } };
    await t.rejects(run(config), { constructor: TrainingError, message: /model\.norm\.weight[\s\S]*nothing to save/ });
    t.notOk(existsSync(path.join(dir, "model")), "no model");
    t.notOk(existsSync(path.join(dir, "checkpoints/step-1")), "no checkpoint");
  }
});

t.test("a run whose last steps were left out is no success, and its state is kept", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18, 32);
  // Finite weights whose loss is not.
  const model = await spoiled(folder, "model.norm.weight", 3e38);
  const dir = path.join(folder, "run");
  const config = (steps: number, at = dir) => ({ ...tiny(rows, at, { train: { steps } }), model: { path: model } });
  const all = {
    constructor: TrainingError,
    message: /all 2 steps: they changed nothing.*those of the start, saved in/,
  };
  await t.rejects(run(config(2)), all);
  t.ok(existsSync(path.join(dir, "checkpoints/step-2")), "saved");
  t.notOk(existsSync(path.join(dir, "model")), "not exported");
  await t.rejects(run(config(2)), all, "nor a success the second time");
  await t.rejects(run(config(4)), { constructor: TrainingError, message: /all 4 steps/ }, "more steps go on");

  const wild = (steps: number) =>
    tiny(rows, path.join(folder, `wild-${steps}`), {
      train: { steps, learningRate: 1e30, schedule: "constant", warmupSteps: 0, clipGradNorm: 0, weightDecay: 0 },
    });
  const { steps, events } = await run(wild(3));
  const good = steps.filter(({ skipped }) => !skipped).length;
  t.ok(good >= 1, "the first step counts");
  t.match(events.at(-1), { event: "done", skipped: 3 - good }, "a few are told, no more");
  await t.rejects(run(wild(good + 3)), {
    constructor: TrainingError,
    message: new RegExp(`steps ${good + 1} to ${good + 3}, the last of the run: .* those of step ${good}, saved`),
  });
});

t.test("rows without a single label that counts", async (t) => {
  const folder = t.testdir({});
  const rows = path.join(folder, "rows.jsonl");
  writeFileSync(rows, '{"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}\n'.repeat(3));
  await t.rejects(run(tiny(rows, path.join(folder, "run"))), {
    code: "DATA",
    message: /no usable rows: none of the 3 documents has a label that counts/,
  });
});

t.test("a run whose checkpoints are all damaged does not start afresh over them", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const dir = path.join(folder, "run");
  const config = tiny(rows, dir, { output: { saveEvery: 3 } });
  await run(config);
  for (const step of [3, 6]) writeFileSync(path.join(dir, `checkpoints/step-${step}/trainer.json`), "{");
  const metrics = readFileSync(path.join(dir, "metrics.jsonl"), "utf8");
  await t.rejects(run(config), { constructor: IoError, message: /none of its 2 checkpoints can be used \(.*step-6/ });
  t.equal(readFileSync(path.join(dir, "metrics.jsonl"), "utf8"), metrics, "nothing was lost");
});

t.test("gradients that are not finite leave parameters and optimizer as they were", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const config = (dir: string, steps: number, learningRate: number) =>
    tiny(rows, path.join(folder, dir), {
      train: { steps, learningRate, schedule: "constant", warmupSteps: 0, clipGradNorm: 0, weightDecay: 0 },
      output: { saveEvery: 1, keep: 9 },
    });
  // The first update throws the weights far away; what follows overflows.
  await t.rejects(run(config("wild", 20, 1e30)), {
    constructor: TrainingError,
    message: /train\.learning_rate \(1e\+30/,
  });
  const at = path.join(folder, "wild/checkpoints");
  const steps = [1, 2, 3, 4, 5].filter((step) => existsSync(path.join(at, `step-${step}`)));
  t.ok(steps.length >= 3, `checkpoints of ${steps}`);
  const last = steps.slice(-2).map((step) => bits(path.join(at, `step-${step}`)));
  t.same(last[0], last[1], "skipped steps changed nothing");
});

t.test("too little memory is said with the breakdown, and another run works", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const config = (deviceLimit: string) => tiny(rows, path.join(folder, "run"), { memory: { deviceLimit } });
  await t.rejects(run(config("100KiB")), {
    constructor: ConfigError,
    message: /memory\.device_limit is 100 KiB .* needs at least .* of device memory \(.*params/,
  });
  const { steps } = await run(config("100MiB"));
  t.equal(steps.length, 6);
});

t.test("folders that cannot be used", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  await t.rejects(run(tiny(rows, rows)), { constructor: ConfigError, message: /output\.dir: .*rows\.jsonl is a file/ });
  await t.rejects(run(tiny(rows, "/proc/longseq/run")), {
    constructor: IoError,
    message: /cannot make \/proc\/longseq/,
  });
  await t.rejects(run(tiny(path.join(folder, "none.jsonl"), path.join(folder, "run"))), { message: /data\.train/ });
});

t.test("one run at a time; one that is left early can be started again", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const trainer = new Trainer(tiny(rows, path.join(folder, "run")));
  for await (const item of trainer.run()) {
    if (item.event !== undefined) continue;
    await t.rejects(trainer.run().next(), ArgumentError);
    await t.rejects(run(tiny(rows, path.join(folder, "run"))), {
      constructor: ConfigError,
      message: /output\.dir: another run is training into .*run; wait for its end/,
    });
    t.equal((await run(tiny(rows, path.join(folder, "beside")))).steps.length, 6);
    break;
  }
  let steps = 0;
  for await (const item of trainer.run()) if (item.event === undefined) steps++;
  t.equal(steps, 6, "nothing was saved, so it starts afresh");
});

t.test("aborted before it begins, and at the first item", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const config = tiny(rows, path.join(folder, "run"));
  await t.rejects(run(config, { signal: AbortSignal.abort() }), CancelledError);
  const abort = new AbortController();
  await t.rejects(run(config, { signal: abort.signal, onItem: () => abort.abort() }), CancelledError);
  const { steps } = await run(config);
  t.equal(steps.length, 6);
});

t.test("steps without a single label add nothing", async (t) => {
  const folder = t.testdir({});
  const rows = path.join(folder, "rows.jsonl");
  writeFileSync(
    rows,
    `${JSON.stringify({ input_ids: [1, 2, 3], labels: [-100, -100, -100] })}\n${JSON.stringify({ input_ids: [1, 2, 3, 4] })}\n`,
  );
  const { steps } = await run(
    tiny(rows, path.join(folder, "run"), {
      data: { packing: false, shuffle: false },
      train: { batchSize: 1, steps: 4, warmupSteps: 0 },
    }),
  );
  t.same(
    steps.map(({ validTokens }) => validTokens),
    [0, 3, 0, 3],
  );
  t.same([steps[0]?.loss, steps[0]?.gradNorm, steps[0]?.skipped], [0, 0, false]);
  t.ok(steps.every(({ loss }) => Number.isFinite(loss)));
});
