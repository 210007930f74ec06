// norm_squared: float64 sums of squares of any layout, to float64's accuracy.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, type Lie, opTests, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

const one = (shape: number[], dtype: Storage = "float32", lie: Lie = "rows", scale = 1): Case => ({
  name: `[${shape}] ${dtype} ${lie}, values of ${scale}`,
  body(bench: Bench) {
    const x = bench.input(shape, dtype, lie, scale);
    const y = bench.plain([], "float64", [0.5]);
    binding.ops.normSquared(x.native, y.native);
    bench.expect(y, "y", () => [0.5 + x.values.reduce((sum, value) => sum + value * value, 0)]);
  },
});

export const cases: Case[] = [
  one([1]),
  one([]),
  one([7, 37]),
  one([7, 37], "bfloat16", "columns"),
  one([7, 37], "float32", "spread"),
  one([3, 4, 50], "bfloat16", "gaps"),
  one([100_003]),
  one([3, 35_000], "float32", "gaps"),
  one([300, 200], "float32", "columns", 1e30),
  one([300, 200], "float32", "rows", 1e-30),
  one([0, 4]),
  one([4, 0], "bfloat16"),
];

await opTests("norm_squared", cases, (t) => {
  t.test("to 13 digits, over a million values, and added to what is there", (t) =>
    withBench(async (bench) => {
      const x = bench.input([1000, 1000]);
      const y = bench.plain([], "float64", [0]);
      binding.ops.normSquared(x.native, y.native);
      binding.ops.normSquared(x.native, y.native);
      // By rows, so that the reference's own rounding stays small.
      let expected = 0;
      for (let row = 0; row < 1000; row++)
        expected += 2 * x.values.subarray(row * 1000, row * 1000 + 1000).reduce((sum, value) => sum + value * value, 0);
      const got = (await y.values())[0] as number;
      t.ok(Math.abs(got / expected - 1) < 1e-13, `${got} ${expected}`);
    }),
  );

  t.test("a NaN or an infinity shows, wherever it lies", (t) =>
    withBench(async (bench) => {
      for (const at of [0, 15, 16, 40_000, 49_999]) {
        const values = new Float64Array(50_000);
        for (const bad of [Number.NaN, Number.NEGATIVE_INFINITY]) {
          values[at] = bad;
          const y = bench.plain([], "float64", [0]);
          binding.ops.normSquared(bench.given([50_000], values).native, y.native);
          t.same((await y.values())[0], bad * bad, `${bad} at ${at}`);
        }
      }
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "normSquared", [
      { name: "x", shape: [3, 8], anyShape: true },
      { name: "y", shape: [], dtype: "float64" },
    ]);
  });
});
