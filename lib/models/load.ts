// Models from Hugging Face folders: config.json read, every tensor's name and shape checked, values streamed in.

import * as fs from "node:fs/promises";
import * as path from "node:path";
import { type ModelFolder, openModelFolder } from "../checkpoint/safetensors.js";
import { type JsonValue, lineOf, parseJson, plainJson } from "../data/json.js";
import { ArgumentError, IoError, ModelError } from "../errors.js";
import type { ZeroOptions } from "../parallel/zero.js";
import type { ModelShape } from "../report/model_flops.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { untracked } from "../tensor/scope.js";
import type { ParameterTier, Tensor } from "../tensor/tensor.js";
import { flatPart } from "../tensor/tiers.js";
import { type AdapterConfig, isAdapterParameter } from "./adapter.js";
import type { ModelConfig } from "./config.js";
import { CausalLM, type MemoryOptions } from "./decoder.js";
import { refuseNonFinite } from "./finite_weights.js";
import { packedPieces } from "./packed.js";
import { adapterInstead, initAdapters, loadAdapters } from "./peft.js";
import { EMBEDDING, familyNamed, HEAD, parseModelConfig, storedIn, withAdapter } from "./registry.js";
import type { ConfigOverride } from "./rope_fields.js";
import { readStored, tensorsOf } from "./stored.js";

export interface ModelOptions {
  /** Default cpu. */
  device?: Device | string | undefined;
  /** Default: float32 on the CPU, elsewhere the checkpoint's. */
  dtype?: DType | undefined;
  memory?: MemoryOptions | undefined;
  /** The ranks that hold different tokens, which share the model's states: each reads what it keeps. */
  zero?: ZeroOptions | null | undefined;
  /** The model is trained by adapters, its own weights being frozen. */
  adapter?: AdapterConfig | null | undefined;
}

export interface LoadOptions extends ModelOptions {
  /** Replaces fields of config.json; written to exports. */
  override?: ConfigOverride | undefined;
  signal?: AbortSignal | undefined;
  /** Of the first values of adapters. Default 0. */
  seed?: number | undefined;
}

/** Reads `config.json` of a folder. Throws ModelError (missing, no JSON, a bad field) or IoError. */
export async function readModelConfig(folder: string, override?: ConfigOverride): Promise<ModelConfig> {
  const file = path.join(folder, "config.json");
  let text: string;
  try {
    text = await fs.readFile(file, "utf8");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT" || code === "ENOTDIR") {
      const exists = await fs.stat(folder).then(
        (stat) => stat.isDirectory(),
        () => false,
      );
      const adapter = adapterInstead(folder);
      if (adapter !== null) throw adapter;
      throw new ModelError(
        exists
          ? `${folder} has no config.json; give the folder of a Hugging Face model`
          : `the model folder ${folder} does not exist`,
        { path: folder },
      );
    }
    throw new IoError(`cannot read ${file}: ${(error as Error).message}`, { path: file }, { cause: error });
  }
  let source: JsonValue;
  try {
    source = parseJson(text);
  } catch (error) {
    const hint = text.startsWith("version https://git-lfs") ? " (it is a Git LFS pointer: run git lfs pull)" : "";
    throw new ModelError(
      `${file}${lineOf(text, error)} is not valid JSON: ${(error as Error).message}${hint}`,
      { path: file },
      { cause: error },
    );
  }
  return parseModelConfig(plainJson(source), { file, source, ...(override === undefined ? {} : { override }) });
}

/** The storage dtype of a model on a device: the one asked for, or the default. */
export function modelDtype(config: ModelConfig, options: ModelOptions): DType {
  const { dtype } = options;
  if (dtype !== undefined) {
    if (dtype !== "float32" && dtype !== "bfloat16")
      throw new ArgumentError(`a model's dtype is ${String(dtype)}, expected float32 or bfloat16`);
    return dtype;
  }
  const device = options.device ?? "cpu";
  if ((typeof device === "string" ? device : device.type).startsWith("cpu")) return "float32";
  return config.dtype === "bfloat16" || config.dtype === "float16" ? "bfloat16" : "float32";
}

/** Parameters that are to live on the host are never on the device as a whole. */
export const parameterTier = (options: ModelOptions): ParameterTier =>
  options.memory?.states?.params === "host" ? "host" : "device";

