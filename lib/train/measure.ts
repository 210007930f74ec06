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
  /** Sizes of the others, each number of tokens once, longest first. */
  others: readonly BatchSize[];
  /** Micro-batches a step. */
  accumulation: number;
  /** The largest batch of an evaluation; null: there is none. */
  evaluation: BatchSize | null;
}

/** Sequences that are looked at one by one; of more than these the longest are taken together. */
const MOST_SEQUENCES = 100_000;

/** Sizes of micro-batches: each number of tokens once, with the most documents that it has; longest first. */
function sizesOf(dataset: Dataset, sequences: number, size: number): BatchSize[] {
  const documentsOf = new Map<number, number>();
  const take = (group: readonly BatchSize[]) => {
    const sum = (key: keyof BatchSize) => group.reduce((total, one) => total + one[key], 0);
    documentsOf.set(sum("tokens"), Math.max(documentsOf.get(sum("tokens")) ?? 0, sum("documents")));
  };
  const sizeOf = (epoch: number, i: number): BatchSize => {
    const segments = dataset.plan(epoch).segments(i);
    return { tokens: segments.reduce((sum, { begin, end }) => sum + end - begin, 0), documents: segments.length };
  };
  const groups = function* (all: Iterable<BatchSize>) {
    let group: BatchSize[] = [];
    for (const one of all) {
      group.push(one);
      if (group.length < size) continue;
      yield group;
      group = [];
    }
    if (group.length > 0) yield group;
  };
  if (sequences > MOST_SEQUENCES) {
    // No group has more than the largest of an epoch together; other epochs differ by how documents are packed.
    const all = Array.from({ length: dataset.plan(0).sequences }, (_, i) => sizeOf(0, i));
    const documents = all.map((one) => one.documents).sort((a, b) => b - a);
    const most = documents.slice(0, size).reduce((sum, value) => sum + value, 0);
    for (const group of groups(all.sort((a, b) => b.tokens - a.tokens))) take(group);
    const tokens = [...documentsOf.keys()].reduce((a, b) => Math.max(a, b), 0);
    documentsOf.set(tokens, most);
  } else {
    const taken = function* () {
      let left = sequences;
      for (let epoch = 0; left > 0; epoch++) {
        const count = Math.min(left, dataset.plan(epoch).sequences);
        for (let i = 0; i < count; i++) yield sizeOf(epoch, i);
        left -= count;
      }
    };
    for (const group of groups(taken())) take(group);
  }
  return [...documentsOf].map(([tokens, documents]) => ({ tokens, documents })).sort((a, b) => b.tokens - a.tokens);
}

/** A batch that no other exceeds, in tokens or in documents. */
const largestOf = (sizes: readonly BatchSize[]): BatchSize => ({
  tokens: sizes[0]?.tokens ?? 0,
  documents: sizes.reduce((most, { documents }) => Math.max(most, documents), 0),
});

/** The workload of a run over these data. */
export function workloadOf(config: Config, data: Dataset, evaluation: Dataset | undefined, steps: number): Workload {
  const { batchSize, microBatchSize } = config.train;
  const [longest, ...others] = sizesOf(data, steps * batchSize, microBatchSize);
  return {
    micro: largestOf(longest ? [longest, ...others] : []),
    others,
    accumulation: batchSize / microBatchSize,
    evaluation: evaluation ? largestOf(sizesOf(evaluation, evaluation.plan(0).sequences, microBatchSize)) : null,
  };
}

/** The workload of full sequences of `tokens`, each one document. */
export function fullWorkload(config: Config, tokens = config.data.sequenceLength): Workload {
  const { batchSize, microBatchSize } = config.train;
  const micro = { tokens: tokens * microBatchSize, documents: microBatchSize };
  return {
    micro,
    others: [],
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

/** Chunks of small blocks that a step of an unmeasured size may take beyond the measured ones. */
const SPARE_CHUNKS = 2;
/** Their size in native/runtime/allocator.cc, where a page is not larger. */
const CHUNK_BYTES = 2 ** 20;

/** What was measured of one setting. */
export interface Measurement {
  /** Bytes reserved at the highest. */
  peaks: Peaks & { disk: number };
  /** What limits must leave for it: a little more where sizes vary. */
  needs: Peaks;
  /** Bytes by category when that was. */
  categories: { device: ByCategory; host: ByCategory; disk: ByCategory };
  /** Of one step. */
  ops: Record<string, OpCount>;
  /** Most bytes of checkpoints that stayed on the device as they are. */
  resident: number;
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

/**
 * Sizes that may take more than the largest does: those that are one tile, whose intermediates are kept instead of made
 * again; and the shortest, whose blocks are small enough to share chunks, which are given back only as a whole.
 */
function unlike(plan: MemoryPlan, work: Workload): BatchSize[] {
  const { others } = work;
  const found = [plan.tileMlp, plan.tileLoss].map((rows) => others.find(({ tokens }) => tokens <= rows));
  return [...new Set([...found, others.at(-1)])].filter((size) => size !== undefined);
}

/** The last batches: a plan measures the same ones many times. */
const batches = new Map<string, Batch>();

function cachedBatch(size: BatchSize): Batch {
  const key = `${size.tokens} ${size.documents}`;
  const found = batches.get(key) ?? batchOf(size);
  if (!batches.has(key) && batches.size >= 8) batches.clear();
  batches.set(key, found);
  return found;
}

/** Opens the model, takes two steps, one of each size that is unlike the largest, and evaluates, on `meta`. */
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
    const resident = model.checkpointBytesOnDevice;
    // Shorter batches could fill device_bytes better, with what they save elsewhere not enough for it: no run lets them.
    model.configureMemory({ deviceBytes: Math.min(plan.deviceBytes, resident) });
    // The second micro-batch of a step finds gradients.
    for (const size of unlike(plan, work))
      take(Array(Math.min(work.accumulation, 2)).fill(cachedBatch(size)), size.tokens);
    if (work.evaluation) evaluationLoss(model, cachedBatch(work.evaluation)).dispose();
    const [onDevice, onHost, onDisk] = [device.memory(), device.memory("host"), device.memory("disk")];
    // Of sizes that were not tried each may leave the chunks that small blocks share filled otherwise.
    const spare = (peak: number) =>
      peak > 0 && work.others.length > 0 ? SPARE_CHUNKS * Math.max(CHUNK_BYTES, device.info.pageBytes) : 0;
    return {
      peaks: { device: onDevice.peak, host: onHost.peak, disk: onDisk.peak },
      needs: { device: onDevice.peak + spare(onDevice.peak), host: onHost.peak + spare(onHost.peak) },
      categories: {
        device: onDevice.categoryAtPeak,
        host: onHost.categoryAtPeak,
        disk: onDisk.categoryAtPeak,
      },
      ops,
      resident,
    };
  } finally {
    disposeRun(model, optimizer);
  }
}
