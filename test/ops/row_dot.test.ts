// row_dot against float64: inner products of rows, layouts, dtypes.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, type Lie, opTests, refusesBadArguments } from "./helpers.js";
import type { Storage } from "./strided.js";

const one = (rows: number, width: number, a: Storage = "float32", b: Storage = a, kind: Lie = "rows"): Case => ({
  name: `[${rows}, ${width}] ${a} . ${b} ${kind}`,
  body(bench: Bench) {
    const left = bench.input([rows, width], a, kind, 1, 0.5);
    const right = bench.input([rows, width], b, kind, 1, 0.5);
    const y = bench.output([rows]);
    binding.ops.rowDot(left.native, right.native, y.native);
    bench.expect(
      y,
      "y",
      () =>
        Array.from({ length: rows }, (_, row) => {
          let sum = 0;
          for (let i = row * width; i < (row + 1) * width; i++)
            sum += (left.values[i] as number) * (right.values[i] as number);
          return sum;
        }),
      Math.max(1, width),
    );
  },
});

export const cases: Case[] = [
  one(1, 1),
  one(40, 67),
  one(9, 264, "bfloat16"),
  one(9, 1025, "bfloat16", "float32", "gaps"),
  one(3, 33_000, "float32", "bfloat16"),
  one(300, 24, "float32", "float32", "steps"),
  one(0, 8),
  one(5, 0),
];

await opTests("row_dot", cases, (t) => {
  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "rowDot", [
      { name: "a", shape: [3, 8] },
      { name: "b", shape: [3, 8] },
      { name: "y", shape: [3] },
    ]);
  });
});
