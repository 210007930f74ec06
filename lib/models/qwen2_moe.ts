// Qwen2-MoE and Qwen1.5-MoE: biases on q, k and v, experts in every layer, or in some, beside one that serves all tokens.

import type { Family } from "./config.js";
import { readExperts } from "./expert_fields.js";
import { readLayerKinds } from "./layer_kinds.js";
import { stacked } from "./stored.js";

export const qwen2Moe: Family = {
  modelType: "qwen2_moe",
  architecture: "Qwen2MoeForCausalLM",
  defaults: {
    num_key_value_heads: 16,
    max_position_embeddings: 32768,
    num_experts: 60,
    num_experts_per_tok: 4,
    moe_intermediate_size: 1408,
    shared_expert_intermediate_size: 5632,
    sliding_window: 4096,
    max_window_layers: 28,
  },
  expertFields: ["num_experts", "moe_intermediate_size"],
  read(fields, { numLayers }) {
    const use = fields.flag("use_sliding_window", false);
    const first = fields.count("max_window_layers", { least: 0 });
    // Every other layer of the first ones.
    const kinds = readLayerKinds(
      use ? fields : fields.with({ sliding_window: null }),
      numLayers,
      (layer) => use && layer % 2 === 0 && layer < first,
    );
    return {
      queryKeyValueBias: fields.flag("qkv_bias", true),
      windows: kinds.map(({ window }) => window),
      experts: readExperts(fields, {
        numLayers,
        count: "num_experts",
        intermediateSize: fields.count("moe_intermediate_size"),
        sharedIntermediateSize: fields.count("shared_expert_intermediate_size"),
      }),
    };
  },
  stored: stacked("mlp"),
};
