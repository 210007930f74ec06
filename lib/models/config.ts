// Reading config.json: both of Hugging Face's spellings, transformers' defaults, and one clear error for each bad field.

import type { JsonValue } from "../data/json.js";
import { ModelError } from "../errors.js";
import type { RopeParameters } from "../nn/rotary_embedding.js";
import { ropeTypes } from "../nn/rotary_embedding.js";
import type { ModelShape } from "../report/model_flops.js";

/** Activations of the gated MLP, as the swiglu op names them. */
export type HiddenActivation = "silu" | "gelu" | "gelu_tanh" | "relu";

const activations: Readonly<Record<string, HiddenActivation>> = {
  silu: "silu",
  swish: "silu",
  gelu: "gelu",
  gelu_new: "gelu_tanh",
  gelu_pytorch_tanh: "gelu_tanh",
  relu: "relu",
};

/** The fields of a config.json as JSON gives them. */
export type ConfigFields = Readonly<Record<string, unknown>>;

/** What `model.override` of a run may replace; it is written to the export too. */
export interface ConfigOverride {
  readonly rope_theta?: number;
  readonly rope_scaling?: ConfigFields | null;
  readonly max_position_embeddings?: number;
}

/** A model's sizes and choices, every default filled in. */
export interface ModelConfig {
  /** As in `model_type`: llama, mistral, qwen2, qwen3. */
  readonly family: string;
  /** As in `architectures`. */
  readonly architecture: string;
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
  readonly activation: HiddenActivation;
  readonly rmsNormEps: number;
  /** lm_head is the embedding. */
  readonly tieWordEmbeddings: boolean;
  /** Standard deviation of initial weights. */
  readonly initializerRange: number;
  readonly maxPositionEmbeddings: number;
  readonly rope: RopeParameters;
  /** Biases of q, k and v. */
  readonly queryKeyValueBias: boolean;
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  /** RMS norms over each head of q and k. */
  readonly queryKeyNorm: boolean;
  /** Sliding window of each layer in tokens; 0: none. */
  readonly windows: readonly number[];
  /** What the checkpoint's weights were said to be; null where config.json says nothing. */
  readonly dtype: string | null;
  /** Its embedding row starts at 0 and is not trained through the embedding. */
  readonly padTokenId: number | null;
  /** What the fields came from, for messages. */
  readonly file: string;
  /** The fields themselves, overrides applied; an export writes them. */
  readonly fields: ConfigFields;
  /** What stood in the file, with integers and floats apart and keys in order; null where there is no file. */
  readonly source: JsonValue | null;
}

/** What sets one family apart from the others. */
export interface Family {
  readonly modelType: string;
  readonly architecture: string;
  /** K where `num_key_value_heads` is absent; undefined: N. */
  readonly defaultKeyValueHeads?: number;
  /** D where `head_dim` is absent; undefined: H / N. */
  readonly defaultHeadDim?: number;
  readonly defaultMaxPositions: number;
  /** Biases, norms and windows. */
  read(
    fields: FieldReader,
    sizes: { readonly numLayers: number },
  ): Pick<ModelConfig, "queryKeyValueBias" | "outputBias" | "mlpBias" | "queryKeyNorm" | "windows">;
}

const show = (value: unknown): string => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
};

/** Takes fields one by one and says what is wrong with one: the file, the key, the value, what is expected. */
export class FieldReader {
  readonly file: string;
  readonly fields: ConfigFields;
  readonly #prefix: string;

  constructor(fields: ConfigFields, file: string, prefix = "") {
    this.fields = fields;
    this.file = file;
    this.#prefix = prefix;
  }

  /** The field's value; undefined where it is absent. */
  get(key: string): unknown {
    return Object.hasOwn(this.fields, key) ? this.fields[key] : undefined;
  }

  fail(key: string, what: string): never {
    const value = this.get(key);
    const name = this.#prefix + key;
    throw new ModelError(
      value === undefined
        ? `${this.file}: ${name} is missing; ${what}`
        : `${this.file}: ${name} is ${show(value)}; ${what}`,
      { path: this.file, key: name, value },
    );
  }

