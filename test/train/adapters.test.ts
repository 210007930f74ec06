// Runs that train adapters: PEFT's numbers, the files that are written, going on, dropout, and the memory that is saved.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import t from "tap";
import { SafetensorsFile } from "../../lib/checkpoint/safetensors.js";
import { type ConfigInput, canonicalJson, parseConfigObject } from "../../lib/config/index.js";
import { toCamel } from "../../lib/config/values.js";
import { initModel, loadModel } from "../../lib/index.js";
import type { AdapterConfig } from "../../lib/models/adapter.js";
import { readAdapterConfig } from "../../lib/models/peft.js";
import type { StepMetrics } from "../../lib/report/events.js";
import { modelFlops } from "../../lib/report/model_flops.js";
import { bits, ended, figures, golden, run, startCli, writeRows } from "./helpers.js";

process.env.LONGSEQ_CACHE_DIR = mkdtempSync(path.join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true }));

const folder = path.join(golden, "adapters");

interface Golden {
  model: string;
  train: Record<string, unknown>;
  steps: { loss: number; grad_norm: number }[];
}

const settings: ConfigInput["memory"][] = [
  {},
  {
    tileMlp: 9,
    tileLoss: 7,
    headChunks: 2,
    checkpoint: { every: 1, offload: "host" },
    offload: { params: "host", gradients: "host", optimizer: "host" },
  },
];

for (const name of readdirSync(folder).sort())
  t.test(`${name}: PEFT's losses and gradient norms`, async (t) => {
    const at = path.join(folder, name);
    const wanted = JSON.parse(readFileSync(path.join(at, "golden.json"), "utf8")) as Golden;
    for (const [i, memory] of settings.entries()) {
      const dir = path.join(t.testdir({}), `run-${i}`);
      const { steps } = await run({
        model: { path: path.join(golden, "models", wanted.model, "model") },
        adapter: { path: at },
        data: { train: [path.join(at, "rows.jsonl")], sequenceLength: 40, packing: false, shuffle: false },
        train: Object.fromEntries(Object.entries(wanted.train).map(([key, value]) => [toCamel(key), value])),
        memory,
        threads: 2,
        output: { dir },
      } as ConfigInput);
      t.equal(steps.length, wanted.steps.length);
      for (const [i, expected] of wanted.steps.entries()) {
        const { loss, gradNorm } = steps[i] as StepMetrics;
        t.ok(Math.abs((loss as number) / expected.loss - 1) <= 1e-5, `loss ${loss} for ${expected.loss}`);
        t.ok(
          Math.abs((gradNorm as number) / expected.grad_norm - 1) <= 1e-4,
          `norm ${gradNorm} for ${expected.grad_norm}`,
        );
      }
      t.same(readdirSync(path.join(dir, "model")).sort(), ["adapter_config.json", "adapter_model.safetensors"]);
    }
  });

const llama = path.join(golden, "models", "llama2", "model");

const config = (rows: string, dir: string, more: Partial<ConfigInput> = {}): ConfigInput => ({
  model: { path: llama },
  adapter: { r: 4, alpha: 8, targetModules: ["q_proj", "o_proj", "down_proj"], dropout: 0.1 },
  data: { train: [rows], sequenceLength: 48, packing: false },
  train: { steps: 6, batchSize: 4, microBatchSize: 2, learningRate: 1e-2, weightDecay: 0.1 },
  threads: 2,
  ...more,
  output: { dir, ...more.output },
});

