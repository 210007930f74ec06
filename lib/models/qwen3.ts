// Qwen3: RMS norms over each head of q and k, heads of 128 where config.json is silent; windows by layer.

import { type Family, rmsNormOf } from "./config.js";
import { readLayerWindows } from "./layer_kinds.js";

export const qwen3: Family = {
  modelType: "qwen3",
  architecture: "Qwen3ForCausalLM",
  defaults: { num_key_value_heads: 32, head_dim: 128, max_position_embeddings: 32768 },
  read(fields, { numLayers }) {
    const bias = fields.flag("attention_bias", false);
    return {
      queryKeyValueBias: bias,
      outputBias: bias,
      queryKeyNorm: { ...rmsNormOf(fields), acrossHeads: false },
      windows: readLayerWindows(fields, numLayers),
    };
  },
};