  /** A whole number of at least `least`. Absent, or null where `nullable`: the default, if there is one. */
  count(key: string, options: { least?: number; default?: number; nullable?: boolean } = {}): number {
    const value = this.#value(key, options.nullable ?? false);
    const least = options.least ?? 1;
    if (value === undefined && options.default !== undefined) return options.default;
    if (!Number.isSafeInteger(value) || (value as number) < least)
      this.fail(key, `expected a whole number of at least ${least}`);
    return value as number;
  }

  /** A finite number above `above` (or from `from` on). */
  number(key: string, options: { above?: number; from?: number; default?: number; nullable?: boolean } = {}): number {
    const value = this.#value(key, options.nullable ?? false);
    if (value === undefined && options.default !== undefined) return options.default;
    const { above, from } = options;
    const good =
      typeof value === "number" &&
      Number.isFinite(value) &&
      (above === undefined || value > above) &&
      (from === undefined || value >= from);
    if (!good) {
      const range = above !== undefined ? ` above ${above}` : from !== undefined ? ` of at least ${from}` : "";
      this.fail(key, `expected a number${range}`);
    }
    return value;
  }

  /** A list of `length` numbers above 0. */
  numbers(key: string, length: number): number[] {
    const value = this.get(key);
    const good = (item: unknown) => typeof item === "number" && Number.isFinite(item) && item > 0;
    if (!Array.isArray(value) || value.length !== length || !value.every(good))
      this.fail(key, `expected a list of ${length} numbers above 0, one for each pair of a head's dims`);
    return value as number[];
  }

  /** As number, null where absent or null. */
  numberOrNull(key: string, options: { above?: number; from?: number } = {}): number | null {
    return this.get(key) === undefined || this.get(key) === null ? null : this.number(key, options);
  }

  /** true or false. */
  flag(key: string, absent: boolean): boolean {
    const value = this.get(key);
    if (value === undefined || value === null) return absent;
    if (typeof value !== "boolean") this.fail(key, "expected true or false");
    return value;
  }

  /** The fields of an object; undefined where it is absent, null or empty. */
  object(key: string): FieldReader | undefined {
    const value = this.get(key);
    if (value === undefined || value === null) return undefined;
    if (typeof value !== "object" || Array.isArray(value)) this.fail(key, "expected an object");
    if (Object.keys(value).length === 0) return undefined;
    return new FieldReader(value as ConfigFields, this.file, `${this.#prefix}${key}.`);
  }

  #value(key: string, nullable: boolean): unknown {
    const value = this.get(key);
    return value === null && nullable ? undefined : value;
  }
}

