// Qwen2 and Qwen2.5: biases on q, k and v, none elsewhere; windows by layer.

import { type Family, readLayerWindows } from "./config.js";

export const qwen2: Family = {
  modelType: "qwen2",
  architecture: "Qwen2ForCausalLM",
  defaultKeyValueHeads: 32,
  defaultMaxPositions: 32768,
  read(fields, { numLayers }) {
    return {
      queryKeyValueBias: true,
      outputBias: false,
      mlpBias: false,
      queryKeyNorm: false,
      windows: readLayerWindows(fields, numLayers),
    };
  },
};
