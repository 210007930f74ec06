// The gradient of lm_head (and of what goes into it) under accumulation and under any upstream gradient.
import t from "tap";
import {
  type CausalLM,
  initModel,
  linearCrossEntropy,
  type MemoryOptions,
  ops,
  type Tensor,
  tensor,
} from "../../lib/index.js";
import { errorOf } from "./settings.js";

const [T, H, V] = [13, 10, 17];
const values = (length: number, salt: number) =>
  Float32Array.from({ length }, (_, i) => Math.sin((i + 1) * (salt + 0.7)) + Math.cos(i * i * 0.01 + salt));
const targets = Int32Array.from({ length: T }, (_, i) => (i % 4 === 2 ? -100 : (i * 5) % V));

/** Loss and gradients in float64: the sum over targets of -log softmax, over the denominator. */
function reference(hidden: Float32Array, weight: Float32Array, denominator: number) {
  const dhidden = new Float64Array(T * H);
  const dweight = new Float64Array(V * H);
  let loss = 0;
  for (const [row, target] of targets.entries()) {
    if (target < 0) continue;
    const logits = Array.from({ length: V }, (_, v) => {
      let sum = 0;
      for (let h = 0; h < H; h++) sum += (hidden[row * H + h] as number) * (weight[v * H + h] as number);
      return sum;
    });
    const most = Math.max(...logits);
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0);
    loss += (most + Math.log(total) - (logits[target] as number)) / denominator;
    for (const [v, logit] of logits.entries()) {
      const d = (Math.exp(logit - most) / total - (v === target ? 1 : 0)) / denominator;
      for (let h = 0; h < H; h++) {
        dhidden[row * H + h] = (dhidden[row * H + h] as number) + d * (weight[v * H + h] as number);
        dweight[v * H + h] = (dweight[v * H + h] as number) + d * (hidden[row * H + h] as number);
      }
    }
  }
  return { loss, dhidden, dweight };
}

const times = (x: Float64Array, factor: number) => x.map((value) => value * factor);

t.test("the fused loss against float64, for tiles and upstream gradients", async (t) => {
  const parts = [1, 2, 3].map((salt) => values(T * H, salt));
  const weights = values(V * H, 9);
  for (const rows of [0, 1, 5, T, 4 * T]) {
    // Upstream gradients of three losses that share a weight: 1, 3, -0.25, and 0, which leaves nothing.
    for (const upstream of [[1], [3], [-0.25], [0], [1, 1, 1], [2, -1, 0.5]]) {
      const weight = tensor(weights, { shape: [V, H] });
      weight.requiresGrad = true;
      const name = `rows ${rows}, upstream ${upstream.join(", ")}`;
      const expected = new Float64Array(V * H);
      for (const [i, factor] of upstream.entries()) {
        const hidden = tensor(parts[i] as Float32Array, { shape: [T, H] });
        hidden.requiresGrad = true;
        const denominator = 7 + i;
        const loss = linearCrossEntropy(hidden, weight, tensor(targets), { denominator, rows });
        const exact = reference(parts[i] as Float32Array, weights, denominator);
        // Through the graph, or as the gradient that backward() is given.
        if (i % 2 === 0) ops.mul(loss, factor).backward();
        else loss.backward(tensor([factor], { shape: [], dtype: "float64" }));
        if (i % 2 === 1) t.ok(Math.abs((await loss.item()) - exact.loss) <= 1e-6 * exact.loss, `loss: ${name}`);
        const dhidden = hidden.grad as Tensor;
        t.ok(errorOf((await dhidden.data()) as Float32Array, times(exact.dhidden, factor)) <= 1e-5, `dhidden: ${name}`);
        for (const [at, value] of times(exact.dweight, factor).entries())
          expected[at] = (expected[at] as number) + value;
        hidden.dispose();
        dhidden.dispose();
      }
      const grad = weight.grad as Tensor;
      const error = errorOf((await grad.data()) as Float32Array, expected);
      t.ok(error <= 1e-5, `dweight is off by ${error}: ${name}`);
      grad.dispose();
      weight.dispose();
    }
  }
});