/** The fields as an object, or a ModelError. */
export function checkFields(raw: unknown, file: string): ConfigFields {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw))
    throw new ModelError(`${file} holds ${show(raw)}; expected an object with the model's fields`, { path: file });
  return raw as ConfigFields;
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
  const reader = new FieldReader(fields, file);
  refuseUnimplemented(reader);

  const vocabSize = reader.count("vocab_size");
  const hiddenSize = reader.count("hidden_size");
  const intermediateSize = reader.count("intermediate_size");
  const numLayers = reader.count("num_hidden_layers");
  const numHeads = reader.count("num_attention_heads");
  const numKeyValueHeads =
    reader.get("num_key_value_heads") === null
      ? numHeads
      : reader.count("num_key_value_heads", { default: family.defaultKeyValueHeads ?? numHeads });
  if (numHeads % numKeyValueHeads !== 0) {
    const absent = reader.get("num_key_value_heads") === undefined ? " (the default of this family)" : "";
    reader.fail("num_attention_heads", `expected a multiple of num_key_value_heads, ${numKeyValueHeads}${absent}`);
  }
  const headDim = readHeadDim(reader, family, hiddenSize, numHeads);

  const act = reader.get("hidden_act") ?? "silu";
  const activation = typeof act === "string" && Object.hasOwn(activations, act) ? activations[act] : undefined;
  if (activation === undefined)
    reader.fail("hidden_act", `this activation is not implemented; there are ${Object.keys(activations).join(", ")}`);

  const maxPositionEmbeddings = reader.count("max_position_embeddings", { default: family.defaultMaxPositions });
  const padding = reader.get("pad_token_id") ?? null;
  if (padding !== null && (!Number.isSafeInteger(padding) || Math.abs(padding as number) >= vocabSize))
    reader.fail("pad_token_id", `expected a token below vocab_size, ${vocabSize}, or null`);
  // torch counts a negative one from the end.
  const padTokenId =
    padding === null || (padding as number) >= 0 ? (padding as number | null) : (padding as number) + vocabSize;
  const dtype = reader.get("dtype") ?? reader.get("torch_dtype") ?? null;
  if (dtype !== null && typeof dtype !== "string")
    reader.fail(reader.get("dtype") === undefined ? "torch_dtype" : "dtype", "expected the name of a dtype");

  return {
    family: family.modelType,
    architecture: family.architecture,
    vocabSize,
    hiddenSize,
    intermediateSize,
    numLayers,
    numHeads,
    numKeyValueHeads,
    headDim,
    activation: activation as HiddenActivation,
    rmsNormEps: reader.number("rms_norm_eps", { from: 0, default: 1e-6 }),
    tieWordEmbeddings: reader.flag("tie_word_embeddings", false),
    initializerRange: reader.number("initializer_range", { from: 0, default: 0.02 }),
    maxPositionEmbeddings,
    rope: readRope(reader, maxPositionEmbeddings, headDim),
    ...family.read(reader, { numLayers }),
    dtype: dtype === null || dtype === "auto" ? null : (dtype as string).replace(/^torch\./, ""),
    padTokenId,
    file,
    fields,
    source,
  };
}

function refuseUnimplemented(reader: FieldReader): void {
  for (const key of ["attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop"]) {
    if (reader.number(key, { from: 0, default: 0, nullable: true }) > 0) reader.fail(key, "dropout is not implemented");
  }
  const quantization = reader.get("quantization_config");
  if (quantization !== undefined && quantization !== null)
    reader.fail("quantization_config", "quantized weights are not implemented; give the float model");
  for (const key of ["num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size"]) {
    const value = reader.get(key);
    if (value !== undefined && value !== null && value !== 0)
      reader.fail(key, "mixtures of experts are not implemented");
  }
  refusePartialRotary(reader);
}

function refusePartialRotary(reader: FieldReader): void {
  if (reader.number("partial_rotary_factor", { above: 0, default: 1, nullable: true }) !== 1)
    reader.fail("partial_rotary_factor", "partial rotary embeddings are not implemented; expected 1");
}

function readHeadDim(reader: FieldReader, family: Family, hiddenSize: number, numHeads: number): number {
  let headDim: number;
  const given = reader.get("head_dim");
  if (family.defaultHeadDim !== undefined) headDim = reader.count("head_dim", { default: family.defaultHeadDim });
  else if (given === undefined || given === null) {
    headDim = hiddenSize / numHeads;
    if (!Number.isInteger(headDim))
      reader.fail(
        "hidden_size",
        `expected a multiple of num_attention_heads, ${numHeads}, since head_dim is not given`,
      );
  } else headDim = reader.count("head_dim");
  if (headDim % 2 !== 0) {
    if (given === undefined || given === null)
      reader.fail("hidden_size", `the head size hidden_size / num_attention_heads is ${headDim}; expected an even one`);
    reader.fail("head_dim", "expected an even number");
  }
  return headDim;
}

