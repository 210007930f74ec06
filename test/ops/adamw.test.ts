// adamw and adamw_advance against torch's formula in float64 over several steps, with master weights, clipping, skips.
import { binding } from "../../lib/binding.js";
import {
  type Bench,
  type Case,
  count,
  opTests,
  ownDevice,
  Plain,
  refusesBadArguments,
  rounded,
  withBench,
} from "./helpers.js";
import type { Storage } from "./strided.js";

interface Spec {
  shape: number[];
  param?: Storage;
  grad?: Storage;
  master?: boolean;
  factor?: number;
  steps: number;
  learningRate?: number;
  decay?: number;
  eps?: number;
  betas?: [number, number];
  gradScale?: number;
}

const one = (spec: Spec): Case => ({
  name: JSON.stringify(spec),
  body(bench: Bench) {
    const { shape, param = "float32", grad = "float32", master = false, factor, steps } = spec;
    const { learningRate = 1e-2, decay = 0.1, eps = 1e-8, betas = [0.9, 0.95] } = spec;
    const p = bench.input(shape, param);
    const full = master ? bench.given(shape, p.values) : null;
    const zeros = () => bench.given(shape, new Float64Array(count(shape)));
    const [m, v] = [zeros(), zeros()];
    const step = bench.plain([], "int64", [0]);
    const scale = factor === undefined ? null : bench.plain([], "float64", [factor]);
    const finite = bench.plain([], "int64", [1]);
    const gradients = Array.from({ length: steps }, () => bench.input(shape, grad, "rows", spec.gradScale ?? 1));
    for (const g of gradients) {
      binding.ops.adamwAdvance(step.native, finite.native);
      binding.ops.adamw(
        p.native,
        g.native,
        m.native,
        v.native,
        step.native,
        full?.native ?? null,
        scale?.native ?? null,
        finite.native,
        learningRate,
        betas[0],
        betas[1],
        eps,
        decay,
      );
    }
    const reference = () => {
      const [x, first, second] = [
        Float64Array.from(p.values),
        new Float64Array(p.values.length),
        new Float64Array(p.values.length),
      ];
      for (let t = 1; t <= steps; t++) {
        const [c1, c2] = [1 - betas[0] ** t, 1 - betas[1] ** t];
        for (let i = 0; i < x.length; i++) {
          const g = (gradients[t - 1]?.values[i] as number) * (factor ?? 1);
          first[i] = betas[0] * (first[i] as number) + (1 - betas[0]) * g;
          second[i] = betas[1] * (second[i] as number) + (1 - betas[1]) * g * g;
          const moved = (x[i] as number) * (1 - learningRate * decay);
          const next =
            moved - ((learningRate / c1) * (first[i] as number)) / (Math.sqrt((second[i] as number) / c2) + eps);
          // Without master weights a bfloat16 parameter is rounded each step.
          x[i] = param === "bfloat16" && !master ? rounded(next, "bfloat16") : next;
        }
      }
      return { x, first, second };
    };
    bench.expect(p.tensor, "param", () => reference().x, steps);
    if (full) bench.expect(full.tensor, "master", () => reference().x, steps);
    bench.expect(m.tensor, "m", () => reference().first, steps);
    bench.expect(v.tensor, "v", () => reference().second, steps);
    bench.expectExactly(step, "step", () => [steps]);
  },
});

export const cases: Case[] = [
  one({ shape: [1], steps: 1 }),
  one({ shape: [7, 37], steps: 5 }),
  one({ shape: [7, 37], steps: 5, factor: 0.37, decay: 0 }),
  one({ shape: [7, 37], steps: 5, factor: 0.01, grad: "bfloat16", betas: [0.9, 0.999] }),
  one({ shape: [130], steps: 3, param: "bfloat16", grad: "bfloat16", master: true }),
  one({ shape: [130], steps: 3, param: "bfloat16", master: true, learningRate: 1e-4 }),
  one({ shape: [130], steps: 1, param: "bfloat16", grad: "bfloat16" }),
  one({ shape: [4, 4], steps: 4, master: true, eps: 0.1 }),
  one({ shape: [31], steps: 20, betas: [0, 0.5] }),
  one({ shape: [50_003], steps: 2 }),
  one({ shape: [2, 2048], steps: 2, param: "bfloat16", master: true }),
  one({ shape: [2049], steps: 2, param: "bfloat16", grad: "bfloat16", master: true }),
  one({ shape: [65], steps: 3, gradScale: 1e-6 }),
  one({ shape: [65], steps: 3, gradScale: 1e4 }),
  one({ shape: [0, 3], steps: 1 }),
];

