// Writing a model as a Hugging Face folder: config.json, weights, and what came with the folder it was loaded from.

import * as fs from "node:fs/promises";
import * as path from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { FileDigest } from "../checkpoint/native_files.js";
import { type SafeDtype, writeModel } from "../checkpoint/safetensors.js";
import { type JsonValue, plainJson } from "../data/json.js";
import { writeJson } from "../data/json_write.js";
import { IoError } from "../errors.js";
import type { ModelConfig } from "./config.js";
import type { CausalLM } from "./decoder.js";
import { familyNamed } from "./registry.js";
import { assemble, type StoredPart, tensorsOf } from "./stored.js";

/** What a folder says of its tokenizer, whichever kind it is; chat templates are part of that. */
const TOKENIZER_FILES = [
  /^tokenizer\.(json|model)(\.v\d+)?$/,
  /^(tokenizer_config|special_tokens_map|added_tokens|vocab|tekken|chat_template)\.json$/,
  /^(merges|vocab)\.txt$/,
  /^(spiece|sentencepiece\.bpe)\.model$/,
  /^chat_template\.jinja$/,
  /\.tiktoken$/,
];

/** What else goes with a model and is not made from its weights; its licence goes wherever it goes. */
const COMPANIONS = [/^generation_config\.json$/, /^(LICEN[CS]E|NOTICE|USE_POLICY)(\.\w+)?$/i];

const TEMPLATES = "additional_chat_templates";

/** The largest tokenizers take some tens of MB; whatever is larger is no companion. */
const MOST_BYTES = 256 * 1024 ** 2;

/** Numbers of a config.json that Python holds as floats, also where they are whole. */
const FLOATS = new Set([
  "attention_dropout",
  "attention_factor",
  "beta_fast",
  "beta_slow",
  "factor",
  "high_freq_factor",
  "final_logit_softcapping",
  "initializer_range",
  "layer_norm_eps",
  "layer_norm_epsilon",
  "long_factor",
  "low_freq_factor",
  "mscale",
  "mscale_all_dim",
  "partial_rotary_factor",
  "rms_norm_eps",
  "rope_local_base_freq",
  "rope_theta",
  "rotary_pct",
  "short_factor",
]);

export interface ExportOptions {
  /** Largest size of one weights file in bytes (default 5 GB). */
  maxShardBytes?: number;
  signal?: AbortSignal;
  /** The folder that the tokenizer's files come from; null: none are copied. Default: the folder of the model. */
  tokenizer?: string | null;
}

/** The config.json of an export: the original fields, with what the model really is. */
export function exportFields(model: CausalLM): Record<string, unknown> {
  const { config } = model;
  const fields: Record<string, unknown> = structuredClone(config.fields);
  fields.architectures = [config.architecture];
  fields.model_type = config.family;
  if (fields.torch_dtype !== undefined) fields.torch_dtype = model.dtype;
  if (fields.torch_dtype === undefined || fields.dtype !== undefined) fields.dtype = model.dtype;
  if (model.sourceFolder !== null) return fields;
  const { names = {}, defaults = {} } = familyNamed(config.family);
  // Fields of an initialised model may leave out what other readers want to see.
  const spelled = fields.rope_parameters ?? fields.rope_scaling;
  const complete: Record<string, unknown> = {
    hidden_act: "silu",
    // A family without grouped heads has neither field.
    ...(defaults.num_key_value_heads !== null && {
      num_key_value_heads: config.numKeyValueHeads,
      head_dim: config.headDim,
    }),
    initializer_range: config.initializerRange,
    max_position_embeddings: config.maxPositionEmbeddings,
    tie_word_embeddings: config.tieWordEmbeddings,
    ...(config.norm.op === "rms_norm" ? { rms_norm_eps: config.norm.eps } : { layer_norm_eps: config.norm.eps }),
    // One for all layers; a family with several has its own defaults.
    ...((spelled ?? null) === null && config.ropes.length === 1 ? { rope_theta: config.ropes[0]?.theta } : {}),
  };
  for (const [key, value] of Object.entries(complete)) {
    const own = names[key] ?? key;
    if (fields[own] === undefined && fields[key] === undefined) fields[own] = defaults[key] ?? value;
  }
  return fields;
}

/**
 * `value` with its numbers told apart and its keys in order: as `source`, the value that stood in the file, has them
 * where it says the same, and else floats where `key` holds a float.
 */
function typed(value: unknown, source: JsonValue | undefined, key: string): JsonValue {
  if (source !== undefined && isDeepStrictEqual(plainJson(source), value)) return source;
  if (typeof value === "number") {
    const whole = Number.isSafeInteger(value) && !FLOATS.has(key) && typeof source !== "number";
    return whole ? BigInt(value) : value;
  }
  if (Array.isArray(value))
    return value.map((item, i) => typed(item, Array.isArray(source) ? source[i] : undefined, key));
  if (typeof value !== "object" || value === null) return value as JsonValue;
  const before = source instanceof Map ? source : new Map<string, JsonValue>();
  const entries = new Map(Object.entries(value).filter(([, item]) => item !== undefined));
  const keys = new Set([...[...before.keys()].filter((name) => entries.has(name)), ...entries.keys()]);
  return new Map(Array.from(keys, (name) => [name, typed(entries.get(name), before.get(name), name)]));
}

