// GPT-2: learned positions, LayerNorm, an MLP without a gate, and weights stored as [in, out], q, k and v in one.

import { type Family, layerNormOf } from "./config.js";
import { consecutive, renamed } from "./stored.js";

const names = renamed({
  "model.embed_tokens": "transformer.wte",
  "model.embed_positions": "transformer.wpe",
  "model.norm": "transformer.ln_f",
  "model.layers": "transformer.h",
  "self_attn.o_proj": "attn.c_proj",
  "mlp.up_proj": "mlp.c_fc",
  "mlp.down_proj": "mlp.c_proj",
  input_layernorm: "ln_1",
  post_attention_layernorm: "ln_2",
  self_attn: "attn",
});

export const gpt2: Family = {
  modelType: "gpt2",
  multiHead: true,
  architecture: "GPT2LMHeadModel",
  defaults: {
    hidden_act: "gelu_new",
    max_position_embeddings: 1024,
    intermediate_size: null,
    num_key_value_heads: null,
    tie_word_embeddings: true,
  },
  names: {
    hidden_size: "n_embd",
    num_hidden_layers: "n_layer",
    num_attention_heads: "n_head",
    max_position_embeddings: "n_positions",
    intermediate_size: "n_inner",
    hidden_act: "activation_function",
    layer_norm_eps: "layer_norm_epsilon",
  },
  // Its checkpoints name the dropout that they were trained with.
  dropout: ["resid_pdrop", "embd_pdrop", "attn_pdrop"],
  fixed: { scale_attn_weights: true, scale_attn_by_inverse_layer_idx: false, add_cross_attention: false },
  read: (fields, { numLayers }) => ({
    norm: layerNormOf(fields),
    gated: false,
    learnedPositions: true,
    ropes: [],
    layerRopes: new Array<null>(numLayers).fill(null),
    queryKeyValueBias: true,
    outputBias: true,
    mlpBias: true,
    paddingRow: false,
  }),
  stored(parameter, { hiddenSize }) {
    const stored = names(parameter);
    const [, before, part, after] = /^(.*attn\.)([qkv])_proj(\..*)$/.exec(stored.name) ?? [];
    const rows = part === undefined ? undefined : consecutive({ q: hiddenSize, k: hiddenSize, v: hiddenSize })[part];
    const transposed = /\.(attn|mlp)\..*\.weight$/.test(stored.name);
    if (rows === undefined) return { ...stored, transposed };
    return { name: `${before}c_attn${after}`, rows, part: part as string, transposed };
  },
  derived: /\.?h\.\d+\.attn\.(bias|masked_bias)$/,
};
