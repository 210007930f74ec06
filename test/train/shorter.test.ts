// A model of many layers is accounted for by a walk of a few: to the byte and to the operation what a walk of all gives.

import t from "tap";
import { type ConfigInput, parseConfigObject } from "../../lib/config/index.js";
import type { ModelConfig } from "../../lib/models/config.js";
import type { Communicator } from "../../lib/parallel/communicator.js";
import { walkAllStretches } from "../../lib/sequence/each_tile.js";
import { partLength } from "../../lib/sequence/shard.js";
import { fullWorkload, type Measurement, measure, type Subject, walkAllLayers } from "../../lib/train/measure.js";
import type { MemoryPlan } from "../../lib/train/memory_plan.js";
import { resolveModel } from "../../lib/train/model.js";
import { ratesOf, timingOf } from "../../lib/train/rates.js";
import { runDtype } from "../../lib/train/target.js";
import type { RanksOf } from "../../lib/train/world.js";
import { coveringArray, type RowOf, type Rule } from "../sequence/covering.js";
import { T } from "./plan_config.js";

const LAYERS = 30;

const families: Record<string, Record<string, unknown>> = {
  llama: { model_type: "llama", intermediate_size: 160 },
  tied: { model_type: "llama", intermediate_size: 160, tie_word_embeddings: true },
  mistral: { model_type: "mistral", intermediate_size: 160, sliding_window: 50 },
  // Windows from a layer on, in every second layer, in five of six.
  qwen3: {
    model_type: "qwen3",
    intermediate_size: 160,
    use_sliding_window: true,
    sliding_window: 50,
    max_window_layers: 4,
  },
  gemma2: { model_type: "gemma2", intermediate_size: 160, head_dim: 16, sliding_window: 50 },
  gemma3: { model_type: "gemma3_text", intermediate_size: 160, head_dim: 16, sliding_window: 50 },
  gpt2: { model_type: "gpt2", num_key_value_heads: 4 },
  olmo2: { model_type: "olmo2", intermediate_size: 160 },
};

const factors = {
  family: Object.keys(families),
  dtype: ["float32", "bfloat16"],
  adapter: ["none", "float", "int8"],
  checkpointEvery: [0, 1, 2, 3],
  keepAttention: [false, true],
  offload: ["none", "host", "disk"],
  format: ["native", "int8"],
  prefetch: [true, false],
  headChunks: [1, 2],
  optimizer: ["none", "host"],
  params: ["none", "host"],
  gradients: ["none", "host"],
  accumulation: [1, 5],
  evaluation: [false, true],
  tokens: [T, 61],
  ranks: [
    "alone",
    "data 2, ZeRO 0",
    "ulysses 2, ZeRO 3",
    "ring 2, ZeRO 1",
    "ulysses 2 x data 2, ZeRO 2",
    "ulysses 4 x ring 2, ZeRO 3",
    "ring 4, ZeRO 2",
    "data 4, ZeRO 1",
  ],
} as const;
type Row = RowOf<typeof factors>;

const admissible: Rule<typeof factors> = ({
  checkpointEvery,
  keepAttention,
  offload,
  prefetch,
  params,
  format,
  adapter,
}) =>
  !(checkpointEvery === 0 && ((offload !== undefined && offload !== "none") || keepAttention === true)) &&
  !(checkpointEvery === 0 && (params === "host" || adapter === "int8" || format === "int8")) &&
  !((checkpointEvery === 0 || offload === "none") && prefetch === false);

const worlds: Record<Row["ranks"], RanksOf | undefined> = {
  alone: undefined,
  "data 2, ZeRO 0": { data: 2, ring: 1, ulysses: 1, zero: 0 },
  "ulysses 2, ZeRO 3": { data: 1, ring: 1, ulysses: 2, zero: 3 },
  "ring 2, ZeRO 1": { data: 1, ring: 2, ulysses: 1, zero: 1 },
  "ulysses 2 x data 2, ZeRO 2": { data: 2, ring: 1, ulysses: 2, zero: 2 },
  "ulysses 4 x ring 2, ZeRO 3": { data: 1, ring: 2, ulysses: 4, zero: 3 },
  "ring 4, ZeRO 2": { data: 1, ring: 4, ulysses: 1, zero: 2 },
  "data 4, ZeRO 1": { data: 4, ring: 1, ulysses: 1, zero: 1 },
};

const planOf = (row: Row): MemoryPlan => ({
  tileMlp: 200,
  tileLoss: 150,
  checkpointEvery: row.checkpointEvery,
  keepAttention: row.keepAttention,
  offload: row.offload,
  deviceBytes: 0,
  format: row.format,
  directory: null,
  prefetch: row.prefetch,
  headChunks: row.headChunks,
  states: { optimizer: row.optimizer, params: row.params, gradients: row.gradients },
});

