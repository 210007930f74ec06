// What a plan says is what a run does: peaks to the byte, the ladder's order, limits that are too small, resume.

import * as path from "node:path";
import t from "tap";
import { type ConfigInput, parseConfigObject } from "../../lib/config/index.js";
import { ConfigError } from "../../lib/errors.js";
import type { PlanEvent } from "../../lib/report/events.js";
import { assumedCuda } from "../../lib/tensor/device.js";
import { ladder } from "../../lib/train/ladder.js";
import { Limits } from "../../lib/train/limits.js";
import { longestSequence } from "../../lib/train/longest.js";
import { fullWorkload, measure } from "../../lib/train/measure.js";
import { resolveModel } from "../../lib/train/model.js";
import { type Choice, chooseMemory } from "../../lib/train/plan.js";
import { ratesOf, smallestTile } from "../../lib/train/rates.js";
import { MOST_RUNS, nominalTokens } from "../../lib/train/trials.js";
import { run } from "./helpers.js";
import { type Case, config, MiB, out, rowsFile, T, tiles } from "./plan_config.js";

async function choose(input: ConfigInput): Promise<Choice> {
  const parsed = parseConfigObject(input);
  return chooseMemory(parsed, {
    model: await resolveModel(parsed),
    dtype: parsed.model.dtype === "bfloat16" ? "bfloat16" : "float32",
    work: fullWorkload(parsed),
    tokens: nominalTokens(parsed),
    limits: new Limits(parsed.memory),
    rates: ratesOf("cpu"),
  });
}

const cases: Record<string, Case> = {
  plain: {},
  "nothing tiled": { memory: { tileMlp: "off", tileLoss: "off" } },
  "tiles, the last one short": { memory: tiles },
  "tiles of one row of logits": { memory: { tileMlp: 97, tileLoss: 1 } },
  tied: { model: { tie_word_embeddings: true }, memory: tiles },
  "a padding token": { model: { pad_token_id: 3 }, memory: tiles },
  mistral: { model: { model_type: "mistral", sliding_window: 50 } },
  qwen2: { model: { model_type: "qwen2" }, memory: tiles },
  qwen3: { model: { model_type: "qwen3", head_dim: 32 }, memory: tiles },
  bfloat16: { dtype: "bfloat16", memory: tiles },
  "bfloat16, checkpoints": { dtype: "bfloat16", memory: { ...tiles, checkpoint: { every: 1, ...out } } },
  "every 1": { memory: { ...tiles, checkpoint: { every: 1, offload: "none" } } },
  "every 1, attention again": { memory: { ...tiles, checkpoint: { every: 1, keepAttention: false, offload: "none" } } },
  "every 2": { memory: { ...tiles, checkpoint: { every: 2, offload: "none" } } },
  "every 3": { memory: { ...tiles, checkpoint: { every: 3, offload: "none" } } },
  host: { memory: { ...tiles, checkpoint: { every: 1, keepAttention: true, ...out } } },
  "host, attention again": { memory: { ...tiles, checkpoint: { every: 1, keepAttention: false, ...out } } },
  "host, every 2": { memory: { ...tiles, checkpoint: { every: 2, ...out } } },
  "host, some stay": { memory: { ...tiles, checkpoint: { every: 1, offload: "host", deviceBytes: 900_000 } } },
  "8 bits on the host": { memory: { ...tiles, checkpoint: { every: 1, format: "int8", ...out } } },
  "8 bits on the device": { memory: { ...tiles, checkpoint: { every: 1, format: "float8", offload: "none" } } },
  "2 head chunks": { memory: { ...tiles, headChunks: 2, checkpoint: { every: 1, ...out } } },
  "4 head chunks": { memory: { ...tiles, headChunks: 4, checkpoint: { every: 1, keepAttention: false, ...out } } },
  accumulation: { train: { batchSize: 2 }, memory: tiles },
  "accumulation of four, offload": { train: { batchSize: 4 }, memory: { ...tiles, checkpoint: { every: 1, ...out } } },
  "micro-batches of two": { train: { batchSize: 4, microBatchSize: 2 }, memory: tiles },
  "no clipping": { train: { clipGradNorm: 0 } },
  packing: { data: { packing: true }, memory: tiles },
  "packing, offload": { data: { packing: true }, memory: { ...tiles, checkpoint: { every: 1, ...out } } },
  "evaluation of longer rows": { data: { eval: ["long"], sequenceLength: 2 * T }, memory: tiles },
};

