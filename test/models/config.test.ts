// config.json: both spellings, transformers' defaults, overrides, and one clear error for each bad field.

import t from "tap";
import { ModelError } from "../../lib/errors.js";
import { modelShape } from "../../lib/models/config.js";
import { families, parseModelConfig } from "../../lib/models/registry.js";
import { overrideFields } from "../../lib/models/rope_fields.js";

const llama = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 100,
  hidden_size: 32,
  intermediate_size: 50,
  num_hidden_layers: 3,
  num_attention_heads: 8,
};
const type = (model_type: string, more: Record<string, unknown> = {}) => {
  const { architectures, ...fields } = llama;
  return { ...fields, model_type, ...more };
};
const parse = (fields: unknown) => parseModelConfig(fields, { file: "m/config.json" });

t.test("what absent fields mean", (t) => {
  const plain = parse(llama);
  t.match(plain, {
    family: "llama",
    headDim: 4,
    numKeyValueHeads: 8,
    norm: { op: "rms_norm", eps: 1e-6, plusOne: false, bias: false },
    normPlaces: "before",
    tieWordEmbeddings: false,
    initializerRange: 0.02,
    activation: "silu",
    ropes: [{ type: "default", theta: 10000 }],
    queryKeyValueBias: false,
    outputBias: false,
    mlpBias: false,
    queryKeyNorm: null,
    dtype: null,
  });
  t.strictSame(plain.windows, [0, 0, 0]);
  t.equal(plain.padTokenId, null);
  t.equal(parse({ ...llama, pad_token_id: 0 }).padTokenId, 0);
  t.equal(parse({ ...llama, pad_token_id: -1 }).padTokenId, 99);
  t.strictSame(parse({ ...llama, sliding_window: 4, use_sliding_window: true }).windows, [0, 0, 0], "never in Llama");

  const mistral = parse(type("mistral"));
  t.strictSame([mistral.numKeyValueHeads, mistral.windows, mistral.headDim], [8, [4096, 4096, 4096], 4]);
  t.strictSame(parse(type("mistral", { sliding_window: null })).windows, [0, 0, 0]);
  t.strictSame(
    parse(type("mistral", { sliding_window: 7, layer_types: ["full_attention"] })).windows,
    [7, 7, 7],
    "Mistral ignores layer_types",
  );
  t.equal(parse(type("mistral", { num_key_value_heads: null })).numKeyValueHeads, 8);

  const qwen2 = parse(type("qwen2", { num_attention_heads: 32, hidden_size: 128 }));
  t.match(qwen2, { numKeyValueHeads: 32, headDim: 4, queryKeyValueBias: true, outputBias: false, queryKeyNorm: null });
  t.equal(parse(type("qwen2", { num_key_value_heads: 2, head_dim: 10 })).headDim, 10);
  const qwen3 = parse(type("qwen3", { num_key_value_heads: null, attention_bias: true }));
  t.match(qwen3, {
    numKeyValueHeads: 8,
    headDim: 128,
    queryKeyValueBias: true,
    outputBias: true,
    queryKeyNorm: { acrossHeads: false },
  });
  t.end();
});

t.test("windows by layer", (t) => {
  const base = { num_key_value_heads: 8, sliding_window: 6, max_window_layers: 1 };
  t.strictSame(parse(type("qwen2", { ...base, use_sliding_window: true })).windows, [0, 6, 6]);
  t.strictSame(parse(type("qwen2", base)).windows, [0, 0, 0]);
  t.strictSame(parse(type("qwen2", { ...base, use_sliding_window: true, sliding_window: null })).windows, [0, 0, 0]);
  const layer_types = ["sliding_attention", "full_attention", "sliding_attention"];
  t.strictSame(parse(type("qwen3", { ...base, use_sliding_window: true, layer_types })).windows, [6, 0, 6]);
  t.strictSame(modelShape(parse(type("qwen3", { ...base, head_dim: 4, use_sliding_window: true, layer_types }))), {
    hiddenSize: 32,
    layers: 3,
    heads: 8,
    keyValueHeads: 8,
    headSize: 4,
    feedForward: 50,
    gated: true,
    vocabulary: 100,
    windows: [6, 0, 6],
  });
  t.end();
});

