// A recorded step as a report draws it: blocks of ops per queue, time by op, and live bytes by tier and category.

import { FormatError } from "../errors.js";

/** One op on its queue; times in microseconds since the recording began. */
export interface TraceOp {
  name: string;
  queue: string;
  /** When the program enqueued it; 0: before the recording. */
  enqueued: number;
  start: number;
  duration: number;
  bytes: number;
  flops: number;
}

/** Bytes taken (positive) or returned (negative). */
export interface TraceAllocation {
  tier: string;
  category: string;
  bytes: number;
  /** Microseconds since the recording began, as the program runs: ahead of the queues. */
  time: number;
}

/** A recorded step. */
export interface Trace {
  step: number;
  /** In the order in which the recorder saw them end. */
  ops: TraceOp[];
  /** In program order. */
  allocations: TraceAllocation[];
  /** Bytes by tier and category when the recording began. */
  live: Record<string, Record<string, number>>;
}

/** In the order in which queues, tiers and categories are drawn. */
export const queueNames = ["compute", "copy_out", "copy_in", "comm", "disk_out", "disk_in"] as const;
export const tierNames = ["device", "host", "disk"] as const;
export const categoryNames = [
  "params",
  "optimizer",
  "grads",
  "checkpoints",
  "activations",
  "logits",
  "comm",
  "workspace",
] as const;

interface ChromeEvent {
  name?: unknown;
  cat?: unknown;
  ph?: unknown;
  tid?: unknown;
  ts?: unknown;
  dur?: unknown;
  args?: Record<string, unknown>;
}

/**
 * Reads the recorder's Chrome trace JSON: complete events (`X`) are ops on the thread that is their queue, events of
 * category `memory` are allocations, `otherData.live` is what was there before; others are passed over. Throws
 * FormatError that names the file and the event.
 */
export function parseTrace(step: number, text: string, file: string): Trace {
  let whole: { traceEvents?: unknown; otherData?: { live?: unknown } } | null;
  try {
    whole = JSON.parse(text);
  } catch (error) {
    throw new FormatError(
      `${file}: not valid JSON (${(error as Error).message}); remove it, or record it again with output.trace_steps`,
      { file },
    );
  }
  const events = whole?.traceEvents;
  if (!Array.isArray(events))
    throw new FormatError(`${file}: no traceEvents in it; it is not a trace of longseq`, { file });
  const trace: Trace = { step, ops: [], allocations: [], live: readLive(whole?.otherData?.live, file) };
  const queues = new Map<unknown, string>();
  events.forEach((value: unknown, index) => {
    const event = (typeof value === "object" && value !== null ? value : {}) as ChromeEvent;
    const args = event.args ?? {};
    const number = (key: string, found: unknown): number => {
      if (typeof found === "number" && Number.isFinite(found)) return found;
      throw new FormatError(
        `${file}: event ${index + 1} (${String(event.name)}): ${key} is ${JSON.stringify(found) ?? "missing"}; expected a number`,
        { file, event: index + 1 },
      );
    };
    if (event.ph === "M" && event.name === "thread_name") queues.set(event.tid, String(args.name));
    else if (event.ph === "X")
      trace.ops.push({
        name: String(event.name),
        queue: queues.get(event.tid) ?? `queue ${String(event.tid)}`,
        enqueued: number("enqueued", args.enqueued ?? 0),
        start: number("ts", event.ts),
        duration: Math.max(0, number("dur", event.dur)),
        bytes: number("bytes", args.bytes ?? 0),
        flops: number("flops", args.flops ?? 0),
      });
    else if (event.cat === "memory")
      trace.allocations.push({
        tier: String(args.tier),
        category: String(args.category),
        bytes: number("bytes", args.bytes),
        time: number("ts", event.ts),
      });
  });
  return trace;
}

