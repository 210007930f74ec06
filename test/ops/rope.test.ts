// rope against float64: positions up to 15 million and beyond, partial rotation, strides, in place, the inverse.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, opTests, refusesBadArguments, withBench } from "./helpers.js";
import { layout, type Storage } from "./strided.js";

interface Spec {
  shape: [tokens: number, heads: number, size: number];
  rotary?: number;
  x?: Storage;
  y?: Storage;
  positions?: "from 0" | "15 million" | "any";
  scaling?: number;
  inverse?: boolean;
  layout?: "gaps" | "heads first";
  inPlace?: boolean;
}

const frequencies = (pairs: number) =>
  Float64Array.from({ length: pairs }, (_, i) => Math.fround(10000 ** (-i / pairs)));

function reference(spec: Spec, x: Float64Array, positions: number[], frequency: Float64Array): Float64Array {
  const [tokens, heads, size] = spec.shape;
  const half = frequency.length;
  const y = Float64Array.from(x);
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < half; i++) {
      const angle = (positions[t] as number) * (frequency[i] as number) * (spec.inverse ? -1 : 1);
      const [c, s] = [Math.cos(angle) * (spec.scaling ?? 1), Math.sin(angle) * (spec.scaling ?? 1)];
      for (let n = 0; n < heads; n++) {
        const at = (t * heads + n) * size + i;
        const [a, b] = [x[at] as number, x[at + half] as number];
        y[at] = a * c - b * s;
        y[at + half] = b * c + a * s;
      }
    }
  }
  return y;
}

const one = (spec: Spec): Case => ({
  name: JSON.stringify(spec),
  body(bench: Bench) {
    const { shape, x = "float32", y = "float32", scaling = 1, inverse = false } = spec;
    const kind = spec.layout === "gaps" ? "gaps" : spec.layout ? layout(shape, [1, 0, 2], 5) : "rows";
    const tx = bench.input(shape, x, kind);
    const positions = Array.from({ length: shape[0] }, (_, t) => {
      if (spec.positions === "15 million") return 15_000_000 - t;
      return spec.positions === "any" ? bench.random.below(2 ** 31) * (t % 3 ? 7 : -1) : t;
    });
    const frequency = frequencies((spec.rotary ?? shape[2]) / 2);
    const ty = spec.inPlace ? tx.tensor : bench.output(shape, y, spec.layout === "gaps" ? "rows" : kind);
    const at = bench.plain([shape[0]], "int64", positions);
    const freq = bench.given([frequency.length], frequency);
    binding.ops.rope(tx.native, at.native, freq.native, ty.native, scaling, inverse);
    bench.expect(ty, "y", () => reference(spec, tx.values, positions, frequency), 1);
  },
});

const specs: Spec[] = [
  { shape: [1, 1, 2] },
  { shape: [50, 3, 64] },
  { shape: [50, 3, 128], positions: "15 million", layout: "gaps" },
  { shape: [50, 4, 64], positions: "15 million", inverse: true, inPlace: true, layout: "heads first" },
  { shape: [33, 2, 80], rotary: 34, positions: "any", scaling: 1.37 },
  { shape: [33, 2, 80], rotary: 34, inPlace: true, scaling: 0.7, inverse: true },
  { shape: [7, 2, 6], layout: "heads first", positions: "any" },
  { shape: [9, 2, 700], rotary: 640, positions: "15 million" },
  { shape: [9, 2, 640], positions: "any", inPlace: true },
  { shape: [40, 2, 96], x: "bfloat16", y: "bfloat16", positions: "15 million" },
  { shape: [40, 2, 96], x: "bfloat16", layout: "gaps", inverse: true },
  { shape: [40, 2, 96], y: "bfloat16", layout: "heads first" },
  { shape: [2000, 2, 32], positions: "15 million" },
  // Several tokens a block, the last of them not full; more values than are asked for ahead.
  { shape: [9, 32, 128], x: "bfloat16", y: "bfloat16", positions: "any" },
  { shape: [7, 9, 64], x: "bfloat16", positions: "15 million", inverse: true },
  { shape: [10, 20, 64], y: "bfloat16", rotary: 32 },
  { shape: [3, 5, 528], rotary: 512, layout: "heads first" },
  { shape: [5, 2, 10], rotary: 0 },
  { shape: [0, 2, 8] },
  { shape: [4, 0, 8] },
];
export const cases: Case[] = specs.map(one);

await opTests("rope", cases, (t) => {
  t.test("the inverse undoes it", (t) =>
    withBench(async (bench) => {
      const x = bench.input([64, 2, 64]);
      const y = bench.output([64, 2, 64]);
      const positions = bench.plain(
        [64],
        "int64",
        Array.from({ length: 64 }, (_, i) => i * 231_111),
      );
      const freq = bench.given([32], frequencies(32));
      binding.ops.rope(x.native, positions.native, freq.native, y.native, 1, false);
      binding.ops.rope(y.native, positions.native, freq.native, y.native, 1, true);
      const got = await y.values();
      t.ok(got.every((value, i) => Math.abs(value - (x.values[i] as number)) < 1e-6));
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "rope", [
      { name: "x", shape: [4, 2, 8] },
      { name: "positions", shape: [4], dtype: "int64" },
      { name: "inv_freq", shape: [4] },
      { name: "y", shape: [4, 2, 8] },
      { name: "scaling", number: 1 },
      { name: "inverse", integer: 0 },
    ]);
  });
});
