// Every differentiable op against central differences.
import t from "tap";
import {
  type Context,
  Function,
  type Grad,
  gradcheck,
  linearCrossEntropy,
  ops,
  randn,
  type Tensor,
  tensor,
  tiled,
} from "../../lib/index.js";

let seed = 1;
const leaf = (...shape: number[]): Tensor => randn(shape, { seed: seed++, requiresGrad: true });
const int64 = (...values: number[]): Tensor => tensor(BigInt64Array.from(values, BigInt));
const int32 = (...values: number[]): Tensor => tensor(Int32Array.from(values));

/** Passes when analytic and numeric gradients agree. */
async function check(name: string, fn: (...inputs: Tensor[]) => Tensor, inputs: Tensor[], options = {}): Promise<void> {
  await t.resolves(gradcheck(fn, inputs, options), name);
}

t.test("gradcheck", async () => {
  const x = leaf(6, 8);
  const w = leaf(5, 8);
  await check("linear", (a, b, c) => ops.linear(a, b, c), [x, w, leaf(5)]);
  await check("linear without bias", (a, b) => ops.linear(a, b), [x, w]);
  await check("matmul", (a, b) => ops.matmul(a, b.transpose(0, 1)), [x, w]);
  await check("batched matmul", (a, b) => a.matmul(b), [leaf(2, 3, 4), leaf(2, 4, 5)]);
  await check("rms_norm", (a, b) => ops.rmsNorm(a, b, 1e-5), [x, leaf(8)]);
  await check("layer_norm", (a, b, c) => ops.layerNorm(a, b, c, 1e-5), [x, leaf(8), leaf(8)]);
  await check("add, broadcast", (a, b) => a.add(b), [x, leaf(8)]);
  await check("sub, broadcast", (a, b) => a.sub(b), [leaf(8), x]);
  await check("mul, broadcast", (a, b) => a.mul(b), [x, leaf(6, 1)]);
  await check("div", (a, b) => a.div(b.mul(b).add(1)), [x, leaf(8)]);
  await check("one tensor twice", (a) => a.mul(a).add(a), [x]);
  await check("scale", (a) => a.mul(-2.5), [x]);
  for (const kind of ["silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "exp", "square", "neg"] as const)
    await check(kind, (a) => ops.unary(a, kind), [x], { step: 5e-3 });
  for (const kind of ["log", "sqrt", "rsqrt"] as const)
    await check(kind, (a) => ops.unary(a.mul(a).add(0.5), kind), [x], { step: 5e-3 });
  for (const activation of ["silu", "gelu", "gelu_tanh"] as const)
    await check(`swiglu, ${activation}`, (g, u) => ops.swiglu(g, u, activation), [x, leaf(6, 8)]);
  await check("embedding", (table) => ops.embedding(int32(0, 4, 4, 2, 1, 0), table), [w]);
  const positions = int64(0, 1, 2, 3, 4, 1000);
  await check("rope", (q) => ops.rope(q, positions, tensor([1, 0.01]), { scaling: 1.3 }), [leaf(6, 3, 4)]);
  await check("rope in place", (q) => ops.rope(q.mul(1), positions, tensor([1]), { inplace: true }), [leaf(6, 3, 4)]);
  const qkv = [leaf(6, 4, 4), leaf(6, 2, 4), leaf(6, 2, 4)];
  await check("attention, causal", (q, k, v) => ops.attention(q, k, v), qkv);
  await check("attention, full", (q, k, v) => ops.attention(q, k, v, { causal: false }), qkv);
  await check(
    "attention, documents and window",
    (q, k, v) => ops.attention(q, k, v, { cuSeqlens: int64(0, 4, 6), window: 3 }),
    qkv,
    { absolute: 1e-2 },
  );
  await check("views", (a) => a.permute([1, 0]).reshape([4, 12]).narrow(0, 1, 2).contiguous(), [x]);
  await check("sum along a dim", (a) => a.sum(1), [x]);
  await check("mean", (a) => a.mean(), [x]);
  const targets = int32(1, -100, 3, 0, 2, 4);
  await check("cross_entropy", (a) => ops.crossEntropy(a, targets, 5), [leaf(6, 5)], { step: 3e-2 });
  for (const rows of [0, 1, 4, 6, 100]) {
    const norm = leaf(8);
    await check(
      `tiled, ${rows} rows`,
      (a, b, c) =>
        tiled((part) => part.add(ops.linear(ops.rmsNorm(part, c), b).matmul(b)), a, { rows, parameters: [b, c] }),
      [x, w, norm],
    );
    // The upstream gradient scales every output, the weight's too.
    await check(
      `linear_cross_entropy, ${rows} rows`,
      (a, b) => linearCrossEntropy(a, b, targets, { rows, denominator: 5 }).mul(3),
      [x, w],
      {
        step: 3e-2,
        tolerance: 2e-2,
      },
    );
  }
});

t.test("gradcheck sees a wrong backward", async (t) => {
  class Wrong extends Function<[Tensor], Tensor> {
    readonly name = "wrong";
    forward(_ctx: Context, x: Tensor): Tensor {
      return x.mul(2);
    }
    backward(_ctx: Context, dy: Tensor): Grad[] {
      return [dy.mul(3)];
    }
  }
  const wrong = new Wrong();
  await t.rejects(
    gradcheck((x) => wrong.apply(x), [leaf(3)]),
    { code: "INVALID_ARGUMENT", message: /input 0, element 0/ },
  );
});
