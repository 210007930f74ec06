// GPT-NeoX (Pythia): LayerNorm, attention and MLP beside each other, a part of each head turns, q, k and v of each head
// behind each other in one tensor; the MLP has no gate.

import { type Family, layerNormOf, readRotaryDim } from "./config.js";
import { readRope } from "./rope_fields.js";
import { renamed } from "./stored.js";

const names = renamed({
  "model.embed_tokens": "gpt_neox.embed_in",
  "model.norm": "gpt_neox.final_layer_norm",
  lm_head: "embed_out",
  "model.layers": "gpt_neox.layers",
  "self_attn.o_proj": "attention.dense",
  "mlp.up_proj": "mlp.dense_h_to_4h",
  "mlp.down_proj": "mlp.dense_4h_to_h",
  self_attn: "attention",
});

export const gptNeox: Family = {
  modelType: "gpt_neox",
  multiHead: true,
  architecture: "GPTNeoXForCausalLM",
  defaults: {
    hidden_act: "gelu",
    max_position_embeddings: 2048,
    num_key_value_heads: null,
    partial_rotary_factor: 0.25,
  },
  names: { rope_theta: "rotary_emb_base", partial_rotary_factor: "rotary_pct" },
  read(fields, { headDim, maxPositionEmbeddings }) {
    const bias = fields.flag("attention_bias", true);
    const rotaryDim = readRotaryDim(fields, headDim, { partial: true });
    return {
      norm: layerNormOf(fields),
      parallelResidual: fields.flag("use_parallel_residual", true),
      gated: false,
      queryKeyValueBias: bias,
      outputBias: bias,
      mlpBias: true,
      rotaryDim,
      ropes: [readRope(fields, { maxPositionEmbeddings, rotaryDim })],
      paddingRow: false,
    };
  },
  stored(parameter, { numHeads, headDim }) {
    const stored = names(parameter);
    const [, before, part, after] = /^(.*attention\.)([qkv])_proj(\..*)$/.exec(stored.name) ?? [];
    if (part === undefined) return stored;
    const rows = { first: "qkv".indexOf(part) * headDim, count: headDim, period: 3 * headDim, periods: numHeads };
    return { name: `${before}query_key_value${after}`, rows, part };
  },
  derived: /\.attention\.(bias|masked_bias)$/,
};