/** {tier: {category: bytes}} */
function readLive(value: unknown, file: string): Trace["live"] {
  const isObject = (item: unknown): item is Record<string, unknown> => typeof item === "object" && item !== null;
  if (
    !isObject(value) ||
    !Object.values(value).every((tier) => isObject(tier) && Object.values(tier).every(Number.isFinite))
  )
    throw new FormatError(
      `${file}: otherData.live does not say how much memory was in use when the recording began; ` +
        "record it again with output.trace_steps",
      { file },
    );
  return value as Trace["live"];
}

/** Ops by which ranks exchange what they have. */
const COLLECTIVES = /^(all_to_all|all_gather|reduce_scatter|all_reduce|broadcast|send_receive)$/;

/** The kind of work an op does, which gives it its colour. */
export const opKinds = [
  "matrix products",
  "attention",
  "norms",
  "elementwise",
  "embedding and loss",
  "optimizer",
  "copies",
  "exchanges",
  "other",
] as const;
export type OpKind = (typeof opKinds)[number];

export function opKind(name: string): OpKind {
  if (COLLECTIVES.test(name)) return "exchanges";
  if (/matmul|gemm/.test(name)) return "matrix products";
  if (/attention|rope/.test(name)) return "attention";
  if (/adamw|clip_factor|norm_squared/.test(name)) return "optimizer";
  if (/norm/.test(name)) return "norms";
  if (/embedding|cross_entropy|argmax/.test(name)) return "embedding and loss";
  if (/copy|transfer|offload|fetch|memcpy|read|write|gather|scatter|cast/.test(name)) return "copies";
  if (/swiglu|gelu|unary|binary|axpby|fill|sum|scale|add|mul|random|uniform|normal/.test(name)) return "elementwise";
  return "other";
}

/** One op, or several small ones of the same kind that lie together, as one block. Times in microseconds. */
export interface Block {
  kind: OpKind;
  start: number;
  end: number;
  /** Microseconds of work inside; the rest of a merged block is gaps. */
  busy: number;
  names: Map<string, number>;
  bytes: number;
  flops: number;
}

/**
 * Blocks of one queue in order of time. Ops shorter than `resolution` microseconds that follow each other within it are
 * merged into one block, coloured by the kind that takes most of its time, so that a step of many thousands of ops stays
 * drawable.
 */
export function blocksOf(ops: readonly TraceOp[], resolution: number): Block[] {
  const sorted = [...ops].sort((a, b) => a.start - b.start);
  const blocks: Block[] = [];
  let open: { block: Block; byKind: Map<OpKind, number> } | null = null;
  for (const op of sorted) {
    const end = op.start + op.duration;
    const kind = opKind(op.name);
    const small = op.duration < resolution;
    if (open !== null && small && op.start - open.block.end < resolution && end - open.block.start < 2 * resolution) {
      const { block, byKind } = open;
      block.end = Math.max(block.end, end);
      block.busy += op.duration;
      block.bytes += op.bytes;
      block.flops += op.flops;
      block.names.set(op.name, (block.names.get(op.name) ?? 0) + 1);
      byKind.set(kind, (byKind.get(kind) ?? 0) + op.duration);
      block.kind = [...byKind].reduce((most, next) => (next[1] > most[1] ? next : most))[0];
      continue;
    }
    const block: Block = {
      kind,
      start: op.start,
      end,
      busy: op.duration,
      names: new Map([[op.name, 1]]),
      bytes: op.bytes,
      flops: op.flops,
    };
    blocks.push(block);
    open = small ? { block, byKind: new Map([[kind, op.duration]]) } : null;
  }
  return blocks;
}

/** Intervals in which a queue was busy, joined where they touch. Microseconds. */
function busyIntervals(ops: readonly TraceOp[]): [number, number][] {
  const intervals: [number, number][] = [];
  for (const { start, duration } of [...ops].sort((a, b) => a.start - b.start)) {
    const last = intervals.at(-1);
    if (last !== undefined && start <= last[1]) last[1] = Math.max(last[1], start + duration);
    else intervals.push([start, start + duration]);
  }
  return intervals;
}