t.test("a run goes on bit for bit, keeps the base out of its checkpoints, and says what it trains", async (t) => {
  const at = t.testdir({});
  const rows = writeRows(path.join(at, "rows.jsonl"), 40, 41);
  const whole = path.join(at, "whole");
  const { events } = await run(config(rows, whole));
  const plan = events.find(({ event }) => event === "plan") as unknown as Record<string, number>;
  t.ok((plan.trainable as number) > 0 && (plan.trainable as number) < (plan.parameters as number) / 4);
  const parts = path.join(at, "parts");
  await run(config(rows, parts, { train: { ...config(rows, parts).train, steps: 3 } as ConfigInput["train"] }));
  using checkpoint = await SafetensorsFile.open(path.join(parts, "checkpoints/step-3/model.safetensors"));
  t.ok([...checkpoint.entries.keys()].every((name) => /\.lora_[AB]\.weight(:\w+)?$/.test(name)));
  await run(config(rows, parts));
  // The schedule of the first part was another one.
  const constant = (steps: number, dir: string) =>
    config(rows, dir, {
      train: { ...config(rows, dir).train, schedule: "constant", steps } as ConfigInput["train"],
    });
  const [one, two] = [path.join(at, "one"), path.join(at, "two")];
  await run(constant(6, one));
  await run(constant(3, two));
  await run(constant(6, two));
  t.same(figures(two), figures(one));
  t.same(bits(path.join(two, "model")), bits(path.join(one, "model")));

  await t.rejects(run(config(rows, parts, { adapter: { ...config(rows, parts).adapter, r: 5 } })), {
    name: "ConfigError",
    message: /adapter\.r: the checkpoint has 4, the run 5/,
  });
  const saved = await readAdapterConfig(path.join(whole, "model"));
  t.equal(saved.base, path.resolve(llama));
  t.match(saved.config, { rank: 4, alpha: 8, dropout: 0.1, targetModules: ["q_proj", "o_proj", "down_proj"] });
});

t.test("adapters in bfloat16 train as those in float32 do, and belong into a bfloat16 model alone", async (t) => {
  const at = t.testdir({});
  const rows = writeRows(path.join(at, "rows.jsonl"), 40, 41);
  const adapter = { ...config(rows, at).adapter, dropout: 0 };
  const of = (dir: string, more: Partial<ConfigInput>) =>
    run(config(rows, path.join(at, dir), { model: { path: llama, dtype: "bfloat16" }, adapter, ...more }));
  const wide = await of("wide", {});
  const narrow = await of("narrow", { adapter: { ...adapter, dtype: "bfloat16" } });
  t.equal(narrow.steps.length, 6);
  let moved = false;
  for (const [i, { loss, gradNorm }] of narrow.steps.entries()) {
    const other = wide.steps[i] as StepMetrics;
    t.ok(Math.abs((loss as number) / (other.loss as number) - 1) <= 1e-2, `loss ${loss} for ${other.loss}`);
    t.ok(Math.abs((gradNorm as number) / (other.gradNorm as number) - 1) <= 5e-2, `${gradNorm} for ${other.gradNorm}`);
    moved ||= loss !== other.loss;
  }
  t.ok(moved, "they are others");
  using weights = await SafetensorsFile.open(path.join(at, "narrow/model/adapter_model.safetensors"));
  t.ok([...weights.entries.values()].every(({ dtype }) => dtype === "BF16"));
  const all = { params: "host", gradients: "host", optimizer: "host" } as const;
  const away = await of("away", {
    adapter: { ...adapter, dtype: "bfloat16" },
    memory: { tileMlp: 9, tileLoss: 7, headChunks: 2, checkpoint: { every: 1 }, offload: all },
  });
  for (const [i, { loss }] of away.steps.entries())
    t.ok(Math.abs((loss as number) / (narrow.steps[i]?.loss as number) - 1) <= 1e-2);
  await t.rejects(of("float32", { model: { path: llama }, adapter: { ...adapter, dtype: "bfloat16" } }), {
    name: "ConfigError",
    message: /adapter\.dtype: got bfloat16, but the model is float32.*set model\.dtype to bfloat16/,
  });
});

