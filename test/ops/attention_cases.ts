// The attention problems that the tests of attention try, and how one is run forward and backward.
import { binding } from "../../lib/binding.js";
import { deviceWith, int64, type Layout, layout, Random, randomValues, type Storage, Strided } from "./strided.js";

/** tokens: [T, heads, D] as it stands; heads: [heads, T, D] permuted; gaps: rows wider than heads x D. */
export type HeadLayout = "tokens" | "heads" | "gaps";

export interface AttentionCase {
  queries: number;
  keys: number;
  kvHeads: number;
  group: number;
  headSize: number;
  causal: boolean;
  window: number;
  qOffset: number;
  kOffset: number;
  documents: number[] | null;
  scale: number;
  /** 0: none. */
  softcap: number;
  /** Of q, k, v, o and dout. */
  type: Storage;
  dqType: Storage;
  dkvType: Storage;
  layouts: HeadLayout[];
  giveDelta: boolean;
  accumulateDq: boolean;
  accumulateDkv: boolean;
  /** dq overwrites o. */
  dqIsO: boolean;
  seed: number;
}

/** Some 60 problems: every mask and their combinations, block edges, odd head sizes, rows without any key. */
export function attentionCases(): AttentionCase[] {
  const random = new Random(5);
  const one = (more: Partial<AttentionCase> = {}): AttentionCase => {
    const headSize = more.headSize ?? random.of([1, 2, 7, 16, 20, 31, 64, 80, 96, 128, 130]);
    const type = more.type ?? random.of<Storage>(["float32", "float32", "bfloat16"]);
    const dqType = more.dqType ?? random.of<Storage>([type, "float32"]);
    const accumulateDq = more.accumulateDq ?? random.chance(0.3);
    return {
      queries: 64,
      keys: 64,
      kvHeads: random.of([1, 2, 3]),
      group: random.of([1, 1, 2, 3]),
      causal: random.chance(0.7),
      window: 0,
      qOffset: 0,
      kOffset: 0,
      documents: null,
      scale: random.of([1, 1, -1.5, 0.5]) / Math.sqrt(headSize),
      softcap: 0,
      dkvType: random.of<Storage>([type, "float32"]),
      layouts: Array.from({ length: 9 }, () => random.of<HeadLayout>(["tokens", "heads", "gaps"])),
      giveDelta: random.chance(0.4),
      accumulateDkv: random.chance(0.3),
      dqIsO: dqType === type && !accumulateDq && random.chance(0.5),
      seed: random.below(1 << 30),
      ...more,
      headSize,
      type,
      dqType,
      accumulateDq,
    };
  };
  const cases: AttentionCase[] = [];
  const lengths = [1, 2, 5, 31, 32, 33, 64, 127, 128, 129, 200, 260];
  for (let i = 0; i < 40; i++) {
    const queries = random.of(lengths);
    const keys = random.chance(0.5) ? queries : random.of([...lengths, 300]);
    const shifted = random.chance(0.4);
    const qOffset = shifted ? random.of([0, 3, 100, 200]) : 0;
    const kOffset = shifted ? random.of([0, 3, 64]) : 0;
    let documents: number[] | null = null;
    if (random.chance(0.5)) {
      const end = Math.max(qOffset + queries, kOffset + keys);
      const bounds = Array.from({ length: random.of([0, 1, 3, 20]) }, () => random.below(end + 1));
      // Some tokens may lie before the first document or behind the last: they attend nothing.
      const first = random.chance(0.8) ? 0 : random.below(end / 2 + 1);
      const last = random.chance(0.8) ? end : first + random.below(end - first + 1);
      documents = [first, ...bounds.filter((x) => x >= first && x <= last).sort((x, y) => x - y), last];
    }
    cases.push(one({ queries, keys, qOffset, kOffset, documents, window: random.of([0, 0, 1, 5, 40, 150]) }));
  }
  const plain = { type: "float32", dqType: "float32", dkvType: "float32", accumulateDq: false } as const;
  cases.push(one({ ...plain, queries: 700, keys: 700, kvHeads: 1, group: 1, headSize: 16, causal: true }));
  cases.push(one({ ...plain, queries: 900, keys: 900, kvHeads: 1, group: 2, headSize: 8, causal: false }));
  cases.push(one({ ...plain, queries: 700, keys: 700, kvHeads: 1, group: 2, headSize: 16, causal: true, window: 100 }));
  cases.push(
    one({
      ...plain,
      queries: 600,
      keys: 600,
      kvHeads: 2,
      group: 1,
      headSize: 20,
      documents: [0, 90, 91, 91, 400, 600],
    }),
  );
  cases.push(one({ queries: 40, keys: 40, kvHeads: 1, group: 12, headSize: 64, causal: true }));
  cases.push(one({ queries: 70, keys: 300, kvHeads: 1, group: 1, headSize: 256, causal: true, qOffset: 230 }));
  // Every query stands before every key.
  cases.push(one({ queries: 150, keys: 40, causal: true, kOffset: 500 }));
  cases.push(one({ queries: 150, keys: 160, causal: true, kOffset: 90 }));
  // A part of a long sequence, far from its start, as one rank of many sees it.
  cases.push(
    one({
      ...plain,
      queries: 130,
      keys: 200,
      causal: true,
      qOffset: 15_000_000_050,
      kOffset: 15_000_000_000,
      documents: [0, 14_999_999_990, 15_000_000_077, 15_000_000_177, 15_000_000_300],
    }),
  );
  // Several tiles of rows and of columns for each size that the CUDA kernels are built for, in copies of 16 bytes: all
  // keys, then a window over documents (one empty) with queries behind the first keys.
  const packed = { type: "bfloat16", layouts: Array<HeadLayout>(9).fill("tokens"), kvHeads: 1, group: 2 } as const;
  for (const headSize of [64, 96, 128, 256]) {
    cases.push(one({ ...packed, headSize, queries: 290, keys: 290, causal: headSize < 128 }));
    cases.push(
      one({
        ...packed,
        headSize,
        queries: 150,
        keys: 330,
        causal: headSize >= 128,
        window: 120,
        qOffset: 200,
        kOffset: 20,
        documents: [0, 60, 60, 280, 350],
      }),
    );
  }
  // Capped scores: some far beyond the cap, each dtype and each size of the CUDA kernels.
  for (const [headSize, type, softcap] of [
    [16, "float32", 0.7],
    [80, "float32", 2],
    [130, "float32", 50],
    [64, "bfloat16", 1],
    [128, "bfloat16", 3],
    [256, "bfloat16", 0.5],
  ] as const)
    for (const window of [0, 70])
      cases.push(
        one({ queries: 200, keys: 200, causal: true, headSize, type, softcap, window, documents: [0, 90, 200] }),
      );
  return cases;
}

