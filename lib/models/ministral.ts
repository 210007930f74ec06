// Ministral: Mistral whose layers have the window or not, as `layer_types` says (all have it where config.json is silent).

import type { Family } from "./config.js";
import { readLayerKinds } from "./layer_kinds.js";

export const ministral: Family = {
  modelType: "ministral",
  architecture: "MinistralForCausalLM",
  defaults: { num_key_value_heads: 8, max_position_embeddings: 131072, sliding_window: 4096 },
  read: (fields, { numLayers }) => ({
    windows: readLayerKinds(fields, numLayers, () => true).map(({ window }) => window),
  }),
};
