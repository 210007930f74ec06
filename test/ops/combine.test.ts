// combine against float64: rows of a token's experts added up, with and without weights, onto what is there.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, type Lie, opTests, refusesBadArguments } from "./helpers.js";
import type { Storage } from "./strided.js";

interface Spec {
  tokens: number;
  active: number;
  width: number;
  x?: Storage;
  y?: Storage;
  kind?: Lie;
  weighted?: boolean;
  accumulate?: boolean;
}

const one = (spec: Spec): Case => ({
  name: JSON.stringify(spec),
  body(bench: Bench) {
    const { tokens, active, width, x = "float32", y = x, kind = "rows", weighted = true, accumulate = false } = spec;
    const rows = tokens * active;
    // Every row once, in an order of its own.
    const places = Array.from({ length: rows }, (_, row) => row);
    for (let i = rows - 1; i > 0; i--) {
      const j = bench.random.below(i + 1);
      [places[i], places[j]] = [places[j] as number, places[i] as number];
    }
    const slots = bench.plain([tokens, active], "int32", places);
    const from = bench.input([rows, width], x, kind);
    const weights = bench.input([rows]);
    const to = bench.input([tokens, width], y, kind);
    binding.ops.combine(from.native, slots.native, weighted ? weights.native : null, to.native, accumulate);
    bench.expect(
      to.tensor,
      "y",
      () =>
        to.values.map((before, at) => {
          const [t, i] = [Math.floor(at / width), at % width];
          let sum = accumulate ? before : 0;
          for (let j = 0; j < active; j++) {
            const slot = places[t * active + j] as number;
            sum += (weighted ? (weights.values[slot] as number) : 1) * (from.values[slot * width + i] as number);
          }
          return sum;
        }),
      active + 1,
    );
  },
});

export const cases: Case[] = [
  one({ tokens: 1, active: 1, width: 1 }),
  one({ tokens: 30, active: 2, width: 72 }),
  one({ tokens: 30, active: 2, width: 67, kind: "gaps", accumulate: true }),
  one({ tokens: 17, active: 8, width: 264, x: "bfloat16", weighted: false }),
  one({ tokens: 9, active: 3, width: 24, x: "bfloat16", y: "float32", accumulate: true }),
  one({ tokens: 9, active: 3, width: 33, x: "float32", y: "bfloat16", kind: "steps" }),
  one({ tokens: 5, active: 1, width: 40_000, weighted: false, accumulate: true }),
  one({ tokens: 0, active: 2, width: 8 }),
  one({ tokens: 4, active: 2, width: 0 }),
];

await opTests("combine", cases, (t) => {
  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(
      t,
      "combine",
      [
        { name: "x", shape: [6, 4] },
        { name: "slots", shape: [3, 2], dtype: "int32" },
        { name: "weights", shape: [6], optional: true },
        { name: "y", shape: [3, 4] },
        { name: "accumulate", integer: 0 },
      ],
      0,
    );
  });
});