await opTests("adamw", cases, (t) => {
  const state = (bench: Bench, values: number[]) => {
    const of = (numbers: number[]) => bench.given([numbers.length], numbers);
    return { p: of(values), g: of(values.map(() => Number.NaN)), m: of(values), v: of(values.map(Math.abs)) };
  };

  t.test("a step that is not finite changes nothing, the step count neither", (t) =>
    withBench(async (bench) => {
      const { p, g, m, v } = state(bench, [1, -2, 3]);
      const [step, finite] = [bench.plain([], "int64", [4]), bench.plain([], "int64", [0])];
      const none = null;
      binding.ops.adamwAdvance(step.native, finite.native);
      binding.ops.adamw(
        p.native,
        g.native,
        m.native,
        v.native,
        step.native,
        none,
        none,
        finite.native,
        1,
        0.9,
        0.9,
        0,
        0,
      );
      t.same([...(await p.tensor.values())], [1, -2, 3]);
      t.same([...(await m.tensor.values())], [1, -2, 3]);
      t.same([...(await v.tensor.values())], [1, 2, 3]);
      t.same([...(await step.values())], [4]);
      binding.ops.adamwAdvance(step.native, null);
      t.same([...(await step.values())], [5]);
    }),
  );

  t.test("the bias correction is right after a billion steps", (t) =>
    withBench(async (bench) => {
      const [p, g] = [bench.given([1], [1]), bench.given([1], [2])];
      const [m, v] = [bench.given([1], [2]), bench.given([1], [4])];
      const step = bench.plain([], "int64", [1_000_000_000]);
      const none = null;
      binding.ops.adamw(p.native, g.native, m.native, v.native, step.native, none, none, none, 0.125, 0.9, 0.95, 0, 0);
      t.ok(Math.abs(((await p.tensor.values())[0] as number) - 0.875) < 1e-6);
    }),
  );

  t.test("without adamw_advance before it the next read is rejected", async (t) => {
    const device = ownDevice();
    const one = () => new Plain(device, [2], "float32", [1, 1]);
    const [p, g, m, v] = [one(), one(), one(), one()];
    const step = new Plain(device, [], "int64", [0]);
    const none = null;
    binding.ops.adamw(p.native, g.native, m.native, v.native, step.native, none, none, none, 1, 0.9, 0.9, 0, 0);
    await t.rejects(p.raw(), { message: /adamw: step is 0/ });
  });

  t.test("wrong arguments are refused", async (t) => {
    const tensor = (name: string) => ({ name, shape: [3, 8] });
    await refusesBadArguments(t, "adamw", [
      tensor("param"),
      tensor("grad"),
      tensor("m"),
      tensor("v"),
      { name: "step", shape: [], dtype: "int64" },
      { ...tensor("master"), optional: true },
      { name: "factor", shape: [], dtype: "float64", optional: true },
      { name: "finite", shape: [], dtype: "int64", optional: true },
      { name: "learning_rate", number: 0.1 },
      { name: "beta1", number: 0.9, bad: [1, -0.1, Number.NaN] },
      { name: "beta2", number: 0.9, bad: [1, -0.1, Number.NaN] },
      { name: "eps", number: 1e-8, bad: [-1, Number.NaN] },
      { name: "weight_decay", number: 0 },
    ]);
    await refusesBadArguments(t, "adamwAdvance", [
      { name: "step", shape: [], dtype: "int64" },
      { name: "finite", shape: [], dtype: "int64", optional: true },
    ]);
  });
});
