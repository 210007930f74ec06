// Qwen2 and Qwen2.5: biases on q, k and v, none elsewhere; windows by layer.

import type { Family } from "./config.js";
import { readLayerWindows } from "./layer_kinds.js";

export const qwen2: Family = {
  modelType: "qwen2",
  architecture: "Qwen2ForCausalLM",
  defaults: { num_key_value_heads: 32, max_position_embeddings: 32768 },
  read: (fields, { numLayers }) => ({ queryKeyValueBias: true, windows: readLayerWindows(fields, numLayers) }),
};