/** `rope_scaling` (or `rope_parameters`) and the `rope_theta` at the top. */
function readRope(top: FieldReader, maxPositionEmbeddings: number, headDim: number): RopeParameters {
  // transformers takes rope_scaling where both are given.
  const inner = top.object("rope_scaling") ?? top.object("rope_parameters");
  const nested = inner && Object.entries(inner.fields).find(([, value]) => typeof value === "object" && value !== null);
  if (inner && nested && !Array.isArray(nested[1]))
    inner.fail(nested[0], "rope parameters that differ by kind of layer are not implemented");
  const reader = inner ?? top;
  if (inner !== undefined) refusePartialRotary(inner);
  const theta =
    inner !== undefined && inner.get("rope_theta") !== undefined && inner.get("rope_theta") !== null
      ? inner.number("rope_theta", { above: 0 })
      : top.number("rope_theta", { above: 0, default: 10000, nullable: true });
  const key = inner?.get("rope_type") !== undefined ? "rope_type" : "type";
  const type = inner?.get(key) ?? "default";
  if (!ropeTypes.includes(type as (typeof ropeTypes)[number]))
    reader.fail(key, `this kind of rope is not implemented; there are ${ropeTypes.join(", ")}`);

  // The file's top wins over the rope fields.
  const originalPositions = (): number =>
    top.get("original_max_position_embeddings") !== undefined
      ? top.count("original_max_position_embeddings")
      : reader.count("original_max_position_embeddings", { default: maxPositionEmbeddings });
  switch (type as (typeof ropeTypes)[number]) {
    case "default":
      return { type: "default", theta };
    case "linear":
      return { type: "linear", theta, factor: reader.number("factor", { above: 0 }) };
    case "dynamic":
      if (headDim === 2) reader.fail(key, "dynamic needs a head size above 2");
      return {
        type: "dynamic",
        theta,
        // Below 1 the base of a longer sequence would be negative.
        factor: reader.number("factor", { from: 1 }),
        maxPositions: maxPositionEmbeddings,
      };
    case "longrope": {
      const original = originalPositions();
      const factor = reader.numberOrNull("factor", { above: 0 }) ?? maxPositionEmbeddings / original;
      const attentionFactor = reader.numberOrNull("attention_factor", { above: 0 });
      if (attentionFactor === null && factor > 1 && original === 1)
        reader.fail("original_max_position_embeddings", "longrope cannot make an attention factor from 1");
      return {
        type: "longrope",
        theta,
        shortFactor: reader.numbers("short_factor", headDim / 2),
        longFactor: reader.numbers("long_factor", headDim / 2),
        factor,
        originalPositions: original,
        attentionFactor,
      };
    }
    case "llama3": {
      const lowFrequencyFactor = reader.number("low_freq_factor", { above: 0 });
      const highFrequencyFactor = reader.number("high_freq_factor", { above: 0 });
      if (highFrequencyFactor <= lowFrequencyFactor)
        reader.fail("high_freq_factor", `expected more than low_freq_factor, ${lowFrequencyFactor}`);
      return {
        type: "llama3",
        theta,
        factor: reader.number("factor", { above: 0 }),
        lowFrequencyFactor,
        highFrequencyFactor,
        originalPositions: originalPositions(),
      };
    }
    case "yarn": {
      if (theta === 1) (inner?.get("rope_theta") === undefined ? top : reader).fail("rope_theta", "yarn cannot use 1");
      const original = originalPositions();
      const orDefault = (name: string, value: number) => reader.numberOrNull(name, { from: 0 }) || value;
      return {
        type: "yarn",
        theta,
        // null: how much longer the context is than the original one.
        factor:
          reader.get("factor") === null ? maxPositionEmbeddings / original : reader.number("factor", { above: 0 }),
        originalPositions: original,
        attentionFactor: reader.numberOrNull("attention_factor", { above: 0 }),
        betaFast: orDefault("beta_fast", 32),
        betaSlow: orDefault("beta_slow", 1),
        mscale: reader.numberOrNull("mscale", { from: 0 }),
        mscaleAllDim: reader.numberOrNull("mscale_all_dim", { from: 0 }),
        truncate: reader.flag("truncate", true),
      };
    }
  }
}

/**
 * The windows of layers where `use_sliding_window` decides (Qwen2, Qwen3): those from `max_window_layers` on, unless
 * `layer_types` says otherwise.
 */
