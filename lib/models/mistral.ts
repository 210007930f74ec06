// Mistral: no biases, one sliding window for all layers (4,096 tokens where config.json is silent, null for none).

import type { Family } from "./config.js";

export const mistral: Family = {
  modelType: "mistral",
  architecture: "MistralForCausalLM",
  defaults: { num_key_value_heads: 8, max_position_embeddings: 131072, sliding_window: 4096 },
  read(fields, { numLayers }) {
    const window = fields.count("sliding_window", { default: 0, nullable: true });
    return { windows: new Array<number>(numLayers).fill(window) };
  },
};
