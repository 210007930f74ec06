// Adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors in a folder.

import { readFileSync } from "node:fs";
import * as fs from "node:fs/promises";
import * as path from "node:path";
import { binding } from "../binding.js";
import type { FileDigest } from "../checkpoint/native_files.js";
import { SafetensorsFile, SafetensorsWriter } from "../checkpoint/safetensors.js";
import { JsonError, lineOf, parseJson, plainJson } from "../data/json.js";
import { ConfigError, IoError, ModelError } from "../errors.js";
import type { Segment } from "../parallel/zero.js";
import { untracked } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { flatPart } from "../tensor/tiers.js";
import { type AdapterConfig, isAdapterParameter } from "./adapter.js";
import type { CausalLM } from "./decoder.js";
import { copyTokenizer } from "./export.js";
import { show } from "./fields.js";
import { refuseNonFinite } from "./finite_weights.js";
import { randomKey } from "./random_key.js";
import type { ConfigOverride } from "./rope_fields.js";
import { assemble, readStored, type StoredPart, tensorsOf } from "./stored.js";

const CONFIG = "adapter_config.json";
/** Beside PEFT's files: what `model.override` had in it, since a merged model needs that too. */
const OVERRIDE = "base_override.json";
const WEIGHTS = "adapter_model.safetensors";
/** What PEFT puts before the names of the base model's modules. */
const PREFIX = "base_model.model.";

/** What to say of a folder that is given as a model's where it holds an adapter; null: it holds none. */
export function adapterInstead(folder: string): ModelError | null {
  let base: unknown;
  try {
    base = (JSON.parse(readFileSync(path.join(folder, CONFIG), "utf8")) as Record<string, unknown>)
      .base_model_name_or_path;
  } catch (error) {
    if (!(error instanceof SyntaxError)) return null;
  }
  return new ModelError(
    `${folder} holds an adapter, not a model: give the model that it was made for` +
      `${typeof base === "string" ? ` (${base})` : ""} as model.path and this folder as adapter.path, or make one model ` +
      "of both with longseq merge",
    { path: folder },
  );
}

/** Fields of adapter_config.json that are an adapter's alone, and what they must be where longseq has nothing else. */
const FIXED: Readonly<Record<string, unknown>> = {
  bias: "none",
  use_dora: false,
  use_qalora: false,
  use_bdlora: null,
  lora_bias: false,
  rank_pattern: {},
  alpha_pattern: {},
  exclude_modules: null,
  layers_to_transform: null,
  layer_replication: null,
  target_parameters: null,
  trainable_token_indices: null,
  ensure_weight_tying: false,
  alora_invocation_tokens: null,
  arrow_config: null,
  kasa_config: null,
  monteclora_config: null,
  velora_config: null,
};

/** What adapter_config.json says. base: the folder of the model that it was made for, if it says so. */
export interface SavedAdapter {
  readonly config: AdapterConfig;
  readonly base: string | null;
  /** Fields of the base's config.json that were others in training. */
  readonly override: ConfigOverride;
}

const isNeutral = (value: unknown, neutral: unknown): boolean =>
  value === undefined ||
  value === null ||
  value === neutral ||
  value === false ||
  (Array.isArray(value) && value.length === 0) ||
  (typeof value === "object" && Object.keys(value).length === 0);

