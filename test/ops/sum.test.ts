// sum over any dims against float64: layouts, dtypes, scaling, accumulation, many terms.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, count, type Lie, opTests, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

interface Spec {
  x: number[];
  y: number[];
  dtype?: Storage;
  out?: Storage | "float64";
  lie?: Lie;
  outLie?: Lie;
  alpha?: number;
  accumulate?: boolean;
  /** Values of very different sizes: then float64 sums round, and their order shows in the bits. */
  wild?: boolean;
}

function reference(spec: Spec, x: Float64Array, start: Float64Array | null): Float64Array {
  const y = new Float64Array(count(spec.y));
  for (let index = 0; index < x.length; index++) {
    let rest = index;
    let at = 0;
    let stride = 1;
    for (let d = spec.x.length - 1; d >= 0; d--) {
      const i = rest % (spec.x[d] as number);
      rest = Math.floor(rest / (spec.x[d] as number));
      if (spec.y[d] !== 1) at += i * stride;
      stride *= spec.y[d] as number;
    }
    y[at] = (y[at] as number) + (x[index] as number);
  }
  return y.map((sum, i) => (spec.alpha ?? 1) * sum + (start ? (start[i] as number) : 0));
}

const one = (spec: Spec): Case => ({
  name: JSON.stringify(spec),
  body(bench: Bench) {
    const { alpha = 1, accumulate = false, out = "float32" } = spec;
    const wild = () => (bench.random.next() - 0.5) * 2 ** bench.random.below(60);
    const x = spec.wild
      ? bench.given(spec.x, Array.from({ length: count(spec.x) }, wild), spec.dtype, spec.lie)
      : bench.input(spec.x, spec.dtype, spec.lie);
    if (out === "float64") {
      const y = bench.plain(spec.y, "float64", new Float64Array(count(spec.y)).fill(0.125));
      binding.ops.sum(x.native, y.native, alpha, accumulate);
      bench.expect(y, "y", () =>
        reference(spec, x.values, accumulate ? new Float64Array(count(spec.y)).fill(0.125) : null),
      );
      return;
    }
    const start = accumulate ? bench.input(spec.y, out, spec.outLie) : null;
    const y = start?.tensor ?? bench.output(spec.y, out, spec.outLie);
    binding.ops.sum(x.native, y.native, alpha, accumulate);
    bench.expect(y, "y", () => reference(spec, x.values, start?.values ?? null));
  },
});

export const cases: Case[] = [
  one({ x: [9, 67], y: [9, 1] }),
  one({ x: [9, 67], y: [1, 67], accumulate: true }),
  one({ x: [9, 67], y: [1, 1], out: "float64" }),
  one({ x: [9, 67], y: [9, 67], alpha: 0.5 }),
  one({ x: [4, 5, 6], y: [4, 1, 6], lie: "gaps", outLie: "columns", alpha: -2, accumulate: true }),
  one({ x: [4, 5, 6], y: [1, 5, 1], lie: "columns", outLie: "spread" }),
  one({ x: [4, 5, 6], y: [1, 1, 6], lie: "spread", dtype: "bfloat16" }),
  one({ x: [2, 3, 2, 3, 2, 5], y: [2, 1, 2, 1, 2, 1], lie: "columns", dtype: "bfloat16", out: "bfloat16" }),
  one({ x: [300, 130], y: [1, 130], dtype: "bfloat16", accumulate: true, lie: "gaps" }),
  one({ x: [300, 130], y: [300, 1], dtype: "bfloat16", out: "bfloat16", outLie: "gaps" }),
  one({ x: [3, 50_001], y: [3, 1] }),
  one({ x: [50_001, 3], y: [1, 3], accumulate: true }),
  one({ x: [20_011, 6], y: [1, 6], lie: "columns" }),
  one({ x: [100_003], y: [1], out: "float64", accumulate: true, alpha: 3 }),
  one({ x: [17_000, 5], y: [17_000, 1] }),
  one({ x: [60_003], y: [1], out: "float64", wild: true }),
  one({ x: [20_009, 3], y: [1, 3], out: "float64", wild: true }),
  one({ x: [5, 20_001], y: [5, 1], out: "float64", wild: true, lie: "gaps" }),
  one({ x: [], y: [] }),
  one({ x: [0, 5], y: [1, 5], accumulate: true }),
  one({ x: [0, 5], y: [1, 5] }),
  one({ x: [5, 0], y: [5, 1] }),
  one({ x: [0, 5], y: [0, 1] }),
];

await opTests("sum", cases, (t) => {
  t.test("float64 sums keep what float32 would lose", (t) =>
    withBench(async (bench) => {
      const x = bench.given([3, 4], [2 ** 24, 1, -(2 ** 24), 1, 1e30, 1, -1e30, 2, 3, 4, 5, 6]);
      const y = bench.output([3, 1]);
      binding.ops.sum(x.native, y.native, 1, false);
      t.same([...(await y.values())].slice(0, 1), [2]);
      t.equal((await y.values())[2], 18);
      const wide = bench.plain([2, 2], "float64", [1e300, -1e300, 1e-300, 1]);
      const sums = bench.plain([1, 2], "float64", [0, 0]);
      binding.ops.sum(wide.native, sums.native, 2, false);
      t.same([...(await sums.values())], [2e300, -2e300]);
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "sum", [
      { name: "x", shape: [3, 8] },
      { name: "y", shape: [3, 8] },
      { name: "alpha", number: 1 },
      { name: "accumulate", integer: 0 },
    ]);
  });
});
