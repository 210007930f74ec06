// copy between all dtypes and layouts: casts as they are defined, permuting copies, transposes of every element size.
import { binding } from "../../lib/binding.js";
import { type DType, encode, toBfloat16 } from "../../lib/tensor/dtype.js";
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
import { layout } from "./strided.js";

const dtypes: readonly DType[] = ["float32", "bfloat16", "float64", "int32", "int64", "uint8"];

/** A number as a dtype holds it: integers truncate, keep the ends of their range, and take NaN as 0. */
function cast(x: number, from: DType, to: DType): number {
  const floating = from === "float32" || from === "bfloat16" || from === "float64";
  if (to === "float64") return x;
  if (to === "float32") return Math.fround(x);
  if (to === "bfloat16") return rounded(Math.fround(x), "bfloat16");
  if (!floating) return Number(encode([BigInt(x)].map(Number), to)[0]);
  if (Number.isNaN(x)) return 0;
  const [low, high] = { int32: [-(2 ** 31), 2 ** 31 - 1], int64: [-(2 ** 63), 2 ** 63 - 1], uint8: [0, 255] }[to] as [
    number,
    number,
  ];
  return Math.min(high, Math.max(low, Math.trunc(x))) + 0;
}

const layouts: Case[] = storages.flatMap((dtype) =>
  lies.flatMap((from) =>
    lies.map((to) => ({
      name: `${dtype} ${from} to ${to}`,
      body(bench: Bench) {
        const x = bench.input([11, 13], dtype, from);
        const y = bench.output([11, 13], dtype, to);
        binding.ops.copy(x.native, y.native);
        bench.expectExactly(y, "dst", () => x.values);
      },
    })),
  ),
);

/** A permuted view of a tensor of any dtype into a contiguous one, and from there back. */
const permute = (dtype: DType, shape: number[], order: number[]): Case => ({
  name: `${dtype} [${shape}] in the order ${order}`,
  body(bench: Bench) {
    const values = Array.from({ length: count(shape) }, () => bench.random.below(dtype === "uint8" ? 256 : 251));
    const x = bench.plain(shape, dtype, values);
    const strides = shape.map((_, d) => count(shape.slice(d + 1)));
    const turned = order.map((d) => shape[d] as number);
    const y = bench.plain(turned, dtype, new Float64Array(values.length));
    const back = bench.plain(shape, dtype, new Float64Array(values.length));
    const permuted = order.map((d) => strides[d] as number);
    binding.ops.copy(bench.view(x.native, turned, permuted), y.native);
    binding.ops.copy(y.native, bench.view(back.native, turned, permuted));
    const places = layout(
      turned,
      turned.map((_, i) => i),
    ).strides;
    bench.expectExactly(y, "dst", () =>
      values.map((_, index) => {
        const at = turned.map((size, d) => Math.floor(index / (places[d] as number)) % size);
        return values[at.reduce((sum, i, d) => sum + i * (permuted[d] as number), 0)] as number;
      }),
    );
    bench.expectExactly(back, "back", () => values);
  },
});

const odd = [0, 1, -1, 0.5, -0.5, 1.5, 2.5, 254.5, 255, 256, -7.99, 65_536, 3e9, -3e9, 1e19, -1e19, 1e38];
const numbers: Record<DType, number[]> = {
  float32: [...odd, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY].map(Math.fround),
  bfloat16: [...odd, Number.NaN, Number.POSITIVE_INFINITY].map((x) => rounded(x, "bfloat16")),
  float64: [...odd, 1e300, Number.NaN, Number.NEGATIVE_INFINITY, 1 + 2 ** -30],
  int32: [0, 1, -1, 300, 2 ** 31 - 1, -(2 ** 31), 16_777_217],
  int64: [0, 1, -1, 300, 2 ** 53 - 1, -(2 ** 53) + 1, 2 ** 40],
  uint8: [0, 1, 127, 128, 255],
};

const conversion = (from: DType, to: DType): Case => ({
  name: `${from} to ${to}`,
  body(bench: Bench) {
    const values = numbers[from];
    const dst = bench.plain([values.length], to, new Float64Array(values.length));
    binding.ops.copy(bench.plain([values.length], from, values).native, dst.native);
    bench.expectExactly(dst, "dst", () => values.map((x) => cast(x, from, to)));
  },
});

