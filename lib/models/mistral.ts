// Mistral: no biases, one sliding window for all layers (4,096 tokens where config.json is silent, null for none).

import type { Family } from "./config.js";

export const mistral: Family = {
  modelType: "mistral",
  architecture: "MistralForCausalLM",
  defaultKeyValueHeads: 8,
  defaultMaxPositions: 131072,
  read(fields, { numLayers }) {
    const window = fields.get("sliding_window") === null ? 0 : fields.count("sliding_window", { default: 4096 });
    return {
      queryKeyValueBias: false,
      outputBias: false,
      mlpBias: false,
      queryKeyNorm: false,
      windows: new Array<number>(numLayers).fill(window),
    };
  },
};
