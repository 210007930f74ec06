// Reading config.json: both of Hugging Face's spellings, transformers' defaults, and what each family has of its own.

import type { JsonValue } from "../data/json.js";
import { ModelError } from "../errors.js";
import type { NormSizes } from "../nn/norm.js";
import type { RopeParameters } from "../nn/rotary_embedding.js";
import type { Activation } from "../ops/unary.js";
import type { ModelShape } from "../report/model_flops.js";
import type { AdapterConfig } from "./adapter.js";
import type { ModelExperts } from "./expert_fields.js";
import { type ConfigFields, checkFields, FieldReader, show } from "./fields.js";
import { type ConfigOverride, readRope, ropeFields } from "./rope_fields.js";
import type { Stored } from "./stored.js";

const activations: Readonly<Record<string, Activation>> = {
  silu: "silu",
  swish: "silu",
  gelu: "gelu",
  gelu_new: "gelu_tanh",
  gelu_pytorch_tanh: "gelu_tanh",
  relu: "relu",
};

/** The sizes that every family has. */
export interface Sizes {
  /** V */
  readonly vocabSize: number;
  /** H */
  readonly hiddenSize: number;
  /** F */
  readonly intermediateSize: number;
  readonly numLayers: number;
  /** N */
  readonly numHeads: number;
  /** K */
  readonly numKeyValueHeads: number;
  /** D, even; may differ from H/N. */
  readonly headDim: number;
  readonly maxPositionEmbeddings: number;
}

/** What a layer and the parts around the layers are made of. */
export interface Description {
  readonly activation: Activation;
  /** Whether the MLP has a gate. */
  readonly gated: boolean;
  readonly norm: NormSizes;
  /** Where each half of a layer has a norm. */
  readonly normPlaces: "before" | "behind" | "both";
  /** Whether attention and MLP read the same. */
  readonly parallelResidual: boolean;
  /** Norms of q and k: over each head, or over all heads of a token together. */
  readonly queryKeyNorm: (NormSizes & { readonly acrossHeads: boolean }) | null;
  /** Biases of q, k and v. */
  readonly queryKeyValueBias: boolean;
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  /** An embedding of each position is added to that of its token. */
  readonly learnedPositions: boolean;
  /** Sets of rotary frequencies. */
  readonly ropes: readonly RopeParameters[];
  /** Which of them each layer has; null: its q and k are not turned. */
  readonly layerRopes: readonly (number | null)[];
  /** The first dims of each head that turn, an even number. */
  readonly rotaryDim: number;
  /** Sliding window of each layer in tokens; 0: none. */
  readonly windows: readonly number[];
  /** Factor on q.k. */
  readonly attentionScale: number;
  /** Scores become cap * tanh(score / cap); null: they stay. */
  readonly attentionSoftcap: number | null;
  /** Factor on the embeddings, rounded to the model's dtype. */
  readonly embeddingScale: number;
  /** Logits become cap * tanh(logit / cap); null: they stay. */
  readonly logitSoftcap: number | null;
  /** null: every layer has an MLP. */
  readonly experts: ModelExperts | null;
  /** The embedding row of the padding token is not trained through the embedding. */
  readonly paddingRow: boolean;
}

/** A model's sizes and choices, every default filled in. */
export interface ModelConfig extends Sizes, Description {
  /** As in `model_type`. */
  readonly family: string;
  /** As in `architectures`. */
  readonly architecture: string;
  /** lm_head is the embedding. */
  readonly tieWordEmbeddings: boolean;
  /** Standard deviation of initial weights. */
  readonly initializerRange: number;
  /** What the checkpoint's weights were said to be; null where config.json says nothing. */
  readonly dtype: string | null;
  /** Its embedding row starts at 0 and is not trained through the embedding; null: there is none. */
  readonly padTokenId: number | null;
  /** It is trained by adapters, its own weights being frozen; absent or null: they are trained. */
  readonly adapter?: AdapterConfig | null;
  /** The head begins as the embedding, to which it is tied in files. */
  readonly headOfEmbedding?: boolean;
  /** What the fields came from, for messages. */
  readonly file: string;
  /** What replaced fields of the file. */
  readonly override?: ConfigOverride;
  /** The fields themselves, overrides applied; an export writes them. */
  readonly fields: ConfigFields;
  /** What stood in the file, with integers and floats apart and keys in order; null where there is no file. */
  readonly source: JsonValue | null;
}

