// argmax: the first index of the largest value of a row, with ties, NaN, infinities, layouts and dtypes.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, opTests, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

/** A NaN counts as the largest, as in PyTorch. */
function reference(x: Float64Array, rows: number, width: number): number[] {
  return Array.from({ length: rows }, (_, row) => {
    const values = [...x.subarray(row * width, (row + 1) * width)];
    const nan = values.findIndex(Number.isNaN);
    return nan >= 0 ? nan : values.indexOf(values.reduce((a, b) => Math.max(a, b)));
  });
}

/** distinct: so many different values, so that there are ties. */
const one = (rows: number, width: number, dtype: Storage, strided: boolean, distinct = 0): Case => ({
  name: `[${rows}, ${width}] ${dtype}${strided ? ", strided" : ""}${distinct ? `, ${distinct} values` : ""}`,
  body(bench: Bench) {
    const numbers = Array.from({ length: rows * width }, () =>
      distinct ? bench.random.below(distinct) - distinct : bench.random.next() * 20 - 30,
    );
    const x = bench.given([rows, width], numbers, dtype, strided ? "gaps" : "rows");
    const index = bench.plain([rows], "int32", new Float64Array(rows).fill(-7));
    binding.ops.argmax(x.native, index.native);
    bench.expectExactly(index, "index", () => reference(x.values, rows, width));
  },
});

export const cases: Case[] = [
  one(1, 1, "float32", false),
  one(9, 15, "float32", true),
  one(9, 16, "float32", false, 3),
  one(9, 17, "bfloat16", true),
  one(40, 300, "bfloat16", false, 5),
  one(40, 700, "float32", true, 4),
  one(300, 513, "float32", false),
  one(3, 32_003, "float32", false),
  one(3, 32_003, "bfloat16", true),
  one(0, 5, "float32", false),
];

await opTests("argmax", cases, (t) => {
  t.test("NaN, infinities and ties, near the ends of vectors and tiles", (t) =>
    withBench(async (bench) => {
      const width = 1100;
      const rows: number[][] = [];
      const places = [0, 15, 16, 511, 512, 1023, 1024, 1087, 1088, 1099];
      for (const at of places) {
        for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
          const row = Array(width).fill(1);
          row[at] = value;
          row[width - 1] = value;
          rows.push(row);
        }
        rows.push(Array.from({ length: width }, (_, i) => (i === at ? -5 : Number.NEGATIVE_INFINITY)));
        rows.push(Array.from({ length: width }, (_, i) => (i === at ? Number.NaN : Number.POSITIVE_INFINITY)));
      }
      rows.push(Array(width).fill(Number.NEGATIVE_INFINITY), Array(width).fill(-0));
      const x = bench.given([rows.length, width], rows.flat());
      const index = bench.plain([rows.length], "int32", new Float64Array(rows.length));
      binding.ops.argmax(x.native, index.native);
      t.same([...(await index.values())], [...places.flatMap((at) => [at, at, at, at]), 0, 0]);
    }),
  );

  t.test("the indices may be strided", (t) =>
    withBench(async (bench) => {
      const x = bench.given([2, 3], [1, 3, 2, 9, 7, 8]);
      const all = bench.plain([4], "int32", [-1, -1, -1, -1]);
      binding.ops.argmax(x.native, bench.view(all.native, [2], [2], 1));
      t.same([...(await all.values())], [-1, 1, -1, 0]);
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "argmax", [
      { name: "x", shape: [3, 8], anyShape: true },
      { name: "index", shape: [3], dtype: "int32" },
    ]);
    await withBench(async (bench) => {
      const none = bench.output([3, 0]);
      const index = bench.plain([3], "int32", [0, 0, 0]);
      t.throws(() => binding.ops.argmax(none.native, index.native), { message: /argmax: x has no columns/ });
    });
  });
});
