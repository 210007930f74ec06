// Stopping and going on, in one process: a resumed run repeats the uninterrupted one bit for bit.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import t from "tap";
import type { ConfigInput } from "../../lib/config/index.js";
import { CancelledError, ConfigError } from "../../lib/errors.js";
import type { EvalEvent, WarningEvent } from "../../lib/report/events.js";
import { bits, figures, type Ran, run, type TinyOptions, tiny, writeRows } from "./helpers.js";

process.env.LONGSEQ_CACHE_DIR = mkdtempSync(path.join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true }));

const cases: Record<string, TinyOptions> = {
  packed: {},
  "accumulating, across epochs": { train: { batchSize: 4, microBatchSize: 2, steps: 8 } },
  "rows as they are": { data: { packing: false, shuffle: false }, train: { batchSize: 3 } },
  bfloat16: { dtype: "bfloat16", train: { steps: 7 } },
  tiled: { memory: { tileLoss: 7, tileMlp: 5 } },
};

for (const [name, options] of Object.entries(cases)) {
  t.test(name, async (t) => {
    const folder = t.testdir({});
    const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
    const whole = tiny(rows, path.join(folder, "whole"), options);
    const all = await run(whole);
    const steps = all.steps.length;
    t.equal(steps, options.train?.steps ?? 6);
    for (const after of [1, 3, steps - 1]) {
      const dir = path.join(folder, `parts-${after}`);
      const config = tiny(rows, dir, options);
      const abort = new AbortController();
      await t.rejects(
        run(config, {
          signal: abort.signal,
          onItem: (item) => item.event === undefined && item.step === after && abort.abort(),
        }),
        CancelledError,
      );
      const saved = readdirSync(path.join(dir, "checkpoints"));
      t.equal(saved.length, 1, `stopped at ${saved}`);
      const rest = await run(config);
      // The next step was queued already and may have ended too.
      t.ok(rest.steps.length <= steps - after, `${rest.steps.length} steps were left`);
      t.same(figures(dir), figures(path.join(folder, "whole")), "the same figures");
      t.same(bits(path.join(dir, "model")), bits(path.join(folder, "whole/model")), "the same model");
      t.same(
        bits(path.join(dir, "checkpoints", `step-${steps}`)),
        bits(path.join(folder, "whole/checkpoints", `step-${steps}`)),
        "the same optimizer",
      );
    }
  });
}

t.test("from a checkpoint of save_every, after more steps were done", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const dir = path.join(folder, "run");
  const options = { output: { saveEvery: 2, keep: 9 } };
  await run(tiny(rows, dir, options));
  const before = { figures: figures(dir), model: bits(path.join(dir, "model")) };
  for (const name of ["step-4", "step-6"]) rmSync(path.join(dir, "checkpoints", name), { recursive: true });
  const again = await run(tiny(rows, dir, options));
  t.same(
    again.steps.map(({ step }) => step),
    [3, 4, 5, 6],
  );
  t.same(figures(dir), before.figures, "later lines were cut off and came again");
  t.same(bits(path.join(dir, "model")), before.model);
});

const warnings = ({ events }: Ran): unknown[] =>
  events.filter(({ event }) => event === "warning").map(({ message }) => message);

t.test("a finished run says so; more steps go on", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const dir = path.join(folder, "run");
  const options: TinyOptions = { train: { schedule: "constant", steps: 3 } };
  await run(tiny(rows, dir, options));
  const again = await run(tiny(rows, dir, options));
  t.same(again.steps, []);
  t.match(again.events, [{ event: "done", step: 3, message: /finished: 3 of 3 steps/ }]);
  const longer = await run(tiny(rows, dir, { train: { schedule: "constant", steps: 5 } }));
  t.same(
    longer.steps.map(({ step }) => step),
    [4, 5],
  );
  t.same(warnings(longer), [], "a constant rate does not jump");
  const whole = path.join(folder, "whole");
  await run(tiny(rows, whole, { train: { schedule: "constant", steps: 5 } }));
  t.same(figures(dir), figures(whole));
  t.same(bits(path.join(dir, "model")), bits(path.join(whole, "model")));
  rmSync(path.join(dir, "model"), { recursive: true });
  const exported = await run(tiny(rows, dir, { train: { schedule: "constant", steps: 5 } }));
  t.same(exported.steps, [], "only the export was missing");
  t.same(bits(path.join(dir, "model")), bits(path.join(whole, "model")));
});

