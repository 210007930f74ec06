// layer_norm and its backward against float64: widths around vectors and tiles, with and without bias, far-off means.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, opTests, refusesBadArguments, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

const eps = 1e-5;

/** With n = (x - mean) * r and g = dy * w: dx = r * (g - mean(g) - n * mean(g * n)), dw = sum dy * n, db = sum dy. */
function reference(width: number, x: Float64Array, w: Float64Array, b: Float64Array | null, dy: Float64Array) {
  const y = new Float64Array(x.length);
  const dx = new Float64Array(x.length);
  const dw = new Float64Array(width);
  const db = new Float64Array(width);
  const at = (values: Float64Array, i: number) => values[i] as number;
  for (let row = 0; row < x.length; row += width) {
    let mean = 0;
    for (let i = 0; i < width; i++) mean += at(x, row + i) / width;
    let variance = 0;
    for (let i = 0; i < width; i++) variance += (at(x, row + i) - mean) ** 2 / width;
    const r = 1 / Math.sqrt(variance + eps);
    let g = 0;
    let gn = 0;
    for (let i = 0; i < width; i++) {
      const n = (at(x, row + i) - mean) * r;
      g += (at(dy, row + i) * at(w, i)) / width;
      gn += (at(dy, row + i) * at(w, i) * n) / width;
      y[row + i] = n * at(w, i) + (b ? at(b, i) : 0);
      dw[i] = at(dw, i) + at(dy, row + i) * n;
      db[i] = at(db, i) + at(dy, row + i);
    }
    for (let i = 0; i < width; i++)
      dx[row + i] = r * (at(dy, row + i) * at(w, i) - g - (at(x, row + i) - mean) * r * gn);
  }
  return { y, dx, dw, db };
}

interface Spec {
  shape: number[];
  x?: Storage;
  weight?: Storage;
  y?: Storage;
  bias?: boolean;
  strided?: boolean;
  accumulate?: boolean;
  /** Added to x. */
  mean?: number;
}

const one = (spec: Spec): Case => {
  const { shape, x = "float32", weight = "float32", y = "float32", accumulate = false } = spec;
  const width = shape.at(-1) as number;
  const rows = shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const kind = spec.strided ? "gaps" : "rows";
  return {
    name: JSON.stringify(spec),
    body(bench: Bench) {
      const tx = bench.input(shape, x, kind, 3, spec.mean ?? 0.3);
      const tw = bench.input([width], weight, spec.strided ? "spread" : "rows", 1, 1);
      const tb = spec.bias ? bench.input([width], weight) : null;
      const dy = bench.input(shape, y, kind);
      const dx0 = bench.input(shape, x, kind);
      const [dw0, db0] = [bench.input([width]), bench.input([width])];
      const ty = bench.output(shape, y, kind);
      const dx = accumulate ? dx0.tensor : bench.output(shape, x, kind);
      const { ops } = binding;
      ops.layerNorm(tx.native, tw.native, ty.native, tb?.native ?? null, eps);
      ops.layerNormBackward(tx.native, tw.native, dy.native, dx.native, dw0.native, db0.native, eps, accumulate);
      const get = () => reference(width, tx.values, tw.values, tb?.values ?? null, dy.values);
      const plus = (values: Float64Array, start: Float64Array) => values.map((v, i) => v + (start[i] as number));
      // A width of 1 leaves nothing but cancelled terms.
      const least = width === 1 ? 1 : 0;
      // The mean itself is as good as its rounding: errors are those of x's last bit over its deviation.
      const more = spec.mean ? 1 + (spec.mean / 3) ** 2 : 1;
      bench.expect(ty, "y", () => get().y, width * more, least);
      bench.expect(dx, "dx", () => (accumulate ? plus(get().dx, dx0.values) : get().dx), width * more, least);
      bench.expect(dw0.tensor, "dweight", () => plus(get().dw, dw0.values), rows * more, least);
      bench.expect(db0.tensor, "dbias", () => plus(get().db, db0.values), rows);
    },
  };
};

