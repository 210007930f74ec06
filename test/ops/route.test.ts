// route and its backward against float64: choices with ties, experts without a token, weights, order, counts.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, opTests, refusesBadArguments, withBench } from "./helpers.js";

interface Spec {
  tokens: number;
  experts: number;
  active: number;
  normalize: boolean;
  /** How many tokens count; default all. */
  counted?: number;
  /** Logits of a row, instead of random ones. */
  logits?: (token: number, expert: number) => number;
  inPlace?: boolean;
  gaps?: boolean;
}

/** What the op is to find, from its logits, in float64. */
function reference(values: ArrayLike<number>, { tokens, experts, active, normalize, counted = tokens }: Spec) {
  const probs = new Float64Array(tokens * experts);
  const chosen: number[] = [];
  const load = new Float64Array(2 * experts);
  for (let t = 0; t < tokens; t++) {
    const row = Array.from({ length: experts }, (_, e) => values[t * experts + e] as number);
    const top = Math.max(...row);
    const total = row.reduce((sum, x) => sum + Math.exp(x - top), 0);
    for (const [e, x] of row.entries()) probs[t * experts + e] = Math.exp(x - top) / total;
    const order = row.map((_, e) => e).sort((a, b) => (row[b] as number) - (row[a] as number) || a - b);
    chosen.push(...order.slice(0, active));
    if (t >= counted) continue;
    for (const e of order.slice(0, active)) load[e] = (load[e] as number) + 1;
    for (let e = 0; e < experts; e++)
      load[experts + e] = (load[experts + e] as number) + (probs[t * experts + e] as number);
  }
  // Sorted by expert, rows of one expert by token.
  const rows = chosen.map((_, row) => row).sort((a, b) => (chosen[a] as number) - (chosen[b] as number) || a - b);
  const slots = new Float64Array(chosen.length);
  for (const [slot, row] of rows.entries()) slots[row] = slot;
  const owner = (row: number) => Math.floor(row / active);
  const probOf = (row: number) => probs[owner(row) * experts + (chosen[row] as number)] as number;
  const sumOf = (token: number) =>
    normalize ? Array.from({ length: active }, (_, j) => probOf(token * active + j)).reduce((a, b) => a + b, 0) : 1;
  const offsets = Array.from({ length: experts + 1 }, (_, e) => chosen.filter((one) => one < e).length);
  return {
    probs,
    chosen,
    slots,
    load,
    offsets,
    tokens: rows.map(owner),
    weights: rows.map((row) => probOf(row) / sumOf(owner(row))),
    sumOf,
    probOf,
  };
}

const one = (spec: Spec): Case => ({
  name: `${JSON.stringify(spec)}${spec.logits === undefined ? "" : ` ${spec.logits}`}`,
  body(bench: Bench) {
    const { tokens, experts, active, normalize, counted = tokens, inPlace = false } = spec;
    const kind = spec.gaps ? "gaps" : "rows";
    const shape = [tokens, experts];
    const { logits: given } = spec;
    const logits =
      given === undefined
        ? bench.input(shape, "float32", kind, 4)
        : bench.given(
            shape,
            Array.from({ length: tokens * experts }, (_, i) => given(Math.floor(i / experts), i % experts)),
            "float32",
            kind,
          );
    const rows = tokens * active;
    const probs = inPlace ? logits.tensor : bench.output(shape, "float32", kind);
    const integers = (size: readonly number[], dtype: "int32" | "int64") =>
      bench.plain(size, dtype, new Array(size.reduce((a, b) => a * b, 1)).fill(0));
    const [chosen, slots, owners] = [
      integers([tokens, active], "int32"),
      integers([tokens, active], "int32"),
      integers([rows], "int32"),
    ];
    const weights = bench.output([rows]);
    const offsets = integers([experts + 1], "int64");
    const load = bench.plain([2, experts], "float64", new Array(2 * experts).fill(3));
    binding.ops.route(
      logits.native,
      probs.native,
      chosen.native,
      slots.native,
      owners.native,
      weights.native,
      offsets.native,
      load.native,
      normalize,
      counted,
    );
    const found = () => reference(logits.values, spec);
    bench.expectExactly(chosen, "experts", () => found().chosen);
    bench.expectExactly(slots, "slots", () => found().slots);
    bench.expectExactly(owners, "tokens", () => found().tokens);
    bench.expectExactly(offsets, "offsets", () => found().offsets);
    bench.expect(weights, "weights", () => found().weights);
    bench.expect(load, "load", () => found().load.map((value) => value + 3));

    const dweights = bench.input([rows]);
    const share = bench.plain(
      [experts],
      "float64",
      Array.from({ length: experts }, (_, e) => e - 1.5),
    );
    const factor = bench.plain([], "float64", [0.25]);
    const dlogits = bench.output(shape, "float32", kind);
    const back = (ofShare: typeof share | null, to: typeof dlogits) =>
      binding.ops.routeBackward(
        probs.native,
        chosen.native,
        slots.native,
        dweights.native,
        ofShare?.native ?? null,
        ofShare === null ? null : factor.native,
        to.native,
        normalize,
        ofShare === null ? 0 : counted,
      );
    const expected = (shared: boolean) => () => {
      const { chosen: experts_, slots: at, probs: p, sumOf, probOf } = found();
      const result = new Float64Array(tokens * experts);
      for (let t = 0; t < tokens; t++) {
        const own = Array.from({ length: active }, (_, j) => t * active + j);
        const sum = sumOf(t);
        const d = (row: number) => dweights.values[at[row] as number] as number;
        const mean = normalize ? own.reduce((total, row) => total + (d(row) * probOf(row)) / sum, 0) : 0;
        const dprobs = Array.from({ length: experts }, (_, e) => (shared && t < counted ? 0.25 * (e - 1.5) : 0));
        for (const row of own) {
          const e = experts_[row] as number;
          dprobs[e] = (dprobs[e] as number) + (d(row) - mean) / sum;
        }
        const dot = dprobs.reduce((total, value, e) => total + value * (p[t * experts + e] as number), 0);
        for (const [e, value] of dprobs.entries())
          result[t * experts + e] = (p[t * experts + e] as number) * (value - dot);
      }
      return result;
    };
    back(null, dlogits);
    bench.expect(dlogits, "dlogits", expected(false), 4, 1e-3);
    if (inPlace) return;
    const balanced = bench.output(shape, "float32", kind);
    back(share, balanced);
    bench.expect(balanced, "dlogits with balance", expected(true), 4, 1e-3);
    // Its place may be that of the probs.
    back(share, probs);
    bench.expect(probs, "dlogits in place", expected(true), 4, 1e-3);
  },
});