/** What sets one family apart from the others. */
export interface Family {
  readonly modelType: string;
  readonly architecture: string;
  /** transformers' values of fields that are absent, where they are not the usual ones. */
  readonly defaults?: ConfigFields;
  /** What its config.json calls fields, by their usual names. */
  readonly names?: Readonly<Record<string, string>>;
  /** Fields that ask for what is not implemented unless they have this value, or none. */
  readonly fixed?: Readonly<Record<string, unknown>>;
  /** Whether each head has keys and values of its own, of hidden_size / num_attention_heads dims: no field says otherwise. */
  readonly multiHead?: boolean;
  /** Fields of experts that it knows. */
  readonly expertFields?: readonly string[];
  /** Rates of dropout that its config.json names though fine-tuning goes without; a run says that it does. */
  readonly dropout?: readonly string[];
  /** What differs from Llama without biases. */
  read(fields: FieldReader, sizes: Sizes): Partial<Description>;
  /** Where a parameter lies in a checkpoint. Default: under its own name. */
  stored?(parameter: string, sizes: Sizes): Stored;
  /** Tensors of its checkpoints that are made, not trained. */
  readonly derived?: RegExp;
}

/** The family that `model_type` and `architectures` name. ModelError with the known ones where there is none. */
export function familyOf(fields: ConfigFields, file: string, families: readonly Family[]): Family {
  const reader = new FieldReader(fields, file);
  const known = `longseq knows ${families.map((family) => `${family.architecture} (${family.modelType})`).join(", ")}`;
  const modelType = reader.get("model_type");
  const architectures = reader.get("architectures");
  let architecture: unknown;
  if (architectures !== undefined && architectures !== null) {
    const names: unknown[] = Array.isArray(architectures) ? architectures : [];
    if (names.length !== 1 || typeof names[0] !== "string")
      reader.fail("architectures", `expected a list of one name; ${known}`);
    architecture = names[0];
  }
  if (architecture === undefined && (modelType === undefined || modelType === null))
    throw new ModelError(`${file} has neither model_type nor architectures; ${known}`, { path: file });
  const byArchitecture = families.find((family) => family.architecture === architecture);
  const byType = families.find((family) => family.modelType === modelType);
  if (architecture !== undefined && byArchitecture === undefined)
    throw new ModelError(`${file}: unknown architecture ${show(architecture)}; ${known}`, { path: file, architecture });
  if (modelType !== undefined && modelType !== null && byType === undefined)
    throw new ModelError(`${file}: unknown model_type ${show(modelType)}; ${known}`, { path: file, modelType });
  if (byArchitecture !== undefined && byType !== undefined && byArchitecture !== byType)
    reader.fail("architectures", `but model_type is ${show(modelType)}; they must name the same family`);
  return (byArchitecture ?? byType) as Family;
}

const usual: ConfigFields = {
  hidden_act: "silu",
  initializer_range: 0.02,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: false,
};

/**
 * Reads the fields of a config.json. `file` is what messages call it. Throws one ModelError naming file, key and value
 * for a field that is missing, wrong, or asks for something that is not implemented.
 */