/** How much two ascending lists of intervals overlap. */
function overlap(a: readonly [number, number][], b: readonly [number, number][]): number {
  let total = 0;
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const [aStart, aEnd] = a[i] as [number, number];
    const [bStart, bEnd] = b[j] as [number, number];
    total += Math.max(0, Math.min(aEnd, bEnd) - Math.max(aStart, bStart));
    if (aEnd < bEnd) i++;
    else j++;
  }
  return total;
}

/** What a queue did in a step. Microseconds. */
export interface QueueUse {
  queue: string;
  ops: TraceOp[];
  busy: number;
  /** Of `busy`: while the compute queue was busy too. */
  besideCompute: number;
  bytes: number;
}

/** The queues that did anything, in drawing order, and the time from the first start to the last end. */
export function queueUse(trace: Trace): { queues: QueueUse[]; start: number; end: number } {
  const byQueue = new Map<string, TraceOp[]>(queueNames.map((name) => [name, []]));
  let start = Number.POSITIVE_INFINITY;
  let end = 0;
  for (const op of trace.ops) {
    start = Math.min(start, op.start);
    end = Math.max(end, op.start + op.duration);
    const ops = byQueue.get(op.queue);
    if (ops === undefined) byQueue.set(op.queue, [op]);
    else ops.push(op);
  }
  const compute = busyIntervals(byQueue.get("compute") ?? []);
  const queues = [...byQueue]
    .filter(([, ops]) => ops.length > 0)
    .map(([queue, ops]): QueueUse => {
      const intervals = busyIntervals(ops);
      return {
        queue,
        ops,
        busy: intervals.reduce((sum, [from, to]) => sum + to - from, 0),
        besideCompute: overlap(intervals, compute),
        bytes: ops.reduce((sum, { bytes }) => sum + bytes, 0),
      };
    });
  return { queues, start: Number.isFinite(start) ? start : 0, end };
}

/** What one kind of exchange between ranks did in a step. */
export interface Exchange {
  name: string;
  count: number;
  bytes: number;
  /** Microseconds. */
  time: number;
  /** Of `time`: while the compute queue had nothing to do. */
  exposed: number;
}

/** The collectives of a step by name, the most exposed first. */
export function exchangesOf({ ops }: Trace): Exchange[] {
  const compute = busyIntervals(ops.filter(({ queue }) => queue === "compute"));
  const byName = new Map<string, TraceOp[]>();
  for (const op of ops) if (COLLECTIVES.test(op.name)) byName.set(op.name, [...(byName.get(op.name) ?? []), op]);
  return [...byName]
    .map(([name, own]): Exchange => {
      const intervals = busyIntervals(own);
      const time = intervals.reduce((sum, [from, to]) => sum + to - from, 0);
      const bytes = own.reduce((sum, op) => sum + op.bytes, 0);
      return { name, count: own.length, bytes, time, exposed: time - overlap(intervals, compute) };
    })
    .sort((a, b) => b.exposed - a.exposed);
}

/** One rank's step in figures. Microseconds. */
export interface RankStep {
  rank: number;
  span: number;
  compute: number;
  comm: number;
  /** Of `comm`: while the compute queue had nothing to do. */
  exposed: number;
}

export function rankStep(rank: number, trace: Trace): RankStep {
  const { queues, start, end } = queueUse(trace);
  const busy = (name: string) => queues.find(({ queue }) => queue === name)?.busy ?? 0;
  const comm = queues.find(({ queue }) => queue === "comm");
  const exposed = (comm?.busy ?? 0) - (comm?.besideCompute ?? 0);
  return { rank, span: end - start, compute: busy("compute"), comm: busy("comm"), exposed };
}

/** Time by op over all queues, longest first. */
export interface OpTotal {
  name: string;
  count: number;
  /** Microseconds. */
  time: number;
  bytes: number;
  flops: number;
}

