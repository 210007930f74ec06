// OLMo 2: norms behind each half instead of before it, and over all heads of q and k together.

import { type Family, rmsNormOf } from "./config.js";
import { renamed } from "./stored.js";

export const olmo2: Family = {
  modelType: "olmo2",
  architecture: "Olmo2ForCausalLM",
  defaults: { max_position_embeddings: 2048, rms_norm_eps: 1e-5, pad_token_id: 1 },
  read(fields) {
    const bias = fields.flag("attention_bias", false);
    return {
      normPlaces: "behind",
      queryKeyNorm: { ...rmsNormOf(fields), acrossHeads: true },
      queryKeyValueBias: bias,
      outputBias: bias,
    };
  },
  stored: renamed({
    attention_output_norm: "post_attention_layernorm",
    mlp_output_norm: "post_feedforward_layernorm",
  }),
};
