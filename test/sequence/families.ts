// A small model of each family, with what is its own: the fields of its config.json. Some are trained by adapters.
import { binding } from "../../lib/binding.js";
import type { AdapterConfig } from "../../lib/models/adapter.js";
import type { CausalLM } from "../../lib/models/index.js";
import { randomKey } from "../../lib/models/random_key.js";
import { untracked } from "../../lib/tensor/scope.js";
import { flatPart } from "../../lib/tensor/tiers.js";

/** With grouped heads, a window or a head size of its own only where the family has that. */
export interface FamilySizes {
  layers: number;
  hidden: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  intermediate: number;
  vocabulary: number;
  tied: boolean;
  /** Tokens, 0 for none. */
  window: number;
}

export const familyNames = [
  "llama",
  "gpt2",
  "gpt_neox",
  "phi3",
  "olmo2",
  "gemma2",
  "gemma3_text",
  "mixtral",
  "qwen2_moe",
  "llama by adapters",
  "phi3 by adapters",
  "qwen2_moe by adapters",
] as const;
export type FamilyName = (typeof familyNames)[number];

/** The adapters that a model is trained by; null: it is trained itself. */
export function adapterOf(family: FamilyName): AdapterConfig | null {
  if (!family.endsWith(" by adapters")) return null;
  return {
    rank: 3,
    alpha: 5,
    targetModules: family.startsWith("llama") ? ["q_proj", "o_proj", "up_proj", "down_proj", "lm_head"] : "all-linear",
    // Tied or not: the embedding is trained, and of a tied head only that.
    modulesToSave: family.startsWith("phi3") ? ["embed_tokens"] : [],
    dropout: family.startsWith("phi3") ? 0 : 0.2,
    rslora: family.startsWith("phi3"),
    init: true,
    baseFormat: family.startsWith("llama") ? "int8" : family.startsWith("phi3") ? null : "float8",
    path: null,
    file: "adapter",
  };
}

/** Numbers for B, which begins as 0, so that all gradients are there from the first step on. */
export function randomAdapters(model: CausalLM): void {
  for (const { leaf, segments } of model.trained)
    for (const { name, begin, count, offset } of segments) {
      if (!name.includes("lora_B")) continue;
      using part = untracked(() => flatPart(leaf, offset, count));
      binding.ops.random(part.native(), 0, 0.1, randomKey(name, 3), begin, true);
    }
}

export function familyFields(name: FamilyName, sizes: FamilySizes): Record<string, unknown> {
  const family = name.replace(" by adapters", "");
  const { hidden, heads, kvHeads, layers, intermediate, window, tied, headDim } = sizes;
  const usual = {
    model_type: family,
    vocab_size: sizes.vocabulary,
    hidden_size: hidden,
    intermediate_size: intermediate,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    max_position_embeddings: 4096,
    tie_word_embeddings: tied,
    pad_token_id: null,
    // Scores far enough from zero that the gradients of q and k are no rounding noise.
    initializer_range: 0.2,
  };
  const grouped = { ...usual, num_key_value_heads: kvHeads };
  const gemma = {
    ...grouped,
    head_dim: headDim,
    query_pre_attn_scalar: headDim + 1,
    sliding_window: window || 5,
  };
  switch (family) {
    case "llama":
      return window > 0
        ? { ...grouped, model_type: "mistral", head_dim: headDim, rms_norm_eps: 1e-5, sliding_window: window }
        : { ...grouped, head_dim: headDim, rms_norm_eps: 1e-5 };
    case "gpt2": {
      const { hidden_size: n_embd, num_hidden_layers: n_layer, num_attention_heads: n_head, ...rest } = usual;
      return { ...rest, n_embd, n_layer, n_head, n_positions: 64, n_inner: intermediate, max_position_embeddings: 64 };
    }
    case "gpt_neox":
      return { ...usual, rotary_pct: 2 / (hidden / heads) };
    case "phi3":
      return {
        ...grouped,
        head_dim: headDim,
        sliding_window: window || null,
        rope_parameters: { rope_type: "default", rope_theta: 1000, partial_rotary_factor: 2 / headDim },
      };
    case "olmo2":
      return { ...grouped, head_dim: headDim };
    case "mixtral":
      return { ...grouped, head_dim: headDim, sliding_window: window || null, num_local_experts: 3 };
    case "qwen2_moe":
      // Beside a layer without experts, with the balance of experts in the loss.
      return {
        ...grouped,
        qkv_bias: false,
        mlp_only_layers: [0],
        num_experts: 5,
        num_experts_per_tok: 2,
        moe_intermediate_size: intermediate - 7,
        shared_expert_intermediate_size: intermediate - 3,
        output_router_logits: true,
        router_aux_loss_coef: 0.3,
      };
    case "gemma2":
      return { ...gemma, final_logit_softcapping: 4, attn_logit_softcapping: 2 };
    case "gemma3_text":
      return { ...gemma, rope_theta: 1000, rope_local_base_freq: 100, sliding_window_pattern: 2 };
  }
  throw new Error(name);
}

/** Of a gradient against the plain run's; norms behind each half make more of rounding. */
export const gradientTolerance = (family: FamilyName): number => (family === "llama" ? 5e-5 : 1e-4);

/** Values that are compared relative to their size: of weights that stand for 1 + weight, that. */
export const asFactors = (family: FamilyName, name: string, values: Float32Array): Float32Array =>
  family.startsWith("gemma") && name.endsWith("norm.weight") ? values.map((value) => 1 + value) : values;

/** Keys' biases that change no score, whose gradients are 0 but for rounding, and what AdamW makes of these. */
export const isNoise = (parameter: string): boolean => parameter.endsWith(".bias:k");
