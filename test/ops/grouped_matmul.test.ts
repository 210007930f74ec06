// grouped_matmul against float64: groups of any size, empty ones too, both forms, layouts, dtypes.
import { binding, type NativeTensor } from "../../lib/binding.js";
import { ArgumentError } from "../../lib/errors.js";
import { type Argument, type Bench, type Case, opTests, ownDevice, Plain, refusesBadArguments } from "./helpers.js";
import type { Storage } from "./strided.js";

interface Spec {
  /** Rows of each group. */
  groups: number[];
  inner: number;
  columns: number;
  dtype?: Storage;
  c?: Storage;
  /** c [E, K, N]: the groups are what is summed over. */
  summed?: boolean;
  accumulate?: boolean;
  /** b (of the first form) or a (of the second) is a transposed view. */
  transposed?: boolean;
}

const one = (spec: Spec): Case => ({
  name: JSON.stringify(spec),
  body(bench: Bench) {
    const { groups, inner, columns, dtype = "float32", c = dtype, accumulate = false, transposed = false } = spec;
    const [E, M] = [groups.length, groups.reduce((sum, rows) => sum + rows, 0)];
    const bounds = [0];
    for (const rows of groups) bounds.push((bounds.at(-1) as number) + rows);
    const offsets = bench.plain([E + 1], "int64", bounds.map(BigInt));
    const value = (of: Float64Array, at: number) => of[at] as number;
    /** A matrix [..., rows, columns] as a view of one that lies across. */
    const across = (shape: number[]): { values: (...at: number[]) => number; native: NativeTensor } => {
      const [rows, width] = shape.slice(-2) as [number, number];
      const batch = shape.length === 3 ? (shape[0] as number) : 1;
      const lies = transposed ? [width, rows] : [rows, width];
      const given = bench.input(shape.length === 3 ? [batch, ...lies] : lies, dtype);
      const strides = transposed ? [1, rows] : [width, 1];
      const native = bench.view(given.native, shape, shape.length === 3 ? [rows * width, ...strides] : strides);
      return {
        native,
        values: (e, i, j) =>
          value(
            given.values,
            (e as number) * rows * width +
              (i as number) * (strides[0] as number) +
              (j as number) * (strides[1] as number),
          ),
      };
    };
    const plain = (rows: number, width: number) => {
      const given = bench.input([rows, width], dtype);
      return { native: given.native, values: (i: number, j: number) => value(given.values, i * width + j) };
    };
    /** The first form's product of element [m, j], or the second's of [e, i, j]. */
    const form = (): {
      a: NativeTensor;
      b: NativeTensor;
      shape: number[];
      depth: number;
      sumAt(at: number): number;
    } => {
      if (spec.summed) {
        const [a, b] = [across([inner, M]), plain(M, columns)];
        const sumAt = (at: number): number => {
          const [e, i, j] = [Math.floor(at / (inner * columns)), Math.floor(at / columns) % inner, at % columns];
          let sum = 0;
          for (let m = bounds[e] as number; m < (bounds[e + 1] as number); m++)
            sum += a.values(0, i, m) * b.values(m, j);
          return sum;
        };
        return { a: a.native, b: b.native, shape: [E, inner, columns], depth: Math.max(1, ...groups), sumAt };
      }
      const [a, b] = [plain(M, inner), across([E, inner, columns])];
      const sumAt = (at: number): number => {
        const [m, j] = [Math.floor(at / columns), at % columns];
        const e = bounds.findIndex((end, i) => i > 0 && m < end) - 1;
        let sum = 0;
        for (let k = 0; k < inner; k++) sum += a.values(m, k) * b.values(e, k, j);
        return sum;
      };
      return { a: a.native, b: b.native, shape: [M, columns], depth: Math.max(1, inner), sumAt };
    };
    const { a, b, shape, depth, sumAt } = form();
    const out = bench.input(shape, c);
    binding.ops.groupedMatmul(a, b, out.native, offsets.native, accumulate);
    const whole = () => out.values.map((before, at) => (accumulate ? before : 0) + sumAt(at));
    bench.expect(out.tensor, "c", whole, depth, 1e-2);
  },
});

export const cases: Case[] = [false, true].flatMap((summed) => [
  one({ summed, groups: [5, 9, 3], inner: 17, columns: 13 }),
  one({ summed, groups: [0, 40, 0, 1, 0], inner: 24, columns: 40, transposed: true }),
  one({ summed, groups: [7, 0, 30], inner: 33, columns: 65, accumulate: true }),
  one({ summed, groups: [130, 70], inner: 40, columns: 136, dtype: "bfloat16", transposed: true }),
  one({ summed, groups: [20, 45, 3], inner: 72, columns: 24, dtype: "bfloat16", c: "float32", accumulate: true }),
  one({ summed, groups: [3, 1], inner: 8, columns: 8, dtype: "bfloat16", accumulate: true }),
  one({ summed, groups: Array.from({ length: 40 }, (_, e) => (e * 7) % 5), inner: 20, columns: 9, transposed: true }),
  one({ summed, groups: [300], inner: 520, columns: 30 }),
  one({ summed, groups: [200, 0, 131], inner: 70, columns: 150, dtype: "bfloat16" }),
  one({ summed, groups: [129, 33], inner: 135, columns: 67, dtype: "bfloat16", transposed: true, accumulate: true }),
  one({ summed, groups: [1], inner: 1, columns: 1 }),
  one({ summed, groups: [0, 0], inner: 6, columns: 5 }),
  one({ summed, groups: [4], inner: 3, columns: 0 }),
]);

const onCpu = (process.env.LONGSEQ_TEST_DEVICE ?? "cpu") === "cpu";

await opTests("grouped_matmul", cases, (t) => {
  t.test(
    "offsets that are no bounds of the rows fail the device",
    { skip: onCpu ? false : "only the CPU looks" },
    async (t) => {
      for (const bounds of [
        [0, 3, 5],
        [1, 3, 4],
        [0, 5, 4],
      ]) {
        const device = ownDevice();
        const make = (shape: number[]) =>
          new Plain(device, shape, "float32", new Array(shape.reduce((a, b) => a * b)).fill(1));
        const [a, b, c] = [make([4, 2]), make([2, 2, 3]), make([4, 3])];
        const offsets = new Plain(device, [3], "int64", bounds.map(BigInt));
        binding.ops.groupedMatmul(a.native, b.native, c.native, offsets.native, false);
        await t.rejects(c.raw(), {
          name: ArgumentError.name,
          message: /grouped_matmul: offsets\[\d\] is \d; .*4 rows/,
        });
      }
    },
  );

  t.test("wrong arguments are refused", async (t) => {
    const offsets: Argument = { name: "offsets", shape: [3], dtype: "int64" };
    await refusesBadArguments(
      t,
      "groupedMatmul",
      [
        { name: "a", shape: [0, 2] },
        { name: "b", shape: [2, 2, 3] },
        { name: "c", shape: [0, 3] },
        offsets,
        { name: "accumulate", integer: 0 },
      ],
      0,
    );
    await refusesBadArguments(
      t,
      "groupedMatmul",
      [
        { name: "a", shape: [2, 0] },
        { name: "b", shape: [0, 3] },
        { name: "c", shape: [2, 2, 3] },
        offsets,
        { name: "accumulate", integer: 0 },
      ],
      0,
    );
  });
});
