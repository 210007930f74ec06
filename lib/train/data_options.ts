// How the data of a configuration is opened: the same way for training and for looking at it.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Config, tokenCacheDir } from "../config/index.js";
import type { NamedTemplate } from "../data/chat_templates.js";
import { type DataOptions, resolveTokenizer } from "../data/index.js";
import { namedTemplate } from "../data/tokenizer.js";
import { ConfigError, ModelError } from "../errors.js";
import { adapterInstead } from "../models/peft.js";

/** V of the model, as far as its config.json or the fields say. */
function vocabSize(config: Config): number | undefined {
  let fields = config.model.init;
  if (config.model.path !== null) {
    const folder = config.model.path;
    if (!existsSync(folder))
      throw new ConfigError(`model.path: there is no folder ${JSON.stringify(folder)}`, { path: folder });
    const file = join(folder, "config.json");
    if (!existsSync(file))
      throw adapterInstead(folder) ?? new ModelError(`${folder}: it holds no config.json`, { path: folder });
    try {
      fields = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    } catch (error) {
      throw new ModelError(`${file}: not valid JSON: ${(error as Error).message}`, { file }, { cause: error });
    }
  }
  const size = fields?.vocab_size;
  return typeof size === "number" && Number.isSafeInteger(size) && size > 0 ? size : undefined;
}

/** By the configuration's data: what the rows were rendered with is what is exported, whatever becomes of the file. */
const chatTemplates = new WeakMap<Config["data"], NamedTemplate>();

/** The template that data.chat_template names: a file, or one of the tokenizer's; null: the tokenizer's own choice. */
export function chatTemplate({ data, model }: Config): NamedTemplate | null {
  if (data.chatTemplate === null) return null;
  const from = data.tokenizer ?? model.path;
  const found =
    chatTemplates.get(data) ?? namedTemplate(data.chatTemplate, from === null ? null : resolveTokenizer(from));
  chatTemplates.set(data, found);
  return found;
}

/** How a configuration's training (or evaluation) data is opened. */
export function dataOptions(config: Config, evaluation: boolean): DataOptions {
  const { data, train } = config;
  return {
    files: evaluation ? data.eval : data.train,
    key: evaluation ? "data.eval" : "data.train",
    tokenizer: data.tokenizer ?? config.model.path ?? undefined,
    sequenceLength: data.sequenceLength,
    packing: data.packing,
    overlong: data.overlong,
    shuffle: evaluation ? false : data.shuffle,
    seed: train.seed,
    vocabSize: vocabSize(config),
    chatTemplate: chatTemplate(config)?.source,
    trainOn: data.trainOn,
    cacheDir: tokenCacheDir(),
  };
}