t.test("both spellings of positions", (t) => {
  const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };
  const expected = {
    type: "llama3",
    theta: 50000,
    factor: 8,
    lowFrequencyFactor: 1,
    highFrequencyFactor: 4,
    originalPositions: 64,
  };
  t.strictSame(
    parse({ ...llama, rope_parameters: { ...llama3, rope_type: "llama3", rope_theta: 50000 } }).ropes[0],
    expected,
  );
  t.strictSame(parse({ ...llama, rope_theta: 50000, rope_scaling: { ...llama3, type: "llama3" } }).ropes[0], expected);
  t.strictSame(
    parse({ ...llama, rope_theta: 5, rope_scaling: { ...llama3, rope_type: "llama3", type: "x", rope_theta: 50000 } })
      .ropes[0],
    expected,
    "inside wins, rope_type wins",
  );
  t.strictSame(
    parse({
      ...llama,
      rope_theta: 50000,
      original_max_position_embeddings: 64,
      rope_scaling: { ...llama3, type: "llama3", original_max_position_embeddings: 3 },
    }).ropes[0],
    expected,
    "the top wins",
  );
  const yarn = parse({
    ...llama,
    max_position_embeddings: 96,
    rope_scaling: { type: "yarn", factor: null, original_max_position_embeddings: 32, beta_fast: null },
  });
  t.match(yarn.ropes[0], { type: "yarn", factor: 3, betaFast: 32, betaSlow: 1, truncate: true, attentionFactor: null });
  t.match(
    parse({ ...llama, max_position_embeddings: 96, rope_scaling: { type: "yarn", factor: 2 } }).ropes[0],
    { originalPositions: 96 },
    "absent in both",
  );
  t.strictSame(parse({ ...llama, rope_scaling: null, rope_theta: null }).ropes[0], { type: "default", theta: 10000 });
  t.equal(parse({ ...llama, torch_dtype: "bfloat16" }).dtype, "bfloat16");
  t.equal(parse({ ...llama, torch_dtype: "bfloat16", dtype: "float16" }).dtype, "float16");
  for (const [name, activation] of [
    ["gelu", "gelu"],
    ["gelu_new", "gelu_tanh"],
    ["gelu_pytorch_tanh", "gelu_tanh"],
    ["relu", "relu"],
  ])
    t.equal(parse({ ...llama, hidden_act: name }).activation, activation);
  t.end();
});

t.test("overrides", (t) => {
  const hub = { ...llama, max_position_embeddings: 64, rope_theta: 7, rope_scaling: { type: "linear", factor: 2 } };
  const modern = {
    ...llama,
    max_position_embeddings: 64,
    rope_parameters: { rope_type: "linear", factor: 2, rope_theta: 7 },
  };
  for (const fields of [hub, modern]) {
    const before = structuredClone(fields);
    const rope = (override: Parameters<typeof overrideFields>[1]) => parse(overrideFields(fields, override)).ropes[0];
    t.strictSame(rope({}), { type: "linear", theta: 7, factor: 2 });
    t.strictSame(rope({ rope_theta: 9 }), { type: "linear", theta: 9, factor: 2 });
    t.strictSame(rope({ rope_scaling: null }), { type: "default", theta: 7 });
    t.match(rope({ rope_scaling: { type: "yarn", factor: 4 }, max_position_embeddings: 256, rope_theta: 11 }), {
      type: "yarn",
      theta: 11,
      factor: 4,
      originalPositions: 64,
    });
    t.match(rope({ rope_scaling: { rope_type: "linear", factor: 3, rope_theta: 13 } }), { theta: 13, factor: 3 });
    t.match(rope({ rope_scaling: { rope_type: "linear", factor: 3, rope_theta: 13 }, rope_theta: 14 }), { theta: 14 });
    t.equal(parse(overrideFields(fields, { max_position_embeddings: 999 })).maxPositionEmbeddings, 999);
    t.strictSame(fields, before, "what was given is as it was");
  }
  const stretched = { ...hub, original_max_position_embeddings: 16, rope_scaling: { type: "yarn", factor: 2 } };
  t.match(
    parse(
      overrideFields(stretched, { rope_scaling: { type: "yarn", factor: 4, original_max_position_embeddings: 32 } }),
    ).ropes[0],
    { originalPositions: 32, factor: 4 },
    "nothing old wins over the override",
  );
  t.match(parse(overrideFields(llama, { rope_theta: 3 })).ropes[0], { theta: 3 });
  t.end();
});

