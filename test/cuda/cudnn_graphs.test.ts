// The attention graphs that cuDNN gets, run node by node in float64 and compared with attention as backend.h defines it.
import t from "tap";
import { Random } from "../ops/strided.js";
import type { Problem } from "./cudnn_cases.js";
import { Interpreter, type Run } from "./graph_interpreter.js";
import { runs } from "./plans_tool.js";

const base: Problem = {
  direction: "forward",
  capability: 90,
  rowsQ: 7,
  rowsK: 7,
  heads: 2,
  kvHeads: 2,
  headSize: 16,
  causal: true,
  window: 0,
  qOffset: 0,
  kOffset: 0,
  scale: 0.3,
  pad: 0,
  dqF32: false,
  dkvF32: false,
  accumulate: false,
  giveDelta: false,
  documents: null,
};

/** Problems that cuDNN has to take; each is run forward and backward. */
const taken: [string, Partial<Problem>][] = [
  ["causal", {}],
  ["no mask", { causal: false }],
  ["grouped heads", { heads: 4, kvHeads: 2, headSize: 8 }],
  ["one key head", { heads: 3, kvHeads: 1 }],
  ["rows with gaps", { heads: 4, kvHeads: 2, pad: 8 }],
  ["a window", { window: 3, rowsQ: 9, rowsK: 9 }],
  ["a window without causality", { window: 3, rowsQ: 9, rowsK: 9, causal: false }],
  ["fewer queries than keys", { rowsQ: 3, rowsK: 8, qOffset: 5 }],
  ["fewer queries than keys, a window", { rowsQ: 3, rowsK: 9, qOffset: 6, window: 4, heads: 4 }],
  ["keys behind the queries are cut off", { rowsQ: 3, rowsK: 9, qOffset: 4, heads: 2, kvHeads: 1 }],
  ["keys before the window are cut off", { rowsQ: 3, rowsK: 20, qOffset: 14, window: 3 }],
  ["keys on both sides of a window", { rowsQ: 3, rowsK: 30, qOffset: 14, window: 3, causal: false }],
  ["another shard's keys, no mask", { rowsQ: 4, rowsK: 6, qOffset: 6, causal: false }],
  ["queries and keys both shifted", { rowsQ: 5, rowsK: 5, qOffset: 100, kOffset: 100 }],
  ["packed documents", { rowsQ: 12, rowsK: 12, documents: [0, 5, 6, 12] }],
  ["packed documents, grouped heads, gaps", { rowsQ: 12, rowsK: 12, documents: [0, 3, 12], heads: 4, pad: 8 }],
  ["packed documents, empty ones too", { rowsQ: 9, rowsK: 9, documents: [0, 0, 4, 4, 9, 9] }],
  ["packed documents, a window", { rowsQ: 12, rowsK: 12, documents: [0, 8, 12], window: 3 }],
  ["packed documents, no mask", { rowsQ: 9, rowsK: 9, documents: [0, 4, 9], causal: false, heads: 4 }],
  [
    "packed documents, a window without causality",
    { rowsQ: 9, rowsK: 9, documents: [0, 6, 9], causal: false, window: 2 },
  ],
  ["the last rows of packed documents", { rowsQ: 7, rowsK: 12, qOffset: 5, documents: [0, 8, 10, 12] }],
  [
    "the last rows of packed documents, a window",
    { rowsQ: 7, rowsK: 12, qOffset: 5, documents: [0, 8, 10, 12], window: 4, heads: 4 },
  ],
  ["documents before and behind the queries", { rowsQ: 3, rowsK: 12, qOffset: 5, documents: [0, 5, 8, 12] }],
  [
    "more than 16 documents",
    { rowsQ: 40, rowsK: 40, documents: Array.from({ length: 21 }, (_, i) => i * 2), heads: 1, kvHeads: 1 },
  ],
];

