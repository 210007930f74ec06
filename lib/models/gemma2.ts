// Gemma 2: norms with 1 + weight before and behind each half, scaled embedding, every second layer with a window, capped
// logits and scores.

import { type Family, readActivation, rmsNormOf } from "./config.js";
import { readLayerKinds } from "./layer_kinds.js";
import { renamed } from "./stored.js";

/** What Gemma 2 and 3 have in common. */
export const gemma: Pick<Family, "names" | "stored" | "fixed"> = {
  names: { hidden_act: "hidden_activation" },
  fixed: { use_bidirectional_attention: false },
  stored: renamed({
    attention_output_norm: "post_attention_layernorm",
    mlp_output_norm: "post_feedforward_layernorm",
    post_attention_layernorm: "pre_feedforward_layernorm",
  }),
};

export const gemmaDefaults = {
  hidden_act: "gelu_pytorch_tanh",
  head_dim: 256,
  num_key_value_heads: 4,
  pad_token_id: 0,
  tie_word_embeddings: true,
  query_pre_attn_scalar: 256,
  sliding_window: 4096,
};

/** What Gemma 2 and 3 read alike. */
export function readGemma(...[fields, { hiddenSize }]: Parameters<Family["read"]>) {
  const bias = fields.flag("attention_bias", false);
  return {
    activation: readActivation(fields, "hidden_act"),
    norm: rmsNormOf(fields, true),
    normPlaces: "both" as const,
    queryKeyValueBias: bias,
    outputBias: bias,
    attentionScale: fields.number("query_pre_attn_scalar", { above: 0 }) ** -0.5,
    embeddingScale: Math.sqrt(hiddenSize),
    logitSoftcap: fields.numberOrNull("final_logit_softcapping", { above: 0 }),
  };
}

export const gemma2: Family = {
  ...gemma,
  modelType: "gemma2",
  architecture: "Gemma2ForCausalLM",
  defaults: {
    ...gemmaDefaults,
    max_position_embeddings: 8192,
    final_logit_softcapping: 30,
    attn_logit_softcapping: 50,
  },
  read(fields, sizes) {
    const kinds = readLayerKinds(fields, sizes.numLayers, (layer) => layer % 2 === 0);
    return {
      ...readGemma(fields, sizes),
      attentionSoftcap: fields.numberOrNull("attn_logit_softcapping", { above: 0 }),
      windows: kinds.map((kind) => kind.window),
    };
  },
};