t.test("dropout: the same for every micro-batch size, another in every step, none in an evaluation", async (t) => {
  const at = t.testdir({});
  const rows = writeRows(path.join(at, "rows.jsonl"), 40, 41);
  // Adapters whose B is not 0.
  const from = path.join(folder, "llama_head");
  const started = (dir: string, dropout: number, microBatchSize: number, steps = 2) =>
    run(
      config(rows, path.join(at, dir), {
        adapter: { path: from, dropout },
        data: { train: [rows], eval: [rows], sequenceLength: 48, packing: false, shuffle: false },
        train: { steps, batchSize: 4, microBatchSize, learningRate: 0, evalEvery: 1 },
      }),
    );
  const plain = await started("plain", 0, 1);
  const dropped = await started("dropped", 0.4, 1);
  const wide = await started("wide", 0.4, 4);
  const losses = ({ steps }: { steps: StepMetrics[] }) => steps.map(({ loss }) => loss as number);
  for (const [i, loss] of losses(dropped).entries()) {
    t.ok(Math.abs(loss / (losses(wide)[i] as number) - 1) < 1e-6, `${loss}, in one micro-batch ${losses(wide)[i]}`);
    t.ok(Math.abs(loss / (losses(plain)[i] as number) - 1) > 1e-4, "something was dropped");
  }
  const evaluations = ({ events }: { events: { event: string; [key: string]: unknown }[] }) =>
    events.filter(({ event }) => event === "eval").map(({ loss }) => loss);
  t.equal(evaluations(plain as never).length, 2);
  t.same(evaluations(dropped as never), evaluations(plain as never), "nothing is dropped in an evaluation");
});

t.test("dropout: gradients are those of the loss with the same choice, by finite differences", async (t) => {
  const adapter: AdapterConfig = {
    rank: 2,
    alpha: 4,
    targetModules: ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"],
    modulesToSave: [],
    dropout: 0.3,
    rslora: false,
    init: "gaussian",
    path: null,
    file: "adapter",
  };
  using model = initModel(
    {
      model_type: "llama",
      vocab_size: 19,
      hidden_size: 16,
      intermediate_size: 24,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      max_position_embeddings: 64,
      initializer_range: 0.3,
    },
    { seed: 3, adapter },
  );
  const inputIds = Int32Array.from({ length: 21 }, (_, i) => (i * 7 + i * i) % 19);
  for (const [, parameter] of model.namedParameters())
    if (parameter.requiresGrad) {
      const values = Float32Array.from({ length: parameter.size }, (_, i) => 0.3 * Math.sin(1 + 3 * i));
      parameter.copyFrom(values);
    }
  const lossOf = async (seed: number | null) => {
    const loss = model.loss({ inputIds }, { dropoutSeed: seed });
    const value = await loss.item();
    loss.dispose();
    return value;
  };
  t.equal(await lossOf(5), await lossOf(5));
  t.not(await lossOf(5), await lossOf(6));
  t.not(await lossOf(5), await lossOf(null));
  for (const memory of [
    { tileMlp: 0, checkpointEvery: 0, headChunks: 1 },
    { tileMlp: 4, checkpointEvery: 1, headChunks: 2, tileLoss: 3 },
  ]) {
    model.configureMemory(memory);
    model.zeroGrad();
    model.loss({ inputIds }, { dropoutSeed: 5 }).backward();
    for (const [name, parameter] of model.namedParameters()) {
      if (!parameter.requiresGrad) continue;
      const grad = (await parameter.grad?.data()) as Float32Array;
      const before = ((await parameter.data()) as Float32Array).slice();
      // Along the gradient itself: one number for all elements.
      const norm = Math.sqrt(grad.reduce((sum, g) => sum + g * g, 0));
      const step = 2e-3;
      const at = async (sign: number) => {
        parameter.copyFrom(before.map((value, i) => value + (sign * step * (grad[i] as number)) / norm));
        return lossOf(5);
      };
      const slope = ((await at(1)) - (await at(-1))) / (2 * step);
      parameter.copyFrom(before);
      t.ok(Math.abs(slope / norm - 1) < 2e-2, `${name}: ${slope}, gradient ${norm}`);
    }
  }
  model.zeroGrad();
});