t.test("peaks of a plan are those of the run, to the byte", async (t) => {
  const folder = t.testdir({});
  const full = rowsFile(folder, "full.jsonl", Array(12).fill(T));
  const parts = rowsFile(folder, "parts.jsonl", Array(12).fill([400, 300, 250, 150]).flat());
  const long = rowsFile(folder, "long.jsonl", [2 * T, 2 * T]);
  for (const [name, one] of Object.entries(cases)) {
    const data = { ...one.data, ...(one.data?.eval && { eval: [long] }) };
    const rows = one.data?.packing ? parts : full;
    const { steps, events } = await run(config(folder, `run ${name}`, rows, { ...one, data }));
    const plan = events.find(({ event }) => event === "plan") as PlanEvent;
    const last = steps.at(-1);
    // The evaluation comes behind the last step, whose figures do not know of it.
    const evaluated = one.data?.eval ? undefined : last?.devicePeakBytes;
    t.equal(evaluated ?? plan.devicePeakBytes, plan.devicePeakBytes, `${name}: device`);
    t.equal(last?.hostPeakBytes, plan.hostPeakBytes, `${name}: host`);
    t.ok((plan.devicePeakBytes as number) > MiB, "larger than the smallest chunk");
  }
  t.ok(Object.keys(cases).length >= 20);
});

t.test("the limits that a plan names are exact: evaluation and packing too", async (t) => {
  const folder = t.testdir({});
  const full = rowsFile(folder, "full.jsonl", Array(4).fill(T));
  const long = rowsFile(folder, "long.jsonl", [2 * T, 2 * T]);
  const one = (dir: string, deviceLimit: number) =>
    config(folder, dir, full, { data: { eval: [long], sequenceLength: 2 * T }, memory: { ...tiles, deviceLimit } });
  const { events } = await run(one("free", 64 * MiB));
  const { devicePeakBytes } = events.find(({ event }) => event === "plan") as PlanEvent;
  const least = devicePeakBytes as number;
  const done = await run(one("exact", least));
  t.equal(done.steps.length, 3);
  t.ok(done.events.some(({ event }) => event === "eval"));
});

t.test("each rung is reached by lowering the limit, in the order of the ladder", async (t) => {
  const memory = { hostLimit: 64 * MiB, ...tiles };
  const parsed = parseConfigObject(config("none", "none", "none", { memory }));
  const model = await resolveModel(parsed);
  const work = fullWorkload(parsed);
  const rungs = ladder(parsed.memory, model);
  t.same([...new Set(rungs.map(({ name }) => name))].slice(0, 6), [
    "tiles",
    "checkpoint",
    "offload",
    "head chunks",
    "no prefetch",
    "no kept attention",
  ]);
  t.same(rungs[0], {
    name: "tiles",
    checkpointEvery: 0,
    keepAttention: false,
    offload: "none",
    deviceBytes: 0,
    prefetch: true,
    headChunks: 1,
  });
  const states = { optimizer: "none", params: "none", gradients: "none" } as const;
  const needs = rungs.map((rung) => {
    const { name, ...setting } = rung;
    const plan = { ...tiles, format: "native" as const, directory: null, states, ...setting };
    return { name, ...measure({ model, dtype: "float32", train: parsed.train }, plan, work).peaks };
  });
  let reached = 0;
  let least = Number.POSITIVE_INFINITY;
  for (const [i, need] of needs.entries()) {
    if (need.host > 64 * MiB || need.device >= least) continue;
    least = need.device;
    const choice = await choose(config("none", "none", "none", { memory: { ...memory, deviceLimit: need.device } }));
    t.equal(choice.rung, need.name, `${need.device} bytes`);
    t.ok(choice.measured.peaks.device <= need.device);
    t.ok(choice.runs <= MOST_RUNS && choice.runs > i, `${choice.runs} runs`);
    reached++;
  }
  t.ok(reached >= 4, `${reached} rungs`);
});