export function readConfig(
  raw: unknown,
  file: string,
  families: readonly Family[],
  source: JsonValue | null = null,
): ModelConfig {
  const fields = checkFields(raw, file);
  const family = familyOf(fields, file, families);
  const { names = {} } = family;
  const reader = new FieldReader(fields, file, { names, defaults: { ...usual, ...family.defaults } });
  refuseUnimplemented(reader, family);

  const vocabSize = reader.count("vocab_size");
  const hiddenSize = reader.count("hidden_size");
  const intermediateSize = reader.count("intermediate_size", {
    nullable: family.defaults?.intermediate_size === null,
    ...(family.defaults?.intermediate_size === null ? { default: 4 * hiddenSize } : {}),
  });
  const numLayers = reader.count("num_hidden_layers");
  const numHeads = reader.count("num_attention_heads");
  const numKeyValueHeads =
    reader.get("num_key_value_heads") === null ? numHeads : reader.count("num_key_value_heads", { default: numHeads });
  if (numHeads % numKeyValueHeads !== 0) {
    const absent = reader.has("num_key_value_heads") ? "" : " (the default of this family)";
    reader.fail("num_attention_heads", `expected a multiple of num_key_value_heads, ${numKeyValueHeads}${absent}`);
  }
  const headDim = readHeadDim(reader, hiddenSize, numHeads);
  // transformers passes over them.
  if (family.multiHead && numKeyValueHeads !== numHeads)
    reader.fail("num_key_value_heads", `but this family has as many as num_attention_heads, ${numHeads}; leave it out`);
  if (family.multiHead && headDim * numHeads !== hiddenSize)
    reader.fail("head_dim", `but this family's heads have ${hiddenSize} / ${numHeads} dims; leave it out`);
  const maxPositionEmbeddings = reader.count("max_position_embeddings");
  const sizes: Sizes = {
    vocabSize,
    hiddenSize,
    intermediateSize,
    numLayers,
    numHeads,
    numKeyValueHeads,
    headDim,
    maxPositionEmbeddings,
  };

  const padding = reader.get("pad_token_id") ?? null;
  if (padding !== null && (!Number.isSafeInteger(padding) || Math.abs(padding as number) >= vocabSize))
    reader.fail("pad_token_id", `expected a token below vocab_size, ${vocabSize}, or null`);
  // torch counts a negative one from the end.
  const padTokenId =
    padding === null || (padding as number) >= 0 ? (padding as number | null) : (padding as number) + vocabSize;
  const dtype = reader.get("dtype") ?? reader.get("torch_dtype") ?? null;
  if (dtype !== null && typeof dtype !== "string")
    reader.fail(reader.get("dtype") === undefined ? "torch_dtype" : "dtype", "expected the name of a dtype");

  const own = family.read(reader, sizes);
  const positionsKey = reader.nameOf("max_position_embeddings");
  if (own.learnedPositions && (fields.max_position_embeddings ?? fields[positionsKey]) !== fields[positionsKey])
    throw new ModelError(
      `${file}: max_position_embeddings is ${show(fields.max_position_embeddings)} beside ${positionsKey} ` +
        `${show(fields[positionsKey])}; this family's positions are learned, so that there are no others`,
      { path: file, key: "max_position_embeddings" },
    );
  const paddingRow = own.paddingRow ?? true;
  return {
    family: family.modelType,
    architecture: family.architecture,
    ...sizes,
    activation: own.activation ?? readActivation(reader, "hidden_act"),
    gated: true,
    norm: own.norm ?? rmsNormOf(reader),
    normPlaces: "before",
    parallelResidual: false,
    queryKeyNorm: null,
    queryKeyValueBias: false,
    outputBias: false,
    mlpBias: false,
    learnedPositions: false,
    ropes: own.ropes ?? [readRope(reader, { maxPositionEmbeddings, rotaryDim: own.rotaryDim ?? headDim })],
    layerRopes: new Array<number>(numLayers).fill(0),
    rotaryDim: own.rotaryDim ?? readRotaryDim(reader, headDim),
    windows: new Array<number>(numLayers).fill(0),
    attentionScale: 1 / Math.sqrt(headDim),
    attentionSoftcap: null,
    embeddingScale: 1,
    logitSoftcap: null,
    experts: null,
    ...own,
    paddingRow,
    tieWordEmbeddings: reader.flag("tie_word_embeddings", false),
    initializerRange: reader.number("initializer_range", { from: 0 }),
    dtype: dtype === null || dtype === "auto" ? null : (dtype as string).replace(/^torch\./, ""),
    padTokenId: paddingRow ? padTokenId : null,
    file,
    fields,
    source,
  };
}

/** RMSNorm with the eps of the file. */
export const rmsNormOf = (reader: FieldReader, plusOne = false): NormSizes => ({
  op: "rms_norm",
  eps: reader.number("rms_norm_eps", { from: 0 }),
  plusOne,
  bias: false,
});

/** LayerNorm with a bias and the eps of the file. */
export const layerNormOf = (reader: FieldReader): NormSizes => ({
  op: "layer_norm",
  eps: reader.number("layer_norm_eps", { from: 0, default: 1e-5 }),
  plusOne: false,
  bias: true,
});

