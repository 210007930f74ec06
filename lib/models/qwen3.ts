// Qwen3: RMS norms over each head of q and k, heads of 128 where config.json is silent; windows by layer.

import { type Family, readLayerWindows } from "./config.js";

export const qwen3: Family = {
  modelType: "qwen3",
  architecture: "Qwen3ForCausalLM",
  defaultKeyValueHeads: 32,
  defaultHeadDim: 128,
  defaultMaxPositions: 32768,
  read(fields, { numLayers }) {
    const bias = fields.flag("attention_bias", false);
    return {
      queryKeyValueBias: bias,
      outputBias: bias,
      mlpBias: false,
      queryKeyNorm: true,
      windows: readLayerWindows(fields, numLayers),
    };
  },
};
