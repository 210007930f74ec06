// What a token costs on the device, from the meta backend, whose peaks are those of the CPU to the byte: nothing may lie
// beside the tensors that the design names.
import t from "tap";
import { type CausalLM, device, initModel, type MemoryOptions } from "../../lib/index.js";

const meta = device("meta");
const [H, N, K, D, F, V, layers] = [512, 8, 4, 64, 1408, 32000, 8];
const fields = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: H,
  num_hidden_layers: layers,
  num_attention_heads: N,
  num_key_value_heads: K,
  head_dim: D,
  intermediate_size: F,
  vocab_size: V,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 4096,
  hidden_act: "silu",
};
/** Everything on; the input of the next layer is not fetched ahead. */
const full: MemoryOptions = {
  tileMlp: 2048,
  tileLoss: 512,
  checkpointEvery: 1,
  keepAttention: true,
  offload: "host",
  deviceBytes: 0,
  prefetch: false,
  headChunks: N,
};

/** Highest live bytes of a step's forward and of its backward, gradients there already. */
function peaks(model: CausalLM, memory: MemoryOptions, T: number): { forward: number; backward: number } {
  model.configureMemory(memory);
  const measure = <R>(run: () => R): [R, number] => {
    meta.resetPeaks();
    const result = run();
    return [result, meta.memory().peakLive];
  };
  const [loss, forward] = measure(() => model.loss({ inputIds: new Int32Array(T).fill(3) }));
  const [, backward] = measure(() => loss.backward());
  return { forward, backward };
}

/** Bytes that each token more costs, between lengths at which what grows with the length decides the peak. */
function bytesOfToken(model: CausalLM, memory: MemoryOptions, T: number): { forward: number; backward: number } {
  const [less, more] = [peaks(model, memory, T), peaks(model, memory, 2 * T)];
  return { forward: (more.forward - less.forward) / T, backward: (more.backward - less.backward) / T };
}

t.test("bytes a token of the full stack", async (t) => {
  for (const dtype of ["float32", "bfloat16"] as const) {
    const model = await initModel(fields, { device: "meta", dtype, seed: 1 });
    peaks(model, full, 1024); // gradients are there from now on
    const b = dtype === "float32" ? 4 : 2;
    // Ids and positions; log-sum-exp; delta and tickets of an attention backward.
    const small = 4 + 8 + 4 * N;
    const workspace = (heads: number) => 4 * heads + (4 * heads) / 128 + (dtype === "bfloat16" ? 4 * heads * D : 0);
    for (const headChunks of [1, 2, 4, N]) {
      const heads = N / headChunks;
      const groups = Math.max(1, (heads * K) / N);
      // x, dy, O (then dQ), dK and dV; of a chunk q, dO, K and V, and float32 sums where a group has several chunks.
      const whole = b * (3 * H + 2 * K * D);
      const sums = dtype === "bfloat16" && heads < N / K ? 2 * 4 * D : 0;
      const chunk = b * (2 * heads * D + 2 * groups * D) + sums;
      const { forward, backward } = bytesOfToken(model, { ...full, headChunks }, 131072);
      const expected = whole + chunk + small + workspace(heads);
      t.ok(Math.abs(backward - expected) <= 1, `${dtype}, ${headChunks} chunks: ${backward}, expected ${expected}`);
      // x, O, the residual and the result; targets beside what the backward has.
      t.ok(forward <= 4 * b * H + small + 4, `${dtype}, ${headChunks} chunks, forward: ${forward}`);
    }
    const ahead = bytesOfToken(model, { ...full, prefetch: true }, 131072);
    const behind = bytesOfToken(model, full, 131072);
    t.ok(Math.abs(ahead.backward - behind.backward - b * H) <= 1, "a prefetched input costs its bytes");
    model.dispose();
  }
});

t.test("a run without checkpoints keeps what cannot be made again without a product", async (t) => {
  const model = await initModel(fields, { device: "meta", dtype: "float32", seed: 1 });
  const plain: MemoryOptions = { ...full, tileMlp: 0, tileLoss: 0, checkpointEvery: 0, keepAttention: false };
  const baseline: MemoryOptions = { ...plain, offload: "none", headChunks: 1 };
  peaks(model, baseline, 64);
  const { forward } = bytesOfToken(model, baseline, 2048);
  // Of a layer x, q, K, V, O, the residual, gate, up and the log-sum-exp; the last hidden states, normed; logits.
  const layer = 4 * (2 * H + 2 * N * D + 2 * K * D + 2 * F) + 4 * N;
  const expected = layers * layer + 4 * 2 * H + 4 * V;
  t.ok(Math.abs(forward - expected) <= 64, `${forward}, expected ${expected}`);
  t.ok(forward <= 300 * 1024, `${forward / 1024} KiB a token`);
  model.dispose();
});
