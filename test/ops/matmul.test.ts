// matmul against a float64 reference: strides, batches, dtypes, accumulation, block edges, thread counts, both ISAs.
import t from "tap";
import { binding } from "../../lib/binding.js";
import { isaHashes } from "./isa.js";
import { type MatmulCase, matmulCases, runMatmul } from "./matmul_cases.js";
import { backend, distance, tolerance } from "./strided.js";

/** The product in float64, of the numbers as stored. */
function reference(spec: MatmulCase, a: Float64Array, b: Float64Array, c: Float64Array, bias: Float64Array | null) {
  const { m, n, k, alpha, accumulate } = spec;
  const batch = spec.batch.reduce((x, y) => x * y, 1);
  const out = new Float64Array(batch * m * n);
  for (let z = 0; z < batch; z++) {
    const bAt = spec.sharedB ? 0 : z * k * n;
    for (let i = 0; i < m; i++) {
      const row = out.subarray((z * m + i) * n, (z * m + i + 1) * n);
      for (let x = 0; x < k; x++) {
        const value = a[(z * m + i) * k + x] as number;
        const bRow = b.subarray(bAt + x * n, bAt + (x + 1) * n);
        for (let j = 0; j < n; j++) row[j] = (row[j] as number) + value * (bRow[j] as number);
      }
      for (let j = 0; j < n; j++) {
        row[j] = alpha * (row[j] as number) + (bias ? (bias[j] as number) : 0);
        if (accumulate) row[j] = (row[j] as number) + (c[(z * m + i) * n + j] as number);
      }
    }
  }
  return out;
}

const describe = (s: MatmulCase) =>
  `${s.batch.length ? `${s.batch.join("x")} times ` : ""}${s.m}x${s.n}x${s.k} ${s.aType}(${s.aLayout}) . ` +
  `${s.bType}(${s.bLayout}${s.sharedB ? ", shared" : ""}) -> ${s.cType}(${s.cLayout})` +
  `${s.bias ? ` + ${s.bias} bias` : ""}${s.alpha === 1 ? "" : `, alpha ${s.alpha}`}${s.accumulate ? ", +=" : ""}`;

t.test(
  "products of every kind stay within the tolerance and have the same bits for 1, 2, 3 and 8 threads",
  async (t) => {
    for (const spec of matmulCases()) {
      const first = await runMatmul(spec, 1);
      const error = distance(first.out, reference(spec, first.a, first.b, first.c, first.bias), spec.cType);
      t.ok(error <= tolerance(spec.k, spec.cType), `${describe(spec)}: ${error}`);
      for (const threads of [2, 3, 8]) {
        const other = await runMatmul(spec, threads);
        if (Buffer.compare(Buffer.from(first.raw.buffer), Buffer.from(other.raw.buffer)) !== 0) {
          t.fail(`${describe(spec)}: other bits with ${threads} threads`);
        }
      }
    }
  },
);

t.test("a product of depth 0 is the bias alone, or what c holds", async (t) => {
  const spec: MatmulCase = {
    ...(matmulCases()[0] as MatmulCase),
    batch: [],
    m: 3,
    n: 5,
    k: 0,
    aType: "float32",
    bType: "float32",
    cType: "float32",
    aLayout: "rows",
    bLayout: "rows",
    cLayout: "rows",
    bias: "float32",
    accumulate: false,
    sharedB: false,
    alpha: 1,
  };
  const alone = await runMatmul(spec, 2);
  t.same(
    [...alone.out],
    Array.from({ length: 15 }, (_, i) => alone.bias?.[i % 5]),
  );
  const kept = await runMatmul({ ...spec, bias: null, accumulate: true }, 2);
  t.same([...kept.out], [...kept.c]);
});

t.test("a sum of a million products", async (t) => {
  const spec: MatmulCase = {
    ...(matmulCases()[0] as MatmulCase),
    batch: [],
    m: 6,
    n: 7,
    k: 1_000_003,
    aType: "float32",
    bType: "float32",
    cType: "float32",
    aLayout: "columns",
    bLayout: "rows",
    cLayout: "rows",
    bias: null,
    accumulate: true,
    sharedB: false,
    alpha: 1,
  };
  const run = await runMatmul(spec, 2);
  const error = distance(run.out, reference(spec, run.a, run.b, run.c, null));
  t.ok(error <= 1e-4, `error ${error}`);
});

if (backend === "cpu")
  t.test("AVX2 and AVX-512 give the same bits", async (t) => {
    const hashes = await isaHashes("matmul");
    t.ok(hashes.avx2, "AVX2 was executed");
    if (hashes.avx512) t.equal(hashes.avx2, hashes.avx512);
    else t.equal(binding.cpuIsa(), "avx2", "AVX-512 could not be executed here");
  });
