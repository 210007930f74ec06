// Real steps of the 56M Llama in this process under a memory setting, and what `meta` says of the same step.
import { writeFileSync } from "node:fs";
import { configSchema } from "../lib/config/schema.js";
import type { Batch } from "../lib/data/index.js";
import { Device, type DeviceOptions, initModel } from "../lib/index.js";
import { parseModelConfig } from "../lib/models/registry.js";
import { Mesh } from "../lib/parallel/mesh.js";
import { type Measurement, measure } from "../lib/train/measure.js";
import type { MemoryPlan } from "../lib/train/memory_plan.js";
import { disposeRun, enqueueStep, makeOptimizer } from "../lib/train/step.js";
import { evenRows } from "../lib/train/trials.js";

/** Parameters 56,111,616: H 512, 8 layers, 8/4 heads of 64, F 1408, V 32000. */
export const llama56M = {
  model_type: "llama",
  vocab_size: 32000,
  hidden_size: 512,
  intermediate_size: 1408,
  num_hidden_layers: 8,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  max_position_embeddings: 1 << 22,
};

/** A model as config.json has it, and how its parameters are stored. */
export interface Model {
  fields: Record<string, unknown> & { vocab_size: number };
  dtype: "float32" | "bfloat16";
}
const small: Model = { fields: llama56M, dtype: "float32" };

/** Of one sequence a step, with the defaults of a run. */
const { train } = configSchema.parse({
  model: { init: llama56M },
  data: { train: ["none"], sequenceLength: 1024 },
  train: { steps: 1, learningRate: 1e-3 },
  output: { dir: "none" },
});

/** A setting, with its tiles as rows at most. */
export interface Setting {
  name: string;
  plan: MemoryPlan;
}

export const nothingOn: MemoryPlan = {
  tileMlp: 0,
  tileLoss: 0,
  checkpointEvery: 0,
  keepAttention: false,
  offload: "none",
  deviceBytes: 0,
  format: "native",
  directory: null,
  prefetch: true,
  headChunks: 1,
  states: { optimizer: "none", params: "none", gradients: "none" },
};

/** The paper's ablation: each adds to the one before. `rows` of an MLP tile; a tile of logits takes 64 MiB. */
export function ablation(rows: number): Setting[] {
  const added: [name: string, more: Partial<MemoryPlan>][] = [
    ["baseline", {}],
    ["+ tiled loss", { tileLoss: Math.floor((64 * 2 ** 20) / (4 * llama56M.vocab_size)) }],
    ["+ tiled MLP", { tileMlp: rows }],
    ["+ checkpoint", { checkpointEvery: 1 }],
    ["+ offload to the host", { offload: "host" }],
    ["+ keep_attention", { keepAttention: true }],
    ["+ head chunks", { headChunks: llama56M.num_attention_heads, prefetch: false }],
  ];
  let plan = nothingOn;
  return added.map(([name, more]) => {
    plan = { ...plan, ...more };
    return { name, plan };
  });
}

/** The plan for a sequence of `tokens`: its tiles made even. */
export function planFor(plan: MemoryPlan, tokens: number): MemoryPlan {
  const rows = (most: number) => (most === 0 ? 0 : evenRows(tokens, most));
  return { ...plan, tileMlp: rows(plan.tileMlp), tileLoss: rows(plan.tileLoss) };
}

/** What a whole training step takes, by `meta` in the place of the device `on` (absent: the CPU). */
export const onMeta = (
  plan: MemoryPlan,
  tokens: number,
  { fields, dtype }: Model = small,
  on?: DeviceOptions,
): Measurement =>
  measure({ model: parseModelConfig(fields, { file: "bench" }), dtype, train, on }, planFor(plan, tokens), {
    micro: { tokens, documents: 1 },
    others: [],
    steps: null,
    accumulation: 1,
    evaluation: null,
  });

export interface RealSteps {
  /** Of each step, from its first enqueue to its end. */
  seconds: number[];
  /** The same of all threads of the process together. */
  cpuSeconds: number[];
  losses: number[];
  norms: number[];
  /** Reserved at most. */
  peaks: { device: number; host: number; disk: number };
  /** Bytes read and written by copies, a step. */
  copied: number;
  /** Of attention forward, a step: its calls, and its time by the recorder (0 without). */
  attention: { calls: number; seconds: number };
}

