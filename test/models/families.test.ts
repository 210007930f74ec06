// What each family has of its own beside the numbers of the golden cases: fields that are absent, the names and shapes of
// its checkpoints, and what is refused.
import { cpSync, mkdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import t from "tap";
import { openModelFolder, type SafeDtype, writeModel } from "../../lib/checkpoint/safetensors.js";
import { ModelError } from "../../lib/errors.js";
import { exportFields, initModel, loadModel, saveModel } from "../../lib/models/index.js";
import { parseModelConfig } from "../../lib/models/registry.js";
import { type FamilyName, familyFields, familyNames } from "../sequence/families.js";
import { goldenFolder } from "./helpers.js";

const parse = (fields: Record<string, unknown>) => parseModelConfig(fields, { file: "m/config.json" });
const sizes = { vocab_size: 300, hidden_size: 32, intermediate_size: 40, num_hidden_layers: 6, num_attention_heads: 4 };
const small = (family: FamilyName) =>
  familyFields(family, {
    layers: 2,
    hidden: 16,
    heads: 4,
    kvHeads: 2,
    headDim: 6,
    intermediate: 20,
    vocabulary: 31,
    tied: false,
    window: 0,
  });

t.test("what absent fields mean", async (t) => {
  const gpt2 = parse({ model_type: "gpt2", vocab_size: 300, n_embd: 32, n_layer: 2, n_head: 4, pad_token_id: 5 });
  t.match(gpt2, {
    hiddenSize: 32,
    intermediateSize: 128,
    maxPositionEmbeddings: 1024,
    activation: "gelu_tanh",
    gated: false,
    norm: { op: "layer_norm", eps: 1e-5, bias: true },
    learnedPositions: true,
    ropes: [],
    layerRopes: [null, null],
    tieWordEmbeddings: true,
    padTokenId: null,
  });
  const neox = parse({ ...sizes, model_type: "gpt_neox" });
  t.match(neox, {
    rotaryDim: 2,
    parallelResidual: true,
    activation: "gelu",
    gated: false,
    queryKeyValueBias: true,
    outputBias: true,
    mlpBias: true,
    tieWordEmbeddings: false,
    ropes: [{ type: "default", theta: 10000 }],
  });
  t.match(parse({ ...sizes, model_type: "gpt_neox", rotary_emb_base: 77, rotary_pct: 1 }), {
    rotaryDim: 8,
    ropes: [{ theta: 77 }],
  });
  t.match(parse({ ...sizes, model_type: "olmo2" }), {
    normPlaces: "behind",
    norm: { op: "rms_norm", eps: 1e-5 },
    queryKeyNorm: { acrossHeads: true },
    padTokenId: 1,
  });
  t.match(parse({ ...sizes, vocab_size: 32064, model_type: "phi3" }), { padTokenId: 32000, rotaryDim: 8 });
  const gemma2 = parse({ ...sizes, model_type: "gemma2" });
  t.match(gemma2, {
    headDim: 256,
    numKeyValueHeads: 4,
    attentionScale: 1 / 16,
    attentionSoftcap: 50,
    logitSoftcap: 30,
    embeddingScale: Math.sqrt(32),
    norm: { plusOne: true },
    normPlaces: "both",
    windows: [4096, 0, 4096, 0, 4096, 0],
    tieWordEmbeddings: true,
    padTokenId: 0,
  });
  const gemma3 = parse({ ...sizes, model_type: "gemma3_text", rope_scaling: { rope_type: "linear", factor: 8 } });
  t.match(gemma3, {
    windows: [4096, 4096, 4096, 4096, 4096, 0],
    layerRopes: [1, 1, 1, 1, 1, 0],
    ropes: [
      { type: "linear", theta: 1e6, factor: 8 },
      { type: "default", theta: 1e4 },
    ],
    attentionSoftcap: null,
    logitSoftcap: null,
    queryKeyNorm: { acrossHeads: false, plusOne: true },
  });
});

t.test("yarn's ramp is always truncated where layers are of kinds", async (t) => {
  const yarn = { rope_type: "yarn", factor: 2, original_max_position_embeddings: 64, truncate: false };
  const kinds = {
    full_attention: { ...yarn, rope_theta: 9 },
    sliding_attention: { rope_type: "default", rope_theta: 5 },
  };
  t.match(parse({ ...sizes, model_type: "gemma3_text", rope_parameters: kinds }), {
    ropes: [
      { type: "yarn", theta: 9, truncate: true },
      { type: "default", theta: 5 },
    ],
  });
  t.match(parse({ ...sizes, model_type: "llama", max_position_embeddings: 128, rope_scaling: yarn }), {
    ropes: [{ truncate: false }],
  });
});

t.test("an override reaches the layers without a window alone", async (t) => {
  const fields = JSON.parse(readFileSync(path.join(goldenFolder, "gemma3/model/config.json"), "utf8"));
  const stretched = parseModelConfig(fields, { file: "m", override: { rope_theta: 7, max_position_embeddings: 999 } });
  t.match(stretched, { maxPositionEmbeddings: 999, ropes: [{ theta: 7 }, { theta: 100 }] });
});

t.test("fields that cannot be", async (t) => {
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ ...small("gpt2"), scale_attn_by_inverse_layer_idx: true }, /inverse_layer_idx is true; .*not implemented/],
    [{ ...small("gpt2"), n_positions: 9 }, /max_position_embeddings is 64 beside n_positions 9; .*learned/],
    [
      { ...small("gpt2"), num_key_value_heads: 2 },
      /num_key_value_heads is 2; but this family has as many as num_attention_heads, 4/,
    ],
    [{ ...small("gpt2"), head_dim: 8 }, /head_dim is 8; but this family's heads have 16 \/ 4 dims; leave it out/],
    [{ ...small("gpt_neox"), head_dim: 8 }, /head_dim is 8; but this family's heads/],
    [{ ...small("gpt2"), n_head: 3 }, /n_embd is 16; expected a multiple of num_attention_heads, 3/],
    [{ ...small("gpt2"), activation_function: "quick_gelu" }, /activation_function is "quick_gelu"/],
    [{ ...small("gpt_neox"), rotary_pct: 0.2 }, /rotary_pct is 0\.2; of heads of 4 dims 0 would turn/],
    [{ ...small("gpt_neox"), hidden_dropout: 0.1 }, /hidden_dropout is 0\.1; dropout/],
    [{ ...small("gemma2"), use_bidirectional_attention: true }, /use_bidirectional_attention is true/],
    [{ ...small("gemma3_text"), layer_types: ["full_attention"] }, /layer_types .*num_hidden_layers names, 2/],
    [{ ...small("gemma2"), query_pre_attn_scalar: 0 }, /query_pre_attn_scalar is 0; expected a number above 0/],
    [{ ...small("phi3"), rope_scaling: { type: "longrope", short_factor: [1], long_factor: [1, 2] } }, /short_factor/],
    [{ ...small("llama"), partial_rotary_factor: 0.5 }, /partial_rotary_factor is 0\.5/],
    [
      { ...small("mixtral"), num_experts_per_tok: 4 },
      /num_experts_per_tok is 4; expected at most num_local_experts, 3/,
    ],
    [{ ...small("mixtral"), num_experts_per_tok: 0 }, /num_experts_per_tok is 0/],
    [{ ...small("mixtral"), num_experts: 5 }, /num_experts is 5; but num_local_experts is 3/],
    [{ ...small("mixtral"), router_jitter_noise: 0.1 }, /router_jitter_noise is 0\.1/],
    [{ ...small("qwen2_moe"), mlp_only_layers: [2] }, /mlp_only_layers .*2 is no layer; there are 0 to 1/],
    [{ ...small("qwen2_moe"), router_aux_loss_coef: -1 }, /router_aux_loss_coef is -1/],
    [{ ...small("llama"), num_local_experts: 4 }, /num_local_experts is 4/],
  ];
  for (const [fields, message] of bad) t.throws(() => parse(fields), { message }, String(message));
});

