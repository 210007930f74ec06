// Packed documents: the loss and gradients of the same documents run apart, for every family and several settings.
import t from "tap";
import { type CausalLM, device, initModel, type MemoryOptions } from "../../lib/index.js";
import { errorOf } from "./settings.js";

const vocabulary = 61;
const common = {
  hidden_size: 32,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  intermediate_size: 40,
  vocab_size: vocabulary,
  max_position_embeddings: 512,
  initializer_range: 0.2,
};
const window = 6;
const families: [name: string, fields: Record<string, unknown>][] = [
  ["llama", { model_type: "llama" }],
  ["llama, tied", { model_type: "llama", tie_word_embeddings: true }],
  ["mistral, window", { model_type: "mistral", sliding_window: window }],
  ["mistral, a window of itself alone", { model_type: "mistral", sliding_window: 1 }],
  [
    "qwen2, window in the upper layers",
    { model_type: "qwen2", use_sliding_window: true, sliding_window: window, max_window_layers: 1 },
  ],
  ["qwen3", { model_type: "qwen3", tie_word_embeddings: true }],
];
const settings: MemoryOptions[] = [
  {},
  { tileMlp: 7, tileLoss: 9 },
  { tileMlp: 1, tileLoss: 1, checkpointEvery: 1, keepAttention: true, offload: "host" },
  { tileMlp: 11, checkpointEvery: 1, offload: "host", deviceBytes: 5000 },
  { tileLoss: 5, checkpointEvery: 2 },
  { tileMlp: 6, tileLoss: 8, headChunks: 4 },
  { headChunks: 2, checkpointEvery: 1, keepAttention: true, offload: "disk", prefetch: false },
  { headChunks: 4, checkpointEvery: 2, offload: "host", states: { params: "host", gradients: "host" } },
];
const off: MemoryOptions = {
  tileMlp: 0,
  tileLoss: 0,
  headChunks: 1,
  checkpointEvery: 0,
  keepAttention: false,
  offload: "none",
  deviceBytes: 0,
  prefetch: true,
  states: { params: "none", gradients: "none" },
};

/** Of one token too, at the start, in the middle and at the end. */
const lengths = [1, 13, 2, 1, 20, 7, 1];
const ids = (length: number, salt: number) =>
  Int32Array.from({ length }, (_, i) => (Math.imul(i + 97 * salt + 1, 0x9e3779b1) >>> 8) % vocabulary);
const documents = lengths.map(ids);
const labels = documents.map((document) => document.map((id, i) => (i % 6 === 4 ? -100 : id)));
const denominator = labels.reduce((sum, row) => sum + row.subarray(1).filter((label) => label !== -100).length, 0);

async function gradients(model: CausalLM, pass: () => number | Promise<number>) {
  for (const parameter of model.parameters()) {
    for (const grad of [parameter.grad, parameter.hostGrad]) grad?.dispose();
    parameter.grad = null;
    parameter.hostGrad = null;
  }
  const loss = await pass();
  const grads = new Map<string, Float32Array>();
  for (const [name, parameter] of model.namedParameters()) {
    const grad = parameter.hostGrad ?? parameter.grad;
    if (grad === null) throw new Error(`${name} has no gradient`);
    grads.set(name, ((await grad.data()) as Float32Array).slice());
  }
  return { loss, grads };
}

for (const [name, fields] of families)
  t.test(name, async (t) => {
    const model = initModel({ ...common, ...fields }, { device: "cpu", dtype: "float32", seed: 3 });
    const apart = await gradients(model, async () => {
      let sum = 0;
      for (const [i, inputIds] of documents.entries()) {
        const loss = model.loss({ inputIds, labels: labels[i] as Int32Array }, { denominator });
        loss.backward();
        sum += await loss.item();
      }
      return sum;
    });
    for (const setting of settings) {
      model.configureMemory({ ...off, ...setting });
      const packed = await gradients(model, async () => {
        const loss = model.loss({ inputIds: documents, labels }, { denominator });
        loss.backward();
        return loss.item();
      });
      const text = JSON.stringify(setting);
      t.ok(
        Math.abs(packed.loss - apart.loss) <= 1e-6 * apart.loss,
        `loss ${packed.loss}, apart ${apart.loss}: ${text}`,
      );
      for (const [key, grad] of apart.grads) {
        const error = errorOf(packed.grads.get(key) ?? [], grad);
        t.ok(error <= 3e-5, `gradient of ${key} is off by ${error}: ${text}`);
      }
      // Two micro-batches of packed documents are the same sum again.
      const halves = await gradients(model, async () => {
        let sum = 0;
        for (const [from, to] of [
          [0, 4],
          [4, 7],
        ]) {
          const batch = { inputIds: documents.slice(from, to), labels: labels.slice(from, to) };
          const loss = model.loss(batch, { denominator });
          loss.backward();
          sum += await loss.item();
        }
        return sum;
      });
      const worst = Math.max(...[...apart.grads].map(([key, grad]) => errorOf(halves.grads.get(key) ?? [], grad)));
      t.ok(worst <= 3e-5, `two packed micro-batches: off by ${worst}: ${text}`);
    }
    // Without document bounds the numbers are others: the comparison above would see a leak.
    const leaking = await gradients(model, async () => {
      const inputIds = Int32Array.from(documents.flatMap((document) => [...document]));
      const loss = model.loss(
        { inputIds, labels: Int32Array.from(labels.flatMap((row) => [...row])) },
        { denominator },
      );
      loss.backward();
      return loss.item();
    });
    const key = "model.layers.0.self_attn.v_proj.weight";
    t.ok(errorOf(leaking.grads.get(key) ?? [], apart.grads.get(key) as Float32Array) > 1e-2, "documents matter");
    model.dispose();
  });

t.test("nothing stays", async (t) => {
  const cpu = device("cpu");
  await cpu.synchronize();
  t.equal(cpu.memory("host").live, 0);
});
