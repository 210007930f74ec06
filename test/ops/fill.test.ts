// fill of every dtype and layout, and the views that fills must not leave.
import { binding } from "../../lib/binding.js";
import type { DType } from "../../lib/tensor/dtype.js";
import {
  type Bench,
  type Case,
  count,
  lies,
  opTests,
  refusesBadArguments,
  rounded,
  storages,
  withBench,
} from "./helpers.js";

const typed = (dtype: DType, value: number, expected: number, size = 77): Case => ({
  name: `${value} as ${dtype}`,
  body(bench: Bench) {
    const y = bench.plain([size], dtype, new Float64Array(size).fill(3));
    binding.ops.fill(y.native, value);
    bench.expectExactly(y, "y", () => new Float64Array(size).fill(expected));
  },
});

export const cases: Case[] = [
  ...storages.flatMap((dtype) =>
    lies.flatMap((lie) =>
      [[9, 17], [3, 1, 5, 2], [], [4, 0]].map((shape) => ({
        name: `${dtype} [${shape}] ${lie}`,
        body(bench: Bench) {
          const y = bench.output(shape, dtype, lie);
          binding.ops.fill(y.native, 1 / 3);
          bench.expectExactly(y, "y", () => new Float64Array(count(shape)).fill(rounded(1 / 3, dtype)));
        },
      })),
    ),
  ),
  typed("float64", 1 / 3, 1 / 3),
  typed("float32", Number.NaN, Number.NaN),
  typed("bfloat16", Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY),
  typed("int64", -(2 ** 53) + 1, -(2 ** 53) + 1),
  typed("int32", -100, -100),
  typed("int32", 1e20, 2 ** 31 - 1),
  typed("int32", Number.NaN, 0),
  typed("uint8", 300, 255),
  typed("float32", 0.1, Math.fround(0.1), 200_003),
  // More than a warp takes at once.
  ...(["float64", "int64", "int32", "uint8", "bfloat16"] as const).map((dtype) => typed(dtype, 7, 7, 1027)),
];

await opTests("fill", cases, (t) => {
  t.test("a filled view leaves its neighbours alone", (t) =>
    withBench(async (bench) => {
      const y = bench.plain(
        [4, 6],
        "int32",
        Array.from({ length: 24 }, (_, i) => i),
      );
      binding.ops.fill(bench.view(y.native, [2, 3], [12, 2], 1), -1);
      const expected = Array.from({ length: 24 }, (_, i) => ([1, 3, 5, 13, 15, 17].includes(i) ? -1 : i));
      t.same([...(await y.values())], expected);
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "fill", [
      { name: "y", shape: [3, 8], anyDtype: true, anyShape: true },
      { name: "value", number: 1 },
    ]);
  });
});