t.test("every family is saved as it is loaded, in its own names", async (t) => {
  const dir = t.testdir();
  for (const family of familyNames) {
    const folder = path.join(dir, family);
    using model = initModel(small(family), { seed: 3 });
    if (model.config.norm.plusOne) {
      const norm = [...model.namedParameters()].find(([name]) => name === "model.norm.weight")?.[1];
      t.same(new Set((await norm?.data()) as Float32Array), new Set([0]), "0 stands for 1");
    }
    await saveModel(model, folder);
    using again = await loadModel(folder);
    const values = async (of: typeof model) =>
      Promise.all([...of.namedParameters()].map(async ([name, tensor]) => [name, await tensor.data()]));
    t.same(await values(again), await values(model), family);
    t.same(parse(exportFields(model)).ropes, model.config.ropes, `${family}: absent fields keep their meaning`);
  }
});

/** The checkpoint of a golden case with other tensors. */
async function changed(
  from: string,
  to: string,
  change: (name: string) => { name: string; shape?: number[]; edit?: (values: DataView) => void } | null,
  more: readonly string[] = [],
): Promise<string> {
  mkdirSync(to, { recursive: true });
  cpSync(path.join(goldenFolder, from, "model/config.json"), path.join(to, "config.json"));
  using weights = await openModelFolder(path.join(goldenFolder, from, "model"));
  const tensors = [];
  for (const entry of weights.entries.values()) {
    const other = change(entry.name);
    if (other === null) continue;
    const { name, shape = [...entry.shape], edit } = other;
    const bytes = new Uint8Array(await weights.readBytes(entry.name));
    edit?.(new DataView(bytes.buffer));
    const size = shape.reduce((product, length) => product * length, 4);
    tensors.push({ name, shape, dtype: entry.dtype as SafeDtype, load: () => bytes.subarray(0, size) });
  }
  const buffers = more.map((name) => ({
    name,
    shape: [1, 1, 2, 2],
    dtype: "U8" as SafeDtype,
    load: () => new Uint8Array(4),
  }));
  await writeModel(to, [...tensors, ...buffers]);
  return to;
}

