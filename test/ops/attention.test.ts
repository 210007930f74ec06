// attention, forward and backward, against a float64 reference: masks, documents, offsets, GQA, strides, thread counts,
// both instruction sets.
import t from "tap";
import { binding } from "../../lib/binding.js";
import { type AttentionCase, type AttentionRun, attentionCases, runAttention } from "./attention_cases.js";
import { isaHashes } from "./isa.js";
import { backend, deviceWith, distance, tolerance } from "./strided.js";

/** The definition in backend.h, pair by pair. */
function attends(spec: AttentionCase, i: number, j: number): boolean {
  const query = spec.qOffset + i;
  const key = spec.kOffset + j;
  if (spec.causal && key > query) return false;
  if (spec.window > 0 && Math.abs(query - key) >= spec.window) return false;
  if (!spec.documents) return true;
  const document = (position: number) =>
    (spec.documents as number[]).findIndex((begin, d, all) => begin <= position && position < (all[d + 1] ?? 0));
  const found = document(query);
  return found >= 0 && found === document(key);
}

interface Reference {
  o: Float64Array;
  lse: Float64Array;
  dq: Float64Array;
  dk: Float64Array;
  dv: Float64Array;
  /** Root mean square of the gradients' summed absolute terms: what rounding errors are proportional to where the terms
   * cancel, as they do exactly where a query attends a single key. */
  dqTerms: number;
  dkTerms: number;
  dvTerms: number;
}

const onGpu = (process.env.LONGSEQ_TEST_DEVICE ?? "cpu").startsWith("cuda");

const rms = (x: Float64Array) => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / Math.max(1, x.length));

/** Softmax attention and its gradients in float64. The gradients start from the o and lse that the forward stored. */
function reference(spec: AttentionCase, run: AttentionRun): Reference {
  const { queries, keys, kvHeads, group, headSize: size } = spec;
  const heads = kvHeads * group;
  const o = new Float64Array(queries * heads * size);
  const lse = new Float64Array(heads * queries).fill(Number.NEGATIVE_INFINITY);
  const dq = new Float64Array(o.length);
  const dk = new Float64Array(keys * kvHeads * size);
  const dv = new Float64Array(dk.length);
  const dqTerms = new Float64Array(o.length);
  const dkTerms = new Float64Array(dk.length);
  const dvTerms = new Float64Array(dk.length);
  const dot = (x: Float64Array, at: number, y: Float64Array, yAt: number) => {
    let sum = 0;
    for (let d = 0; d < size; d++) sum += (x[at + d] as number) * (y[yAt + d] as number);
    return sum;
  };
  const add = (x: Float64Array, at: number, factor: number, y: Float64Array, yAt: number) => {
    for (let d = 0; d < size; d++) x[at + d] = (x[at + d] as number) + factor * (y[yAt + d] as number);
  };
  const scores = new Float64Array(keys);
  for (let i = 0; i < queries; i++) {
    const allowed = Array.from({ length: keys }, (_, j) => j).filter((j) => attends(spec, i, j));
    if (allowed.length === 0) continue;
    for (let n = 0; n < heads; n++) {
      const row = (i * heads + n) * size;
      const kvHead = Math.floor(n / group);
      const column = (j: number) => (j * kvHeads + kvHead) * size;
      let most = Number.NEGATIVE_INFINITY;
      for (const j of allowed) {
        const free = spec.scale * dot(run.q, row, run.k, column(j));
        const score = spec.softcap ? spec.softcap * Math.tanh(free / spec.softcap) : free;
        scores[j] = score;
        most = Math.max(most, score);
      }
      let total = 0;
      for (const j of allowed) total += Math.exp((scores[j] as number) - most);
      lse[n * queries + i] = most + Math.log(total);
      const delta = dot(run.dout, row, run.o, row);
      for (const j of allowed) {
        const at = column(j);
        add(o, row, Math.exp((scores[j] as number) - most) / total, run.v, at);
        const weight = Math.exp((scores[j] as number) - (run.lse[n * queries + i] as number));
        const slope = dot(run.dout, row, run.v, at);
        const bend = spec.softcap ? 1 - ((scores[j] as number) / spec.softcap) ** 2 : 1;
        const gradient = weight * (slope - delta) * spec.scale * bend;
        add(dv, at, weight, run.dout, row);
        add(dq, row, gradient, run.k, at);
        add(dk, at, gradient, run.q, row);
        const terms = weight * (Math.abs(slope) + Math.abs(delta)) * Math.abs(spec.scale);
        for (let d = 0; d < size; d++) {
          dqTerms[row + d] = (dqTerms[row + d] as number) + terms * Math.abs(run.k[at + d] as number);
          dkTerms[at + d] = (dkTerms[at + d] as number) + terms * Math.abs(run.q[row + d] as number);
          dvTerms[at + d] = (dvTerms[at + d] as number) + weight * Math.abs(run.dout[row + d] as number);
        }
      }
    }
  }
  if (spec.accumulateDq) for (let i = 0; i < dq.length; i++) dq[i] = (dq[i] as number) + (run.dq0[i] as number);
  if (spec.accumulateDkv) {
    for (let i = 0; i < dk.length; i++) {
      dk[i] = (dk[i] as number) + (run.dk0[i] as number);
      dv[i] = (dv[i] as number) + (run.dv0[i] as number);
    }
  }
  // Rows that nobody attends say nothing of how large terms are.
  const [dqSize, dkSize, dvSize] = [dqTerms, dkTerms, dvTerms].map((terms) => rms(terms.filter((one) => one > 0)));
  return { o, lse, dq, dk, dv, dqTerms: dqSize ?? 0, dkTerms: dkSize ?? 0, dvTerms: dvSize ?? 0 };
}