/** The text of an export's config.json: numbers and the order of keys are those of the file that was read. */
export const configText = (model: CausalLM): string => fieldsText(exportFields(model), model.config.source);

/** Fields as the text of a config.json, numbers and the order of keys as in `source` where that has them. */
export const fieldsText = (fields: Readonly<Record<string, unknown>>, source: JsonValue | null): string =>
  `${writeJson(typed(fields, source ?? undefined, ""))}\n`;

/** Copies what goes with the weights of a model's folder: its licence, its generation settings, its own code. */
export async function copyCompanions(config: ModelConfig, from: string, dir: string): Promise<void> {
  await copyFiles(from, dir, COMPANIONS);
  if (await namesCode(config, from)) await copyFiles(from, dir, [/\.py$/]);
}

/** Writes everything into the existing folder `dir`; returns size and hash of the weights' files by name. */
export async function writeModelFiles(
  model: CausalLM,
  dir: string,
  options: ExportOptions = {},
): Promise<Map<string, FileDigest>> {
  const configFile = path.join(dir, "config.json");
  try {
    await fs.writeFile(configFile, configText(model));
  } catch (error) {
    throw new IoError(
      `cannot write ${configFile}: ${(error as Error).message}`,
      { path: configFile },
      { cause: error },
    );
  }
  const { sourceFolder } = model;
  if (sourceFolder !== null) await copyCompanions(model.config, sourceFolder, dir);
  await copyTokenizer(options.tokenizer === undefined ? sourceFolder : options.tokenizer, dir);
  const dtype: SafeDtype = model.dtype === "bfloat16" ? "BF16" : "F32";
  const tensors = storedTensors(model).map(({ name, shape, parts }) => {
    let made: { dispose(): void } | undefined;
    return {
      name,
      dtype,
      shape,
      load: () => {
        const { tensor, dispose } = assemble(parts, (parameter) => model.states.gather(parameter));
        made = { dispose };
        return tensor;
      },
      done: () => made?.dispose(),
    };
  });
  try {
    return await writeModel(dir, tensors, options);
  } finally {
    model.states.giveBack();
  }
}

/** What a folder says of its tokenizer; null: there is none. */
export async function copyTokenizer(from: string | null, dir: string): Promise<void> {
  if (from === null) return;
  await copyFiles(from, dir, TOKENIZER_FILES);
  await copyFiles(path.join(from, TEMPLATES), path.join(dir, TEMPLATES), [/\.jinja$/]);
}

/** The tensors of the model's checkpoints, each with the parameters that it is made of. */
function storedTensors(model: CausalLM) {
  const tensors = new Map<string, { shape: number[]; parts: StoredPart[] }>();
  for (const [name, parameter] of model.namedParameters()) {
    const { stored, shape } = model.place(name);
    for (const [index, one] of tensorsOf(stored, shape).entries()) {
      const tensor = tensors.get(one.name) ?? { shape: one.shape, parts: [] };
      tensor.parts.push({ stored, parameter, index });
      tensors.set(one.name, tensor);
    }
  }
  return [...tensors].map(([name, tensor]) => ({ name, ...tensor }));
}

/** What the other ranks do while one writes a model that is spread over them: they give their shares, in its order. */
export function helpModelExport(model: CausalLM): void {
  for (const { parts } of storedTensors(model)) for (const { parameter } of parts) model.states.gather(parameter);
  model.states.giveBack();
}

/** Whether config.json or tokenizer_config.json name classes of Python files beside them, which then belong along. */
async function namesCode(config: ModelConfig, folder: string): Promise<boolean> {
  if (config.fields.auto_map !== undefined) return true;
  const file = path.join(folder, "tokenizer_config.json");
  return (await fs.readFile(file, "utf8").catch(() => "")).includes('"auto_map"');
}

/** Copies the files directly in `from` that one of the patterns names; hidden and huge ones are never meant. */
async function copyFiles(from: string, to: string, patterns: readonly RegExp[]): Promise<void> {
  try {
    const names = (await fs.readdir(from)).filter((name) => patterns.some((pattern) => pattern.test(name)));
    for (const name of names.sort()) {
      const source = path.join(from, name);
      // Of a link, what it points to; one that points nowhere is no file.
      const stat = await fs.stat(source).catch(() => undefined);
      if (name.startsWith(".") || !stat?.isFile() || stat.size > MOST_BYTES) continue;
      await fs.mkdir(to, { recursive: true });
      await fs.copyFile(source, path.join(to, name));
      // A read-only original must not make an export that cannot be written over.
      await fs.chmod(path.join(to, name), 0o644);
    }
  } catch (error) {
    const { code, path: source = from } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" && source === from) return;
    const message = `cannot copy ${source} to ${to}: ${(error as Error).message}`;
    throw new IoError(message, { path: source }, { cause: error });
  }
}
