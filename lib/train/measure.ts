// What a step needs, from the step itself on the `meta` device: the real program with the real allocators, nothing
// computed. Peaks are those of a run on the CPU to the byte; of one on a GPU too, but for what its libraries take.

import { type ByCategory, binding, type OpCount } from "../binding.js";
import type { Config } from "../config/index.js";
import type { Batch, Dataset } from "../data/index.js";
import { CausalLM } from "../models/decoder.js";
import type { ModelConfig } from "../models/index.js";
import { Device, type DeviceOptions } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { untracked } from "../tensor/scope.js";
import type { Peaks } from "./limits.js";
import type { MemoryPlan } from "./plan.js";
import { disposeRun, enqueueStep, evaluationLoss, makeOptimizer, trainedParameters } from "./step.js";

/** The sizes of one micro-batch. */
export interface BatchSize {
  tokens: number;
  documents: number;
}

/** What a run does, as far as memory is concerned. */
export interface Workload {
  /** The largest micro-batch. */
  micro: BatchSize;
  /** The shortest, which lies otherwise in memory; null: all are alike. */
  shortest: BatchSize | null;
  /** Micro-batches a step. */
  accumulation: number;
  /** The largest batch of an evaluation; null: there is none. */
  evaluation: BatchSize | null;
}

/** Sequences that are looked at one by one; of more than these the longest are taken together. */
const MOST_SEQUENCES = 100_000;

interface Extremes {
  largest: BatchSize;
  shortest: BatchSize;
}

function extremes(dataset: Dataset, sequences: number, size: number): Extremes {
  const largest: BatchSize = { tokens: 0, documents: 0 };
  let shortest: BatchSize = { tokens: Number.POSITIVE_INFINITY, documents: 0 };
  const take = (group: readonly BatchSize[]) => {
    const sum = (key: keyof BatchSize) => group.reduce((total, one) => total + one[key], 0);
    largest.tokens = Math.max(largest.tokens, sum("tokens"));
    largest.documents = Math.max(largest.documents, sum("documents"));
    if (sum("tokens") < shortest.tokens) shortest = { tokens: sum("tokens"), documents: sum("documents") };
  };
  const sizeOf = (epoch: number, i: number): BatchSize => {
    const segments = dataset.plan(epoch).segments(i);
    return { tokens: segments.reduce((sum, { begin, end }) => sum + end - begin, 0), documents: segments.length };
  };
  if (sequences > MOST_SEQUENCES) {
    // No group has more than the largest of an epoch together; other epochs differ by how documents are packed.
    const all = Array.from({ length: dataset.plan(0).sequences }, (_, i) => sizeOf(0, i));
    for (const key of ["tokens", "documents"] as const) {
      const most = all.map((one) => one[key]).sort((a, b) => b - a);
      largest[key] = most.slice(0, size).reduce((sum, value) => sum + value, 0);
    }
    take(all.sort((a, b) => a.tokens - b.tokens).slice(0, size));
    return { largest, shortest };
  }
  let group: BatchSize[] = [];
  let left = sequences;
  for (let epoch = 0; left > 0; epoch++) {
    const count = Math.min(left, dataset.plan(epoch).sequences);
    for (let i = 0; i < count; i++) {
      group.push(sizeOf(epoch, i));
      if (group.length < size) continue;
      take(group);
      group = [];
    }
    left -= count;
  }
  if (group.length > 0) take(group);
  return { largest, shortest };
}

/** The workload of a run over these data. */
export function workloadOf(config: Config, data: Dataset, evaluation: Dataset | undefined, steps: number): Workload {
  const { batchSize, microBatchSize } = config.train;
  const { largest, shortest } = extremes(data, steps * batchSize, microBatchSize);
  return {
    micro: largest,
    shortest: shortest.tokens < largest.tokens ? shortest : null,
    accumulation: batchSize / microBatchSize,
    evaluation: evaluation ? extremes(evaluation, evaluation.plan(0).sequences, microBatchSize).largest : null,
  };
}

/** The workload of full sequences of `tokens`, each one document. */
export function fullWorkload(config: Config, tokens = config.data.sequenceLength): Workload {
  const { batchSize, microBatchSize } = config.train;
  const micro = { tokens: tokens * microBatchSize, documents: microBatchSize };
  return {
    micro,
    shortest: null,
    accumulation: batchSize / microBatchSize,
    evaluation: config.data.eval.length > 0 ? micro : null,
  };
}

