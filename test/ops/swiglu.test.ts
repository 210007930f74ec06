// The gated activations and their backward against float64: every gate, layouts, dtypes, in place.
import { binding } from "../../lib/binding.js";
import { activations } from "./activations.js";
import { type Bench, type Case, type Lie, opTests, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

const one = (kind: number, shape: number[], dtype: Storage, y: Storage, lie: Lie, lieY: Lie, inPlace = false): Case => {
  const { name, f, slope } = activations[kind] as (typeof activations)[0];
  return {
    name: `${name} [${shape}] ${dtype} ${lie} -> ${inPlace ? "in place" : `${y} ${lieY}`}`,
    body(bench: Bench) {
      const gate = bench.input(shape, dtype, lie, 5);
      const up = bench.input(shape, dtype, lie);
      const dy = bench.input(shape, y, lieY);
      const ty = bench.output(shape, y, lieY);
      binding.ops.swiglu(gate.native, up.native, ty.native, kind);
      const dgate = inPlace ? gate.tensor : bench.output(shape, dtype, lie);
      const dup = inPlace ? up.tensor : bench.output(shape, dtype, lieY);
      binding.ops.swigluBackward(gate.native, up.native, dy.native, dgate.native, dup.native, kind);
      const at = (values: Float64Array, i: number) => values[i] as number;
      bench.expect(ty, "y", () => gate.values.map((g, i) => f(g) * at(up.values, i)));
      bench.expect(dgate, "dgate", () => gate.values.map((g, i) => at(dy.values, i) * at(up.values, i) * slope(g)));
      bench.expect(dup, "dup", () => gate.values.map((g, i) => at(dy.values, i) * f(g)));
    },
  };
};

export const cases: Case[] = [0, 1, 2, 3].flatMap((kind) => [
  one(kind, [9, 67], "float32", "float32", "rows", "rows"),
  one(kind, [9, 67], "float32", "float32", "gaps", "rows", true),
  one(kind, [5, 33], "bfloat16", "bfloat16", "rows", "gaps", true),
  one(kind, [4, 3, 17], "bfloat16", "float32", "columns", "gaps"),
  one(kind, [31, 15], "float32", "bfloat16", "spread", "columns"),
]);
cases.push(
  one(0, [3, 33_000], "float32", "float32", "rows", "rows"),
  one(0, [5, 768], "float32", "float32", "steps", "rows", true),
  one(1, [5, 256], "bfloat16", "float32", "rows", "steps"),
  one(0, [5, 296], "bfloat16", "bfloat16", "steps", "steps", true),
  one(0, [1, 1], "float32", "float32", "rows", "rows"),
  one(0, [0, 6], "float32", "float32", "rows", "rows"),
  one(0, [6, 0], "bfloat16", "bfloat16", "rows", "rows"),
);

await opTests("swiglu", cases, (t) => {
  t.test("gate and up may be the halves of one tensor", (t) =>
    withBench(async (bench) => {
      const both = bench.input([6, 20]);
      const y = bench.output([6, 10]);
      const half = (at: number) => bench.view(both.native, [6, 10], [20, 1], at * 10);
      binding.ops.swiglu(half(0), half(1), y.native, 0);
      const f = activations[0]?.f as (x: number) => number;
      const value = (row: number, i: number) => both.values[row * 20 + i] as number;
      const got = await y.values();
      t.ok(
        got.every((v, i) => {
          const [row, at] = [Math.floor(i / 10), i % 10];
          return Math.abs(v - f(value(row, at)) * value(row, at + 10)) < 1e-6;
        }),
      );
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    const tensor = (name: string) => ({ name, shape: [3, 8] });
    // A sigmoid and the like gate nothing here.
    const kind = { name: "kind", integer: 0, bad: [-1, 4, 13] };
    await refusesBadArguments(t, "swiglu", [tensor("gate"), tensor("up"), tensor("y"), kind]);
    const all = ["gate", "up", "dy", "dgate", "dup"].map(tensor);
    await refusesBadArguments(t, "swigluBackward", [...all, kind]);
  });
});