const specs: Spec[] = [
  { shape: [2, 1], bias: true },
  { shape: [5, 7], strided: true, accumulate: true },
  { shape: [9, 16], bias: true },
  { shape: [3, 4, 33], weight: "bfloat16", strided: true, bias: true },
  { shape: [17, 96], x: "bfloat16", weight: "bfloat16", y: "bfloat16", accumulate: true, bias: true },
  { shape: [2, 3, 4, 31], x: "bfloat16", strided: true, accumulate: true },
  { shape: [70, 512], y: "bfloat16", bias: true },
  { shape: [11, 1025], x: "bfloat16", weight: "bfloat16", y: "bfloat16", strided: true },
  { shape: [300, 130], strided: true, accumulate: true, bias: true },
  { shape: [20, 257], mean: 30, bias: true },
  // Widths on both sides of what a warp, 128 and 256 threads hold.
  { shape: [20, 128], mean: 30, bias: true },
  { shape: [9, 520], x: "bfloat16", weight: "bfloat16", y: "bfloat16", accumulate: true },
  { shape: [9, 1536], mean: 30, bias: true, accumulate: true },
  { shape: [5, 4096], x: "bfloat16", y: "bfloat16", bias: true },
  { shape: [3, 6144], weight: "bfloat16", bias: true },
  { shape: [3, 8200] },
  { shape: [64] },
  { shape: [0, 8] },
  { shape: [3, 0], bias: true },
];
export const cases: Case[] = specs.map(one);

await opTests("layer_norm", cases, (t) => {
  t.test("each gradient can be left out; y may be x, dx may be dy", (t) =>
    withBench(async (bench) => {
      const [x, w, dy] = [bench.input([40, 100]), bench.input([100]), bench.input([40, 100])];
      const [dx, y, onlyDx] = [bench.output([40, 100]), bench.output([40, 100]), bench.output([40, 100])];
      const zeros = () => bench.given([100], new Float64Array(100));
      const [dw, db, dwAlone, dbAlone] = [zeros(), zeros(), zeros(), zeros()];
      const { ops } = binding;
      ops.layerNorm(x.native, w.native, y.native, null, eps);
      ops.layerNormBackward(x.native, w.native, dy.native, dx.native, dw.native, db.native, eps, false);
      ops.layerNormBackward(x.native, w.native, dy.native, onlyDx.native, dwAlone.native, null, eps, false);
      ops.layerNormBackward(x.native, w.native, dy.native, onlyDx.native, null, dbAlone.native, eps, false);
      ops.layerNormBackward(x.native, w.native, dy.native, dy.native, null, null, eps, false);
      ops.layerNorm(x.native, w.native, x.native, null, eps);
      t.same(await dy.tensor.values(), await dx.values());
      t.same(await onlyDx.values(), await dx.values());
      t.same(await dwAlone.tensor.values(), await dw.tensor.values());
      t.same(await dbAlone.tensor.values(), await db.tensor.values());
      t.same(await x.tensor.values(), await y.values());
    }),
  );

  t.test("a constant row gives the bias", (t) =>
    withBench(async (bench) => {
      const [x, w] = [bench.given([2, 5], Array(10).fill(1234.5)), bench.input([5])];
      const [b, y] = [bench.input([5]), bench.output([2, 5])];
      binding.ops.layerNorm(x.native, w.native, y.native, b.native, eps);
      t.same([...(await y.values())], [...b.values, ...b.values]);
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    const x = { name: "x", shape: [3, 8] };
    const weight = { name: "weight", shape: [8] };
    const number = { name: "eps", number: 1e-5, bad: [Number.NaN, -1, 2] };
    const bias = { name: "bias", shape: [8], optional: true };
    await refusesBadArguments(t, "layerNorm", [x, weight, { name: "y", shape: [3, 8] }, bias, number]);
    await refusesBadArguments(t, "layerNormBackward", [
      x,
      weight,
      { name: "dy", shape: [3, 8] },
      { name: "dx", shape: [3, 8] },
      { name: "dweight", shape: [8], optional: true },
      { name: "dbias", shape: [8], optional: true },
      number,
      { name: "accumulate_dx", integer: 1 },
    ]);
  });
});
