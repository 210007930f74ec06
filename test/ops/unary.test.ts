// unary functions and their derivatives against float64: every kind, layouts, dtypes, in place, whole ranges, NaN.
import { binding } from "../../lib/binding.js";
import { activations } from "./activations.js";
import { type Bench, type Case, type Lie, lies, opTests, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

const one = (kind: number, shape: number[], x: Storage, y: Storage, lieX: Lie, lieY: Lie, inPlace = false): Case => {
  const { name, f, slope, positive } = activations[kind] as (typeof activations)[0];
  return {
    name: `${name} [${shape}] ${x} ${lieX} -> ${inPlace ? "itself" : `${y} ${lieY}`}`,
    body(bench: Bench) {
      const tx = bench.input(shape, x, lieX, positive ? 2 : 6, positive ? 2.5 : 0);
      const dy = bench.input(shape, y, lieY);
      const dx = inPlace ? dy.tensor : bench.output(shape, x, lieX);
      binding.ops.unaryBackward(tx.native, dy.native, dx.native, kind);
      const ty = inPlace ? tx.tensor : bench.output(shape, y, lieY);
      binding.ops.unary(tx.native, ty.native, kind);
      bench.expect(ty, "y", () => tx.values.map(f));
      // Slopes that end at 0 cancel there: beside few numbers that all lie so far out an error would look large.
      const least = positive ? 0 : 0.25;
      bench.expect(dx, "dx", () => dy.values.map((d, i) => d * slope(tx.values[i] as number)), 1, least);
    },
  };
};

const kinds = activations.map((_, kind) => kind);
export const cases: Case[] = [
  ...kinds.map((kind) => one(kind, [7, 37], "float32", "float32", "rows", "rows")),
  ...kinds.map((kind) => one(kind, [19], "float32", "float32", "rows", "rows", true)),
  ...kinds.map((kind) => one(kind, [3, 5, 7], "bfloat16", "bfloat16", lies[kind % 4] as Lie, "columns")),
  ...kinds.map((kind) => one(kind, [11, 13], "float32", "bfloat16", "columns", lies[kind % 4] as Lie)),
  one(0, [70_001], "float32", "float32", "rows", "rows"),
  one(1, [3, 40_000], "bfloat16", "float32", "gaps", "rows"),
  // A single number is measured by itself: exp is accurate wherever it lies.
  one(6, [], "float32", "float32", "rows", "rows"),
  one(3, [0, 5], "float32", "float32", "rows", "rows"),
];

/** Whole-range arguments: a few a binade, both signs, the neighbourhood of 1. */
const sweep = Float64Array.from({ length: 4000 }, (_, i) =>
  Math.fround((i % 2 ? -1 : 1) * (i < 3000 ? 2 ** (i / 50 - 40) : 1 + (i - 3500) / 2 ** 20)),
);

await opTests("unary", cases, (t) => {
  t.test("values and slopes stay accurate from 2^-40 to 2^20 and near 1", (t) =>
    withBench(async (bench) => {
      for (const [kind, { name, f, slope, positive }] of activations.entries()) {
        const numbers = positive ? sweep.map(Math.abs) : sweep;
        const x = bench.given([numbers.length], numbers);
        const ones = bench.given(
          [numbers.length],
          numbers.map(() => 1),
        );
        const [y, dx] = [bench.output([numbers.length]), bench.output([numbers.length])];
        binding.ops.unary(x.native, y.native, kind);
        binding.ops.unaryBackward(x.native, ones.native, dx.native, kind);
        for (const [what, got, reference] of [
          ["value", await y.values(), f],
          ["slope", await dx.values(), slope],
        ] as const) {
          // Products with a tail near 0 or 1 cancel: their error is measured beside x, a slope's beside 1.
          const cancels = /silu|gelu|sigmoid|tanh/.test(name);
          let worst = 0;
          for (let i = 0; i < got.length; i++) {
            const at = numbers[i] as number;
            const expected = Math.fround(reference(at));
            if (Object.is(expected, got[i]) || (Math.abs(expected) === Number.POSITIVE_INFINITY && expected === got[i]))
              continue;
            const beside = cancels ? Math.max(Math.abs(expected), what === "value" ? Math.min(1, Math.abs(at)) : 1) : 0;
            const error = Math.abs((got[i] as number) - expected) / Math.max(Math.abs(expected), beside, 2 ** -126);
            if (!(error <= worst)) worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
          }
          t.ok(worst <= 1e-6, `${what} of ${name} is off by ${worst}`);
        }
      }
    }),
  );

  t.test("NaN stays NaN; the functions' ends", (t) =>
    withBench(async (bench) => {
      const numbers = [Number.NaN, Number.POSITIVE_INFINITY, 0, -1, Number.NEGATIVE_INFINITY];
      for (const [kind, { name }] of activations.entries()) {
        const x = bench.given([numbers.length], numbers);
        const ones = bench.given([numbers.length], [1, 1, 1, 1, 1]);
        const [y, dx] = [bench.output([numbers.length]), bench.output([numbers.length])];
        binding.ops.unary(x.native, y.native, kind);
        binding.ops.unaryBackward(x.native, ones.native, dx.native, kind);
        const got = await y.values();
        t.ok(Number.isNaN(got[0]), `${name} of NaN`);
        if (name !== "relu" && name !== "neg" && name !== "abs")
          t.ok(Number.isNaN((await dx.values())[0]), `slope of ${name} at NaN`);
        const ends: Record<string, (number | null)[]> = {
          relu: [Number.POSITIVE_INFINITY, 0, 0, 0],
          sigmoid: [1, 0.5, null, 0],
          tanh: [1, 0, null, -1],
          exp: [Number.POSITIVE_INFINITY, 1, null, 0],
          log: [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN, Number.NaN],
          sqrt: [Number.POSITIVE_INFINITY, 0, Number.NaN, Number.NaN],
          rsqrt: [0, Number.POSITIVE_INFINITY, Number.NaN, Number.NaN],
          silu: [Number.POSITIVE_INFINITY, 0, null, null],
          gelu: [Number.POSITIVE_INFINITY, 0, null, null],
          gelu_tanh: [Number.POSITIVE_INFINITY, 0, null, null],
        };
        for (const [i, end] of (ends[name] ?? []).entries())
          if (end !== null) t.same((got[i + 1] as number) + 0, end, `${name} of ${numbers[i + 1]}`);
      }
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    const [x, kind] = [
      { name: "x", shape: [3, 8] },
      { name: "kind", integer: 2, bad: [-1, activations.length] },
    ];
    await refusesBadArguments(t, "unary", [x, { name: "y", shape: [3, 8] }, kind]);
    await refusesBadArguments(t, "unaryBackward", [
      x,
      { name: "dy", shape: [3, 8] },
      { name: "dx", shape: [3, 8] },
      kind,
    ]);
  });
});