/** More than a warp takes at once, in one run and in rows with gaps that begin at whole vectors. */
const long = (from: DType, to: DType): Case => ({
  name: `1300 values of ${from} to ${to}`,
  body(bench: Bench) {
    const values = Array.from({ length: 1300 }, () => bench.random.below(128));
    const x = bench.plain([1300], from, values);
    const y = bench.plain([1300], to, new Float64Array(1300));
    const wide = bench.plain([5, 272], to, new Float64Array(1360));
    binding.ops.copy(x.native, y.native);
    binding.ops.copy(bench.view(x.native, [5, 256], [256, 1]), bench.view(wide.native, [5, 256], [272, 1]));
    bench.expectExactly(y, "dst", () => values);
    bench.expectExactly(wide, "rows", () =>
      Array.from({ length: 1360 }, (_, i) =>
        i % 272 < 256 ? (values[Math.floor(i / 272) * 256 + (i % 272)] as number) : 0,
      ),
    );
  },
});

export const cases: Case[] = [
  ...layouts,
  ...dtypes.flatMap((from) => dtypes.map((to) => long(from, to))),
  ...dtypes.flatMap((from) => dtypes.filter((to) => from !== to).map((to) => conversion(from, to))),
  ...dtypes.flatMap((dtype) => [
    permute(dtype, [70, 133], [1, 0]),
    permute(dtype, [3, 65, 9, 5], [0, 2, 1, 3]),
    permute(dtype, [2, 3, 4, 5, 6, 2], [5, 3, 1, 0, 2, 4]),
  ]),
  permute("float32", [257, 130], [1, 0]),
  permute("bfloat16", [4, 100, 3, 64], [0, 2, 1, 3]),
  permute("float32", [5, 0], [1, 0]),
  permute("float32", [1, 1, 1], [2, 0, 1]),
  {
    name: "strided float32 to bfloat16 and back, 50,000 values",
    body(bench: Bench) {
      const x = bench.input([250, 200], "float32", "columns", 1000);
      const [half, y] = [bench.output([250, 200], "bfloat16", "gaps"), bench.output([250, 200], "float32", "spread")];
      binding.ops.copy(x.native, half.native);
      binding.ops.copy(half.native, y.native);
      bench.expectExactly(y, "y", () => x.values.map((value) => rounded(value, "bfloat16")));
    },
  },
];

await opTests("copy", cases, (t) => {
  t.test("rounding to bfloat16 takes ties to even, in whole vectors and in their rest, and keeps NaN", (t) =>
    withBench(async (bench) => {
      const bits = Uint32Array.from({ length: 16 * 40 + 7 }, (_, i) => {
        const ends = [0x8000, 0x7fff, 0x8001, 0, 0xffff];
        return ((i * 0x1357) << 16) | (ends[i % 5] as number);
      });
      const values = new Float32Array(bits.buffer);
      const src = bench.plain([values.length], "float32", [...values]);
      // Through write(), which keeps the bits of a NaN.
      binding.write(src.native, values, false);
      const dst = bench.plain([values.length], "bfloat16", values);
      binding.ops.fill(dst.native, 0);
      binding.ops.copy(src.native, dst.native);
      const got = (await dst.raw()) as Uint16Array;
      const wrong = got.findIndex((half, i) => {
        const value = values[i] as number;
        return Number.isNaN(value) ? (half & 0x7fff) <= 0x7f80 : half !== toBfloat16(value);
      });
      t.equal(wrong, -1, `element ${wrong}: ${bits[wrong]?.toString(16)} became ${got[wrong]?.toString(16)}`);
    }),
  );

  t.test("a broadcast source fills the destination", (t) =>
    withBench(async (bench) => {
      const x = bench.broadcast([3, 1, 2], [3, 4, 2]);
      const y = bench.output([3, 4, 2], "float32", "columns");
      binding.ops.copy(x.native, y.native);
      t.same(await y.values(), x.values);
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "copy", [
      { name: "src", shape: [3, 8], anyDtype: true },
      { name: "dst", shape: [3, 8], anyDtype: true },
    ]);
  });
});