const describe = (s: AttentionCase) =>
  `${s.queries} queries, ${s.keys} keys, ${s.kvHeads} x ${s.group} heads of ${s.headSize}, ${s.type}` +
  `${s.causal ? ", causal" : ""}${s.window ? `, window ${s.window}` : ""}${s.documents ? `, documents ${s.documents}` : ""}` +
  `${s.qOffset || s.kOffset ? `, from ${s.qOffset} and ${s.kOffset}` : ""}, scale ${s.scale.toFixed(3)}${s.softcap ? ` up to ${s.softcap}` : ""}` +
  `, dq ${s.dqType}${s.dqIsO ? " in o" : ""}${s.accumulateDq ? " +=" : ""}, dk dv ${s.dkvType}${s.accumulateDkv ? " +=" : ""}`;

t.test("outputs and gradients of every mask stay within the tolerance", async (t) => {
  for (const spec of attentionCases()) {
    const run = await runAttention(spec, 2);
    const expected = reference(spec, run);
    const depth = Math.max(spec.headSize, spec.keys);
    // Gradients sum over the queries of a group, too.
    const gradientDepth = Math.max(depth, spec.queries * spec.group);
    // Tensor cores take weights and their gradients in bfloat16, whatever the results are stored in.
    const [dqType, dkvType] = onGpu ? [spec.type, spec.type] : [spec.dqType, spec.dkvType];
    const errors = {
      o: distance(run.o, expected.o, spec.type) / tolerance(depth, spec.type),
      dq: distance(run.dq, expected.dq, dqType, expected.dqTerms / 4) / tolerance(gradientDepth, dqType),
      dk: distance(run.dk, expected.dk, dkvType, expected.dkTerms / 4) / tolerance(gradientDepth, dkvType),
      dv: distance(run.dv, expected.dv, dkvType, expected.dvTerms / 4) / tolerance(gradientDepth, dkvType),
    };
    // Half as much again where weights were rounded on the way.
    const most = onGpu && spec.type === "bfloat16" ? 1.5 : 1;
    const wrong = Object.entries(errors).filter(([, error]) => !(error <= most));
    t.same(wrong, [], `errors within the tolerance: ${describe(spec)}`);
    const finite = (x: Float64Array) => x.map((value) => (value === Number.NEGATIVE_INFINITY ? 0 : value));
    const none = (value: number) => value === Number.NEGATIVE_INFINITY;
    t.ok(
      run.lse.every((value, i) => none(value) === none(expected.lse[i] as number)),
      "lse is -inf exactly where no key is attended",
    );
    // Scores near 0 would make the lse of few keys small: the bound is absolute there.
    t.ok(distance(finite(run.lse), finite(expected.lse), "float32", 1) <= tolerance(depth, "float32"), "lse");
    const heads = spec.kvHeads * spec.group;
    for (let n = 0; n < heads; n++) {
      for (let i = 0; i < spec.queries; i++) {
        if (expected.lse[n * spec.queries + i] !== Number.NEGATIVE_INFINITY) continue;
        const at = (i * heads + n) * spec.headSize;
        const zeros = (x: Float64Array, before?: Float64Array) =>
          x.subarray(at, at + spec.headSize).every((value, d) => value === (before ? before[at + d] : 0));
        if (!zeros(run.o)) t.fail(`o of query ${i}, which attends nothing, is not zero`);
        if (!zeros(run.dq, spec.accumulateDq ? run.dq0 : undefined)) {
          t.fail(`dq of query ${i}, which attends nothing, is not zero`);
        }
      }
    }
  }
});

