// What generation opens: the model of a folder (a Hugging Face model, a run, or a PEFT adapter and its base), its
// tokenizer and chat template, and the tokens that end an answer.

import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { ChatTemplate } from "../data/chat.js";
import { chooseTemplate } from "../data/chat_templates.js";
import { loadTokenizer, resolveTokenizer, type TextTokenizer } from "../data/tokenizer.js";
import { ConfigError, FormatError } from "../errors.js";
import type { CausalLM } from "../models/decoder.js";
import { loadModel } from "../models/load.js";
import { readAdapterConfig } from "../models/peft.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";

export interface OpenOptions {
  device: Device;
  dtype?: DType | undefined;
  /** Of an adapter: the model that it is for. Default: what the adapter names. */
  base?: string | undefined;
  /** A chat template in place of the folder's. */
  chatTemplate?: string | undefined;
  signal?: AbortSignal | undefined;
}

/** A model that can be asked. */
export interface Speaker {
  readonly model: CausalLM;
  /** The folder that the model came from; of a run its model folder. */
  readonly folder: string;
  /** null: the folder has none, and prompts are ids. */
  readonly tokenizer: TextTokenizer | null;
  /** Throws DataError where there is none. */
  template(tools: boolean): ChatTemplate;
  /** Tokens that end a sequence, as transformers reads them: generation_config.json's eos_token_id, else config.json's. */
  readonly stopIds: readonly number[];
}

/** The model folder that a name means: itself, or of a run its `model`. Throws ConfigError. */
export function modelFolderOf(dir: string): string {
  const has = (folder: string) => ["config.json", "adapter_config.json"].some((file) => existsSync(join(folder, file)));
  if (has(dir)) return dir;
  const inside = join(dir, "model");
  if (has(inside)) return inside;
  if (!existsSync(dir)) throw new ConfigError(`there is no folder ${JSON.stringify(dir)}`, { path: dir });
  if (!statSync(dir).isDirectory())
    throw new ConfigError(`${dir} is a file; give the folder of a Hugging Face model or of a run`, { path: dir });
  const run = ["metrics.jsonl", "config.yaml", "checkpoints"].some((name) => existsSync(join(dir, name)));
  throw new ConfigError(
    run
      ? `${dir} has no model yet: a run writes ${inside} when it has finished`
      : `${dir} holds neither a model (config.json) nor a run with one (model/config.json)`,
    { path: dir },
  );
}

/** Ids that end a sequence, of the first file that names any. */
function endIds(folder: string): number[] {
  for (const name of ["generation_config.json", "config.json"]) {
    const file = join(folder, name);
    if (!existsSync(file)) continue;
    let value: unknown;
    try {
      value = (JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>).eos_token_id;
    } catch (error) {
      throw new FormatError(`${file} is not valid JSON: ${(error as Error).message}`, { file }, { cause: error });
    }
    const ids = (Array.isArray(value) ? value : [value]).filter((id): id is number => Number.isInteger(id));
    if (ids.length > 0) return ids;
  }
  return [];
}

/** Opens a folder. Throws ConfigError for one that holds no model, and what `loadModel` throws. */
export async function openSpeaker(dir: string, options: OpenOptions): Promise<Speaker> {
  const { device, dtype, signal } = options;
  const folder = modelFolderOf(dir);
  const isAdapter = existsSync(join(folder, "adapter_config.json"));
  if (!isAdapter && options.base !== undefined)
    throw new ConfigError(`${folder} holds a whole model, which has no base; leave out --base`, { path: folder });
  let from = folder;
  let load: Parameters<typeof loadModel>[1] = { device, dtype, signal };
  if (isAdapter) {
    const saved = await readAdapterConfig(folder);
    const base = options.base ?? saved.base;
    if (base === null)
      throw new ConfigError(`${folder} does not say which model its adapter is for; give --base FOLDER`, {
        path: folder,
      });
    try {
      from = modelFolderOf(base);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      const named = options.base === undefined ? `${folder} is for ${base}` : "--base";
      throw new ConfigError(`${named}: ${error.message}; give the folder of the model by --base`, { path: base });
    }
    load = { ...load, adapter: saved.config, override: saved.override };
  }
  // The tokenizer first: a fault in it is told before the weights are read.
  const spec = resolveTokenizer(folder) ?? resolveTokenizer(from);
  const tokenizer = spec && loadTokenizer(spec);
  const ends = endIds(folder);
  const model = await loadModel(from, load);
  const templates = new Map<string, ChatTemplate>();
  return {
    model,
    folder,
    tokenizer,
    stopIds: ends.length > 0 ? ends : endIds(from),
    template(tools) {
      const given = options.chatTemplate;
      const { source, where } =
        given === undefined
          ? chooseTemplate(tokenizer?.chatTemplates ?? new Map(), tools)
          : { source: given, where: "the chat template" };
      const found = templates.get(where) ?? new ChatTemplate(source, where);
      templates.set(where, found);
      return found;
    },
  };
}