async function subjectOf(
  row: Row,
  ranks = worlds[row.ranks],
  fields: object = {},
): Promise<{ subject: Subject; input: ReturnType<typeof parseConfigObject> }> {
  const input: ConfigInput = {
    model: {
      init: {
        vocab_size: 96,
        hidden_size: 64,
        num_hidden_layers: LAYERS,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 4096,
        ...families[row.family],
        ...fields,
      },
      dtype: row.dtype,
      ...(row.adapter === "int8" && { baseFormat: "int8" }),
    },
    ...(row.adapter !== "none" && {
      adapter: { r: 4, targetModules: "all-linear" },
    }),
    data: { train: ["none"], sequenceLength: row.tokens, ...(row.evaluation && { eval: ["none"] }) },
    train: { steps: 3, learningRate: 1e-3, batchSize: row.accumulation * (ranks?.data ?? 1) },
    output: { dir: "none" },
  };
  const config = parseConfigObject(input);
  const model: ModelConfig = await resolveModel(config);
  const dtype = runDtype(config, model, "cpu");
  const timing = timingOf(ratesOf("cpu"), dtype, 1);
  const subject = { model, dtype, train: config.train, timing, ...(ranks && { ranks }) };
  return { subject, input: config };
}

/** What is the same to the last digit. */
function exactOf({ ops, elapsed: _, ...rest }: Omit<Measurement, "layers">) {
  return { ...rest, ops: Object.fromEntries(Object.entries(ops).map(([name, { seconds: _, ...op }]) => [name, op])) };
}

t.test("a walk of a few layers and one of all", async (t) => {
  t.teardown(() => walkAllLayers(false));
  const rows = coveringArray(factors, admissible);
  t.ok(rows.length >= 60, `${rows.length} settings`);
  let fewer = 0;
  for (const row of rows) {
    const { subject, input } = await subjectOf(row);
    const work = fullWorkload(input);
    const plan = planOf(row);
    walkAllLayers(true);
    const { layers, ...all } = measure(subject, plan, work);
    walkAllLayers(false);
    const { layers: walked, ...few } = measure(subject, plan, work);
    t.equal(layers, LAYERS);
    if (walked < LAYERS) fewer++;
    t.same(exactOf(few), exactOf(all), JSON.stringify({ ...row, walked }));
    // Where layers begin and end queues may wait in another order.
    const [short, whole] = [few.elapsed.seconds, all.elapsed.seconds];
    t.ok(Math.abs(short / whole - 1) < 1e-3, `${short} s, ${whole} s in all layers, ${JSON.stringify(row)}`);
  }
  t.comment(`${fewer} of ${rows.length} with fewer layers`);
  t.ok(fewer > 0.7 * rows.length, `${fewer} of ${rows.length} walked fewer layers`);
});

t.test("a walk of a few blocks of a long ring, or of a few chunks of heads, and one of all", async (t) => {
  t.teardown(() => walkAllStretches(false));
  const plain: Row = {
    ...{
      family: "llama",
      dtype: "float32",
      adapter: "none",
      accumulation: 1,
      evaluation: true,
      tokens: T,
      ranks: "alone",
    },
    ...{ checkpointEvery: 0, keepAttention: false, offload: "none", format: "native", prefetch: true, headChunks: 1 },
    ...{ optimizer: "none", params: "none", gradients: "none" },
  };
  const many = { num_attention_heads: 16, num_key_value_heads: 8 };
  for (const [ring, ulysses, more, fields] of [
    [8, 2, {}],
    [9, 1, {}],
    [16, 1, { dtype: "bfloat16", headChunks: 2, checkpointEvery: 1, offload: "host" }],
    [17, 1, { dtype: "bfloat16", checkpointEvery: 2 }],
    // Chunks of heads are alike too.
    [1, 1, { headChunks: 16, checkpointEvery: 1, keepAttention: true }, many],
    [1, 2, { dtype: "bfloat16", headChunks: 8, checkpointEvery: 1 }, many],
    [2, 1, { dtype: "bfloat16", headChunks: 16, checkpointEvery: 1, offload: "host" }, many],
    [9, 1, { headChunks: 16, accumulation: 5 }, many],
    [1, 1, { headChunks: 16, adapter: "float" }, many],
    // Blocks that nothing attends are left out: all are walked.
    [16, 1, { family: "mistral" }],
  ] as const) {
    const row = { ...plain, ...more } as Row;
    const { subject, input } = await subjectOf(
      row,
      { data: 1, ring, ulysses, zero: ring * ulysses > 1 ? 3 : 0 },
      fields,
    );
    const work = fullWorkload(input);
    const measured = (all: boolean) => {
      walkAllStretches(all);
      const { layers: _, ...found } = measure(subject, planOf(row), work);
      return found;
    };
    const [all, few] = [measured(true), measured(false)];
    t.same(exactOf(few), exactOf(all), `ring ${ring} x ulysses ${ulysses}`);
    const [short, whole] = [few.elapsed.seconds, all.elapsed.seconds];
    t.ok(Math.abs(short / whole - 1) < 1e-3, `${short} s, ${whole} s in all blocks of ${ring}`);
    // Each rank does its part of what the model needs, none of it twice: padding is counted as tokens.
    if (row.family === "mistral" || ring === 1) continue;
    const parts = ring * ulysses;
    const padded = parts * partLength(T, { size: parts, ring: { size: ring } as Communicator });
    const { numLayers, numHeads, headDim } = subject.model;
    const once = (4 * numLayers * numHeads * headDim * ((padded * (padded + 1)) / 2)) / parts;
    const calls = (few.ops.attention?.flops ?? 0) / once;
    t.ok(Math.abs(calls - Math.round(calls)) < 1e-9, `attention over all keys ${calls} times`);
  }
});