/** Reads adapter_config.json of a folder. Throws ModelError naming file, key and value. */
export async function readAdapterConfig(folder: string): Promise<SavedAdapter> {
  const file = path.join(folder, CONFIG);
  let text = "";
  let fields: Record<string, unknown>;
  try {
    text = await fs.readFile(file, "utf8");
    fields = plainJson(parseJson(text)) as Record<string, unknown>;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const absent = code === "ENOENT" || code === "ENOTDIR";
    const what = error instanceof JsonError ? `${file}${lineOf(text, error)} is not valid JSON` : `cannot read ${file}`;
    throw new ModelError(
      absent ? `${folder} has no ${CONFIG}; give the folder of a PEFT adapter` : `${what}: ${message}`,
      { path: file },
      { cause: error },
    );
  }
  if (typeof fields !== "object" || fields === null || Array.isArray(fields))
    throw new ModelError(`${file} holds no JSON object`, { path: file });
  const fail = (key: string, expected: string): never => {
    throw new ModelError(`${file}: ${key} is ${show(fields[key])}; ${expected}`, { path: file, key });
  };
  if (fields.peft_type !== "LORA") fail("peft_type", "longseq reads LORA adapters");
  const { task_type: task = null } = fields;
  if (task !== null && task !== "CAUSAL_LM") fail("task_type", "longseq trains causal language models (CAUSAL_LM)");
  for (const [key, value] of Object.entries(FIXED))
    if (!isNeutral(fields[key], value))
      fail(
        key,
        ["rank_pattern", "alpha_pattern", "target_parameters"].includes(key)
          ? "longseq does not implement this (PEFT's all-linear adds it for the matrices of experts: an adapter whose " +
              "target_modules are a list of other modules has none)"
          : "longseq does not implement this",
      );
  const { use_rslora: rslora = false } = fields;
  if (typeof rslora !== "boolean" && rslora !== null) fail("use_rslora", "expected true or false");
  const number = (key: string, fallback: number, above: number): number => {
    const value = fields[key] ?? fallback;
    return typeof value === "number" && value >= above ? value : fail(key, "expected a number above 0");
  };
  const texts = (key: string): string[] => {
    const value = fields[key] ?? [];
    const fine = Array.isArray(value) && value.every((item) => typeof item === "string");
    return fine ? (value as string[]) : fail(key, "expected a list of module names");
  };
  const rank = number("r", 8, 1);
  if (!Number.isSafeInteger(rank)) fail("r", "expected a whole number of at least 1");
  const dropout = number("lora_dropout", 0, 0);
  if (dropout >= 1) fail("lora_dropout", "expected a number from 0 to below 1");
  const { target_modules: targets, base_model_name_or_path: base } = fields;
  // The others change the base's weights when an adapter begins.
  const { init_lora_weights: begun = true } = fields;
  if (typeof begun !== "boolean" && !["gaussian", "eva", "orthogonal"].includes(begun as string))
    fail("init_lora_weights", "such an adapter belongs to a base that it changed; save it as a plain one first");
  return {
    config: {
      rank,
      alpha: number("lora_alpha", 8, Number.MIN_VALUE),
      targetModules: typeof targets === "string" ? targets : texts("target_modules"),
      modulesToSave: texts("modules_to_save"),
      dropout,
      rslora: rslora === true,
      init: true,
      path: folder,
      file,
    },
    base: typeof base === "string" && base !== "" ? base : null,
    override: await readOverride(folder),
  };
}

async function readOverride(folder: string): Promise<ConfigOverride> {
  const file = path.join(folder, OVERRIDE);
  try {
    return JSON.parse(await fs.readFile(file, "utf8")) as ConfigOverride;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return {};
    throw new ModelError(`cannot read ${file}: ${(error as Error).message}`, { path: file }, { cause: error });
  }
}

/** The text of adapter_config.json for what a model was trained with. */
function adapterConfigText(model: CausalLM, base: string | null): string {
  const adapter = model.config.adapter as AdapterConfig;
  const { rank, alpha, modulesToSave, dropout, rslora, init } = adapter;
  const conv1d = [...model.namedParameters()].some(([name]) => model.place(name).stored.transposed);
  const fields = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: base,
    bias: "none",
    fan_in_fan_out: conv1d,
    inference_mode: true,
    init_lora_weights: init,
    lora_alpha: alpha,
    lora_dropout: dropout,
    modules_to_save: modulesToSave.length > 0 ? modulesToSave : null,
    r: rank,
    revision: null,
    target_modules: targetNames(model, adapter),
    use_dora: false,
    use_rslora: rslora,
  };
  return `${JSON.stringify(fields, null, 2)}\n`;
}

/**
 * target_modules for PEFT's file. An expression of our own is written as the names that it matched: PEFT would match it with
 * all modules, those that cannot have an adapter among them.
 */
function targetNames(model: CausalLM, { targetModules, path: from }: AdapterConfig): string | readonly string[] {
  if (typeof targetModules !== "string" || (from !== null && targetModules !== "all-linear")) return targetModules;
  const names = [...model.namedParameters()].flatMap(([name]) => {
    const [, module] = /^(.*)\.lora_A\.weight$/.exec(name) ?? [];
    if (module === undefined) return [];
    return [targetModules === "all-linear" ? module.slice(module.lastIndexOf(".") + 1) : module];
  });
  return [...new Set(names)].sort();
}