/** What cuDNN cannot do or not well enough, and the word of the reason that must say so. */
const refusals: [string, Partial<Problem>, RegExp][] = [
  ["an odd head size", { headSize: 20 }, /multiple of 8/],
  ["one row", { rowsQ: 1, rowsK: 1 }, /one row/],
  ["a negative scale", { scale: -0.3 }, /scale/],
  ["rows without a key", { rowsQ: 5, rowsK: 5, kOffset: 2 }, /attend no key/],
  ["rows behind a window's last key", { rowsQ: 9, rowsK: 3, window: 2 }, /attend no key/],
  ["rows in no document", { documents: [0, 5] }, /no document/],
  ["strides of half a vector", { pad: 4 }, /16 bytes/],
  ["more queries than keys under a mask", { rowsQ: 9, rowsK: 5 }, /fewer keys/],
  [
    "documents that meet at neither end",
    { rowsQ: 4, rowsK: 8, qOffset: 2, documents: [0, 4, 8], causal: false, window: 5 },
    /neither/,
  ],
];

/** Float64 values of [rows, heads, D]. */
class Rows {
  readonly values: Float64Array;
  constructor(
    readonly rows: number,
    readonly heads: number,
    readonly size: number,
  ) {
    this.values = new Float64Array(rows * heads * size);
  }
  static random(rows: number, heads: number, size: number, random: Random): Rows {
    const made = new Rows(rows, heads, size);
    for (let i = 0; i < made.values.length; i++) made.values[i] = random.next() * 2 - 1;
    return made;
  }
  get(i: number, h: number, d: number): number {
    return this.values[(i * this.heads + h) * this.size + d] as number;
  }
  add(i: number, h: number, d: number, value: number): void {
    const at = (i * this.heads + h) * this.size + d;
    this.values[at] = (this.values[at] as number) + value;
  }
  /** As it lies in memory with `pad` unused elements behind each row, which are NaN. */
  padded(pad: number, empty = false): Float64Array {
    const width = this.heads * this.size;
    const memory = new Float64Array(this.rows * (width + pad)).fill(Number.NaN);
    if (!empty)
      for (let i = 0; i < this.rows; i++)
        memory.set(this.values.subarray(i * width, (i + 1) * width), i * (width + pad));
    return memory;
  }
}

/** Attention and its gradients straight from the definition. */
function reference(p: Problem, q: Rows, k: Rows, v: Rows, dout: Rows) {
  const o = new Rows(p.rowsQ, p.heads, p.headSize);
  const [dq, dk, dv] = [
    new Rows(p.rowsQ, p.heads, p.headSize),
    new Rows(p.rowsK, p.kvHeads, p.headSize),
    new Rows(p.rowsK, p.kvHeads, p.headSize),
  ];
  const lse = new Float64Array(p.heads * p.rowsQ);
  const bounds = p.documents ?? [0, Number.MAX_SAFE_INTEGER];
  const documentOf = (position: number) => bounds.findLastIndex((bound) => bound <= position);
  const attends = (i: number, j: number) =>
    documentOf(i) === documentOf(j) && (!p.causal || j <= i) && (p.window === 0 || Math.abs(i - j) < p.window);
  const dot = (a: Rows, i: number, h: number, b: Rows, j: number, g: number) => {
    let sum = 0;
    for (let d = 0; d < p.headSize; d++) sum += a.get(i, h, d) * b.get(j, g, d);
    return sum;
  };
  for (let h = 0; h < p.heads; h++)
    for (let i = 0; i < p.rowsQ; i++) {
      const g = Math.floor((h * p.kvHeads) / p.heads);
      const keys = Array.from({ length: p.rowsK }, (_, j) => j).filter((j) => attends(p.qOffset + i, p.kOffset + j));
      const scores = keys.map((j) => p.scale * dot(q, i, h, k, j, g));
      const sum = scores.reduce((total, s) => total + Math.exp(s), 0);
      lse[h * p.rowsQ + i] = Math.log(sum);
      for (const [n, j] of keys.entries())
        for (let d = 0; d < p.headSize; d++) o.add(i, h, d, (Math.exp(scores[n] as number) / sum) * v.get(j, g, d));
      const delta = dot(dout, i, h, o, i, h);
      for (const [n, j] of keys.entries()) {
        const weight = Math.exp(scores[n] as number) / sum;
        const ds = weight * (dot(dout, i, h, v, j, g) - delta) * p.scale;
        for (let d = 0; d < p.headSize; d++) {
          dq.add(i, h, d, ds * k.get(j, g, d));
          dk.add(j, g, d, ds * q.get(i, h, d));
          dv.add(j, g, d, weight * dout.get(i, h, d));
        }
      }
    }
  return { o, lse, dq, dk, dv };
}