function headLayout(tokens: number, heads: number, size: number, kind: HeadLayout): Layout {
  if (kind === "heads") return layout([tokens, heads, size], [1, 0, 2]);
  return layout([tokens, heads, size], [0, 1, 2], kind === "gaps" ? 5 : 0);
}

export interface AttentionRun {
  q: Float64Array;
  k: Float64Array;
  v: Float64Array;
  dout: Float64Array;
  /** What dq, dk and dv held before. */
  dq0: Float64Array;
  dk0: Float64Array;
  dv0: Float64Array;
  o: Float64Array;
  lse: Float64Array;
  dq: Float64Array;
  dk: Float64Array;
  dv: Float64Array;
  /** All outputs as stored. */
  raw: (Float32Array | Uint16Array)[];
}

/** rowsum(dout * o) as float32, [heads, queries]. */
function deltas(spec: AttentionCase, o: Float64Array, dout: Float64Array): Float32Array {
  const heads = spec.kvHeads * spec.group;
  const out = new Float32Array(heads * spec.queries);
  for (let i = 0; i < spec.queries; i++) {
    for (let n = 0; n < heads; n++) {
      let sum = 0;
      for (let d = 0; d < spec.headSize; d++) {
        const at = (i * heads + n) * spec.headSize + d;
        sum += (o[at] as number) * (dout[at] as number);
      }
      out[n * spec.queries + i] = sum;
    }
  }
  return out;
}

