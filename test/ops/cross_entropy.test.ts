// cross_entropy against float64: losses, gradients in place and apart, ignored rows, the log-sum-exp, extreme logits.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, opTests, ownDevice, Plain, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

interface Spec {
  rows: number;
  width: number;
  logits?: Storage;
  dlogits?: Storage | "in place" | "none";
  lse?: boolean;
  losses?: boolean;
  scale?: number;
  /** Every so-manieth row is ignored; 1: all. */
  ignoreEvery?: number;
  strided?: boolean | "steps";
  /** Logits lie in [-spread, spread) + shift. */
  spread?: number;
  shift?: number;
}

function reference(spec: Spec, x: Float64Array, labels: number[]) {
  const { rows, width, scale = 1 } = spec;
  const dlogits = new Float64Array(x.length);
  const lse = new Float64Array(rows);
  const losses = new Float64Array(rows);
  let loss = 0;
  for (let row = 0; row < rows; row++) {
    const at = row * width;
    const values = x.subarray(at, at + width);
    const most = values.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const sum = values.reduce((total, value) => total + Math.exp(value - most), 0);
    lse[row] = most + Math.log(sum);
    const label = labels[row] as number;
    if (label === -100) continue;
    losses[row] = most - (values[label] as number) + Math.log(sum);
    loss += losses[row] as number;
    for (let i = 0; i < width; i++)
      dlogits[at + i] = (Math.exp((values[i] as number) - most) / sum - (i === label ? 1 : 0)) * scale;
  }
  return { dlogits, lse, losses, loss };
}

const one = (spec: Spec): Case => ({
  name: JSON.stringify(spec),
  body(bench: Bench) {
    const { rows, width, logits = "float32", dlogits = "float32", scale = 1 } = spec;
    const kind = spec.strided === "steps" ? "steps" : spec.strided ? "gaps" : "rows";
    const x = bench.input([rows, width], logits, kind, spec.spread ?? 5, spec.shift ?? 0);
    const labels = Array.from({ length: rows }, (_, row) =>
      spec.ignoreEvery && row % spec.ignoreEvery === 0 ? -100 : bench.random.below(width),
    );
    const start = 2.5;
    const loss = bench.plain([], "float64", [start]);
    const lse = spec.lse ? bench.output([rows], "float32", spec.strided ? "spread" : "rows") : null;
    const losses = spec.losses ? bench.plain([rows], "float64", Array(rows).fill(Number.NaN)) : null;
    const out =
      dlogits === "none" ? null : dlogits === "in place" ? x.tensor : bench.output([rows, width], dlogits, kind);
    binding.ops.crossEntropy(
      x.native,
      bench.plain([rows], "int32", labels).native,
      loss.native,
      out?.native ?? null,
      lse?.native ?? null,
      losses?.native ?? null,
      scale,
    );
    const get = () => reference(spec, x.values, labels);
    bench.expect(loss, "loss", () => [start + get().loss], width);
    if (out) bench.expect(out, "dlogits", () => get().dlogits, width);
    if (lse) bench.expect(lse, "lse", () => get().lse, width, 1);
    if (losses) bench.expect(losses, "losses", () => get().losses, width);
  },
});

export const cases: Case[] = [
  one({ rows: 1, width: 1, lse: true }),
  one({ rows: 7, width: 2, dlogits: "in place" }),
  one({ rows: 33, width: 17, lse: true, strided: true, ignoreEvery: 3, scale: 0.37 }),
  one({ rows: 20, width: 511, dlogits: "in place", strided: true, scale: 1 / 1000, ignoreEvery: 4 }),
  one({ rows: 20, width: 513, dlogits: "none", lse: true }),
  one({ rows: 41, width: 130, dlogits: "none", losses: true, ignoreEvery: 3 }),
  one({ rows: 6, width: 40_003, dlogits: "in place", losses: true, lse: true, ignoreEvery: 4 }),
  one({ rows: 12, width: 60, logits: "bfloat16", losses: true, ignoreEvery: 1 }),
  one({ rows: 40, width: 300, logits: "bfloat16", dlogits: "in place", ignoreEvery: 2, scale: 64 }),
  one({ rows: 40, width: 300, logits: "bfloat16", lse: true, strided: true }),
  one({ rows: 40, width: 300, dlogits: "bfloat16" }),
  // Rows that lie in registers of 128, 256 and 512 threads, in shared memory as well, and beyond both.
  one({ rows: 3, width: 5_000, dlogits: "in place", lse: true, ignoreEvery: 2 }),
  one({ rows: 3, width: 10_007, dlogits: "bfloat16", strided: true }),
  one({ rows: 3, width: 10_000, dlogits: "bfloat16", scale: 0.01, strided: "steps" }),
  one({ rows: 3, width: 33_003, dlogits: "in place" }),
  one({ rows: 5, width: 39_992, dlogits: "in place", ignoreEvery: 3 }),
  one({ rows: 2, width: 80_004, logits: "bfloat16", dlogits: "in place" }),
  one({ rows: 2, width: 66_000, logits: "bfloat16", lse: true }),
  one({ rows: 400, width: 160, ignoreEvery: 7 }),
  one({ rows: 30, width: 90, spread: 2000, lse: true }),
  one({ rows: 30, width: 90, spread: 1, shift: 3e4, lse: true }),
  one({ rows: 12, width: 50, ignoreEvery: 1, lse: true }),
  one({ rows: 12, width: 50, ignoreEvery: 1, dlogits: "in place", scale: -2 }),
  one({ rows: 0, width: 50, lse: true }),
];

