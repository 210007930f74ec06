// Runs with optimizer states, gradients and parameters in host memory: checkpoints that any setting resumes, stops in
// the middle of an update, exports, evaluation, limits.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import t from "tap";
import { bits, figures, run, type TinyOptions, tiny, writeRows } from "./helpers.js";

process.env.LONGSEQ_CACHE_DIR = mkdtempSync(path.join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true }));

const folder = t.testdir({});
const rows = writeRows(path.join(folder, "rows.jsonl"), 60);

type Place = "none" | "host";
interface States {
  optimizer: Place;
  params: Place;
  gradients: Place;
}
const places = ["none", "host"] as const;
const combinations: States[] = places.flatMap((optimizer) =>
  places.flatMap((gradients) => places.map((params) => ({ optimizer, gradients, params }))),
);

/** Tiles decide bits, so they are fixed; every setting has checkpoints. */
const config = (name: string, states: States, options: TinyOptions = {}) =>
  tiny(rows, path.join(folder, name), {
    layers: 3,
    ...options,
    data: { eval: [rows], ...options.data },
    // One micro-batch a step: gradients of several are added up in another order on the host.
    train: { microBatchSize: 2, schedule: "constant", ...options.train },
    memory: { tileMlp: 20, tileLoss: 20, checkpoint: { every: 1 }, offload: states, ...options.memory },
  });

const resultOf = (name: string) => {
  const dir = path.join(folder, name);
  return {
    figures: figures(dir),
    model: bits(path.join(dir, "model")),
    state: bits(path.join(dir, "checkpoints/step-6")),
  };
};

for (const dtype of ["float32", "bfloat16"] as const) {
  t.test(`${dtype}: saved with one setting and resumed with another, to the same bits`, async (t) => {
    const whole = `whole-${dtype}`;
    await run(config(whole, combinations[0] as States, { dtype }));
    const expected = resultOf(whole);
    t.equal(expected.figures.length, 6);
    // Over both dtypes each setting saves and resumes.
    for (const [i, first] of combinations.entries()) {
      if (i % 2 !== (dtype === "float32" ? 1 : 0)) continue;
      const second = combinations[(5 * i + 3) % combinations.length] as States;
      const name = `${dtype}-${i}`;
      await run(config(name, first, { dtype, train: { microBatchSize: 2, schedule: "constant", steps: 3 } }));
      await run(config(name, second, { dtype }));
      t.same(resultOf(name), expected, `${JSON.stringify(first)}, then ${JSON.stringify(second)}`);
    }
  });
}

/** A run that is stopped when the event loop next turns after `step` was reported; then goes on to its end. */
async function stopped(name: string, states: States, step: number, turns: number): Promise<void> {
  const controller = new AbortController();
  const turn = (left: number): void => {
    if (left === 0) controller.abort();
    else setImmediate(turn, left - 1);
  };
  const stop = run(config(name, states), {
    signal: controller.signal,
    onItem: (item) => {
      if (item.event === undefined && item.step === step) turn(turns);
    },
  });
  await stop.catch((error: Error) => {
    if (error.name !== "CancelledError") throw error;
  });
  t.ok(readdirSync(path.join(folder, name, "checkpoints")).length > 0, "its state was saved");
  await run(config(name, states));
}

t.test("stopped at any moment: the state is that of a whole step", async (t) => {
  await run(config("reference", combinations[0] as States));
  const expected = resultOf("reference");
  for (const [i, states] of combinations.slice(1).entries()) {
    const name = `stopped-${i}`;
    await stopped(name, states, 1 + (i % 4), 3 * i);
    t.same(resultOf(name), expected, JSON.stringify(states));
  }
});

t.test("a host limit that is too small is one clear error, and the same process goes on", async (t) => {
  const all: States = { optimizer: "host", params: "host", gradients: "host" };
  await t.rejects(run(config("limit", all, { memory: { hostLimit: 300_000, deviceLimit: 2 ** 30 } })), {
    message: /memory\.host_limit/,
  });
  await run(config("limit", all, { memory: { hostLimit: 2 ** 30, deviceLimit: 2 ** 30 } }));
  t.same(resultOf("limit"), resultOf("reference"));
});

t.test("parameters on the host without checkpoints are refused, and auto chooses checkpoints", async (t) => {
  const states: States = { optimizer: "none", params: "host", gradients: "none" };
  await t.rejects(run(config("refused", states, { memory: { checkpoint: { every: 0 } } })), {
    name: "ConfigError",
    message: /memory\.offload\.params: host, but memory\.checkpoint\.every is 0/,
  });
  await run(config("chosen", states, { memory: { checkpoint: { every: "auto" } } }));
  t.same(resultOf("chosen"), resultOf("reference"));
});