/** Largest difference; what the plan leaves alone is NaN in `found` and has to be zero in `expected`. */
function difference(found: Float64Array, expected: Rows, pad: number, firstRow: number): number {
  const width = expected.heads * expected.size;
  let most = 0;
  for (let i = 0; i < expected.rows; i++)
    for (let x = 0; x < width + pad; x++) {
      const at = (i - firstRow) * (width + pad) + x;
      const value = at < 0 || at >= found.length ? Number.NaN : (found[at] as number);
      if (x >= width) {
        if (!Number.isNaN(value)) return Number.POSITIVE_INFINITY;
        continue;
      }
      const wanted = expected.values[i * width + x] as number;
      if (Number.isNaN(value) && wanted === 0) continue;
      const off = Math.abs(value - wanted);
      most = Number.isNaN(off) ? Number.POSITIVE_INFINITY : Math.max(most, off);
    }
  return most;
}

/** Gives the graph its packed documents' lengths and offsets. */
function giveDocuments(run: Run, memory: Map<number, Float64Array>, rowsQ: number): void {
  if (!run.packed) return;
  memory.set(run.lengthsQ, Float64Array.from(run.rowsQ));
  memory.set(run.lengthsK, Float64Array.from(run.rowsK));
  for (const { uid, ofKeys, stride } of run.offsets) {
    const begins = ofKeys ? [...run.beginK, run.totalK] : [...run.beginQ, rowsQ];
    memory.set(
      uid,
      Float64Array.from(begins, (row) => row * stride),
    );
  }
}

for (const [name, more] of taken)
  t.test(name, async (t) => {
    const problem = { ...base, ...more };
    const staged = { ...problem, direction: "backward" as const, accumulate: true, dkvF32: true };
    const [forward, backward, adding] = runs([problem, { ...problem, direction: "backward" }, staged]);
    if (!forward || "refused" in forward) return t.fail(`forward is refused: ${forward?.refused}`);
    if (!backward || "refused" in backward) return t.fail(`backward is refused: ${backward?.refused}`);
    if (!adding || "refused" in adding) return t.fail(`accumulation is refused: ${adding?.refused}`);
    const random = new Random(problem.rowsQ * 31 + problem.rowsK * 7 + problem.heads);
    const { rowsQ, rowsK, heads, kvHeads, headSize, pad } = problem;
    const q = Rows.random(rowsQ, heads, headSize, random);
    const k = Rows.random(rowsK, kvHeads, headSize, random);
    const v = Rows.random(rowsK, kvHeads, headSize, random);
    const dout = Rows.random(rowsQ, heads, headSize, random);
    const wanted = reference(problem, q, k, v, dout);

    const one = new Interpreter(forward);
    const slice = (rows: Rows, run: Run, empty = false, gap = pad) =>
      rows.padded(gap, empty).subarray(run.firstKey * (kvHeads * headSize + gap));
    giveDocuments(forward, one.memory, rowsQ);
    one.memory.set(forward.scale, Float64Array.of(problem.scale));
    one.memory.set(forward.q, q.padded(pad));
    one.memory.set(forward.k, slice(k, forward));
    one.memory.set(forward.v, slice(v, forward));
    one.memory.set(forward.o, q.padded(pad, true));
    one.memory.set(forward.lse, new Float64Array(heads * rowsQ).fill(Number.NaN));
    one.run();
    const found = (run: Interpreter, uid: number) => run.memory.get(uid) as Float64Array;
    t.ok(difference(found(one, forward.o), wanted.o, pad, 0) < 1e-12, "o");
    const lse = found(one, forward.lse);
    t.ok(
      lse.every((value, i) => Math.abs(value - (wanted.lse[i] as number)) < 1e-12),
      "the log-sum-exp is natural and of scaled scores",
    );

    for (const run of [backward, adding]) {
      const gap = (staged: boolean) => (staged ? 0 : pad);
      const two = new Interpreter(run);
      giveDocuments(run, two.memory, rowsQ);
      two.memory.set(run.scale, Float64Array.of(problem.scale));
      two.memory.set(run.q, q.padded(pad));
      two.memory.set(run.k, slice(k, run));
      two.memory.set(run.v, slice(v, run));
      two.memory.set(run.o, wanted.o.padded(pad));
      two.memory.set(run.lse, wanted.lse);
      two.memory.set(run.dout, dout.padded(pad));
      two.memory.set(run.dq, q.padded(gap(run.stageDq), true));
      two.memory.set(run.dk, slice(k, run, true, gap(run.stageDkv)));
      two.memory.set(run.dv, slice(v, run, true, gap(run.stageDkv)));
      two.run();
      const what = run === backward ? "" : ", staged to be added";
      t.ok(difference(found(two, run.dq), wanted.dq, gap(run.stageDq), 0) < 1e-12, `dq${what}`);
      t.ok(difference(found(two, run.dk), wanted.dk, gap(run.stageDkv), run.firstKey) < 1e-12, `dk${what}`);
      t.ok(difference(found(two, run.dv), wanted.dv, gap(run.stageDkv), run.firstKey) < 1e-12, `dv${what}`);
      if (run.coversKeys)
        t.notOk(
          [...found(two, run.dk), ...found(two, run.dv)].filter(Number.isNaN).length >
            2 * (run.totalK * gap(run.stageDkv) || 0),
          "a plan said to cover all keys writes all their gradients",
        );
      t.equal(run.packed ? run.offsets.length : 0, run.offsetCount, "workspace is reserved for each offsets tensor");
    }
  });