t.test("states and gradients are those of the adapters alone", async (t) => {
  const at = t.testdir({});
  const rows = writeRows(path.join(at, "rows.jsonl"), 12, 41);
  const steps = { steps: 2, batchSize: 2, microBatchSize: 1 };
  const live = async (dir: string, adapter: ConfigInput["adapter"]) => {
    const model = { path: llama, baseFormat: dir === "packed" ? ("int8" as const) : ("native" as const) };
    const ran = await run(config(rows, path.join(at, dir), { model, adapter, train: steps }));
    return (ran.steps[0] as StepMetrics).deviceLiveBytes;
  };
  using model = await loadModel(llama, { device: "meta", dtype: "float32" });
  const base = 4 * model.parameters().reduce((sum, { size }) => sum + size, 0);
  const whole = await live("whole", {});
  const adapters = await live("adapters", { r: 1, targetModules: ["q_proj"] });
  const packed = await live("packed", { r: 1 });
  const { config: saved } = await readAdapterConfig(path.join(at, "packed/model"));
  t.same(
    saved.targetModules,
    ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "what all-linear, the default, stands for",
  );
  t.ok(whole > 2.9 * base, `${whole} of ${base}`);
  t.ok(adapters < 1.1 * base, `${adapters} of ${base}`);
  t.ok(packed < 0.8 * adapters, `${packed} packed, ${adapters} not`);
});

t.test("operations: of a frozen weight the gradient is not counted", async (t) => {
  const adapter: AdapterConfig = {
    rank: 4,
    alpha: 4,
    targetModules: ["q_proj"],
    modulesToSave: ["lm_head"],
    dropout: 0,
    rslora: false,
    init: true,
    path: null,
    file: "adapter",
  };
  using model = await loadModel(llama, { device: "meta", dtype: "float32", adapter });
  const { shape } = model;
  const { hiddenSize: H, layers: L, heads: N, headSize: D, vocabulary: V } = shape;
  const adapters = L * (4 * H + 4 * N * D);
  t.equal(shape.adapterWeights, adapters);
  t.equal(shape.trainedWeights, adapters + V * H);
  using plain = await loadModel(llama, { device: "meta", dtype: "float32" });
  const tokens = 100;
  const frozen =
    (modelFlops(plain.shape, [tokens]) - 12 * N * D * L * ((tokens * (tokens + 1)) / 2)) / (6 * tokens) - V * H;
  t.equal(modelFlops(plain.shape, [tokens]) - modelFlops(shape, [tokens]), tokens * (2 * frozen - 6 * adapters));
});

t.test("through the command line: train, merge, train what was merged", { timeout: 120_000 }, async (t) => {
  const at = t.testdir({});
  const rows = writeRows(path.join(at, "rows.jsonl"), 12, 41);
  const file = (name: string, input: ConfigInput) => {
    writeFileSync(path.join(at, name), canonicalJson(parseConfigObject(input)));
    return path.join(at, name);
  };
  const first = config(rows, path.join(at, "run"), { model: { path: llama, override: { rope_theta: 7777 } } });
  const trained = await ended(startCli(["train", file("a.json", first)]));
  t.equal(trained.code, 0, trained.err.slice(-500));
  const merged = await ended(startCli(["merge", path.join(at, "run/model"), path.join(at, "merged"), "--json"]));
  t.equal(merged.code, 0, merged.err.slice(-500));
  const { base, ...told } = JSON.parse(merged.out.trim().split("\n").at(-1) as string);
  t.equal(base, path.resolve(llama));
  t.match(told, { event: "merge", path: path.join(at, "merged"), replaced: 0 });
  const fields = JSON.parse(readFileSync(path.join(at, "merged/config.json"), "utf8"));
  t.equal(
    fields.rope_theta ?? fields.rope_parameters.rope_theta,
    7777,
    "what training replaced is in the merged model",
  );
  const again = await ended(startCli(["merge", path.join(at, "run/model"), path.join(at, "merged")]));
  t.equal(again.code, 1);
  t.match(again.err, /merged is not empty/);
  const further = config(rows, path.join(at, "further"), { model: { path: path.join(at, "merged") }, adapter: {} });
  t.equal((await ended(startCli(["train", file("b.json", further)]))).code, 0);
  t.ok(readdirSync(path.join(at, "further/model")).includes("model.safetensors"));
  const wrong = config(rows, path.join(at, "wrong"), { model: { path: path.join(at, "run/model") } });
  const refused = await ended(startCli(["train", file("c.json", wrong)]));
  t.equal(refused.code, 1);
  t.match(refused.err, /holds an adapter, not a model/);
});
