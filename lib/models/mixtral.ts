// Mixtral: Mistral with experts in every layer, the weights of a token's experts adding up to 1.

import type { Family } from "./config.js";
import { readExperts } from "./expert_fields.js";
import { readRope } from "./rope_fields.js";
import { stacked } from "./stored.js";

export const mixtral: Family = {
  modelType: "mixtral",
  architecture: "MixtralForCausalLM",
  defaults: {
    num_key_value_heads: 8,
    max_position_embeddings: 131072,
    rms_norm_eps: 1e-5,
    num_local_experts: 8,
    num_experts_per_tok: 2,
  },
  names: { num_local_experts: "num_experts" },
  expertFields: ["num_local_experts", "num_experts"],
  fixed: { router_jitter_noise: 0 },
  read(fields, { numLayers, intermediateSize, headDim, maxPositionEmbeddings }) {
    const window = fields.count("sliding_window", { default: 0, nullable: true });
    return {
      windows: new Array<number>(numLayers).fill(window),
      ropes: [readRope(fields, { maxPositionEmbeddings, rotaryDim: headDim, theta: 1e6 })],
      experts: readExperts(fields, { numLayers, count: "num_local_experts", intermediateSize, normalize: true }),
    };
  },
  stored: stacked("block_sparse_moe", { gate_proj: "w1", down_proj: "w2", up_proj: "w3" }),
};