t.test("what cuDNN does not take is refused with the reason", async (t) => {
  const answers = runs(refusals.flatMap(([, more]) => [{ ...base, ...more }]));
  for (const [i, [name, , reason]] of refusals.entries()) t.match(answers[i], { refused: reason }, name);
  const backward = { ...base, direction: "backward" as const };
  const [delta, packed, wide, newer] = runs([
    { ...backward, giveDelta: true },
    { ...backward, capability: 80, documents: [0, 3, 7] },
    { ...backward, capability: 80, headSize: 256 },
    { ...backward, capability: 120, documents: [0, 3, 7] },
  ]);
  t.match(delta, { refused: /delta/ });
  t.match(packed, { refused: /packed documents on this GPU/ });
  t.match(newer, { refused: /packed documents on this GPU/ });
  t.match(wide, { refused: /head size above 128 on this GPU/ });
});

t.test("a backward whose tensors span more than 2^31 elements is refused, its forward is not", async (t) => {
  const long = { ...base, heads: 32, kvHeads: 8, headSize: 128, rowsQ: 2 ** 19, rowsK: 2 ** 19 };
  const backward = { ...long, direction: "backward" as const };
  const more = { rowsQ: 2 ** 19 + 1, rowsK: 2 ** 19 + 1 };
  // The rows of a column of heads within a wider buffer.
  const column = { heads: 4, kvHeads: 4, pad: 28 * 128 };
  const [fits, tooMany, forward, within, beyond, keys] = runs([
    backward,
    { ...backward, ...more },
    { ...long, ...more },
    { ...backward, ...column },
    { ...backward, ...more, ...column },
    { ...backward, rowsQ: 8, rowsK: 2 ** 21 + 1, qOffset: 2 ** 21 - 7 },
  ]);
  for (const one of [fits, forward, within]) t.notOk(one && "refused" in one);
  t.match(tooMany, { refused: /dq spans more than 2\^31 elements/ });
  t.match(beyond, { refused: /q spans more than 2\^31 elements/ });
  t.match(keys, { refused: /dk spans more than 2\^31 elements/ });
});