/** The activation that the field `key` names. */
export function readActivation(reader: FieldReader, key: string): Activation {
  const name = reader.get(key);
  const activation = typeof name === "string" && Object.hasOwn(activations, name) ? activations[name] : undefined;
  if (activation === undefined)
    reader.fail(key, `this activation is not implemented; there are ${Object.keys(activations).join(", ")}`);
  return activation as Activation;
}

function refuseUnimplemented(reader: FieldReader, { fixed = {}, dropout = [], expertFields = [] }: Family): void {
  for (const key of ["attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"]) {
    if (reader.number(key, { from: 0, default: 0, nullable: true }) > 0 && !dropout.includes(key))
      reader.fail(key, "dropout is not implemented");
  }
  const quantization = reader.get("quantization_config");
  if (quantization !== undefined && quantization !== null)
    reader.fail("quantization_config", "quantized weights are not implemented; give the float model");
  for (const key of ["num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size"]) {
    const value = reader.get(key);
    if (value !== undefined && value !== null && value !== 0 && !expertFields.includes(key))
      reader.fail(key, "experts are not what this family has");
  }
  for (const [key, expected] of Object.entries(fixed))
    if ((reader.get(key) ?? expected) !== expected)
      reader.fail(key, `this is not implemented; expected ${show(expected)}`);
}

/** The dims of each head that turn; of families that turn all of them whatever a file says, another number is refused. */
export function readRotaryDim(reader: FieldReader, headDim: number, options: { partial?: boolean } = {}): number {
  const inner = ropeFields(reader);
  const holder = inner?.has("partial_rotary_factor") ? inner : reader;
  const factor = holder.number("partial_rotary_factor", { above: 0, default: 1, nullable: true });
  if (!options.partial && factor !== 1)
    holder.fail("partial_rotary_factor", "partial rotary embeddings are not what this family has; expected 1");
  const rotaryDim = Math.floor(headDim * factor);
  if (factor > 1 || rotaryDim < 2 || rotaryDim % 2 !== 0)
    holder.fail(
      "partial_rotary_factor",
      `of heads of ${headDim} dims ${rotaryDim} would turn; expected an even number`,
    );
  return rotaryDim;
}

function readHeadDim(reader: FieldReader, hiddenSize: number, numHeads: number): number {
  const given = reader.get("head_dim") ?? null;
  if (given === null && reader.has("head_dim") && reader.defaultOf("head_dim") !== undefined)
    reader.fail("head_dim", "expected a whole number of at least 1");
  const headDim = given === null ? hiddenSize / numHeads : reader.count("head_dim");
  if (!Number.isInteger(headDim))
    reader.fail("hidden_size", `expected a multiple of num_attention_heads, ${numHeads}, since head_dim is not given`);
  if (headDim % 2 !== 0) {
    if (given === null)
      reader.fail("hidden_size", `the head size hidden_size / num_attention_heads is ${headDim}; expected an even one`);
    reader.fail("head_dim", "expected an even number");
  }
  return headDim;
}

/** The sizes from which lib/report counts operations. */
export function modelShape(config: ModelConfig): ModelShape {
  return {
    hiddenSize: config.hiddenSize,
    layers: config.numLayers,
    heads: config.numHeads,
    keyValueHeads: config.numKeyValueHeads,
    headSize: config.headDim,
    feedForward: config.intermediateSize,
    gated: config.gated,
    ...(config.experts !== null && { feedForwardWeights: activeWeights(config, config.experts) }),
    vocabulary: config.vocabSize,
    windows: config.windows,
  };
}

/** Weights of all layers' MLPs, or routers and experts, that a token passes through. */
function activeWeights({ hiddenSize: H, intermediateSize: F }: ModelConfig, experts: ModelExperts): number {
  const { count, active, intermediateSize, sharedIntermediateSize: shared, layers } = experts;
  const ofExperts = H * count + active * 3 * H * intermediateSize + (shared === null ? 0 : 3 * H * shared + H);
  return layers.reduce((sum, has) => sum + (has ? ofExperts : 3 * H * F), 0);
}