t.test("keys of the user are fixed, the ladder moves the rest", async (t) => {
  const input = (memory: ConfigInput["memory"]) => config("none", "none", "none", { memory });
  const tight = (await choose(input({ ...tiles, checkpoint: { every: 1, ...out } }))).measured.peaks.device;
  const plans = {
    tiles: await choose(input({ tileMlp: 123, tileLoss: "off", deviceLimit: 32 * MiB })),
    offload: await choose(input({ checkpoint: { offload: "host" } })),
    none: await choose(input({ checkpoint: { every: 0 } })),
    tight: await choose(input({ ...tiles, deviceLimit: tight, checkpoint: { keepAttention: true } })),
  };
  t.match(plans.tiles.plan, { tileMlp: 123, tileLoss: 0, checkpointEvery: 0 });
  t.match(plans.offload.plan, { checkpointEvery: 1, keepAttention: true, offload: "host" });
  t.ok(plans.offload.plan.deviceBytes > 0 && plans.offload.measured.peaks.host === 0, "all of them fit on the device");
  t.match(plans.none.plan, { checkpointEvery: 0, keepAttention: false, offload: "none" });
  t.match(plans.tight.plan, { checkpointEvery: 1, keepAttention: true, offload: "host" });
  t.same(await choose(input({ ...tiles, deviceLimit: tight })), await choose(input({ ...tiles, deviceLimit: tight })));
});

t.test("a bound on head chunks is lowered to a divisor, with one warning", async (t) => {
  const folder = t.testdir({});
  const rows = rowsFile(folder, "rows.jsonl", [T, T, T]);
  const { events } = await run(config(folder, "run", rows, { memory: { headChunks: 3 } }));
  const warnings = events.filter(({ event }) => event === "warning");
  t.equal(warnings.length, 1);
  t.match(warnings[0], { message: /memory\.head_chunks: 3 does not divide the 4 heads; 2 are used/ });
  t.match(events.filter(({ event }) => event === "plan")[0], { headChunks: 2 });
});

t.test("kept attention asked of checkpoints of several layers: it runs, with one warning", async (t) => {
  const folder = t.testdir({});
  const rows = rowsFile(folder, "rows.jsonl", [T, T, T]);
  const { events } = await run(
    config(folder, "run", rows, { memory: { checkpoint: { every: 2, keepAttention: true } } }),
  );
  const warnings = events.filter(({ event }) => event === "warning");
  t.equal(warnings.length, 1);
  t.match(warnings[0], { message: /memory\.checkpoint\.keep_attention: true changes nothing .*every is 2/ });
});

