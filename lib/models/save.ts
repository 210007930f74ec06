// What a model is saved as: a Hugging Face folder; of one that is trained by adapters, these as PEFT has them.

import * as path from "node:path";
import { writeFolder } from "../checkpoint/atomic.js";
import type { FileDigest } from "../checkpoint/native_files.js";
import type { CausalLM } from "./decoder.js";
import { type ExportOptions, helpModelExport, writeModelFiles } from "./export.js";
import { helpAdapterExport, writeAdapterFiles } from "./peft.js";

/**
 * Writes everything into the existing folder `dir`; returns size and hash of the weights' files by name. Adapters name the
 * folder that the model was loaded from as their base, by its absolute path.
 */
export function writeExport(
  model: CausalLM,
  dir: string,
  options: ExportOptions = {},
): Promise<Map<string, FileDigest>> {
  if (!model.config.adapter) return writeModelFiles(model, dir, options);
  const { sourceFolder } = model;
  return writeAdapterFiles(model, dir, sourceFolder === null ? null : path.resolve(sourceFolder), options);
}

/** What the other ranks do while one writes a model that is spread over them: they give their shares, in its order. */
export function helpExport(model: CausalLM): void {
  if (model.config.adapter) helpAdapterExport(model);
  else helpModelExport(model);
}

/**
 * Saves the model as the folder `dir`, which appears complete or not at all; a folder that is there is replaced. It loads
 * unchanged in transformers and other readers of the format, an adapter's in PEFT. Throws IoError.
 */
export async function saveModel(model: CausalLM, dir: string, options: ExportOptions = {}): Promise<void> {
  await writeFolder(
    dir,
    async (draft) => {
      for (const [name, digest] of await writeExport(model, draft.path, options)) draft.note(name, digest);
    },
    { manifest: false, ...(options.signal === undefined ? {} : { signal: options.signal }) },
  );
}