t.test("two losses in one graph, and a weight that is no leaf", async (t) => {
  const [first, second] = [values(T * H, 1), values(T * H, 2)];
  const weights = values(V * H, 9);
  for (const rows of [0, 4]) {
    const weight = tensor(weights, { shape: [V, H] });
    weight.requiresGrad = true;
    const doubled = ops.mul(weight, 2);
    const losses = [first, second].map((hidden) =>
      linearCrossEntropy(tensor(hidden, { shape: [T, H] }), doubled, tensor(targets), { denominator: 5, rows }),
    );
    ops.add(losses[0] as Tensor, ops.mul(losses[1] as Tensor, 3)).backward();
    const twice = weights.map((value) => 2 * value);
    const exact = [first, second].map((hidden) => reference(hidden, twice, 5).dweight);
    const expected = new Float64Array(V * H).map(
      (_, i) => 2 * ((exact[0] as Float64Array)[i] as number) + 6 * ((exact[1] as Float64Array)[i] as number),
    );
    const error = errorOf((await (weight.grad as Tensor).data()) as Float32Array, expected);
    t.ok(error <= 1e-5, `rows ${rows}: off by ${error}`);
  }
});

const fields = {
  model_type: "llama",
  hidden_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: 40,
  vocab_size: 61,
  max_position_embeddings: 512,
  initializer_range: 0.2,
};
const batches = [19, 8, 11].map((length, salt) => ({
  inputIds: Int32Array.from({ length }, (_, i) => (Math.imul(i + 97 * salt + 1, 0x9e3779b1) >>> 8) % 61),
}));

async function gradients(model: CausalLM, pass: () => void): Promise<Map<string, Float32Array>> {
  for (const parameter of model.parameters()) {
    parameter.grad?.dispose();
    parameter.grad = null;
  }
  pass();
  const grads = new Map<string, Float32Array>();
  for (const [name, parameter] of model.namedParameters())
    grads.set(name, ((await (parameter.grad as Tensor).data()) as Float32Array).slice());
  return grads;
}

t.test("a whole model: scaled and summed losses, tied and untied, for several settings", async (t) => {
  const settings: MemoryOptions[] = [
    { tileMlp: 0, tileLoss: 0, checkpointEvery: 0, keepAttention: false, offload: "none" },
    { tileMlp: 5, tileLoss: 6, checkpointEvery: 1, keepAttention: true, offload: "host" },
    { tileMlp: 1, tileLoss: 1, checkpointEvery: 2, keepAttention: false, offload: "none" },
  ];
  for (const tied of [false, true]) {
    const model = initModel({ ...fields, tie_word_embeddings: tied }, { device: "cpu", dtype: "float32", seed: 5 });
    // What each batch gives by itself, with nothing on.
    const alone: Map<string, Float32Array>[] = [];
    for (const batch of batches)
      alone.push(await gradients(model, () => model.loss(batch, { denominator: 10 }).backward()));
    const sum = (name: string, factors: readonly number[]) =>
      Float64Array.from((alone[0] as Map<string, Float32Array>).get(name) as Float32Array, (_, i) =>
        factors.reduce((total, factor, b) => total + factor * (alone[b]?.get(name)?.[i] as number), 0),
      );
    const passes: [name: string, factors: number[], pass: () => void][] = [
      [
        "loss.mul(3)",
        [3],
        () =>
          model
            .loss(batches[0] as never, { denominator: 10 })
            .mul(3)
            .backward(),
      ],
      [
        "an upstream gradient of -0.5",
        [-0.5],
        () =>
          model
            .loss(batches[0] as never, { denominator: 10 })
            .backward(tensor([-0.5], { shape: [], dtype: "float64" })),
      ],
      [
        "accumulated, each scaled",
        [1, 2, 0.5],
        () => {
          for (const [i, factor] of [1, 2, 0.5].entries())
            model
              .loss(batches[i] as never, { denominator: 10 })
              .mul(factor)
              .backward();
        },
      ],
      [
        "summed before one backward",
        [1, 3],
        () => {
          const [a, b] = batches.map((batch) => model.loss(batch, { denominator: 10 })) as [Tensor, Tensor];
          a.add(b.mul(3)).backward();
        },
      ],
    ];
    for (const setting of settings) {
      model.configureMemory(setting);
      for (const [name, factors, pass] of passes) {
        const grads = await gradients(model, pass);
        for (const [key, grad] of grads) {
          const error = errorOf(grad, sum(key, factors));
          t.ok(
            error <= 3e-5,
            `${name}: gradient of ${key} is off by ${error}; tied ${tied}, ${JSON.stringify(setting)}`,
          );
        }
      }
    }
    model.dispose();
  }
});
