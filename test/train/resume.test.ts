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
import { CancelledError, ConfigError } from "../../lib/errors.js";
import type { EvalEvent, WarningEvent } from "../../lib/report/events.js";
import { bits, figures, run, type TinyOptions, tiny, writeRows } from "./helpers.js";

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
  const whole = path.join(folder, "whole");
  await run(tiny(rows, whole, { train: { schedule: "constant", steps: 5 } }));
  t.same(figures(dir), figures(whole));
  t.same(bits(path.join(dir, "model")), bits(path.join(whole, "model")));
  rmSync(path.join(dir, "model"), { recursive: true });
  const exported = await run(tiny(rows, dir, { train: { schedule: "constant", steps: 5 } }));
  t.same(exported.steps, [], "only the export was missing");
  t.same(bits(path.join(dir, "model")), bits(path.join(whole, "model")));
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