export function readLayerWindows(reader: FieldReader, numLayers: number): number[] {
  const use = reader.flag("use_sliding_window", false);
  const window = use && reader.get("sliding_window") !== null ? reader.count("sliding_window", { default: 4096 }) : 0;
  const types = reader.get("layer_types");
  if (types === undefined || types === null) {
    const first = reader.count("max_window_layers", { least: 0, default: 28 });
    return Array.from({ length: numLayers }, (_, layer) => (layer >= first ? window : 0));
  }
  if (!Array.isArray(types) || types.length !== numLayers)
    reader.fail("layer_types", `expected a list of num_hidden_layers names, ${numLayers}`);
  return types.map((type: unknown) => {
    if (type === "full_attention") return 0;
    if (type !== "sliding_attention")
      reader.fail("layer_types", `${show(type)} is not implemented; there are full_attention, sliding_attention`);
    if (window === 0)
      reader.fail(
        "layer_types",
        "it names sliding_attention, but use_sliding_window and sliding_window give no window",
      );
    return window;
  });
}

/** Whether rope parameters of this type need the length that the weights were trained with. */
const stretchesFromOriginal = (type: unknown): boolean => type === "yarn" || type === "llama3" || type === "longrope";

/** The fields with `override` put where transformers will find it; those given are left as they are. */
export function overrideFields(fields: ConfigFields, override: ConfigOverride = {}): ConfigFields {
  const result: Record<string, unknown> = structuredClone(fields);
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  const inner = [result.rope_scaling, result.rope_parameters].find(
    (value) => isObject(value) && Object.keys(value).length > 0,
  ) as Record<string, unknown> | undefined;

  const positionsBefore = result.max_position_embeddings;
  if (override.max_position_embeddings !== undefined) {
    result.max_position_embeddings = override.max_position_embeddings;
    const type = inner?.rope_type ?? inner?.type;
    // Where the original length is left out it is the old limit, and the new one must not take its place.
    if (
      inner !== undefined &&
      stretchesFromOriginal(type) &&
      positionsBefore !== undefined &&
      inner.original_max_position_embeddings === undefined &&
      result.original_max_position_embeddings === undefined
    )
      inner.original_max_position_embeddings = positionsBefore;
  }

  if (override.rope_scaling !== undefined) {
    const theta = override.rope_scaling?.rope_theta ?? inner?.rope_theta ?? result.rope_theta;
    const scaling: Record<string, unknown> = structuredClone(override.rope_scaling ?? {});
    const type = scaling.rope_type ?? scaling.type ?? "default";
    const original = result.original_max_position_embeddings ?? inner?.original_max_position_embeddings;
    // At the top it would win over the new one.
    delete result.original_max_position_embeddings;
    if (
      (type === "yarn" || type === "llama3" || type === "longrope") &&
      scaling.original_max_position_embeddings === undefined
    ) {
      // The length the weights were trained with, not the one they are stretched to.
      const positions = original ?? positionsBefore;
      if (positions !== undefined) scaling.original_max_position_embeddings = positions;
    }
    if (isObject(result.rope_parameters)) {
      delete result.rope_scaling;
      delete scaling.type;
      result.rope_parameters = { ...scaling, rope_type: type, ...(theta === undefined ? {} : { rope_theta: theta }) };
    } else {
      result.rope_scaling = override.rope_scaling === null ? null : scaling;
      if (theta !== undefined) result.rope_theta = theta;
    }
  }
  if (override.rope_theta !== undefined) {
    let placed = false;
    for (const value of [result.rope_scaling, result.rope_parameters]) {
      // Inside it wins over the one at the top.
      if (isObject(value) && (value === result.rope_parameters || value.rope_theta !== undefined)) {
        value.rope_theta = override.rope_theta;
        placed = true;
      }
    }
    if (!placed || result.rope_theta !== undefined) result.rope_theta = override.rope_theta;
  }
  return result;
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
    vocabulary: config.vocabSize,
    windows: config.windows,
  };
}