/** A batch of these sizes; ids and labels are all 0. */
function batchOf({ tokens, documents }: BatchSize): Batch {
  const cuSeqlens = BigInt64Array.from({ length: documents + 1 }, (_, i) =>
    BigInt(i < documents ? Math.min(i, tokens) : tokens),
  );
  return {
    inputIds: new Int32Array(tokens),
    targets: new Int32Array(tokens),
    positions: new BigInt64Array(tokens),
    cuSeqlens,
    tokens,
    validTokens: tokens,
    sequences: 1,
  };
}

/** What was measured of one setting. */
export interface Measurement {
  /** Bytes reserved at the highest. */
  peaks: Peaks & { disk: number };
  /** Bytes by category when that was. */
  categories: { device: ByCategory; host: ByCategory; disk: ByCategory };
  /** Of one step. */
  ops: Record<string, OpCount>;
}

/** The model and the numbers of a run that its memory depends on. */
export interface Subject {
  model: ModelConfig;
  dtype: DType;
  train: Config["train"];
  /** The device that `meta` stands for; absent: the CPU. */
  on?: Pick<DeviceOptions, "profile" | "attention" | "deterministic"> | undefined;
}

const metas = new Map<string, Device>();

function metaDevice(on: Subject["on"] = {}): Device {
  const key = JSON.stringify(on);
  const found = metas.get(key) ?? new Device("meta", on);
  metas.set(key, found);
  return found;
}

/** The last batches: a plan measures the same ones many times. */
const batches = new Map<string, Batch>();

function cachedBatch(size: BatchSize): Batch {
  const key = `${size.tokens} ${size.documents}`;
  const found = batches.get(key) ?? batchOf(size);
  if (!batches.has(key) && batches.size >= 3) batches.clear();
  batches.set(key, found);
  return found;
}

/** Opens the model, takes two steps, one of the shortest micro-batch, and evaluates, on `meta`. */
export function measure(subject: Subject, plan: MemoryPlan, work: Workload): Measurement {
  const device = metaDevice(subject.on);
  const { native } = device;
  const micro = cachedBatch(work.micro);
  device.trim();
  device.resetPeaks();
  const tier = plan.states.params === "host" ? "host" : "device";
  const model = untracked(() => new CausalLM(subject.model, { device, dtype: subject.dtype, tier }));
  model.configureMemory({ ...plan, directory: null });
  const parameters = trainedParameters(model);
  const optimizer = makeOptimizer(parameters, subject.train, plan);
  try {
    optimizer.namedState(new Map(parameters.map(([name, parameter]) => [parameter, name])));
    // The third micro-batch finds what every later one finds, and so does the second step.
    const walked = Math.min(work.accumulation, 3);
    const all = function* () {
      for (let i = 1; i <= walked; i++) {
        const before = binding.opCounts(native);
        yield micro;
        if (i === walked) binding.repeatOps(native, before, work.accumulation - walked);
      }
    };
    const take = (micro: Iterable<Batch>, validTokens: number) => {
      const { clipGradNorm, learningRate } = subject.train;
      const made = enqueueStep({ model, optimizer, parameters, micro, validTokens, clipGradNorm, learningRate });
      for (const scalar of [made.loss, made.norm, made.finite]) scalar.dispose();
    };
    for (let step = 0; step < 2; step++) {
      device.resetOpCounts();
      take(all(), micro.validTokens * work.accumulation);
    }
    const ops = device.opCounts();
    // Its blocks may be small enough to share chunks, which are given back only as a whole.
    if (work.shortest) take([cachedBatch(work.shortest)], work.shortest.tokens);
    if (work.evaluation) evaluationLoss(model, cachedBatch(work.evaluation)).dispose();
    const [onDevice, onHost, onDisk] = [device.memory(), device.memory("host"), device.memory("disk")];
    return {
      peaks: { device: onDevice.peak, host: onHost.peak, disk: onDisk.peak },
      categories: {
        device: onDevice.categoryAtPeak,
        host: onHost.categoryAtPeak,
        disk: onDisk.categoryAtPeak,
      },
      ops,
    };
  } finally {
    disposeRun(model, optimizer);
  }
}