export function opTotals(trace: Trace): OpTotal[] {
  const totals = new Map<string, OpTotal>();
  for (const { name, duration, bytes, flops } of trace.ops) {
    const total = totals.get(name) ?? { name, count: 0, time: 0, bytes: 0, flops: 0 };
    total.count++;
    total.time += duration;
    total.bytes += bytes;
    total.flops += flops;
    totals.set(name, total);
  }
  return [...totals.values()].sort((a, b) => b.time - a.time);
}

/** Live bytes of one tier through a step. */
export interface Hill {
  tier: string;
  categories: string[];
  /** Microseconds since the recording began; one a sample, ascending. */
  at: number[];
  /** Live bytes, [category][sample]. */
  live: number[][];
  /** The highest total, its sample, and how many bytes lay there before the recording began. */
  peak: number;
  peakAt: number;
  before: number;
}

/** At most about this many samples a hill; the highest of each stretch is kept, so the peak is exact. */
const MOST_SAMPLES = 800;

/**
 * When allocations matter to the device: the program takes and returns memory while it enqueues work, ahead of the
 * queues, so bytes taken before an op was enqueued are in use from when that op runs. Gives the start of the first op of
 * the compute queue that was enqueued after each allocation; the end of the last one where none was.
 */
function deviceTimes({ ops, allocations }: Trace): number[] {
  const compute = ops.filter(({ queue }) => queue === "compute").sort((a, b) => a.enqueued - b.enqueued);
  const last = compute.reduce((end, { start, duration }) => Math.max(end, start + duration), 0);
  let next = 0;
  let latest = 0;
  return allocations.map(({ time }) => {
    if (compute.length === 0) return time;
    while (next < compute.length && (compute[next] as TraceOp).enqueued < time) next++;
    latest = Math.max(latest, compute[next]?.start ?? last);
    return latest;
  });
}

/** Live bytes by category for each tier with anything in it. */
export function hills(trace: Trace): Hill[] {
  const { allocations, live: before } = trace;
  const times = deviceTimes(trace);
  const tiers = [...new Set<string>([...tierNames, ...Object.keys(before), ...allocations.map(({ tier }) => tier)])];
  return tiers.flatMap((tier): Hill[] => {
    const own = allocations.flatMap((allocation, index) =>
      allocation.tier === tier ? [{ ...allocation, at: times[index] as number }] : [],
    );
    const held = Object.entries(before[tier] ?? {}).filter(([, bytes]) => bytes > 0);
    if (own.length === 0 && held.length === 0) return [];
    const there = new Set([...held.map(([category]) => category), ...own.map(({ category }) => category)]);
    const categories = [...new Set<string>([...categoryNames, ...there])].filter((name) => there.has(name));
    const live = new Map(held);
    const start = held.reduce((sum, [, bytes]) => sum + bytes, 0);
    let total = start;
    const samples: { at: number; total: number; live: number[] }[] = [];
    let highest: (typeof samples)[number] | null = null;
    const bucketSize = Math.max(1, Math.ceil(own.length / MOST_SAMPLES));
    const sample = (at: number) => ({ at, total, live: categories.map((name) => live.get(name) ?? 0) });
    samples.push(sample(0));
    for (const [i, { category, bytes, at }] of own.entries()) {
      live.set(category, (live.get(category) ?? 0) + bytes);
      total += bytes;
      if (highest === null || total > highest.total) highest = sample(at);
      if ((i + 1) % bucketSize === 0 || i + 1 === own.length) {
        samples.push(highest);
        highest = null;
      }
    }
    // The end, also where the last stretch was higher before.
    if (samples.at(-1)?.total !== total) samples.push(sample(own.at(-1)?.at ?? 0));
    let peakAt = 0;
    samples.forEach((each, i) => {
      if (each.total > (samples[peakAt] as typeof each).total) peakAt = i;
    });
    return [
      {
        tier,
        categories,
        at: samples.map(({ at }) => at),
        live: categories.map((_, c) => samples.map((each) => each.live[c] as number)),
        peak: (samples[peakAt] as (typeof samples)[number]).total,
        peakAt,
        before: start,
      },
    ];
  });
}