t.test("checkpoints of GPT-2 without the first part of names, and with buffers", async (t) => {
  const bare = await changed(
    "gpt2",
    path.join(t.testdir(), "bare"),
    (name) => ({ name: name.replace("transformer.", "") }),
    ["h.0.attn.bias", "h.1.attn.masked_bias"],
  );
  using plain = await loadModel(path.join(goldenFolder, "gpt2/model"));
  using model = await loadModel(bare);
  const values = async (of: typeof model) =>
    Promise.all([...of.namedParameters()].map(async ([name, tensor]) => [name, await tensor.data()]));
  t.same(await values(model), await values(plain));
});

t.test("a router with a value that is no number is named", async (t) => {
  const dir = t.testdir();
  for (const [family, router, value] of [
    ["mixtral", "model.layers.1.block_sparse_moe.gate.weight", Number.NaN],
    ["qwen2_moe", "model.layers.3.mlp.gate.weight", Number.NEGATIVE_INFINITY],
  ] as const) {
    const folder = await changed(family, path.join(dir, family), (name) => ({
      name,
      ...(name === router && { edit: (values: DataView) => values.setFloat32(4 * 26, value, true) }),
    }));
    await t.rejects(loadModel(folder), {
      name: "ModelError",
      message: new RegExp(`tensor ${router}, which chooses experts, has ${value} at \\[1, 2\\]`),
    });
  }
});

t.test("fused tensors of another shape, and missing ones, are named", async (t) => {
  const dir = t.testdir();
  const fused = "transformer.h.1.attn.c_attn.weight";
  const wrong = await changed("gpt2", path.join(dir, "wrong"), (name) =>
    name === fused ? { name, shape: [24, 48] } : { name },
  );
  await t.rejects(loadModel(wrong), {
    message: new RegExp(`tensor ${fused} has shape \\[24, 48\\], but .*config\\.json asks for \\[24, 72\\]`),
  });
  const phi = "model.layers.0.self_attn.qkv_proj.weight";
  const split = await changed("phi3", path.join(dir, "split"), (name) => (name === phi ? null : { name }));
  const refused = await loadModel(split).catch((error: unknown) => error as Error);
  t.type(refused, ModelError);
  t.match((refused as Error).message, /lacks tensor model\.layers\.0\.self_attn\.qkv_proj\.weight/);
  const unknown = await changed("olmo2", path.join(dir, "unknown"), (name) => ({
    name: name.replace("layers.0.post_feedforward_layernorm", "layers.0.input_layernorm"),
  }));
  await t.rejects(loadModel(unknown), {
    message: /lacks tensor .*0\.post_feedforward_layernorm\.weight.*holds tensor .*0\.input_layernorm\.weight/,
  });
});