export async function runAttention(spec: AttentionCase, threads: number): Promise<AttentionRun> {
  const device = deviceWith(threads);
  const random = new Random(spec.seed);
  const { queries, keys, kvHeads, headSize } = spec;
  const heads = kvHeads * spec.group;
  const ofQueries = [queries, heads, headSize];
  const ofKeys = [keys, kvHeads, headSize];
  const at = (i: number, shape: number[]) =>
    headLayout(shape[0] as number, shape[1] as number, headSize, spec.layouts[i] as HeadLayout);
  const values = (shape: number[], type: Storage) =>
    randomValues(
      random,
      shape.reduce((x, y) => x * y, 1),
      type,
    );
  const q = values(ofQueries, spec.type);
  const k = values(ofKeys, spec.type);
  const v = values(ofKeys, spec.type);
  const dout = values(ofQueries, spec.type);
  const dq0 = values(ofQueries, spec.dqType);
  const dk0 = values(ofKeys, spec.dkvType);
  const dv0 = values(ofKeys, spec.dkvType);
  const tq = Strided.from(device, ofQueries, q, spec.type, at(0, ofQueries));
  const tk = Strided.from(device, ofKeys, k, spec.type, at(1, ofKeys));
  const tv = Strided.from(device, ofKeys, v, spec.type, at(2, ofKeys));
  const tdout = Strided.from(device, ofQueries, dout, spec.type, at(3, ofQueries));
  const to = Strided.poisoned(device, ofQueries, spec.type, at(4, ofQueries));
  const tlse = Strided.poisoned(device, [heads, queries]);
  const cuSeqlens = spec.documents ? int64(device, spec.documents) : null;
  const mask = [spec.causal, spec.window, spec.qOffset, spec.kOffset] as const;
  binding.ops.attention(
    tq.native,
    tk.native,
    tv.native,
    to.native,
    tlse.native,
    cuSeqlens,
    spec.scale,
    ...mask,
    spec.softcap,
  );
  const o = await to.values();
  const lse = await tlse.values();
  const raw = [await to.raw(), await tlse.raw()];

  const output = (shape: number[], before: Float64Array, type: Storage, i: number, accumulate: boolean) =>
    accumulate
      ? Strided.from(device, shape, before, type, at(i, shape))
      : Strided.poisoned(device, shape, type, at(i, shape));
  const tdq = spec.dqIsO ? to : output(ofQueries, dq0, spec.dqType, 5, spec.accumulateDq);
  const tdk = output(ofKeys, dk0, spec.dkvType, 6, spec.accumulateDkv);
  const tdv = output(ofKeys, dv0, spec.dkvType, 7, spec.accumulateDkv);
  const tdelta = spec.giveDelta ? Strided.from(device, [heads, queries], deltas(spec, o, dout)) : null;
  binding.ops.attentionBackward(
    tq.native,
    tk.native,
    tv.native,
    to.native,
    tlse.native,
    tdout.native,
    tdelta?.native ?? null,
    tdq.native,
    tdk.native,
    tdv.native,
    cuSeqlens,
    spec.scale,
    ...mask,
    spec.accumulateDq,
    spec.accumulateDkv,
    true,
    spec.softcap,
  );
  const dq = await tdq.values();
  const dk = await tdk.values();
  const dv = await tdv.values();
  raw.push(await tdq.raw(), await tdk.raw(), await tdv.raw());
  if (cuSeqlens) binding.release(cuSeqlens);
  for (const each of [tq, tk, tv, tdout, to, tlse, tdk, tdv, tdelta]) each?.free();
  if (tdq !== to) tdq.free();
  return { q, k, v, dout, dq0, dk0, dv0, o, lse, dq, dk, dv, raw };
}
