// binary functions against float64: every kind, layouts, broadcasts, dtypes with float64 and int64, in place.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, type Lie, opTests, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

const functions: readonly [name: string, f: (a: number, b: number) => number][] = [
  ["add", (a, b) => a + b],
  ["sub", (a, b) => a - b],
  ["mul", (a, b) => a * b],
  ["div", (a, b) => a / b],
  ["maximum", (a, b) => Math.max(a, b)],
];

const one = (
  kind: number,
  shape: number[],
  types: [a: Storage, b: Storage, y: Storage],
  how: [a: Lie, b: Lie, y: Lie],
  inPlace?: "a" | "b",
): Case => {
  const [name, f] = functions[kind] as (typeof functions)[0];
  return {
    name: `${name} [${shape}] ${types.join(", ")}, ${how.join(", ")}${inPlace ? `, y is ${inPlace}` : ""}`,
    body(bench: Bench) {
      const a = bench.input(shape, types[0], how[0]);
      const b = bench.input(shape, types[1], how[1], name === "div" ? 0.5 : 1, name === "div" ? 1.5 : 0);
      const y = inPlace ? { a, b }[inPlace].tensor : bench.output(shape, types[2], how[2]);
      binding.ops.binary(a.native, b.native, y.native, kind);
      bench.expect(y, "y", () => a.values.map((value, i) => f(value, b.values[i] as number)));
    },
  };
};

const broadcast = (kind: number, a: number[], b: number[], shape: number[], dtype: Storage): Case => ({
  name: `${functions[kind]?.[0]} [${a}] and [${b}] to [${shape}] ${dtype}`,
  body(bench: Bench) {
    const [ta, tb] = [bench.broadcast(a, shape, dtype), bench.broadcast(b, shape, dtype)];
    const y = bench.output(shape, dtype);
    binding.ops.binary(ta.native, tb.native, y.native, kind);
    const f = functions[kind]?.[1] as (a: number, b: number) => number;
    bench.expect(y, "y", () => ta.values.map((value, i) => f(value, tb.values[i] as number)));
  },
});

const typed = (kind: number, dtype: "float64" | "int64"): Case => ({
  name: `${functions[kind]?.[0]} ${dtype}`,
  body(bench: Bench) {
    const make = () =>
      Array.from({ length: 70 }, () =>
        dtype === "int64" ? bench.random.below(2 ** 31) * 4 - 2 ** 32 : bench.random.next() * 1e9 - 5e8,
      );
    const [a, b] = [make(), make().map((value) => value || 1)];
    const y = bench.plain([7, 10], dtype, new Float64Array(70));
    binding.ops.binary(bench.plain([7, 10], dtype, a).native, bench.plain([7, 10], dtype, b).native, y.native, kind);
    const f = functions[kind]?.[1] as (a: number, b: number) => number;
    bench.expectExactly(y, "y", () =>
      a.map((value, i) => {
        const other = b[i] as number;
        if (dtype === "float64") return f(value, other);
        if (kind === 2) return Number(BigInt.asIntN(64, BigInt(value) * BigInt(other)));
        return Math.trunc(f(value, other));
      }),
    );
  },
});

const kinds = functions.map((_, kind) => kind);
export const cases: Case[] = [
  ...kinds.flatMap((kind) => [
    one(kind, [7, 37], ["float32", "float32", "float32"], ["rows", "rows", "rows"]),
    one(kind, [5, 3, 9], ["bfloat16", "float32", "bfloat16"], ["columns", "rows", "gaps"]),
    one(kind, [12, 21], ["float32", "bfloat16", "float32"], ["spread", "gaps", "columns"]),
    one(kind, [33, 2], ["float32", "float32", "float32"], ["gaps", "gaps", "gaps"], kind % 2 ? "a" : "b"),
    one(kind, [2, 3, 2, 3, 2, 3], ["bfloat16", "bfloat16", "bfloat16"], ["columns", "rows", "spread"]),
    broadcast(kind, [1, 17], [9, 1], [9, 17], "float32"),
    typed(kind, "float64"),
    typed(kind, "int64"),
  ]),
  broadcast(0, [4, 1, 6], [1, 5, 1], [4, 5, 6], "bfloat16"),
  broadcast(2, [1, 1, 1], [4, 5, 6], [4, 5, 6], "float32"),
  one(0, [100_003], ["float32", "float32", "float32"], ["rows", "rows", "rows"]),
  one(1, [2, 35_000], ["float32", "bfloat16", "float32"], ["gaps", "rows", "rows"], "a"),
  one(0, [], ["float32", "float32", "float32"], ["rows", "rows", "rows"]),
  one(0, [3, 0], ["float32", "float32", "float32"], ["rows", "rows", "rows"]),
];

await opTests("binary", cases, (t) => {
  t.test("maximum with NaN on either side is NaN", (t) =>
    withBench(async (bench) => {
      const [a, b] = [bench.given([3], [Number.NaN, 1, 2]), bench.given([3], [1, Number.NaN, 3])];
      const y = bench.output([3]);
      binding.ops.binary(a.native, b.native, y.native, 4);
      t.same([...(await y.values())], [Number.NaN, Number.NaN, 3]);
    }),
  );

  t.test("integer division by 0 and of the lowest number by -1 do not end the process", (t) =>
    withBench(async (bench) => {
      const a = bench.plain([3], "int64", [7n, -(2n ** 63n), -7n]);
      const b = bench.plain([3], "int64", [0n, -1n, 2n]);
      binding.ops.binary(a.native, b.native, a.native, 3);
      t.same(await a.raw(), BigInt64Array.of(0n, -(2n ** 63n), -3n));
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    const args = [
      { name: "a", shape: [3, 8] },
      { name: "b", shape: [3, 8] },
      { name: "y", shape: [3, 8] },
      { name: "kind", integer: 0, bad: [-1, functions.length] },
    ];
    await refusesBadArguments(t, "binary", args);
    await refusesBadArguments(
      t,
      "binary",
      args.map((arg) => ("shape" in arg ? { ...arg, dtype: "int64" as const } : arg)),
    );
  });
});
