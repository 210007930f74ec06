// The formulas of docs/memory.md, held to what a step on `meta` asks for: bytes that a token and a layer add.

import t from "tap";
import { parseConfigObject } from "../../lib/config/index.js";
import { assumedCuda, type CudaProfile } from "../../lib/tensor/device.js";
import { fullWorkload, measure } from "../../lib/train/measure.js";
import type { MemoryPlan } from "../../lib/train/memory_plan.js";
import { resolveModel } from "../../lib/train/model.js";

const [H, N, K, D, F, V] = [512, 8, 2, 64, 1536, 4096];
const tiles = { tileMlp: 1024, tileLoss: 1024 };
const plain: MemoryPlan = {
  ...{ tileMlp: 0, tileLoss: 0, checkpointEvery: 0, keepAttention: false, offload: "none", deviceBytes: 0 },
  ...{ format: "native", directory: null, prefetch: true, headChunks: 1 },
  states: { optimizer: "none", params: "none", gradients: "none" },
};

type Tier = "device" | "host";

/** Bytes by category at the highest, of so many layers and tokens. */
async function bytesOf(
  dtype: "float32" | "bfloat16",
  plan: MemoryPlan,
  layers: number,
  tokens: number,
  tier: Tier,
  profile: CudaProfile | null = assumedCuda,
) {
  const config = parseConfigObject({
    model: {
      init: {
        ...{ model_type: "llama", vocab_size: V, hidden_size: H, intermediate_size: F, num_hidden_layers: layers },
        ...{ num_attention_heads: N, num_key_value_heads: K, head_dim: D, max_position_embeddings: 1 << 20 },
      },
    },
    data: { train: ["none"], sequenceLength: tokens },
    train: { steps: 1 },
    output: { dir: "none" },
  });
  const model = await resolveModel(config);
  const on = profile === null ? undefined : ({ profile, attention: "native", deterministic: false } as const);
  const { categories } = measure({ model, dtype, train: config.train, on }, plan, fullWorkload(config));
  return categories[tier];
}

type Bytes = Awaited<ReturnType<typeof bytesOf>>;
type Category = keyof Bytes;

/** What one more layer adds to what one more token takes. */
async function ofTokenAndLayer(
  dtype: "float32" | "bfloat16",
  plan: MemoryPlan,
  category: Category,
  tier: Tier = "device",
): Promise<number> {
  const [few, many] = [1 << 17, 1 << 18];
  const slope = async (layers: number) => {
    const [short, long] = [
      await bytesOf(dtype, plan, layers, few, tier),
      await bytesOf(dtype, plan, layers, many, tier),
    ];
    return ((long[category] ?? 0) - (short[category] ?? 0)) / (many - few);
  };
  return (await slope(8)) - (await slope(7));
}

/** To a page of each of some tensors. */
const near = (found: number, wanted: number): boolean => Math.abs(found / wanted - 1) < 1e-3;

t.test("bytes of a token and a layer", async (t) => {
  for (const dtype of ["float32", "bfloat16"] as const) {
    const e = dtype === "float32" ? 4 : 2;
    const kept = e * N * D + 4 * N;
    const every: MemoryPlan = { ...plain, ...tiles, checkpointEvery: 1 };
    const away: MemoryPlan = { ...every, offload: "host" };
    for (const [name, plan, category, tier, wanted] of [
      ["plain training", plain, "activations", "device", e * (2 * H + 2 * N * D + 2 * K * D + 2 * F) + 4 * N],
      ["a checkpoint", every, "checkpoints", "device", e * H],
      ["with attention", { ...every, keepAttention: true }, "checkpoints", "device", e * H + kept],
      ["on the host", { ...away, keepAttention: true }, "checkpoints", "host", e * H + kept],
    ] as const) {
      const found = await ofTokenAndLayer(dtype, plan, category, tier);
      t.ok(near(found, wanted), `${dtype}, ${name}: ${found}, by the formula ${wanted}`);
    }
    const nothing = await ofTokenAndLayer(dtype, every, "activations");
    t.equal(nothing, 0, `${dtype}: what is run again is that of one layer`);
  }
});

t.test("bytes of a weight", async (t) => {
  for (const [dtype, params, optimizer] of [
    ["float32", 4, 8],
    ["bfloat16", 2, 12],
  ] as const) {
    // On the CPU: the pages of a GPU are as large as these tensors.
    const plan: MemoryPlan = {
      ...{ ...plain, ...tiles, checkpointEvery: 1 },
      states: { optimizer: "host", params: "host", gradients: "host" },
    };
    const [few, many] = [
      await bytesOf(dtype, plan, 7, 4096, "host", null),
      await bytesOf(dtype, plan, 8, 4096, "host", null),
    ];
    const layer = 2 * H + H * (2 * N * D + 2 * K * D) + 3 * H * F;
    for (const [category, bytes] of [
      ["params", params],
      ["optimizer", optimizer],
      ["grads", 4],
    ] as const) {
      const found = ((many[category] ?? 0) - (few[category] ?? 0)) / layer;
      t.ok(near(found, bytes), `${dtype}, ${category}: ${found}, by the table ${bytes}`);
    }
  }
});
