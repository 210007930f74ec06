// The families there are, and reading a config.json for one of them.

import type { JsonValue } from "../data/json.js";
import {
  type ConfigOverride,
  checkFields,
  type Family,
  type ModelConfig,
  overrideFields,
  readConfig,
} from "./config.js";
import { llama } from "./llama.js";
import { mistral } from "./mistral.js";
import { qwen2 } from "./qwen2.js";
import { qwen3 } from "./qwen3.js";

/** A new family is one file and one entry here. */
export const families: readonly Family[] = [llama, mistral, qwen2, qwen3];

/**
 * The config of the fields of a config.json, `override` applied. `file` is what messages call them, `source`
 * their file's values with number text and order, for exports. Throws one ModelError naming file, key and value.
 */
export function parseModelConfig(
  raw: unknown,
  options: { file: string; override?: ConfigOverride; source?: JsonValue },
): ModelConfig {
  const fields = overrideFields(checkFields(raw, options.file), options.override);
  return readConfig(fields, options.file, families, options.source);
}