/** Random ids, the same for a length in every run. */
function batchOf(tokens: number, vocabulary: number): Batch {
  let state = tokens;
  const inputIds = Int32Array.from({ length: tokens }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) % vocabulary;
  });
  const targets = Int32Array.from(inputIds, (_, i) => inputIds[i + 1] ?? -100);
  return {
    inputIds,
    targets,
    positions: BigInt64Array.from(inputIds, (_, i) => BigInt(i)),
    cuSeqlens: BigInt64Array.from([0n, BigInt(tokens)]),
    tokens,
    validTokens: tokens - 1,
    sequences: 1,
  };
}

/** Steps that are taken one after the other, each read before the next; dispose() at the end. */
export class Runner {
  readonly device: Device;
  readonly #model;
  readonly #optimizer;
  readonly #batch: Batch;
  readonly #learningRate: number;
  /** Of the last step that was recorded. */
  trace = "";
  readonly result: RealSteps = {
    seconds: [],
    cpuSeconds: [],
    losses: [],
    norms: [],
    peaks: { device: 0, host: 0, disk: 0 },
    copied: 0,
    attention: { calls: 0, seconds: 0 },
  };

  constructor(
    plan: MemoryPlan,
    tokens: number,
    threads: number,
    memory = new Device("cpu", { threads }),
    { fields, dtype }: Model = small,
    learningRate = train.learningRate,
  ) {
    this.#learningRate = learningRate;
    this.device = memory;
    const own = planFor(plan, tokens);
    this.#model = initModel(fields, { device: this.device, dtype, seed: 1, memory: own });
    this.#optimizer = makeOptimizer(this.#model.owned, train, own);
    this.#batch = batchOf(tokens, fields.vocab_size);
    this.#optimizer.prepare();
  }

  /** One step. trace: its ops are recorded, and the times of attention taken from that. */
  async step(trace = false): Promise<number> {
    const { device, result } = this;
    await device.synchronize();
    device.resetOpCounts();
    if (trace) device.startTrace();
    const began = performance.now();
    const cpu = process.cpuUsage();
    const scalars = enqueueStep({
      model: this.#model,
      optimizer: this.#optimizer,
      owned: this.#model.owned,
      mesh: Mesh.alone,
      micro: [this.#batch],
      validTokens: this.#batch.validTokens,
      clipGradNorm: train.clipGradNorm,
      learningRate: this.#learningRate,
    });
    const [loss, norm] = await Promise.all([scalars.loss.item(), scalars.norm.item()]);
    await device.synchronize();
    const seconds = (performance.now() - began) / 1000;
    const { user, system } = process.cpuUsage(cpu);
    for (const scalar of [scalars.loss, scalars.norm, scalars.finite]) scalar.dispose();
    const counts = device.opCounts();
    result.seconds.push(seconds);
    result.cpuSeconds.push((user + system) / 1e6);
    result.losses.push(loss);
    result.norms.push(norm);
    result.copied = counts.copy?.bytes ?? 0;
    result.attention.calls = counts.attention?.calls ?? 0;
    if (trace) {
      this.trace = device.stopTrace();
      const { traceEvents } = JSON.parse(this.trace);
      result.attention.seconds = traceEvents.reduce(
        (sum: number, event: { name: string; ph: string; dur: number }) =>
          sum + (event.ph === "X" && event.name === "attention" ? event.dur / 1e6 : 0),
        0,
      );
    }
    for (const tier of ["device", "host", "disk"] as const) result.peaks[tier] = device.memory(tier).peak;
    return seconds;
  }

  async dispose(): Promise<void> {
    await this.device.synchronize();
    disposeRun(this.#model, this.#optimizer);
    await this.device.synchronize();
    this.device.trim();
    await this.device.synchronize();
  }
}

/** `steps` steps of one setting. */
export async function realSteps(plan: MemoryPlan, tokens: number, threads: number, steps: number): Promise<RealSteps> {
  const runner = new Runner(plan, tokens, threads);
  for (let i = 0; i < steps; i++) await runner.step();
  await runner.dispose();
  return runner.result;
}

/** A Markdown table. */
export const markdown = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [head, head.map((_, i) => (i === 0 ? "---" : "---:")), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");

/** To the screen, and to a file where one is named. */
export function publish(text: string, file: string | undefined): void {
  console.log(text);
  if (file !== undefined) writeFileSync(file, `${text}\n`);
}

export const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
};