t.test("more steps than a finished run had: a schedule that jumps is told with both rates", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  for (const [schedule, told] of [
    // 1e-2 x (1 + cos(pi x 3/4)) / 2, then half way of eight steps; linear: a quarter left, then half.
    ["cosine", /was to have 4 steps and now has 8, .* cosine .* step 4 used .* of 0\.001464, step 5 uses 0\.005;/],
    ["linear", /was to have 4 steps and now has 8, .* linear .* step 4 used .* of 0\.0025, step 5 uses 0\.005;/],
  ] as const) {
    const dir = path.join(folder, schedule);
    const config = (steps: number) => tiny(rows, dir, { layers: 1, train: { schedule, steps, warmupSteps: 0 } });
    const first = await run(config(4));
    t.same(warnings(first), []);
    const more = await run(config(8));
    t.equal(warnings(more).length, 1);
    t.match(warnings(more)[0], told);
    if (schedule !== "cosine") continue;
    const rates = [...first.steps, ...more.steps].map(({ learningRate }) => Number(learningRate.toPrecision(4)));
    t.same(rates.slice(3, 5), [0.001464, 0.005], "as said");
  }
  const { describeJump } = await import("../../lib/train/remarks.js");
  const options = { learningRate: 1, minLearningRate: 0, warmupSteps: 0, decaySteps: null };
  t.match(
    describeJump(10, 10, 20, { ...options, schedule: "wsd" }),
    /step 10 used a learning rate of 0\.5, step 11 uses 1;/,
  );
  t.equal(describeJump(3, 10, 20, { ...options, schedule: "wsd" }), undefined, "within the stable part");
  t.equal(describeJump(3, 1000, 1001, { ...options, schedule: "cosine" }), undefined, "a jump that nobody sees");
});

t.test("documents longer than max_position_embeddings are told once, with what to write", async (t) => {
  const folder = t.testdir({});
  const rows = path.join(folder, "rows.jsonl");
  const ids = Array.from({ length: 80 }, (_, i) => (i * i) % 60);
  writeFileSync(rows, `${JSON.stringify({ input_ids: ids })}\n${JSON.stringify({ input_ids: ids.slice(0, 9) })}\n`);
  const config = (name: string, model: object, sequenceLength = 100) => ({
    ...tiny(rows, path.join(folder, name), { train: { steps: 2 }, data: { sequenceLength } }),
    model: model as ConfigInput["model"],
  });
  const init = tiny(rows, "").model?.init;
  const first = warnings(await run(config("init", { init })));
  t.equal(first.length, 1);
  t.match(
    first[0],
    /^model\.init: max_position_embeddings is 64, .* up to 80 tokens: .*; set max_position_embeddings: 80 in/,
  );
  const source = path.join(folder, "init", "model");
  const [told = "", ...rest] = warnings(await run(config("path", { path: source })));
  t.same(rest, []);
  t.match(told, /config\.json: max_position_embeddings is 64.*model\.override: \{max_position_embeddings: 80\} writes/);
  t.match(told, /\{max_position_embeddings: 80, rope_scaling: \{rope_type: yarn, factor: 2\}\} also stretches/);
  const override = { max_position_embeddings: 80, rope_scaling: { rope_type: "yarn", factor: 2 } };
  t.same(warnings(await run(config("override", { path: source, override }))), []);
  const text = readFileSync(path.join(folder, "override/model/config.json"), "utf8");
  t.match(text, /"max_position_embeddings": 80,/);
  t.match(text, /"factor": 2\.0,\n {4}"original_max_position_embeddings": 64\n/);
  const dynamic = { ...init, rope_scaling: { rope_type: "dynamic", factor: 2 } };
  t.match(warnings(await run(config("dynamic", { init: dynamic })))[0], /dynamic scaling stretches what is longer/);
});

t.test("epochs: the last step may be smaller", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 5);
  const { steps } = await run(
    tiny(rows, path.join(folder, "run"), {
      data: { packing: false },
      train: { steps: null, epochs: 2, batchSize: 4, warmupSteps: 0 },
    }),
  );
  t.same(
    steps.map(({ epoch }) => epoch),
    [0.8, 1.6, 2],
  );
});

t.test("what does not match is refused by name", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const dir = path.join(folder, "run");
  await run(tiny(rows, dir));
  const before = readFileSync(path.join(dir, "metrics.jsonl"), "utf8");
  await t.rejects(run(tiny(rows, dir, { train: { learningRate: 0.5, weightDecay: 0.2, steps: 9 } })), {
    constructor: ConfigError,
    message: /train\.learning_rate: the checkpoint has 0\.01, the run 0\.5[\s\S]*train\.weight_decay/,
  });
  await t.rejects(run(tiny(rows, dir, { output: { resume: "never" } })), {
    constructor: ConfigError,
    message: /not empty and output\.resume is never/,
  });
  writeRows(rows, 19);
  await t.rejects(run(tiny(rows, dir, { train: { steps: 9 } })), {
    constructor: ConfigError,
    message: /step-6 was made with other training data/,
  });
  t.equal(readFileSync(path.join(dir, "metrics.jsonl"), "utf8"), before, "nothing was lost");
  t.ok(existsSync(path.join(dir, "checkpoints/step-6")));
});

