// Head chunks: the numbers of the plain run for every model, count of chunks and tile; and the memory that they leave.
import t from "tap";
import {
  type CausalLM,
  type DType,
  device,
  initModel,
  type MemoryOptions,
  ops,
  type Parameter,
  randn,
  scope,
  scopeAsync,
  type Tensor,
  tensor,
} from "../../lib/index.js";
import {
  type AttentionWeights,
  attentionChunks,
  headChunks,
  nearestDivisor,
} from "../../lib/sequence/attention_chunks.js";

const cpu = device("cpu");
const [T, V] = [41, 37];
const base = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 24,
  num_hidden_layers: 3,
  intermediate_size: 32,
  vocab_size: V,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 256,
  hidden_act: "silu",
  head_dim: 8,
};
const heads = (N: number, K: number) => ({ num_attention_heads: N, num_key_value_heads: K });
const qwen = (version: 2 | 3) => ({ architectures: [`Qwen${version}ForCausalLM`], model_type: `qwen${version}` });
/** Models by what is special about their attention. */
const models = {
  "4 heads": { ...base, ...heads(4, 4) },
  "4 of 2": { ...base, ...heads(4, 2) },
  "4 of 1": { ...base, ...heads(4, 1) },
  "12 of 4": { ...base, ...heads(12, 4) },
  biases: { ...base, ...heads(4, 2), ...qwen(2) },
  "biases everywhere": { ...base, ...heads(4, 2), attention_bias: true, mlp_bias: true },
  "norms over heads": { ...base, ...heads(6, 2), ...qwen(3) },
  window: {
    ...base,
    ...heads(6, 3),
    architectures: ["MistralForCausalLM"],
    model_type: "mistral",
    sliding_window: 7,
  },
};
const inputIds = Int32Array.from({ length: T }, (_, i) => (i * 7919 + (i % 5)) % V);
const whole = { inputIds };
const packed = { inputIds, cuSeqlens: BigInt64Array.from([0n, 17n, 18n, 41n]) };

const plain: Required<Omit<MemoryOptions, "format" | "directory" | "prefetch" | "states">> = {
  tileMlp: 0,
  tileLoss: 0,
  checkpointEvery: 0,
  keepAttention: false,
  offload: "none",
  deviceBytes: 0,
  headChunks: 1,
};

interface Outcome {
  loss: number;
  grads: Map<string, Float32Array>;
  live: number;
}

/** Loss and gradients of one or more passes. */
async function run(model: CausalLM, memory: MemoryOptions, batch = whole, passes = 1): Promise<Outcome> {
  model.configureMemory({ ...plain, ...memory });
  model.zeroGrad();
  let loss = 0;
  for (let i = 0; i < passes; i++) {
    const value = model.loss(batch);
    value.backward();
    loss += await value.item();
  }
  const grads = new Map<string, Float32Array>();
  for (const [name, { grad }] of model.namedParameters() as Iterable<[string, Parameter]>) {
    if (grad === null) throw new Error(`${name} has no gradient`);
    grads.set(name, (await grad.data()).slice() as Float32Array);
  }
  await cpu.synchronize();
  return { loss, grads, live: cpu.memory().live };
}

/** The largest max |a - b| / rms(b) of all gradients. */
function difference(a: Outcome, b: Outcome): number {
  let most = 0;
  for (const [name, grad] of b.grads) {
    const other = a.grads.get(name) as Float32Array;
    let squares = 0;
    let worst = 0;
    grad.forEach((value, i) => {
      worst = Math.max(worst, Math.abs((other[i] as number) - value));
      squares += value * value;
    });
    most = Math.max(most, worst / (Math.sqrt(squares / grad.length) || 1));
  }
  return most;
}

const modelOf = async (fields: object, dtype: DType = "float32"): Promise<CausalLM> => {
  const model = await initModel(fields as Parameters<typeof initModel>[0], { device: "cpu", dtype, seed: 3 });
  // Biases and norms begin as 0 and 1, which hides mistakes.
  let seed = 5;
  for (const [name, parameter] of model.namedParameters() as Iterable<[string, Parameter]>)
    if (parameter.ndim === 1) {
      scope(() => {
        const noise = randn(parameter.shape, { seed: seed++ }).mul(0.3);
        parameter.copyFrom(noise.add(name.endsWith("bias") ? 0 : 1));
      });
    }
  return model;
};

t.test("chunks take every head once, and open and close every group once", async (t) => {
  for (const [N, K] of [
    [4, 4],
    [8, 2],
    [12, 4],
    [12, 1],
    [28, 4],
  ] as const)
    for (let count = 1; count <= N; count++) {
      if (N % count !== 0) continue;
      const runs = headChunks(N, K, count).flatMap((chunk) => chunk.runs);
      t.same(
        runs.flatMap((r) => Array.from({ length: r.heads }, (_, i) => [r.head + i, Math.floor(i / (N / K)) + r.group])),
        Array.from({ length: N }, (_, head) => [head, Math.floor(head / (N / K))]),
        `${N} heads of ${K} in ${count} chunks`,
      );
      const groups = (which: "opens" | "closes") => runs.reduce((sum, r) => sum + (r[which] ? r.groups : 0), 0);
      t.same([groups("opens"), groups("closes")], [K, K]);
    }
  t.same(
    [5, 7, 12, 100].map((bound) => nearestDivisor(12, bound)),
    [4, 6, 12, 12],
    "what does not divide is lowered",
  );
});

