// axpby against float64: scaling, accumulation, device factors, mixed dtypes, beta 0 over NaN.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, type Lie, opTests, refusesBadArguments, rounded, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

interface Spec {
  shape: number[];
  x?: Storage;
  y?: Storage;
  lies?: [x: Lie, y: Lie];
  alpha: number;
  beta: number;
  factor?: ["float32" | "float64", number];
}

const one = (spec: Spec): Case => ({
  name: JSON.stringify(spec),
  body(bench: Bench) {
    const { shape, x = "float32", y = "float32", lies = ["rows", "rows"], alpha, beta } = spec;
    const tx = bench.input(shape, x, lies[0]);
    const ty = beta === 0 ? null : bench.input(shape, y, lies[1]);
    const out = ty?.tensor ?? bench.output(shape, y, lies[1]);
    const factor = spec.factor ? bench.plain([], spec.factor[0], [spec.factor[1]]) : null;
    binding.ops.axpby(tx.native, out.native, factor?.native ?? null, alpha, beta);
    const scale = alpha * (spec.factor ? spec.factor[1] : 1);
    bench.expect(out, "y", () => tx.values.map((v, i) => scale * v + (ty ? beta * (ty.values[i] as number) : 0)));
  },
});

const doubles = (beta: number): Case => ({
  name: `float64, beta ${beta}`,
  body(bench: Bench) {
    const [x, y] = [Array.from({ length: 50 }, () => bench.random.next() * 1e300), Array(50).fill(1e-300)];
    const ty = bench.plain([50], "float64", y);
    binding.ops.axpby(bench.plain([50], "float64", x).native, ty.native, null, 0.5, beta);
    bench.expectExactly(ty, "y", () => x.map((v) => 0.5 * v + beta * 1e-300));
  },
});

export const cases: Case[] = [
  one({ shape: [9, 67], alpha: 1, beta: 1 }),
  one({ shape: [9, 67], alpha: -0.25, beta: 0.5, lies: ["gaps", "columns"] }),
  one({ shape: [9, 67], alpha: 3, beta: 0, lies: ["columns", "spread"] }),
  one({ shape: [3, 4, 5], x: "bfloat16", alpha: 1, beta: 1, lies: ["spread", "rows"] }),
  one({ shape: [3, 4, 50], y: "bfloat16", alpha: 1, beta: -1 }),
  one({ shape: [40, 40], x: "bfloat16", y: "bfloat16", alpha: 2, beta: 0, lies: ["columns", "gaps"] }),
  one({ shape: [130], alpha: 2, beta: 1, factor: ["float64", 0.125] }),
  one({ shape: [130], alpha: 2, beta: 0, factor: ["float32", 0.75] }),
  one({ shape: [130], alpha: 0, beta: 2 }),
  one({ shape: [100_003], alpha: 0.1, beta: 0.9 }),
  // Rows of whole vectors with gaps between them: those of many warps, of parts of one, and of more than one dtype.
  one({ shape: [5, 512], alpha: 2, beta: 0.5, lies: ["steps", "rows"] }),
  one({ shape: [5, 264], x: "bfloat16", alpha: 2, beta: 1, lies: ["rows", "steps"] }),
  one({ shape: [3, 2, 256], x: "bfloat16", alpha: 2, beta: 1, lies: ["steps", "rows"] }),
  one({ shape: [7, 256], x: "bfloat16", y: "bfloat16", alpha: 2, beta: 1, lies: ["steps", "steps"] }),
  one({ shape: [1027], y: "bfloat16", alpha: 0.5, beta: 0 }),
  one({ shape: [], alpha: 2, beta: 1 }),
  one({ shape: [0, 3], alpha: 2, beta: 1 }),
  doubles(0),
  doubles(2),
];

await opTests("axpby", cases, (t) => {
  t.test("with beta 0 a NaN in y does not count; with alpha 0 a NaN in x does, as in arithmetic", (t) =>
    withBench(async (bench) => {
      const [x, y] = [bench.given([2], [1, 2]), bench.given([2], [Number.NaN, Number.POSITIVE_INFINITY])];
      binding.ops.axpby(x.native, y.native, null, 2, 0);
      t.same([...(await y.tensor.values())], [2, 4]);
      const bad = bench.given([2], [Number.NaN, 1]);
      binding.ops.axpby(bad.native, y.native, null, 0, 1);
      t.same([...(await y.tensor.values())], [Number.NaN, 4]);
    }),
  );

  t.test("x may be y", (t) =>
    withBench(async (bench) => {
      const x = bench.input([77]);
      binding.ops.axpby(x.native, x.native, null, 0.5, 0.25);
      t.same(
        [...(await x.tensor.values())],
        [...x.values].map((v) => rounded(0.75 * v, "float32")),
      );
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "axpby", [
      { name: "x", shape: [3, 8] },
      { name: "y", shape: [3, 8] },
      { name: "factor", shape: [], dtype: "float64", optional: true },
      { name: "alpha", number: 1 },
      { name: "beta", number: 1 },
    ]);
  });
});
