// Which settings must agree before a run may be resumed.

import { type Config, leafPaths } from "./schema.js";
import { valueAt } from "./value_at.js";
import { toCamel, toSnake } from "./values.js";
import { sorted } from "./write.js";

// What decides which numbers a run computes: the model, the order of its data, and each update. The length of the run
// (steps, epochs), evaluation, saving, memory and threads may change between a save and a resume.
const resumeKeys: readonly string[] = [
  "model.path",
  "model.init",
  "model.dtype",
  "model.override",
  "model.base_format",
  "adapter.path",
  "adapter.r",
  "adapter.alpha",
  "adapter.target_modules",
  "adapter.modules_to_save",
  "adapter.dropout",
  "adapter.rslora",
  "adapter.init",
  "adapter.dtype",
  "data.train",
  "data.tokenizer",
  "data.chat_template",
  "data.train_on",
  "data.sequence_length",
  "data.packing",
  "data.overlong",
  "data.shuffle",
  "train.batch_size",
  "train.micro_batch_size",
  "train.learning_rate",
  "train.schedule",
  "train.warmup_steps",
  "train.min_learning_rate",
  "train.decay_steps",
  "train.weight_decay",
  "train.betas",
  "train.eps",
  "train.clip_grad_norm",
  "train.seed",
];

/** A setting on which two configurations disagree. */
export interface ConfigDifference {
  /** As YAML spells it. */
  key: string;
  a: unknown;
  b: unknown;
}

/** The model, data and optimizer settings in which `a` and `b` differ; empty if `b` may resume a run of `a`. */
export const configDifference = (a: Config, b: Config): ConfigDifference[] => differencesOf(resumeKeys, a, b);

/** All settings in which `a` and `b` differ. */
export const allDifferences = (a: Config, b: Config): ConfigDifference[] =>
  differencesOf(
    leafPaths().map((path) => path.map(toSnake).join(".")),
    a,
    b,
  );

function differencesOf(keys: readonly string[], a: Config, b: Config): ConfigDifference[] {
  return keys
    .map((key) => {
      const path = key.split(".").map(toCamel);
      return { key, a: valueAt(a, path), b: valueAt(b, path) };
    })
    .filter((setting) => JSON.stringify(sorted(setting.a)) !== JSON.stringify(sorted(setting.b)));
}
