// How fast this machine is: training steps of small models, whose ops the recorder times, as a file of rates.

import { availableParallelism, cpus } from "node:os";
import type { Batch } from "../data/index.js";
import { initModel } from "../models/init.js";
import { Mesh } from "../parallel/mesh.js";
import { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { queues } from "../tensor/tiers.js";
import type { MemoryPlan } from "./memory_plan.js";
import { type Rates, ratesOf } from "./rates.js";
import { disposeRun, enqueueStep, makeOptimizer } from "./step.js";

/** A model and a sequence whose ops are timed. */
export interface Sample {
  hidden: number;
  layers: number;
  heads: number;
  vocabulary: number;
  tokens: number;
  /** Rows of tiles; 0: none. */
  rows: number;
  /** Whether checkpoints and optimizer states go to the host, for what copies take. */
  away?: boolean;
}

const onCpu: readonly Sample[] = [
  { hidden: 64, layers: 4, heads: 4, vocabulary: 512, tokens: 64, rows: 0 },
  { hidden: 128, layers: 3, heads: 4, vocabulary: 2048, tokens: 512, rows: 0 },
  { hidden: 256, layers: 3, heads: 4, vocabulary: 8192, tokens: 1024, rows: 512 },
  { hidden: 512, layers: 2, heads: 8, vocabulary: 16384, tokens: 2048, rows: 1024 },
  { hidden: 1024, layers: 1, heads: 8, vocabulary: 8192, tokens: 2048, rows: 2048 },
  { hidden: 256, layers: 1, heads: 4, vocabulary: 2048, tokens: 8192, rows: 2048 },
  { hidden: 512, layers: 4, heads: 8, vocabulary: 8192, tokens: 1024, rows: 1024, away: true },
];
const onGpu: readonly Sample[] = [
  { hidden: 1024, layers: 2, heads: 8, vocabulary: 32000, tokens: 2048, rows: 0 },
  { hidden: 2048, layers: 2, heads: 16, vocabulary: 32000, tokens: 8192, rows: 0 },
  { hidden: 4096, layers: 2, heads: 32, vocabulary: 65536, tokens: 32768, rows: 8192 },
  { hidden: 4096, layers: 1, heads: 32, vocabulary: 8192, tokens: 131072, rows: 8192 },
  { hidden: 4096, layers: 4, heads: 32, vocabulary: 8192, tokens: 32768, rows: 8192, away: true },
];
const DTYPES = ["float32", "bfloat16"] as const;
/**
 * Steps that are timed, behind one that is not, and how often all samples are: the fastest step of each counts, since what
 * else a machine does comes and goes.
 */
const STEPS = 3;
const ROUNDS = 2;

interface Timed {
  name: string;
  queue: number;
  flops: number;
  bytes: number;
  seconds: number;
}

interface TraceEvent {
  name: string;
  ph: string;
  tid: number;
  /** Microseconds. */
  ts: number;
  dur: number;
  args: { bytes: number; flops: number; enqueued: number };
}

/** The ops of a trace. What passes between one and the next that waits already belongs to it. */
function opsOf(trace: string, gaps: boolean): Timed[] {
  const events = (JSON.parse(trace) as { traceEvents: TraceEvent[] }).traceEvents.filter(({ ph }) => ph === "X");
  const ops: Timed[] = [];
  for (const queue of Object.values(queues)) {
    const own = events.filter(({ tid }) => tid === queue).sort((a, b) => a.ts - b.ts);
    own.forEach(({ name, ts, dur, args: { bytes, flops } }, i) => {
      const next = own[i + 1];
      const waits = gaps && next !== undefined && next.args.enqueued < ts + dur;
      ops.push({ name, queue, flops, bytes, seconds: (waits ? next.ts - ts : dur) / 1e6 });
    });
  }
  return ops;
}

const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1] as number;

/** Three digits say all that was measured. */
const rounded = (value: number): number => Number(value.toPrecision(3));

/** Rates by work, from calls of one kind: one point for each power of two. */
function curveOf(ops: readonly Timed[]): [number, number][] {
  const bins = new Map<number, { work: number; rate: number }[]>();
  for (const { flops, bytes, seconds } of ops) {
    const work = flops > 0 ? flops : bytes;
    if (!(work > 0 && seconds > 0)) continue;
    const bin = Math.round(Math.log2(work));
    bins.set(bin, [...(bins.get(bin) ?? []), { work, rate: work / seconds }]);
  }
  return [...bins]
    .sort(([a], [b]) => a - b)
    .map(([, all]) => [rounded(median(all.map(({ work }) => work))), rounded(median(all.map(({ rate }) => rate)))]);
}

function grouped<T>(all: readonly T[], keyOf: (one: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const one of all) {
    const key = keyOf(one);
    const group = groups.get(key);
    if (group) group.push(one);
    else groups.set(key, [one]);
  }
  return groups;
}

const batchOf = (tokens: number, vocabulary: number): Batch => {
  const ids = Int32Array.from({ length: tokens }, (_, i) => (i * 7919) % vocabulary);
  return {
    inputIds: ids,
    targets: ids,
    positions: BigInt64Array.from({ length: tokens }, (_, i) => BigInt(i)),
    cuSeqlens: BigInt64Array.of(0n, BigInt(tokens)),
    tokens,
    validTokens: tokens,
    sequences: 1,
  };
};

/** What was timed of a step. */
interface TimedStep {
  ops: Timed[];
  seconds: number;
}

const fastest = (steps: readonly TimedStep[]): TimedStep =>
  steps.reduce((best, step) => (step.seconds < best.seconds ? step : best));

