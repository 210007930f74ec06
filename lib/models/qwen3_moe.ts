// Qwen3-MoE: Qwen3 with experts in every layer, or in some; one window for all layers.

import { type Family, rmsNormOf } from "./config.js";
import { readExperts } from "./expert_fields.js";
import { stacked } from "./stored.js";

export const qwen3Moe: Family = {
  modelType: "qwen3_moe",
  architecture: "Qwen3MoeForCausalLM",
  defaults: {
    num_key_value_heads: 4,
    max_position_embeddings: 32768,
    num_experts: 128,
    num_experts_per_tok: 8,
    moe_intermediate_size: 768,
  },
  names: { num_experts: "num_local_experts" },
  expertFields: ["num_local_experts", "num_experts", "moe_intermediate_size"],
  read(fields, { numLayers }) {
    const bias = fields.flag("attention_bias", false);
    const use = fields.flag("use_sliding_window", false);
    const window = use && fields.get("sliding_window") !== null ? fields.count("sliding_window", { default: 4096 }) : 0;
    const intermediateSize = fields.count("moe_intermediate_size");
    return {
      queryKeyValueBias: bias,
      outputBias: bias,
      queryKeyNorm: { ...rmsNormOf(fields), acrossHeads: false },
      windows: new Array<number>(numLayers).fill(window),
      experts: readExperts(fields, { numLayers, count: "num_experts", intermediateSize }),
    };
  },
  stored: stacked("mlp"),
};