t.test("the fused half of a layer is the composition of its ops", (t) =>
  scopeAsync(async () => {
    const [H, N, K, D] = [24, 6, 3, 8];
    const made = (shape: number[], seed: number) => randn(shape, { seed, requiresGrad: true });
    const x = made([T, H], 1);
    const weights: AttentionWeights = {
      norm: made([H], 2),
      normBias: null,
      q: made([N * D, H], 3),
      k: made([K * D, H], 4),
      v: made([K * D, H], 5),
      o: made([H, N * D], 6),
      qBias: made([N * D], 7),
      kBias: made([K * D], 8),
      vBias: made([K * D], 9),
      oBias: made([H], 10),
      qNorm: made([D], 11),
      kNorm: made([D], 12),
      outNorm: null,
    };
    const positions = tensor(
      Array.from({ length: T }, (_, i) => BigInt(i % 18)),
      { dtype: "int64" },
    );
    const inverseFrequencies = tensor([1, 0.3, 0.1, 0.02]);
    const cuSeqlens = tensor([0n, 18n, 36n, 41n], { dtype: "int64" });
    const common = {
      positions,
      inverseFrequencies,
      cuSeqlens,
      attentionFactor: 1.2,
      window: 9,
      scale: D ** -0.5,
      softcap: 1.5,
      norm: { op: "rms_norm", eps: 1e-5, plusOne: false },
      headNorm: { op: "rms_norm", eps: 1e-4, plusOne: false, acrossHeads: false },
      outNorm: null,
    } as const;
    const plainly = () => {
      const w = weights as { [name in keyof AttentionWeights]: Tensor };
      const n = ops.rmsNorm(x, w.norm, common.norm.eps);
      const turned = (weight: Tensor, bias: Tensor, norm: Tensor, count: number) =>
        ops.rope(
          ops.rmsNorm(ops.linear(n, weight, bias).view([T, count, D]), norm, common.headNorm.eps),
          positions,
          inverseFrequencies,
          { scaling: common.attentionFactor },
        );
      const o = ops.attention(
        turned(w.q, w.qBias, w.qNorm, N),
        turned(w.k, w.kBias, w.kNorm, K),
        ops.linear(n, w.v, w.vBias).view([T, K, D]),
        { window: common.window, softcap: common.softcap, cuSeqlens },
      );
      return x.add(ops.linear(o.view([T, N * D]), w.o, w.oBias));
    };
    const leaves = [x, ...Object.values(weights).filter((weight) => weight !== null)] as Tensor[];
    const upstream = randn([T, H], { seed: 20 });
    const gradients = async (fn: () => Tensor) => {
      for (const leaf of leaves) {
        // Left to the garbage collector, its bytes would go while a later test counts them.
        leaf.grad?.dispose();
        leaf.grad = null;
      }
      const y = fn();
      const value = (await y.data()) as Float32Array;
      y.backward(upstream);
      return [value, ...(await Promise.all(leaves.map(async (leaf) => (await leaf.grad?.data()) as Float32Array)))];
    };
    const before = (await upstream.data()) as Float32Array;
    const expected = await gradients(plainly);
    for (const chunks of [1, 2, 3, 6])
      for (const rows of [0, 16, 1]) {
        const sizes = { heads: N, kvHeads: K, headDim: D, chunks, rows };
        const got = await gradients(() => attentionChunks(x, weights, { ...common, ...sizes }));
        const worst = Math.max(
          ...expected.map((e, i) => {
            const rms = Math.sqrt(e.reduce((sum, value) => sum + value * value, 0) / e.length);
            return e.reduce((most, value, j) => Math.max(most, Math.abs((got[i]?.[j] as number) - value)), 0) / rms;
          }),
        );
        t.ok(worst <= 1e-5, `${chunks} chunks, tiles of ${rows}: ${worst}`);
      }
    t.same(await upstream.data(), before, "a gradient that others hold is not written");
    for (const leaf of leaves) leaf.grad?.dispose();
  }),
);

t.test("a graph that is kept is not overwritten by its first walk", async (t) => {
  const model = await modelOf(models["4 of 2"]);
  for (const memory of [{}, { headChunks: 4, tileMlp: 9, checkpointEvery: 1, keepAttention: true }]) {
    const once = await run(model, memory);
    model.zeroGrad();
    const loss = model.loss(whole);
    loss.backward(null, { retainGraph: true });
    loss.backward();
    for (const [name, parameter] of model.namedParameters() as Iterable<[string, Parameter]>) {
      const twice = (await parameter.grad?.data()) as Float32Array;
      const single = once.grads.get(name) as Float32Array;
      const rms = Math.sqrt(single.reduce((sum, value) => sum + value * value, 0) / single.length);
      const worst = single.reduce((most, value, i) => Math.max(most, Math.abs((twice[i] as number) - 2 * value)), 0);
      t.ok(worst <= 1e-5 * rms, `${name}: ${worst / rms}`);
    }
  }
  model.dispose();
});

