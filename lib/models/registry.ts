// The families there are, and reading a config.json for one of them.

import type { JsonValue } from "../data/json.js";
import { ArgumentError } from "../errors.js";
import { type AdapterConfig, isSaved, storedAdapter } from "./adapter.js";
import { type Family, type ModelConfig, readConfig, type Sizes } from "./config.js";
import { checkFields } from "./fields.js";
import { gemma2 } from "./gemma2.js";
import { gemma3 } from "./gemma3.js";
import { gptNeox } from "./gpt_neox.js";
import { gpt2 } from "./gpt2.js";
import { llama } from "./llama.js";
import { ministral } from "./ministral.js";
import { mistral } from "./mistral.js";
import { mixtral } from "./mixtral.js";
import { olmo2 } from "./olmo2.js";
import { phi3 } from "./phi3.js";
import { qwen2 } from "./qwen2.js";
import { qwen2Moe } from "./qwen2_moe.js";
import { qwen3 } from "./qwen3.js";
import { qwen3Moe } from "./qwen3_moe.js";
import { type ConfigOverride, overrideFields } from "./rope_fields.js";
import type { Stored } from "./stored.js";

/** The embedding's matrix, by the properties of modules. */
export const EMBEDDING = "model.embed_tokens.weight";
/** The head's, where it is not the embedding. */
export const HEAD = "lm_head.weight";

/** A new family is one file and one entry here. */
export const families: readonly Family[] = [
  llama,
  mistral,
  ministral,
  mixtral,
  qwen2,
  qwen2Moe,
  qwen3,
  qwen3Moe,
  gemma2,
  gemma3,
  gpt2,
  gptNeox,
  olmo2,
  phi3,
];

/** The family of a `model_type`. */
export function familyNamed(modelType: string): Family {
  const family = families.find((one) => one.modelType === modelType);
  if (family === undefined) throw new ArgumentError(`there is no family ${modelType}`);
  return family;
}

/** Where a model's parameter lies in checkpoints of its family; one of an adapter, in PEFT's files. */
export function storedIn(config: Sizes & Pick<ModelConfig, "family">, parameter: string): Stored {
  const own = (name: string): Stored => familyNamed(config.family).stored?.(name, config) ?? { name };
  return storedAdapter(parameter, own) ?? own(parameter);
}

/**
 * The config of the fields of a config.json, `override` applied. `file` is what messages call them, `source`
 * their file's values with number text and order, for exports. Throws one ModelError naming file, key and value.
 */
export function parseModelConfig(
  raw: unknown,
  options: { file: string; override?: ConfigOverride; source?: JsonValue },
): ModelConfig {
  const fields = overrideFields(checkFields(raw, options.file), options.override);
  const { override = {} } = options;
  return { ...readConfig(fields, options.file, families, options.source), override };
}

/**
 * A model that is trained by adapters. As in PEFT a tied embedding and head come apart where one of them is trained as it
 * is: the other stays.
 */
export function withAdapter(config: ModelConfig, adapter: AdapterConfig | null): ModelConfig {
  if (adapter === null || !config.tieWordEmbeddings) return { ...config, adapter };
  const embedding = storedIn(config, EMBEDDING).name.replace(/\.weight$/, "");
  const apart = [embedding, "lm_head"].some((name) => isSaved(name, adapter.modulesToSave));
  return apart ? { ...config, adapter, tieWordEmbeddings: false, headOfEmbedding: true } : { ...config, adapter };
}