/** Tensors of older checkpoints that are made, not trained. */
const isDerived = (name: string, config: ModelConfig): boolean =>
  name.endsWith("rotary_emb.inv_freq") || (familyNamed(config.family).derived?.test(name) ?? false);

/**
 * Names as the checkpoint has them, for the names that a causal language model's checkpoint has: one saved from the model
 * without its head lacks their first part ("transformer.", "model.").
 */
export function namesIn(weights: ModelFolder, config: ModelConfig): (name: string) => string {
  const { name } = storedIn(config, EMBEDDING);
  const prefix = name.slice(0, name.indexOf(".") + 1);
  const bare = !weights.entries.has(name) && weights.entries.has(name.slice(prefix.length));
  return (full) => (bare && full.startsWith(prefix) ? full.slice(prefix.length) : full);
}

/**
 * Loads the model of a Hugging Face folder (config.json and safetensors), values converted to `dtype`. Throws
 * ModelError for a config that cannot be used or does not agree with the tensors, FormatError for broken files.
 */
export async function loadModel(folder: string, options: LoadOptions = {}): Promise<CausalLM> {
  if (typeof folder !== "string") throw new ArgumentError(`loadModel: folder is ${typeof folder}, expected a path`);
  const read = await readModelConfig(folder, options.override);
  const dtype = modelDtype(read, options);
  using weights = await openModelFolder(folder);
  const { adapter = null } = options;
  await checkTied(read, weights);
  checkTensors(weights, read, folder);
  const config = withAdapter(read, adapter);
  const device = options.device ?? "cpu";
  const tier = parameterTier(options);
  const { zero = null } = options;
  const model = untracked(() => new CausalLM(config, { device, dtype, tier, sourceFolder: folder, zero }));
  try {
    if (options.memory !== undefined) model.configureMemory(options.memory);
    const inFiles = namesIn(weights, config);
    const [head, embedding] = [HEAD, EMBEDDING].map((name) => storedIn(config, name).name) as [string, string];
    const nameOf = (name: string) => inFiles(config.headOfEmbedding && name === head ? embedding : name);
    const reader = {
      read: (name: string, target: Tensor, from: { begin?: number }) => weights.read(nameOf(name), target, from),
    };
    for (const { leaf, segments } of model.owned)
      for (const { name: own, begin, count, offset } of segments) {
        options.signal?.throwIfAborted();
        const place = model.place(own);
        if (isAdapterParameter(place.parameter)) continue;
        using part = untracked(() => flatPart(leaf, offset, count));
        const format = adapter?.baseFormat;
        if (format && leaf.dtype === "uint8") {
          for (const piece of packedPieces(place.shape, format, part, begin))
            await readStored(reader, place, piece.values, piece.begin, "device");
          continue;
        }
        await readStored(reader, place, part, begin, tier);
        if (!place.parameter.endsWith(ROUTER)) continue;
        // Scores that are no numbers would send tokens anywhere, and nothing would tell.
        const name = nameOf(place.stored.name);
        const file = path.join(folder, weights.entries.get(name)?.file ?? "");
        await refuseNonFinite(weights, name, { file, role: ", which chooses experts,", range: { begin, count } });
      }
    initAdapters(model, options.seed ?? 0);
    await loadAdapters(model);
    model.states.finishUpdate();
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** The end of a router's name, by the properties of modules. */
const ROUTER = ".mlp.gate.weight";

/** The config that `loadModel` gives the model of a folder; where there are no weights, what config.json says. */
export async function resolveModelConfig(folder: string, override?: ConfigOverride): Promise<ModelConfig> {
  const config = await readModelConfig(folder, override);
  if (!config.tieWordEmbeddings) return config;
  // What is wrong with the files is for loadModel to say.
  const weights = await openModelFolder(folder).catch(() => undefined);
  if (weights === undefined) return config;
  using open = weights;
  await checkTied(config, open);
  return config;
}

/** Throws ModelError where the config ties embedding and head, and the files hold two that differ. */
async function checkTied(config: ModelConfig, weights: ModelFolder): Promise<void> {
  if (!config.tieWordEmbeddings || (await agreesWithTying(weights, config))) return;
  const [head, embedding] = [HEAD, EMBEDDING].map((name) => storedIn(config, name).name);
  throw new ModelError(
    `${config.file} says that ${head} is ${embedding} (tie_word_embeddings), but ${weights.path} holds two that differ; ` +
      "set model.override.tie_word_embeddings to false to have both, as transformers does, or take the head out of the file",
    { path: weights.path, tensor: head },
  );
}

/** Whether there is no lm_head in the files, or one that equals the embedding. */
async function agreesWithTying(weights: ModelFolder, config: ModelConfig): Promise<boolean> {
  const nameOf = namesIn(weights, config);
  const [headName, embeddingName] = [HEAD, EMBEDDING].map((name) => nameOf(storedIn(config, name).name)) as [
    string,
    string,
  ];
  const head = weights.entries.get(headName);
  const embedding = weights.entries.get(embeddingName);
  if (head === undefined || embedding === undefined) return true;
  if (head.dtype !== embedding.dtype || head.elements !== embedding.elements) return false;
  const step = Math.max(1, Math.floor((1 << 22) / config.hiddenSize)) * config.hiddenSize;
  for (let begin = 0; begin < head.elements; begin += step) {
    const count = Math.min(step, head.elements - begin);
    const [a, b] = await Promise.all([
      weights.readBytes(headName, { begin, count }),
      weights.readBytes(embeddingName, { begin, count }),
    ]);
    if (Buffer.compare(Buffer.from(a), Buffer.from(b)) !== 0) return false;
  }
  return true;
}

/** The tensors that a config asks for, by Hugging Face name; nothing is allocated for them. */
export function tensorShapes(config: ModelConfig): Map<string, readonly number[]> {
  const model = untracked(() => new CausalLM({ ...config, adapter: null }, { device: "meta" }));
  try {
    const places = [...model.namedParameters()].map(([name]) => model.place(name));
    return new Map(
      places.flatMap(({ stored, shape }) => tensorsOf(stored, shape).map((one) => [one.name, one.shape] as const)),
    );
  } finally {
    model.dispose();
  }
}

/** What lib/report counts the operations of a model from. */
export function shapeOf(config: ModelConfig): ModelShape {
  const model = untracked(() => new CausalLM(config, { device: "meta" }));
  try {
    return model.shape;
  } finally {
    model.dispose();
  }
}

/** Every tensor is there, with its shape and a dtype that can be converted, and no other. */
export function checkTensors(weights: ModelFolder, config: ModelConfig, folder: string): void {
  const nameOf = namesIn(weights, config);
  const expected = new Map([...tensorShapes(config)].map(([name, shape]) => [nameOf(name), shape]));
  const missing: string[] = [];
  for (const [name, shape] of expected) {
    const entry = weights.entries.get(name);
    if (entry === undefined) {
      missing.push(name);
      continue;
    }
    const file = path.join(folder, entry.file);
    if (entry.shape.length !== shape.length || entry.shape.some((size, i) => size !== shape[i])) {
      throw new ModelError(
        `${file}: tensor ${name} has shape [${entry.shape.join(", ")}], but ${config.file} asks for [${shape.join(", ")}]`,
        { path: file, tensor: name, found: entry.shape, expected: shape },
      );
    }
    if (!["F64", "F32", "F16", "BF16"].includes(entry.dtype)) {
      throw new ModelError(
        `${file}: tensor ${name} is ${entry.dtype}; weights must be F64, F32, F16 or BF16 (quantized ones are not implemented)`,
        { path: file, tensor: name, dtype: entry.dtype },
      );
    }
  }
  // A head beside a tied embedding was found equal to it.
  const head = nameOf(storedIn(config, HEAD).name);
  const tied = (name: string) => name === head && config.tieWordEmbeddings;
  const unexpected = [...weights.entries.keys()].filter((n) => !expected.has(n) && !isDerived(n, config) && !tied(n));
  if (missing.length === 0 && unexpected.length === 0) return;
  const hint =
    missing.length === 1 && missing[0] === head ? "; without tie_word_embeddings: true it must be there" : "";
  throw new ModelError(
    [
      missing.length > 0 ? `${folder} lacks ${named(missing)}, which ${config.file} asks for${hint}` : "",
      unexpected.length > 0 ? `${folder} holds ${named(unexpected)}, which ${config.file} has no place for` : "",
    ]
      .filter((part) => part !== "")
      .join("; "),
    { path: folder, missing, unexpected },
  );
}

const named = (names: readonly string[]): string =>
  `${names.length === 1 ? "tensor" : `${names.length} tensors:`} ${names.slice(0, 4).join(", ")}${names.length > 4 ? ", ..." : ""}`;