t.test("every model, count of chunks and tile gives the plain run's loss and gradients", async (t) => {
  for (const [name, fields] of Object.entries(models)) {
    const model = await modelOf(fields);
    const N = fields.num_attention_heads;
    for (const batch of [whole, packed]) {
      const expected = await run(model, {}, batch);
      for (const chunks of [1, 2, 3, 5, 6, N])
        for (const tileMlp of [0, 16])
          for (const memory of [{}, { checkpointEvery: 1, keepAttention: true }]) {
            const got = await run(model, { ...memory, headChunks: chunks, tileMlp }, batch);
            const which = `${name}, ${batch === packed ? "packed" : "one document"}, ${chunks} chunks, tiles of ${tileMlp}, ${JSON.stringify(memory)}`;
            t.ok(Math.abs(got.loss - expected.loss) <= 1e-6 * expected.loss, `loss: ${which}`);
            const worst = difference(got, expected);
            t.ok(worst <= 1e-4, `gradients (${worst}): ${which}`);
            t.equal(got.live, expected.live, `live bytes: ${which}`);
          }
    }
    model.dispose();
  }
});

t.test("chunks with every other setting", async (t) => {
  const model = await modelOf(models["12 of 4"]);
  for (const passes of [1, 3]) {
    const expected = await run(model, {}, packed, passes);
    for (const tileMlp of [0, 16, 1, 100])
      for (const checkpointEvery of [1, 2, 3])
        for (const keepAttention of checkpointEvery === 1 ? [false, true] : [false])
          for (const offload of ["none", "host"] as const) {
            const setting = { tileMlp, tileLoss: 16, checkpointEvery, keepAttention, offload, headChunks: 6 };
            const got = await run(model, setting, packed, passes);
            const worst = difference(got, expected);
            t.ok(worst <= 1e-4, `gradients (${worst}): ${passes} passes, ${JSON.stringify(setting)}`);
            t.equal(got.live, expected.live, "live bytes");
            t.equal(cpu.memory("host").live, 0, "host bytes");
          }
  }
  model.dispose();
});

t.test("bfloat16: chunks are as far from float32 as the plain run is", async (t) => {
  for (const name of ["4 of 1", "12 of 4", "norms over heads"] as const) {
    const [exact, model] = [await modelOf(models[name]), await modelOf(models[name], "bfloat16")];
    // The same numbers: those that bfloat16 has.
    const rounded = new Map(model.namedParameters() as Iterable<[string, Parameter]>);
    for (const [key, parameter] of exact.namedParameters() as Iterable<[string, Parameter]>)
      parameter.copyFrom(rounded.get(key) as Tensor);
    const expected = await run(exact, {}, packed);
    const allowed = 1.5 * difference(await run(model, {}, packed), expected) + 1e-3;
    for (const headChunks of [1, 2, 3, 6, 12])
      for (const memory of [{}, { checkpointEvery: 1, keepAttention: true, tileMlp: 16 }]) {
        const worst = difference(await run(model, { ...memory, headChunks }, packed), expected);
        t.ok(
          worst <= allowed,
          `${name}, ${headChunks} chunks, ${JSON.stringify(memory)}: ${worst}, allowed ${allowed}`,
        );
      }
    exact.dispose();
    model.dispose();
  }
});

t.test("each parameter gets its gradient when it alone is trained", async (t) => {
  for (const name of ["biases everywhere", "norms over heads"] as const) {
    const model = await modelOf({ ...models[name], num_hidden_layers: 2 });
    const expected = await run(model, {});
    const all = [...model.namedParameters()] as [string, Parameter][];
    const chunked = { headChunks: 2, tileMlp: 16, checkpointEvery: 1, keepAttention: true };
    for (const [key, trained] of all)
      for (const memory of [{}, chunked]) {
        for (const [, parameter] of all) parameter.requiresGrad = parameter === trained;
        model.configureMemory({ ...plain, ...memory });
        model.zeroGrad();
        model.loss(whole).backward();
        t.ok(
          all.every(([, parameter]) => (parameter.grad === null) === (parameter !== trained)),
          `${name}: ${key} and no other`,
        );
        const grads = new Map([[key, (await trained.grad?.data()) as Float32Array]]);
        const reference = new Map([[key, expected.grads.get(key) as Float32Array]]);
        const worst = difference({ ...expected, grads }, { ...expected, grads: reference });
        t.ok(worst <= 1e-4, `${name}, ${JSON.stringify(memory)}: ${key}: ${worst}`);
        model.zeroGrad();
      }
    model.dispose();
  }
});