t.test("limits that are too small: the smallest that does is named, and does", async (t) => {
  const folder = t.testdir({});
  const rows = rowsFile(folder, "rows.jsonl", [T, T, T]);
  const limited = (dir: string, memory: ConfigInput["memory"]) => config(folder, dir, rows, { memory });
  const refused = async (memory: ConfigInput["memory"]) => {
    const error = await run(limited("refused", memory)).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    t.ok(error instanceof ConfigError, String(error));
    return error as ConfigError;
  };
  const page = 64 * 1024;
  // Nothing else but the device is short.
  const device = await refused({ deviceLimit: 100_000, hostLimit: 64 * MiB });
  t.match(device.message, /memory\.device_limit is 97\.7 KiB .*needs at least .* of device memory \(.*params.*raise/);
  const least = device.details.deviceBytes as number;
  t.equal((await run(limited("device", { deviceLimit: least, hostLimit: 64 * MiB }))).steps.length, 3);
  t.equal((await refused({ deviceLimit: least - page, hostLimit: 64 * MiB })).details.deviceBytes, least);
  // The host is short where everything has to go there.
  const keys = { ...tiles, deviceLimit: 64 * MiB, checkpoint: { every: 1, keepAttention: false, ...out } };
  const host = await refused({ ...keys, hostLimit: 1000 });
  t.match(host.message, /memory\.host_limit is 1000 B .*of host memory \(checkpoints/);
  t.same(host.details.short, ["host"]);
  const hostLeast = host.details.hostBytes as number;
  t.equal((await run(limited("host", { ...keys, hostLimit: hostLeast }))).steps.length, 3);
  t.equal((await refused({ ...keys, hostLimit: hostLeast - page })).details.hostBytes, hostLeast);
});

t.test("keys that contradict each other", async (t) => {
  for (const [checkpoint, message] of [
    [{ every: 0, offload: "host" }, /memory\.checkpoint\.offload: host, but memory\.checkpoint\.every is 0/],
    [{ every: 0, keepAttention: true }, /memory\.checkpoint\.keep_attention: true, but/],
    [{ every: 0, deviceBytes: 1000 }, /memory\.checkpoint\.device_bytes: 1000 B, but/],
  ] as const)
    await t.rejects(choose(config("none", "none", "none", { memory: { checkpoint } })), {
      constructor: ConfigError,
      message,
    });
});

t.test("a resumed run uses the stored choice; one that does not fit is made anew, with a warning", async (t) => {
  const folder = t.testdir({});
  const rows = rowsFile(folder, "rows.jsonl", [T, T, T, T, T, T]);
  const with_ = (steps: number, memory: ConfigInput["memory"]) =>
    config(folder, "run", rows, { train: { steps }, memory });
  const tight = (await choose(with_(2, { checkpoint: { every: 1, keepAttention: true, ...out } }))).measured.peaks;
  const planOf = async (input: ConfigInput) => {
    const { events } = await run(input);
    const warnings = events.filter(({ event }) => event === "warning");
    return { warnings, plan: events.filter(({ event }) => event === "plan")[0] as PlanEvent };
  };
  const first = await planOf(with_(1, { deviceLimit: tight.device }));
  t.ok((first.plan.checkpointEvery as number) > 0, "a checkpoint is needed");
  const roomy = await planOf(with_(2, { deviceLimit: 64 * MiB }));
  t.match(roomy.plan, { rung: "as before", checkpointEvery: first.plan.checkpointEvery, metaRuns: 1 });
  t.equal(roomy.plan.memory === undefined, false);
  const fixed = await planOf(with_(3, { deviceLimit: 64 * MiB, checkpoint: { every: 0 } }));
  t.match(fixed.plan, { checkpointEvery: 0, tileMlp: first.plan.tileMlp, tileLoss: first.plan.tileLoss });
  const smaller = await planOf(with_(4, { deviceLimit: tight.device }));
  t.ok((smaller.plan.devicePeakBytes as number) <= tight.device);
  t.match(smaller.warnings[0], { message: /do not fit the limits of this run; they are chosen anew/ });
});

t.test("on the CPU device and host share what is left to us", (t) => {
  const of = (deviceLimit: number | "auto", hostLimit: number | "auto") => new Limits({ deviceLimit, hostLimit }, 1000);
  t.equal(of("auto", "auto").total, 800);
  t.ok(of("auto", "auto").fits({ device: 500, host: 300 }));
  t.same(of("auto", "auto").excess({ device: 501, host: 300 }), { device: 1, host: 1 });
  t.ok(of(900, "auto").fits({ device: 900, host: 0 }), "the user's word counts");
  t.notOk(of(900, "auto").fits({ device: 900, host: 1 }));
  t.ok(of(100, "auto").fits({ device: 100, host: 700 }));
  t.notOk(of("auto", 200).fits({ device: 100, host: 201 }));
  for (const [limits, peaks] of [
    [of("auto", "auto"), { device: 300, host: 100 }],
    [of("auto", "auto"), { device: 300, host: 0 }],
    [of(100, "auto"), { device: 90, host: 200 }],
    [of("auto", 50), { device: 90, host: 50 }],
  ] as const) {
    const shares = limits.shares(peaks);
    t.ok(shares.device >= peaks.device && shares.host >= peaks.host, JSON.stringify(shares));
    t.ok(shares.device + shares.host <= 801);
  }
  t.end();
});

t.test("a GPU has its own memory, beside the host's 80%", (t) => {
  const of = (deviceLimit: number | "auto", hostLimit: number | "auto") =>
    new Limits({ deviceLimit, hostLimit }, 1000, 5000);
  t.ok(of("auto", "auto").fits({ device: 5000, host: 800 }));
  t.same(of("auto", "auto").excess({ device: 5001, host: 802 }), { device: 1, host: 2 });
  t.same(of(100, "auto").excess({ device: 150, host: 800 }), { device: 50, host: 0 });
  t.same(of("auto", 50).excess({ device: 5000, host: 60 }), { device: 0, host: 10 });
  t.same(of("auto", "auto").shares({ device: 10, host: 10 }), { device: 5000, host: 800 });
  t.same(of(100, 50).shares({ device: 10, host: 10 }), { device: 100, host: 50 });
  t.end();
});

t.test("meta in a GPU's place", async (t) => {
  const folder = t.testdir();
  const parsed = parseConfigObject(config(folder, "gpu", path.join(folder, "none.jsonl"), { dtype: "bfloat16" }));
  const plan = (await choose(config(folder, "gpu", path.join(folder, "none.jsonl")))).plan;
  const model = await resolveModel(parsed);
  const of = (on: Parameters<typeof measure>[0]["on"]) =>
    measure({ model, dtype: "bfloat16", train: parsed.train, on }, plan, fullWorkload(parsed));
  const cpu = of(undefined);
  const gpu = of({ profile: assumedCuda });
  const native = of({ profile: assumedCuda, attention: "native" });
  const deterministic = of({ profile: assumedCuda, deterministic: true });
  const older = of({ profile: { ...assumedCuda, capability: 80 } });
  t.equal(gpu.peaks.device % assumedCuda.pageBytes, 0);
  const { matmul: ours, ...others } = gpu.ops;
  t.equal(ours?.flops, cpu.ops.matmul?.flops, "the same products");
  t.same(
    Object.keys(others).sort(),
    Object.keys(cpu.ops)
      .filter((op) => op !== "matmul")
      .sort(),
  );
  for (const measured of [native, deterministic, older])
    for (const category of ["params", "grads", "optimizer", "activations"])
      t.equal(measured.categories.device[category], gpu.categories.device[category], category);
  t.same(of({ profile: assumedCuda }), gpu, "and again");
});

t.test("checkpoints that stay on the device have their own category", async (t) => {
  const checkpoint = { every: 1, keepAttention: true, offload: "none" as const };
  const input = config("none", "none", "none", { memory: { ...tiles, checkpoint } });
  const { measured } = await choose(input);
  const kept = 3 * (2 * T * 64 + 4 * T) * 4;
  t.equal(measured.resident, kept, "x, o and the log-sum-exp of three layers");
  const counted = measured.categories.device.checkpoints as number;
  // Large blocks are whole pages of 64 KiB.
  t.ok(counted >= kept && counted < kept + 9 * 65_536, `${counted} bytes at the peak`);
  const none = await choose(config("none", "none", "none", { memory: { ...tiles, checkpoint: { every: 0 } } }));
  t.equal(none.measured.categories.device.checkpoints, 0);
});

t.test("tiles of auto, and the longest sequence", async (t) => {
  const rates = ratesOf("cpu");
  for (const dtype of ["float32", "bfloat16"] as const) {
    const least = smallestTile(rates, dtype);
    const shares = new Map(rates.tiles?.[dtype]);
    t.ok((shares.get(least) as number) >= 0.97);
    for (const [rows, share] of shares) if (rows < least) t.ok(share < 0.97, `${rows} rows`);
  }
  const input = config("none", "none", "none", { memory: { deviceLimit: 8 * MiB, hostLimit: 8 * MiB } });
  const parsed = parseConfigObject(input);
  const facts = {
    model: await resolveModel(parsed),
    dtype: "float32" as const,
    work: fullWorkload(parsed),
    tokens: T,
    limits: new Limits(parsed.memory),
    rates,
  };
  const longest = longestSequence(parsed, facts, (tokens) => fullWorkload(parsed, tokens));
  const at = (tokens: number) =>
    choose({ ...input, data: { train: ["none"], packing: false, sequenceLength: tokens } });
  t.ok(longest && longest.tokens > T);
  const fits = await at(longest?.tokens ?? 0);
  t.ok(fits.measured.peaks.device <= 8 * MiB && fits.measured.peaks.host <= 8 * MiB);
  await t.rejects(at(Math.ceil((longest?.tokens ?? 0) * 1.03)), ConfigError);
  for (const sequenceLength of [10 * T]) {
    const other = parseConfigObject({ ...input, data: { train: ["none"], sequenceLength } });
    const found = longestSequence(other, { ...facts, work: fullWorkload(other) }, (tokens) =>
      fullWorkload(other, tokens),
    );
    t.same(found, longest, `whatever length was asked for: ${sequenceLength}`);
  }
});