t.test("one clear error for each bad field", (t) => {
  const known = /LlamaForCausalLM.*MistralForCausalLM.*Qwen2ForCausalLM.*Qwen3ForCausalLM/;
  const bad: [fields: unknown, message: RegExp][] = [
    [[], /m\/config\.json holds \[\]; expected an object/],
    [{ ...llama, architectures: ["BloomForCausalLM"] }, /unknown architecture "BloomForCausalLM"/],
    [{ ...llama, architectures: ["BloomForCausalLM"] }, known],
    [type("bloom"), /unknown model_type "bloom"/],
    [type("bloom"), known],
    [{ ...llama, model_type: "qwen2" }, /architectures is .*model_type is "qwen2"/],
    [{ ...llama, architectures: "LlamaForCausalLM" }, /architectures is "LlamaForCausalLM"; expected a list/],
    [{ vocab_size: 3 }, /neither model_type nor architectures/],
    [{ ...llama, vocab_size: undefined }, /m\/config\.json: vocab_size is missing; expected a whole number/],
    [{ ...llama, hidden_size: "32" }, /hidden_size is "32"; expected a whole number of at least 1/],
    [{ ...llama, intermediate_size: 0 }, /intermediate_size is 0/],
    [{ ...llama, num_hidden_layers: 1.5 }, /num_hidden_layers is 1\.5/],
    [{ ...llama, num_attention_heads: -1 }, /num_attention_heads is -1/],
    [{ ...llama, num_key_value_heads: 3 }, /num_attention_heads is 8; expected a multiple of num_key_value_heads, 3/],
    [{ ...llama, hidden_size: 30 }, /hidden_size is 30; expected a multiple of num_attention_heads, 8/],
    [{ ...llama, hidden_size: 24 }, /hidden_size is 24; the head size .* is 3; expected an even one/],
    [{ ...llama, head_dim: 5 }, /head_dim is 5; expected an even number/],
    [type("qwen3", { head_dim: null, num_key_value_heads: 8 }), /head_dim is null/],
    [type("qwen2"), /num_attention_heads is 8; .* 32 \(the default of this family\)/],
    [{ ...llama, hidden_act: "mish" }, /hidden_act is "mish"; this activation is not implemented; there are silu/],
    [{ ...llama, hidden_act: "constructor" }, /hidden_act is "constructor"/],
    [{ ...llama, rms_norm_eps: "1e-5" }, /rms_norm_eps is "1e-5"; expected a number/],
    [{ ...llama, rms_norm_eps: -1 }, /rms_norm_eps is -1/],
    [{ ...llama, tie_word_embeddings: "yes" }, /tie_word_embeddings is "yes"; expected true or false/],
    [{ ...llama, pad_token_id: 100 }, /pad_token_id is 100; expected a token below vocab_size, 100/],
    [{ ...llama, attention_dropout: 0.1 }, /attention_dropout is 0\.1; dropout is not implemented/],
    [{ ...llama, quantization_config: { bits: 4 } }, /quantization_config is .*not implemented/],
    [{ ...llama, num_local_experts: 8 }, /num_local_experts is 8; experts are not what this family has/],
    [{ ...llama, partial_rotary_factor: 0.5 }, /partial_rotary_factor is 0\.5; partial rotary/],
    [{ ...llama, rope_parameters: { partial_rotary_factor: 0.5 } }, /rope_parameters\.partial_rotary_factor is 0\.5/],
    [{ ...llama, rope_scaling: { type: "mrope", factor: 2 } }, /rope_scaling\.type is "mrope"; .*not implemented/],
    [{ ...llama, rope_scaling: { type: "dynamic", factor: 0.5 } }, /rope_scaling\.factor is 0\.5; .* at least 1/],
    [
      { ...llama, head_dim: 2, rope_scaling: { type: "dynamic", factor: 2 } },
      /dynamic needs more than 2 dims that turn/,
    ],
    [{ ...llama, rope_scaling: { rope_type: "longrope" } }, /rope_scaling\.short_factor is missing; .*a list of \d+/],
    [
      { ...llama, rope_scaling: { rope_type: "longrope", short_factor: [1, 2, 3], long_factor: [1] } },
      /rope_scaling\.short_factor is \[1,2,3\]; expected a list of \d+ numbers above 0/,
    ],
    [{ ...llama, rope_scaling: "yarn" }, /rope_scaling is "yarn"; expected an object/],
    [{ ...llama, rope_scaling: { type: "linear" } }, /rope_scaling\.factor is missing/],
    [{ ...llama, rope_scaling: { type: "yarn" } }, /rope_scaling\.factor is missing/],
    [{ ...llama, rope_scaling: { type: "linear", factor: 0 } }, /rope_scaling\.factor is 0; expected a number above 0/],
    [{ ...llama, rope_theta: 0 }, /rope_theta is 0; expected a number above 0/],
    [
      { ...llama, rope_scaling: { type: "llama3", factor: 2, low_freq_factor: 4, high_freq_factor: 4 } },
      /high_freq_factor is 4; expected more than low_freq_factor, 4/,
    ],
    [{ ...llama, rope_parameters: { full_attention: { rope_theta: 1 } } }, /differ by kind of layer/],
    [type("mistral", { sliding_window: 0 }), /sliding_window is 0/],
    [type("qwen2", { num_key_value_heads: 8, layer_types: ["full_attention"] }), /layer_types is .*list of/],
    [
      type("qwen2", { num_key_value_heads: 8, num_hidden_layers: 1, layer_types: ["linear_attention"] }),
      /"linear_attention" is not implemented/,
    ],
    [
      type("qwen2", { num_key_value_heads: 8, num_hidden_layers: 1, layer_types: ["sliding_attention"] }),
      /give no window/,
    ],
  ];
  for (const [fields, message] of bad) {
    try {
      parse(fields);
      t.fail(`nothing was said about ${message}`);
    } catch (error) {
      t.type(error, ModelError);
      t.match((error as Error).message, message);
      t.match((error as Error).message, /m\/config\.json/, "the file");
    }
  }
  t.end();
});

t.test("every family is listed once", (t) => {
  t.strictSame(
    families.map((family) => family.modelType),
    [
      "llama",
      "mistral",
      "ministral",
      "mixtral",
      "qwen2",
      "qwen2_moe",
      "qwen3",
      "qwen3_moe",
      "gemma2",
      "gemma3_text",
      "gpt2",
      "gpt_neox",
      "olmo2",
      "phi3",
    ],
  );
  t.end();
});

t.test("a longer limit leaves the original length of stretched positions as it was", (t) => {
  const longer = { max_position_embeddings: 4096 };
  for (const spelling of ["rope_scaling", "rope_parameters"]) {
    const fields = { max_position_embeddings: 512, [spelling]: { rope_type: "yarn", factor: 4 } };
    t.match(overrideFields(fields, longer)[spelling], { original_max_position_embeddings: 512 }, spelling);
    const top = overrideFields({ ...fields, original_max_position_embeddings: 64 }, longer);
    t.same(top[spelling], fields[spelling], "the one at the top counts");
    const linear = { ...fields, [spelling]: { rope_type: "linear", factor: 4 } };
    t.same(overrideFields(linear, longer), { ...linear, ...longer });
  }
  t.end();
});