t.test("the same bits for 1, 2, 3 and 8 threads, within a single head too", async (t) => {
  for (const spec of attentionCases()) {
    const first = await runAttention(spec, 1);
    for (const threads of [2, 3, 8]) {
      const other = await runAttention(spec, threads);
      const same = first.raw.every((raw, i) => {
        const bytes = other.raw[i] as Float32Array | Uint16Array;
        return Buffer.compare(Buffer.from(raw.buffer), Buffer.from(bytes.buffer)) === 0;
      });
      if (!same) t.fail(`${describe(spec)}: other bits with ${threads} threads`);
    }
  }
  t.pass("all compared");
});

t.test("packed documents give what each gives alone", async (t) => {
  const base = attentionCases().find((spec) => spec.documents?.length === 6) as AttentionCase;
  const bounds = base.documents as number[];
  const packed = await runAttention({ ...base, causal: true, layouts: base.layouts.map(() => "tokens") }, 2);
  const apart = await runAttention(
    { ...base, causal: true, layouts: base.layouts.map(() => "tokens"), documents: null },
    2,
  );
  const first = (bounds[1] as number) * base.kvHeads * base.group * base.headSize;
  const same = packed.o.map((value, i) => (value === apart.o[i] ? 1 : 0));
  t.notOk(same.subarray(0, first).includes(0), "the first document does not notice the others");
  t.ok(same.subarray(first).includes(0), "without the bounds the others would see it");
});

t.test("keys taken in two parts and merged by their lse give the whole", async (t) => {
  const spec: AttentionCase = {
    ...(attentionCases()[0] as AttentionCase),
    queries: 150,
    keys: 150,
    kvHeads: 2,
    group: 2,
    headSize: 32,
    causal: true,
    window: 0,
    qOffset: 0,
    kOffset: 0,
    documents: null,
    scale: 0.2,
    type: "float32",
    layouts: Array(9).fill("tokens"),
    dqIsO: false,
  };
  const whole = await runAttention(spec, 2);
  const device = deviceWith(2);
  const heads = 4;
  const parts = [];
  for (const [begin, end] of [
    [0, 70],
    [70, 150],
  ] as const) {
    const make = (shape: number[], values?: Float64Array) => {
      const tensor = binding.empty(device, shape, 0, 4, 0);
      if (values) binding.write(tensor, Float32Array.from(values), false);
      return tensor;
    };
    const rows = (x: Float64Array) => x.subarray(begin * 64, end * 64);
    const [q, k, v] = [
      make([150, heads, 32], whole.q),
      make([end - begin, 2, 32], rows(whole.k)),
      make([end - begin, 2, 32], rows(whole.v)),
    ];
    const [o, lse] = [make([150, heads, 32]), make([heads, 150])];
    binding.ops.attention(q, k, v, o, lse, null, spec.scale, true, 0, 0, begin);
    parts.push({ o: new Float32Array(await binding.read(o)), lse: new Float32Array(await binding.read(lse)) });
    for (const tensor of [q, k, v, o, lse]) binding.release(tensor);
  }
  const [first, second] = parts as [(typeof parts)[0], (typeof parts)[0]];
  const merged = new Float64Array(whole.o.length);
  for (let i = 0; i < merged.length; i++) {
    const row = Math.floor(i / 32);
    const at = (row % heads) * 150 + Math.floor(row / heads);
    const total = whole.lse[at] as number;
    merged[i] =
      (first.o[i] as number) * Math.exp((first.lse[at] as number) - total) +
      (second.o[i] as number) * Math.exp((second.lse[at] as number) - total);
  }
  t.ok(distance(merged, whole.o) < 1e-5);
});

if (backend === "cpu")
  t.test("AVX2 and AVX-512 give the same bits", async (t) => {
    const hashes = await isaHashes("attention");
    t.ok(hashes.avx2, "AVX2 was executed");
    if (hashes.avx512) t.equal(hashes.avx2, hashes.avx512);
    else t.equal(binding.cpuIsa(), "avx2", "AVX-512 could not be executed here");
  });

t.test("a head size above 256 is refused", async (t) => {
  const device = deviceWith(1);
  const wide = binding.empty(device, [2, 1, 257], 0, 4, 0);
  const lse = binding.empty(device, [1, 2], 0, 4, 0);
  t.throws(() => binding.ops.attention(wide, wide, wide, wide, lse, null, 1, true, 0, 0, 0), { message: /257/ });
  for (const tensor of [wide, lse]) binding.release(tensor);
});