export const cases: Case[] = [
  one({ tokens: 1, experts: 1, active: 1, normalize: false }),
  one({ tokens: 70, experts: 8, active: 2, normalize: true }),
  one({ tokens: 33, experts: 5, active: 3, normalize: false, counted: 20, gaps: true }),
  one({ tokens: 50, experts: 128, active: 8, normalize: true, counted: 0 }),
  one({ tokens: 9, experts: 70, active: 70, normalize: true }),
  one({ tokens: 40, experts: 67, active: 20, normalize: false, inPlace: true }),
  // Most experts get no token; all tokens on one.
  one({ tokens: 3, experts: 60, active: 1, normalize: true }),
  one({ tokens: 300, experts: 4, active: 1, normalize: false, logits: (_, e) => (e === 2 ? 3 : -1) }),
  // Equal logits: the lower expert.
  one({ tokens: 20, experts: 9, active: 4, normalize: true, logits: () => 0.5 }),
  one({ tokens: 20, experts: 6, active: 2, normalize: false, logits: (t, e) => (t + e) % 3 }),
  // Far from zero.
  one({ tokens: 12, experts: 7, active: 2, normalize: true, logits: (t, e) => -1e4 + ((t * 5 + e * 3) % 7) }),
  one({ tokens: 2500, experts: 16, active: 2, normalize: true }),
  one({ tokens: 0, experts: 4, active: 2, normalize: true }),
];

await opTests("route", cases, (t) => {
  t.test("a row of NaN goes somewhere, once to each expert", (t) =>
    withBench(async (bench) => {
      const logits = bench.given([3, 4], [1, 2, 3, 4, NaN, NaN, NaN, NaN, 1, NaN, 0, 2]);
      const integers = (size: number[], dtype: "int32" | "int64") =>
        bench.plain(size, dtype, new Array(size.reduce((a, b) => a * b, 1)).fill(-1));
      const [chosen, slots, owners] = [integers([3, 2], "int32"), integers([3, 2], "int32"), integers([6], "int32")];
      const weights = bench.output([6]);
      const offsets = integers([5], "int64");
      binding.ops.route(
        logits.native,
        logits.native,
        chosen.native,
        slots.native,
        owners.native,
        weights.native,
        offsets.native,
        null,
        true,
        0,
      );
      const experts = [...(await chosen.values())];
      t.same(experts.slice(0, 4), [3, 2, 0, 1]);
      t.not(experts[4], experts[5]);
      t.same(new Set(await slots.values()), new Set([0, 1, 2, 3, 4, 5]));
      t.ok(Number.isNaN((await weights.values())[(await slots.values())[2] as number]), "and makes NaN of it");
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    const choices = (name: string) => ({ name, shape: [3, 2], dtype: "int32" as const });
    await refusesBadArguments(
      t,
      "route",
      [
        { name: "logits", shape: [3, 4] },
        { name: "probs", shape: [3, 4] },
        { ...choices("experts"), anyShape: true },
        choices("slots"),
        { name: "tokens", shape: [6], dtype: "int32" },
        { name: "weights", shape: [6] },
        { name: "offsets", shape: [5], dtype: "int64" },
        { name: "load", shape: [2, 4], dtype: "float64", optional: true },
        { name: "normalize", integer: 1 },
        { name: "counted", integer: 3, bad: [-1, 4] },
      ],
      0,
    );
    await refusesBadArguments(
      t,
      "routeBackward",
      [
        { name: "probs", shape: [3, 4] },
        { ...choices("experts"), anyShape: true },
        choices("slots"),
        { name: "dweights", shape: [6] },
        { name: "share", shape: [4], dtype: "float64" },
        { name: "factor", shape: [], dtype: "float64" },
        { name: "dlogits", shape: [3, 4] },
        { name: "normalize", integer: 1 },
        { name: "counted", integer: 3, bad: [-1, 4] },
      ],
      0,
    );
  });
});
