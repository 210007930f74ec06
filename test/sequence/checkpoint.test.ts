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
  const counts = Object.fromEntries(Object.entries(cpu.opCounts()).map(([name, { calls }]) => [name, calls]));
  const grads = new Map<string, Float32Array>();
  for (const [name, parameter] of model.namedParameters() as Iterable<[string, Parameter]>) {
    const { grad } = parameter;
    if (grad === null) throw new Error(`${name} has no gradient`);
    grads.set(name, (await grad.data()).slice() as Float32Array);
  }
  await cpu.synchronize();
  return { loss, grads, counts, live: cpu.memory().live, hostPeak: cpu.memory("host").peak };
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
  const loss = 3;
  // Forward q, k, v, o, gate, up, down; backward twice as many.
  t.equal((await step(model, {})).counts.matmul, layers * 21 + loss);
  t.equal((await step(model, {})).counts.attention, layers);
  // q, k, v, o, gate and up a second time, down not.
  for (const tileMlp of [0, T]) {
    const kept = (await step(model, { tileMlp, checkpointEvery: 1, keepAttention: true })).counts;
    t.equal(kept.matmul, layers * (21 + 6) + loss, `checkpoint, tileMlp ${tileMlp}`);
    t.equal(kept.attention, layers, "attention once");
    t.equal(kept.attention_backward, layers);
  }
  const tiles = 3;
  const tiled = (await step(model, { tileMlp: 100, checkpointEvery: 1, keepAttention: true })).counts;
  t.equal(tiled.matmul, layers * (4 + 8 + 4 + tiles * (3 + 6 + 2)) + loss, "tiles: the MLP is not run a third time");
  t.equal((await step(model, { checkpointEvery: 1 })).counts.attention, 2 * layers, "attention not kept: twice");
  for (const checkpointEvery of [2, 3, 4, 5, 9])
    t.equal(
      (await step(model, { checkpointEvery })).counts.attention,
      2 * layers,
      `every ${checkpointEvery}: at most twice`,
    );
  const without = (await step(model, { tileMlp: 100 })).counts;
  t.equal(without.matmul, layers * (12 + tiles * (3 + 6 + 2)) + loss, "tiles alone: gate and up a second time");
  model.dispose();
});