/** The fastest of some steps of one sample. away: as in the sample. */
async function stepOf(device: Device, dtype: DType, sample: Sample, away: boolean): Promise<TimedStep> {
  const { hidden, layers, heads, vocabulary, tokens, rows } = sample;
  const host = away ? ("host" as const) : ("none" as const);
  const plan: MemoryPlan = {
    tileMlp: rows,
    tileLoss: rows,
    checkpointEvery: sample.away ? 1 : 0,
    keepAttention: true,
    offload: host,
    deviceBytes: 0,
    format: "native",
    directory: null,
    prefetch: true,
    headChunks: 1,
    states: { optimizer: host, params: "none", gradients: "none" },
  };
  const fields = {
    model_type: "llama",
    vocab_size: vocabulary,
    hidden_size: hidden,
    intermediate_size: Math.round((hidden * 11) / 4),
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: heads / 2,
    max_position_embeddings: tokens,
  };
  const model = initModel(fields, { device, dtype, memory: plan });
  const owned = model.trained;
  const train = { learningRate: 1e-4, betas: [0.9, 0.95] as [number, number], eps: 1e-8, weightDecay: 0.1 };
  const optimizer = makeOptimizer(owned, train, plan);
  try {
    optimizer.prepare();
    const batch = batchOf(tokens, vocabulary);
    const step = async (): Promise<TimedStep> => {
      device.startTrace();
      const start = performance.now();
      const made = enqueueStep({
        ...{ model, optimizer, owned, mesh: Mesh.alone, micro: [batch], validTokens: tokens },
        ...{ clipGradNorm: 1, learningRate: 1e-4 },
      });
      await device.synchronize();
      const seconds = (performance.now() - start) / 1000;
      for (const scalar of [made.loss, made.norm, made.finite]) scalar.dispose();
      return { ops: opsOf(device.stopTrace(), !away), seconds };
    };
    await step();
    const steps: TimedStep[] = [];
    for (let i = 0; i < STEPS; i++) steps.push(await step());
    return fastest(steps);
  } finally {
    disposeRun(model, optimizer);
  }
}

export interface CalibrateOptions {
  device: "cpu" | "cuda";
  /** Of the CPU; default: all that this process may use. */
  threads?: number;
  /** Default: sizes that a device of that kind is used for. */
  samples?: readonly Sample[];
  /** Told of what is timed next. */
  onSample?: (text: string) => void;
}

/** Times the ops of training steps. What it does not time (links, the disk) is as in the file of the device's kind. */
export async function calibrate({ device: kind, threads, ...options }: CalibrateOptions): Promise<Rates> {
  const isGpu = kind === "cuda";
  const used = isGpu ? 1 : (threads ?? availableParallelism());
  const device = isGpu ? new Device("cuda") : new Device("cpu", { threads: used });
  const known = ratesOf(kind);
  const { tiles: _, ...rates } = known;
  rates.ops = {};
  const everything: Timed[] = [];
  const copies: Timed[] = [];
  const overlaps: number[] = [];
  let call = Number.POSITIVE_INFINITY;
  for (const dtype of DTYPES) {
    const { samples = isGpu ? onGpu : onCpu } = options;
    const at = samples.flatMap((sample) =>
      sample.away
        ? [
            { sample, away: false },
            { sample, away: true },
          ]
        : [{ sample, away: false }],
    );
    const steps = at.map(() => [] as TimedStep[]);
    for (let round = 0; round < ROUNDS; round++)
      for (const [i, { sample, away }] of at.entries()) {
        options.onSample?.(`${dtype}, hidden size ${sample.hidden}, ${sample.tokens} tokens`);
        steps[i]?.push(await stepOf(device, dtype, sample, away));
      }
    const best = steps.map(fastest);
    const own: Timed[] = [];
    for (const [i, { ops, seconds }] of best.entries()) {
      if (!at[i]?.away) {
        own.push(...ops);
        call = Math.min(call, seconds / ops.length);
        continue;
      }
      const moved = ops.filter(({ queue }) => queue !== queues.compute);
      copies.push(...moved);
      const busy = moved.reduce((sum, op) => sum + op.seconds, 0);
      const without = (best[i - 1] as TimedStep).seconds;
      overlaps.push(1 - Math.min(1, Math.max(0, seconds - without) / busy));
    }
    everything.push(...own);
    for (const [name, ops] of grouped(own, (op) => op.name)) {
      const intensity = ({ flops, bytes }: Timed): string =>
        flops > 0 && !name.startsWith("attention") ? `/${Math.round(Math.log2(flops / bytes))}` : "";
      for (const [behind, some] of grouped(ops, intensity)) {
        const curve = curveOf(some);
        if (curve.length > 0) rates.ops[`${name}${behind}:${dtype}`] = curve;
      }
    }
    const products = grouped(own, ({ name, flops }) => (flops > 0 && !name.startsWith("attention") ? "p" : "")).get(
      "p",
    );
    rates.ops[`products:${dtype}`] = curveOf(products ?? []);
  }
  rates.ops.stream = curveOf(everything.filter(({ flops }) => flops === 0));
  if (known.ops.host !== undefined) rates.ops.host = known.ops.host;
  rates.copies = { ...known.copies };
  for (const [name, queue] of [
    ["copy_out", queues.copyOut],
    ["copy_in", queues.copyIn],
  ] as const) {
    const curve = curveOf(copies.filter((op) => op.queue === queue));
    if (curve.length > 0) rates.copies[name] = curve;
  }
  rates.threads = used;
  rates.overlap = rounded(median(overlaps));
  rates.call = rounded(call);
  rates.measured = isGpu
    ? device.info.name
    : `${cpus()[0]?.model.trim()}, ${used} ${used === 1 ? "thread" : "threads"}`;
  return rates;
}