/** The name of a stored tensor in PEFT's file, which calls modules as transformers does; the head is lm_head everywhere. */
export function peftName(model: CausalLM, name: string): string {
  if (model.lmHead !== null && name === model.nameOf(model.lmHead.weight)) return `${PREFIX}lm_head.weight`;
  const module = model.findPlace(name)?.stored.module;
  return PREFIX + (module === undefined ? name : `${module}.weight`);
}

interface AdapterTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly parts: StoredPart[];
}

/** The tensors of PEFT's file, each with the parameters that it is made of. */
function adapterTensors(model: CausalLM): AdapterTensor[] {
  const tensors = new Map<string, AdapterTensor>();
  for (const [name, parameter] of model.namedParameters()) {
    if (!parameter.requiresGrad) continue;
    const { stored, shape } = model.place(name);
    for (const [index, one] of tensorsOf(stored, shape).entries()) {
      const tensor = tensors.get(one.name) ?? { name: peftName(model, one.name), shape: one.shape, parts: [] };
      // A is shared by what is one module there.
      if (!tensor.parts.some((part) => part.parameter === parameter && part.index === index))
        tensor.parts.push({ stored, parameter, index });
      tensors.set(one.name, tensor);
    }
  }
  return [...tensors.values()];
}

/**
 * Writes PEFT's two files into the existing folder `dir`, and what there is of a tokenizer; returns size and hash of the
 * weights' by name. base: the folder of the model that the adapters are for.
 */
export async function writeAdapterFiles(
  model: CausalLM,
  dir: string,
  base: string | null,
  options: { tokenizer?: string | null } = {},
): Promise<Map<string, FileDigest>> {
  const configFile = path.join(dir, CONFIG);
  const { override = {} } = model.config;
  try {
    await fs.writeFile(configFile, adapterConfigText(model, base));
    if (Object.keys(override).length > 0)
      await fs.writeFile(path.join(dir, OVERRIDE), `${JSON.stringify(override, null, 2)}\n`);
  } catch (error) {
    throw new IoError(
      `cannot write ${configFile}: ${(error as Error).message}`,
      { path: configFile },
      { cause: error },
    );
  }
  await copyTokenizer(options.tokenizer === undefined ? model.sourceFolder : options.tokenizer, dir);
  const tensors = adapterTensors(model).map((one) => ({
    ...one,
    dtype: (one.parts[0] as StoredPart).parameter.dtype === "bfloat16" ? ("BF16" as const) : ("F32" as const),
  }));
  const writer = await SafetensorsWriter.create(path.join(dir, WEIGHTS), tensors, { format: "pt" });
  try {
    for (const { name, parts } of tensors) {
      const { tensor, dispose } = assemble(parts, (parameter) => model.states.gather(parameter));
      try {
        await writer.write(name, tensor);
      } finally {
        dispose();
      }
    }
    return new Map([[WEIGHTS, await writer.finish()]]);
  } catch (error) {
    await writer.abandon();
    throw error;
  } finally {
    model.states.giveBack();
  }
}

/** What the other ranks do while one writes: they give their shares, in its order. */
export function helpAdapterExport(model: CausalLM): void {
  for (const { parts } of adapterTensors(model)) for (const { parameter } of parts) model.states.gather(parameter);
  model.states.giveBack();
}

/** Opens a folder's weights. Throws ModelError where they are not in safetensors. */
export async function openWeights(folder: string): Promise<SafetensorsFile> {
  const file = path.join(folder, WEIGHTS);
  const there = (name: string) =>
    fs.access(path.join(folder, name)).then(
      () => true,
      () => false,
    );
  if (!(await there(WEIGHTS)))
    throw new ModelError(
      (await there("adapter_model.bin"))
        ? `${folder} has its weights in adapter_model.bin; save them as safetensors (PEFT's save_pretrained does)`
        : `${folder} has no ${WEIGHTS}`,
      { path: file },
    );
  return SafetensorsFile.open(file);
}

/**
 * Gives the adapters of a model the values of the folder that training goes on from, if there is one. Throws ModelError
 * for an adapter that was made for another base.
 */
