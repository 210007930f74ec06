// rms_norm and its backward against float64: widths around vectors and tiles, dtypes, strides, accumulation.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, opTests, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

const eps = 1e-5;

/** Gradients of y = x * r * w, r = 1 / sqrt(mean(x^2) + eps): dx = r * (g - x * r^2 * mean(g * x)) with g = dy * w. */
function reference(rows: number, width: number, x: Float64Array, w: Float64Array, dy: Float64Array) {
  const y = new Float64Array(x.length);
  const dx = new Float64Array(x.length);
  const dw = new Float64Array(width);
  for (let row = 0; row < rows; row++) {
    const at = row * width;
    let square = 0;
    let gx = 0;
    for (let i = 0; i < width; i++) {
      const value = x[at + i] as number;
      square += value * value;
      gx += value * (dy[at + i] as number) * (w[i] as number);
    }
    const r = 1 / Math.sqrt(square / width + eps);
    for (let i = 0; i < width; i++) {
      const value = x[at + i] as number;
      const d = dy[at + i] as number;
      y[at + i] = value * r * (w[i] as number);
      dx[at + i] = r * (d * (w[i] as number) - (value * r * r * gx) / width);
      dw[i] = (dw[i] as number) + d * value * r;
    }
  }
  return { y, dx, dw };
}

function one(
  shape: number[],
  x: Storage,
  weight: Storage,
  y: Storage,
  strided: boolean | "steps",
  accumulate: boolean,
): Case {
  const width = shape.at(-1) as number;
  const rows = shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const kind = strided === "steps" ? "steps" : strided ? "gaps" : "rows";
  return {
    name: `[${shape}] ${x}, weight ${weight}, y ${y}${strided ? `, ${kind}` : ""}${accumulate ? ", dx +=" : ""}`,
    body(bench: Bench) {
      const tx = bench.input(shape, x, kind, 3);
      const tw = bench.input([width], weight, strided === true ? "spread" : "rows", 1, 1);
      const dy = bench.input(shape, y, kind);
      const dx0 = bench.input(shape, x, kind);
      const dw0 = bench.input([width]);
      const ty = bench.output(shape, y, kind);
      const dx = accumulate ? dx0.tensor : bench.output(shape, x, kind);
      binding.ops.rmsNorm(tx.native, tw.native, ty.native, eps);
      binding.ops.rmsNormBackward(tx.native, tw.native, dy.native, dx.native, dw0.native, eps, accumulate);
      const get = () => reference(rows, width, tx.values, tw.values, dy.values);
      bench.expect(ty, "y", () => get().y, width);
      bench.expect(
        dx,
        "dx",
        () => get().dx.map((value, i) => value + (accumulate ? (dx0.values[i] as number) : 0)),
        width,
        // Of a single value the terms cancel: errors are those of the terms.
        width === 1 ? 1 : 0,
      );
      bench.expect(
        dw0.tensor,
        "dweight",
        () => get().dw.map((value, i) => value + (dw0.values[i] as number)),
        rows,
        // Of one row and column it is a sum of two that may cancel as well.
        rows * width === 1 ? 1 : 0,
      );
    },
  };
}

export const cases: Case[] = [
  one([1, 1], "float32", "float32", "float32", false, false),
  one([5, 7], "float32", "float32", "float32", true, true),
  one([9, 16], "float32", "float32", "float32", false, false),
  one([3, 4, 33], "float32", "bfloat16", "float32", true, false),
  one([17, 96], "bfloat16", "bfloat16", "bfloat16", false, true),
  one([2, 3, 4, 31], "bfloat16", "float32", "float32", true, true),
  one([70, 512], "float32", "float32", "bfloat16", false, false),
  one([11, 1025], "bfloat16", "bfloat16", "bfloat16", true, false),
  one([300, 130], "float32", "float32", "float32", true, true),
  // Widths on both sides of what a warp, 128 and 256 threads hold, and more than one piece a block.
  one([33, 128], "bfloat16", "bfloat16", "bfloat16", false, true),
  one([19, 264], "float32", "bfloat16", "float32", false, false),
  one([9, 1024], "bfloat16", "float32", "bfloat16", false, true),
  one([9, 1032], "float32", "float32", "float32", false, true),
  one([5, 4096], "bfloat16", "bfloat16", "bfloat16", false, false),
  one([2, 3, 1048], "bfloat16", "float32", "bfloat16", "steps", true),
  one([5, 4104], "float32", "float32", "bfloat16", false, false),
  one([3, 8192], "bfloat16", "float32", "bfloat16", false, true),
  one([3, 8200], "bfloat16", "float32", "bfloat16", false, true),
  one([4300, 16], "float32", "float32", "float32", false, false),
  one([64], "float32", "float32", "float32", false, true),
  one([0, 8], "float32", "float32", "float32", false, false),
  one([3, 0], "float32", "float32", "float32", false, false),
];

await opTests("rms_norm", cases, (t) => {
  t.test("without dweight dx is the same; y may be x, dx may be dy", (t) =>
    withBench(async (bench) => {
      const x = bench.input([40, 100]);
      const w = bench.input([100]);
      const dy = bench.input([40, 100]);
      const dx = bench.output([40, 100]);
      const y = bench.output([40, 100]);
      const dw = bench.given([100], new Float64Array(100));
      binding.ops.rmsNorm(x.native, w.native, y.native, eps);
      binding.ops.rmsNormBackward(x.native, w.native, dy.native, dx.native, dw.native, eps, false);
      binding.ops.rmsNormBackward(x.native, w.native, dy.native, dy.native, null, eps, false);
      binding.ops.rmsNorm(x.native, w.native, x.native, eps);
      t.same(await dy.tensor.values(), await dx.values());
      t.same(await x.tensor.values(), await y.values());
    }),
  );

  t.test("large and small rows neither overflow nor vanish; NaN and infinity stay in their row", (t) =>
    withBench(async (bench) => {
      const rows = [1e18, -1e18, 1e18, 1e18, 1e-17, 1e-17, -1e-17, 1e-17, Number.NaN, 1, 1, 1, 2, 2, 2, 2];
      const x = bench.given([4, 4], rows);
      const w = bench.given([4], [1, 1, 1, 1]);
      const y = bench.output([4, 4]);
      binding.ops.rmsNorm(x.native, w.native, y.native, 0);
      const near = Array.from(await y.values(), (value) => Math.round(value * 1e5) / 1e5);
      t.same(near.slice(0, 8), [1, -1, 1, 1, 1, 1, -1, 1]);
      t.same(near.slice(8, 12), Array(4).fill(Number.NaN));
      t.same(near.slice(12), [1, 1, 1, 1]);
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    const x = { name: "x", shape: [3, 8] };
    const weight = { name: "weight", shape: [8] };
    const number = { name: "eps", number: 1e-5, bad: [Number.NaN, -1, 2] };
    await refusesBadArguments(t, "rmsNorm", [x, weight, { name: "y", shape: [3, 8] }, number]);
    await refusesBadArguments(t, "rmsNormBackward", [
      x,
      weight,
      { name: "dy", shape: [3, 8] },
      { name: "dx", shape: [3, 8] },
      { name: "dweight", shape: [8], optional: true },
      number,
      { name: "accumulate_dx", integer: 1 },
    ]);
  });
});