await opTests("cross_entropy", cases, (t) => {
  t.test("rows without a label add nothing, not even where their logits are NaN", (t) =>
    withBench(async (bench) => {
      const x = bench.given([3, 2], [Number.NaN, Number.NaN, 0, 0, Number.NaN, Number.POSITIVE_INFINITY]);
      const labels = bench.plain([3], "int32", [-100, 1, -100]);
      const loss = bench.plain([], "float64", [0]);
      binding.ops.crossEntropy(x.native, labels.native, loss.native, x.native, null, null, 1);
      t.ok(Math.abs(((await loss.values())[0] as number) - Math.LN2) < 1e-12);
      t.same([...(await x.tensor.values())], [0, 0, 0.5, -0.5, 0, 0]);
    }),
  );

  t.test("a NaN in a row with a label makes the loss NaN; classes at -inf cost nothing", (t) =>
    withBench(async (bench) => {
      const x = bench.given([1, 3], [0, Number.NaN, 0]);
      const label = bench.plain([1], "int32", [0]);
      const loss = bench.plain([], "float64", [0]);
      binding.ops.crossEntropy(x.native, label.native, loss.native, null, null, null, 1);
      t.ok(Number.isNaN((await loss.values())[0]));
      const masked = bench.given([1, 3], [0, Number.NEGATIVE_INFINITY, 0]);
      const zero = bench.plain([], "float64", [0]);
      binding.ops.crossEntropy(masked.native, label.native, zero.native, masked.native, null, null, 1);
      t.ok(Math.abs(((await zero.values())[0] as number) - Math.LN2) < 1e-12);
      t.same([...(await masked.tensor.values())], [-0.5, 0, 0.5]);
    }),
  );

  t.test("a small loss keeps its digits", (t) =>
    withBench(async (bench) => {
      const x = bench.given([1, 2], [12, 0]);
      const loss = bench.plain([], "float64", [0]);
      binding.ops.crossEntropy(x.native, bench.plain([1], "int32", [0]).native, loss.native, null, null, null, 1);
      const expected = Math.log1p(Math.exp(-12));
      t.ok(
        Math.abs(((await loss.values())[0] as number) / expected - 1) < 0.05,
        `${(await loss.values())[0]} ${expected}`,
      );
    }),
  );

  t.test("a label beyond the classes rejects the next read", async (t) => {
    for (const label of [5, -1, -101]) {
      const device = ownDevice();
      const logits = new Plain(device, [3, 5], "float32", Array(15).fill(0));
      const labels = new Plain(device, [3], "int32", [4, label, 77]);
      const loss = new Plain(device, [], "float64", [0]);
      binding.ops.crossEntropy(logits.native, labels.native, loss.native, null, null, null, 1);
      await t.rejects(loss.raw(), { message: new RegExp(`label ${label} of row 1 .*5 classes`) });
    }
  });

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "crossEntropy", [
      { name: "logits", shape: [3, 8] },
      { name: "labels", shape: [3], dtype: "int32" },
      { name: "loss", shape: [], dtype: "float64" },
      { name: "dlogits", shape: [3, 8], optional: true },
      { name: "lse", shape: [3], optional: true },
      { name: "losses", shape: [3], dtype: "float64", optional: true },
      { name: "scale", number: 1 },
    ]);
  });
});
