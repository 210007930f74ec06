// Writing a model as a Hugging Face folder: config.json, weights, and what came with the folder it was loaded from.

import * as fs from "node:fs/promises";
import * as path from "node:path";
import { writeFolder } from "../checkpoint/atomic.js";
import type { FileDigest } from "../checkpoint/native_files.js";
import { type SafeDtype, writeModel } from "../checkpoint/safetensors.js";
import { IoError } from "../errors.js";
import type { CausalLM } from "./decoder.js";

/** Files that go with a model but are not made from its weights. */
const companions = [
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
];

export interface ExportOptions {
  /** Largest size of one weights file in bytes (default 5 GB). */
  maxShardBytes?: number;
  signal?: AbortSignal;
}

/** The config.json of an export: the original fields, with what the model really is. */
export function exportFields(model: CausalLM): Record<string, unknown> {
  const { config } = model;
  const fields: Record<string, unknown> = structuredClone(config.fields);
  fields.architectures = [config.architecture];
  fields.model_type = config.family;
  if (fields.torch_dtype !== undefined && fields.dtype === undefined) fields.torch_dtype = model.dtype;
  else {
    fields.dtype = model.dtype;
    delete fields.torch_dtype;
  }
  if (model.sourceFolder !== null) return fields;
  // Fields of an initialised model may leave out what other readers want to see.
  const spelled = fields.rope_parameters ?? fields.rope_scaling;
  const complete: Record<string, unknown> = {
    hidden_act: "silu",
    num_key_value_heads: config.numKeyValueHeads,
    head_dim: config.headDim,
    rms_norm_eps: config.rmsNormEps,
    initializer_range: config.initializerRange,
    max_position_embeddings: config.maxPositionEmbeddings,
    tie_word_embeddings: config.tieWordEmbeddings,
    ...(spelled === undefined || spelled === null ? { rope_theta: config.rope.theta } : {}),
  };
  for (const [key, value] of Object.entries(complete)) if (fields[key] === undefined) fields[key] = value;
  return fields;
}

/** Writes everything into the existing folder `dir`; returns size and hash of the weights' files by name. */
export async function writeModelFiles(
  model: CausalLM,
  dir: string,
  options: ExportOptions = {},
): Promise<Map<string, FileDigest>> {
  const configFile = path.join(dir, "config.json");
  try {
    await fs.writeFile(configFile, `${JSON.stringify(exportFields(model), null, 2)}\n`);
  } catch (error) {
    throw new IoError(
      `cannot write ${configFile}: ${(error as Error).message}`,
      { path: configFile },
      { cause: error },
    );
  }
  if (model.sourceFolder !== null) await copyCompanions(model.sourceFolder, dir);
  const dtype: SafeDtype = model.dtype === "bfloat16" ? "BF16" : "F32";
  const tensors = [...model.namedParameters()].map(([name, parameter]) => ({
    name,
    dtype,
    shape: parameter.shape,
    load: () => parameter,
  }));
  return writeModel(dir, tensors, options);
}

async function copyCompanions(from: string, to: string): Promise<void> {
  for (const name of companions) {
    const source = path.join(from, name);
    try {
      await fs.copyFile(source, path.join(to, name));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") continue;
      const message = `cannot copy ${source} to ${to}: ${(error as Error).message}`;
      throw new IoError(message, { path: source }, { cause: error });
    }
  }
}

/**
 * Saves the model as the Hugging Face folder `dir`, which appears complete or not at all; a folder that is there is
 * replaced. Loads unchanged in transformers and other readers of the format. Throws IoError.
 */
export async function saveModel(model: CausalLM, dir: string, options: ExportOptions = {}): Promise<void> {
  await writeFolder(
    dir,
    async (draft) => {
      for (const [name, digest] of await writeModelFiles(model, draft.path, options)) draft.note(name, digest);
    },
    { manifest: false, ...(options.signal === undefined ? {} : { signal: options.signal }) },
  );
}
