// Checkpoints, kept attention, segments and offload: the same numbers as the plain run, and no product too many.
import t from "tap";
import { type CausalLM, device, initModel, type MemoryOptions, type Parameter } from "../../lib/index.js";

const cpu = device("cpu");
const layers = 5;
const T = 300;
const fields = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 64,
  num_hidden_layers: layers,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: 96,
  vocab_size: 211,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 4096,
  hidden_act: "silu",
};
const inputIds = Int32Array.from({ length: T }, (_, i) => (i * 7919 + (i % 13)) % 211);
const batch = { inputIds, cuSeqlens: BigInt64Array.from([0n, 130n, 131n, 300n]) };

interface Outcome {
  loss: number;
  grads: Map<string, Float32Array>;
  counts: Record<string, number>;
  /** Of all matrix products but attention's. */
  flops: number;
  live: number;
  hostPeak: number;
}

/** max |a - b| over the rms of b. */
function errorOf(a: Float32Array, b: Float32Array): number {
  let worst = 0;
  let squares = 0;
  b.forEach((value, i) => {
    worst = Math.max(worst, Math.abs((a[i] as number) - value));
    squares += value * value;
  });
  return worst / Math.sqrt(squares / b.length);
}

async function step(model: CausalLM, memory: MemoryOptions, passes = 1): Promise<Outcome> {
  model.configureMemory({
    tileMlp: 0,
    tileLoss: 0,
    checkpointEvery: 0,
    keepAttention: false,
    offload: "none",
    deviceBytes: 0,
    headChunks: 1,
    ...memory,
  });
  for (const parameter of model.parameters()) {
    parameter.grad?.dispose();
    parameter.grad = null;
  }
  cpu.resetOpCounts();
  cpu.resetPeaks();
  let loss = 0;
  for (let i = 0; i < passes; i++) {
    const value = model.loss(batch);
    value.backward();
    loss += await value.item();
  }
  const flops = cpu.opCounts().matmul?.flops ?? 0;
  const counts = Object.fromEntries(Object.entries(cpu.opCounts()).map(([name, { calls }]) => [name, calls]));
  const grads = new Map<string, Float32Array>();
  for (const [name, parameter] of model.namedParameters() as Iterable<[string, Parameter]>) {
    const { grad } = parameter;
    if (grad === null) throw new Error(`${name} has no gradient`);
    grads.set(name, (await grad.data()).slice() as Float32Array);
  }
  await cpu.synchronize();
  return { loss, grads, counts, flops, live: cpu.memory().live, hostPeak: cpu.memory("host").peak };
}

t.test("every setting gives the plain run's loss and gradients, and leaves nothing behind", async (t) => {
  for (const tied of [false, true]) {
    const model = await initModel(
      { ...fields, tie_word_embeddings: tied },
      { device: "cpu", dtype: "float32", seed: 1 },
    );
    for (const passes of [1, 3]) {
      const plain = await step(model, {}, passes);
      for (const tileMlp of [0, 70])
        for (const checkpointEvery of [1, 2, 3, 9])
          for (const keepAttention of checkpointEvery === 1 ? [false, true] : [false])
            for (const [offload, deviceBytes] of [
              ["none", 0],
              ["host", 0],
              ["host", 2 * T * 64 * 4],
            ] as const) {
              const setting = { tileMlp, tileLoss: 110, checkpointEvery, keepAttention, offload, deviceBytes };
              const name = `tied ${tied}, ${passes} passes, ${JSON.stringify(setting)}`;
              const other = await step(model, setting, passes);
              t.ok(Math.abs(other.loss - plain.loss) <= 1e-6 * Math.abs(plain.loss), `loss: ${name}`);
              const worst = Math.max(
                ...[...plain.grads].map(([key, grad]) => errorOf(other.grads.get(key) as Float32Array, grad)),
              );
              t.ok(worst <= 3e-5, `gradients (${worst}): ${name}`);
              t.equal(other.live, plain.live, `live bytes: ${name}`);
              t.equal(cpu.memory("host").live, 0, `host bytes: ${name}`);
              if (offload === "host" && deviceBytes === 0) t.ok(other.hostPeak > 0, `went out: ${name}`);
            }
    }
    model.dispose();
  }
});

t.test("nothing is computed more often than its values are needed", async (t) => {
  const model = await initModel(fields, { device: "cpu", dtype: "float32", seed: 1 });
  // FLOPs of one product of each kind, forward; a backward takes twice as many. q and o, k and v, the MLP's, the loss's.
  const [H, D, F, V] = [64, 16, 96, 211];
  const product = (inner: number, outer: number) => 2 * T * inner * outer;
  const [q, k, mlp, head] = [product(H, 4 * D), product(H, 2 * D), product(H, F), product(H, V)];
  const layer = 2 * q + 2 * k + 3 * mlp;
  const plain = layers * 3 * layer + 3 * head;
  // Again what the backward reads: q, k, v, o, gate and up, but not down.
  const again = layers * (2 * q + 2 * k + 2 * mlp);
  t.equal((await step(model, {})).flops, plain);
  t.equal((await step(model, {})).counts.attention, layers);
  t.equal((await step(model, {})).counts.matmul, layers * 7 * 3 + 3, "no product in parts");
  for (const tileMlp of [0, T, 100, 7])
    for (const headChunks of [1, 2, 4]) {
      const name = `tileMlp ${tileMlp}, headChunks ${headChunks}`;
      const kept = await step(model, { tileMlp, headChunks, checkpointEvery: 1, keepAttention: true });
      t.equal(kept.flops, plain + again, `checkpoint, ${name}`);
      const calls = layers * headChunks;
      t.equal(kept.counts.attention, calls, `attention once: ${name}`);
      t.equal(kept.counts.attention_backward, calls, name);
      // Without attention's results its chunks are made twice; and their q, k and v a third time, unless all are there.
      const chunked = headChunks > 1 ? layers * (q + 2 * k) : 0;
      const anew = await step(model, { tileMlp, headChunks, checkpointEvery: 1 });
      t.equal(anew.flops, plain + again + chunked, `nothing kept, ${name}`);
      t.equal(anew.counts.attention, 2 * calls, `attention not kept: twice: ${name}`);
      const tiled = tileMlp > 0 && tileMlp < T ? layers * 2 * mlp : 0;
      t.equal(
        (await step(model, { tileMlp, headChunks })).flops,
        plain + tiled + chunked,
        `no checkpoint: gate and up of tiles, q, k and v of chunks again: ${name}`,
      );
    }
  t.equal((await step(model, { checkpointEvery: 1, keepAttention: true })).counts.matmul, layers * 27 + 3);
  for (const checkpointEvery of [2, 3, 4, 5, 9]) {
    const every = await step(model, { checkpointEvery });
    t.equal(every.counts.attention, 2 * layers, `every ${checkpointEvery}: at most twice`);
    const inner = layers - Math.ceil(layers / checkpointEvery);
    // Of a segment all but the last layer is run in full once more.
    t.equal(every.flops, plain + again + inner * layer, `every ${checkpointEvery}`);
  }
  model.dispose();
});