export async function loadAdapters(model: CausalLM): Promise<void> {
  const { adapter } = model.config;
  if (!adapter || adapter.path === null) return;
  using weights = await openWeights(adapter.path);
  await checkAdapter(model, adapter, weights);
  const reader = {
    read: (name: string, target: Tensor, from: { begin?: number }) => weights.read(peftName(model, name), target, from),
  };
  for (const { leaf, segments } of model.trained)
    for (const { name, begin, count, offset } of segments) {
      using part = untracked(() => flatPart(leaf, offset, count));
      await readStored(reader, model.place(name), part, begin, leaf.tier);
    }
}

/** Gives the adapters of a new model their first values: A random by the run's seed, B 0. */
export function initAdapters(model: CausalLM, seed: number): void {
  const { adapter } = model.config;
  if (!adapter) return;
  for (const { leaf, segments } of model.trained)
    for (const segment of segments) initialise(model, leaf, segment, { ...adapter, seed });
}

function initialise(
  model: CausalLM,
  leaf: Tensor,
  { name, shape, begin, count, offset }: Segment,
  { rank, init, seed }: Pick<AdapterConfig, "rank" | "init"> & { seed: number },
): void {
  const { parameter } = model.place(name);
  if (!isAdapterParameter(parameter)) return;
  using part = untracked(() => flatPart(leaf, offset, count));
  if (parameter.endsWith("_b")) {
    part.fill(0);
    return;
  }
  const key = randomKey(name, seed);
  const bound = 1 / Math.sqrt(shape[1] as number);
  if (init === "gaussian") binding.ops.random(part.native(), 0, 1 / rank, key, begin, true);
  else binding.ops.random(part.native(), -bound, bound, key, begin, false);
}

/** Every tensor is there with its shape, and no other; A and B are numbers throughout. Throws ModelError. */
export async function checkAdapter(model: CausalLM, adapter: AdapterConfig, weights: SafetensorsFile): Promise<void> {
  const expected = adapterTensors(model);
  const fail = (what: string, tensor: string): never => {
    const base = model.sourceFolder ?? model.config.file;
    throw new ModelError(
      `${weights.path}: ${what}; it is an adapter for another base than ${base}, or its ${CONFIG} is not its own`,
      { path: weights.path, tensor },
    );
  };
  for (const { name, shape } of expected) {
    const entry = weights.entries.get(name);
    if (entry === undefined) fail(`there is no tensor ${name}`, name);
    else if (entry.shape.join() !== shape.join())
      fail(`tensor ${name} has shape [${entry.shape.join(", ")}], where [${shape.join(", ")}] belongs`, name);
    else if (!["F64", "F32", "F16", "BF16"].includes(entry.dtype))
      fail(`tensor ${name} is ${entry.dtype}, where F32, F16 or BF16 belongs`, name);
  }
  const known = new Set(expected.map(({ name }) => name));
  const extra = [...weights.entries.keys()].find((name) => !known.has(name) && !isBaseWeight(model, name));
  if (extra !== undefined) fail(`tensor ${extra} has no place in ${adapter.file}'s modules`, extra);
  for (const { name } of expected)
    if (/\.lora_[AB]\.weight$/.test(name)) await refuseNonFinite(weights, name, { file: weights.path });
}

/** Embeddings and heads of the base, which PEFT may store beside an adapter of theirs. */
function isBaseWeight(model: CausalLM, name: string): boolean {
  const plain = name.replace(".base_layer.", ".");
  const heads = [model.model.embedTokens.weight, model.lmHead?.weight].flatMap((weight) =>
    weight === undefined ? [] : [peftName(model, model.nameOf(weight))],
  );
  return [...heads, `${PREFIX}lm_head.weight`].includes(plain);
}

/** Throws ConfigError where a configuration asks for another adapter than the one that is to go on. */
export function checkSameAdapter(saved: AdapterConfig, asked: Readonly<Record<string, unknown>>): void {
  const values: Readonly<Record<string, unknown>> = {
    r: saved.rank,
    alpha: saved.alpha,
    target_modules: saved.targetModules,
    modules_to_save: saved.modulesToSave,
    rslora: saved.rslora,
  };
  const plain = (value: unknown): string => JSON.stringify(Array.isArray(value) ? [...value].sort() : value);
  for (const [key, value] of Object.entries(values))
    if (asked[key] !== null && asked[key] !== undefined && plain(asked[key]) !== plain(value))
      throw new ConfigError(
        `adapter.${key}: got ${show(asked[key])}, but ${saved.file} has ${show(value)}; leave it out to go on with that adapter`,
        { key: `adapter.${key}` },
      );
}
