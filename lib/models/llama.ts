// Llama 2 and 3.x: no biases unless config.json asks for them, never a window.

import type { Family } from "./config.js";

export const llama: Family = {
  modelType: "llama",
  architecture: "LlamaForCausalLM",
  defaults: { max_position_embeddings: 2048 },
  read(fields) {
    const bias = fields.flag("attention_bias", false);
    return { queryKeyValueBias: bias, outputBias: bias, mlpBias: fields.flag("mlp_bias", false) };
  },
};
