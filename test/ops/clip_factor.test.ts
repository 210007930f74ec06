// clip_factor: norm, factor and the finite check against the definition, bit for bit.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, opTests, refusesBadArguments } from "./helpers.js";

const one = (total: number, maxNorm: number, loss?: number): Case => ({
  name: `total ${total}, max_norm ${maxNorm}, loss ${loss}`,
  body(bench: Bench) {
    const scalar = (value: number) => bench.plain([], "float64", [value]);
    const [norm, factor] = [scalar(-1), scalar(-1)];
    const finite = bench.plain([], "int64", [-1]);
    const given = loss === undefined ? null : scalar(loss).native;
    binding.ops.clipFactor(scalar(total).native, norm.native, factor.native, finite.native, given, maxNorm);
    const root = Math.sqrt(total);
    bench.expectExactly(norm, "norm", () => [root]);
    bench.expectExactly(factor, "factor", () => [maxNorm > 0 ? Math.min(1, maxNorm / (root + 1e-6)) : 1]);
    bench.expectExactly(finite, "finite", () => [Number.isFinite(root) && Number.isFinite(loss ?? 0) ? 1 : 0]);
  },
});

const ends = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
export const cases: Case[] = [
  ...[0, 1e-300, 0.25, 1, 1.0000001, 7, 1e300].flatMap((total) =>
    [1, 0.3, 0, -1, 1e9].map((max) => one(total, max, 2.5)),
  ),
  ...ends.flatMap((bad) => [one(bad, 1, 1), one(2, 1, bad), one(bad, 0), one(bad, 1, bad)]),
  one(4, 1),
];

await opTests("clip_factor", cases, (t) => {
  t.test("wrong arguments are refused", async (t) => {
    const scalar = (name: string) => ({ name, shape: [], dtype: "float64" as const });
    await refusesBadArguments(t, "clipFactor", [
      scalar("total"),
      scalar("norm"),
      scalar("factor"),
      { name: "finite", shape: [], dtype: "int64" },
      { ...scalar("loss"), optional: true },
      { name: "max_norm", number: 1 },
    ]);
  });
});