t.test("a damaged or half-written checkpoint is passed over", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const dir = path.join(folder, "run");
  const config = tiny(rows, dir, { output: { saveEvery: 1, keep: 9 } });
  await run(config);
  const before = { figures: figures(dir), model: bits(path.join(dir, "model")) };
  const checkpoints = path.join(dir, "checkpoints");
  rmSync(path.join(checkpoints, "step-6/manifest.json"));
  truncateSync(path.join(checkpoints, "step-5/optimizer.safetensors"), 100);
  const weights = path.join(checkpoints, "step-4/model.safetensors");
  const bytes = readFileSync(weights);
  bytes[bytes.length - 1] = (bytes.at(-1) as number) ^ 1;
  writeFileSync(weights, bytes);
  mkdirSync(path.join(checkpoints, "step-9"));
  const again = await run(config);
  t.same(
    again.steps.map(({ step }) => step),
    [4, 5, 6],
  );
  const warnings = again.events.filter((event): event is WarningEvent => event.event === "warning");
  t.match(
    warnings.map(({ message }) => message),
    [/step-9 .*passed over/, /step-6 .*manifest\.json/, /step-5 .*100 bytes/, /step-4 .*damaged/],
  );
  t.same(figures(dir), before.figures);
  t.same(bits(path.join(dir, "model")), before.model);
});

t.test("evaluation: at its steps and at the end, also when stopped in between", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  const held = writeRows(path.join(folder, "eval.jsonl"), 7);
  const options: TinyOptions = { data: { eval: [held] }, train: { steps: 5, evalEvery: 2 } };
  const whole = await run(tiny(rows, path.join(folder, "whole"), options));
  const evals = (events: typeof whole.events) => events.filter(({ event }) => event === "eval");
  t.match(evals(whole.events), [{ step: 2 }, { step: 4 }, { step: 5 }]);
  const without = await run(tiny(rows, path.join(folder, "without")));
  t.equal(whole.steps[0]?.loss, without.steps[0]?.loss, "it changes nothing");

  const abort = new AbortController();
  const config = tiny(rows, path.join(folder, "parts"), options);
  const first: typeof whole.events = [];
  await t.rejects(
    run(config, {
      signal: abort.signal,
      onItem: (item) => {
        if (item.event === "eval") first.push(item);
        if (item.event === undefined && item.step === 4) abort.abort();
      },
    }),
    CancelledError,
  );
  const rest = await run(config);
  t.same(evals([...first, ...rest.events]), evals(whole.events));
});

t.test("the evaluation's loss is that of a step on the same rows", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 12);
  const { steps, events } = await run(
    tiny(rows, path.join(folder, "run"), {
      data: { eval: [rows], packing: false, shuffle: false },
      train: { learningRate: 0, steps: 1, batchSize: 12, microBatchSize: 4, warmupSteps: 0 },
    }),
  );
  const [evaluation] = events.filter((event): event is EvalEvent => event.event === "eval");
  const loss = evaluation?.loss as number;
  t.ok(Math.abs(loss - (steps[0]?.loss as number)) < 1e-6 * loss);
  t.equal(evaluation?.tokens, steps[0]?.tokens);
  t.equal(evaluation?.validTokens, steps[0]?.validTokens);
});

t.test("two runs at once do not disturb each other, also when one is stopped", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 18);
  await run(tiny(rows, path.join(folder, "alone")));
  const abort = new AbortController();
  const [a, b] = await Promise.allSettled([
    run(tiny(rows, path.join(folder, "a"))),
    run(tiny(rows, path.join(folder, "b")), {
      signal: abort.signal,
      onItem: (item) => item.event === undefined && item.step === 2 && abort.abort(),
    }),
  ]);
  t.match([a?.status, b?.status], ["fulfilled", "rejected"]);
  await run(tiny(rows, path.join(folder, "b")));
  for (const name of ["a", "b"]) {
    t.same(figures(path.join(folder, name)), figures(path.join(folder, "alone")));
    t.same(bits(path.join(folder, name, "model")), bits(path.join(folder, "alone/model")));
  }
});

t.test("a run of epochs that is finished says so", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 6);
  const config = tiny(rows, path.join(folder, "run"), { train: { steps: null, epochs: 1, warmupSteps: 0 } });
  const first = await run(config);
  t.ok(first.steps.length > 0);
  const again = await run(config);
  t.same(again.steps, []);
  t.match(again.events, [{ event: "done", message: /finished/ }]);
});
