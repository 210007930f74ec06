// The run's model: loaded or initialised as the configuration says, and exported with its tokenizer.

import { copyFile, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { writeFolder } from "../checkpoint/atomic.js";
import { type Config, wantsAdapter } from "../config/index.js";
import { CHAT_TEMPLATE_FOLDER } from "../data/chat_templates.js";
import { resolveTokenizer, writeBytesTokenizer } from "../data/index.js";
import { ConfigError, ModelError } from "../errors.js";
import type { AdapterConfig } from "../models/adapter.js";
import type { ModelConfig } from "../models/config.js";
import type { MemoryOptions } from "../models/decoder.js";
import type { ConfigFields } from "../models/fields.js";
import { type CausalLM, initModel, loadModel, writeExport } from "../models/index.js";
import { resolveModelConfig } from "../models/load.js";
import { checkSameAdapter, loadAdapters, readAdapterConfig } from "../models/peft.js";
import { parseModelConfig, withAdapter } from "../models/registry.js";
import { overrideFields } from "../models/rope_fields.js";
import type { ZeroOptions } from "../parallel/zero.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { chatTemplate } from "./data_options.js";

/** Runs `work` on the fields of model.init; mistakes in them are the configuration's. */
function ofFields<T>(config: Config, work: (fields: ConfigFields) => T): T {
  try {
    return work(overrideFields(config.model.init as ConfigFields, config.model.override));
  } catch (error) {
    // The fields stand in the configuration itself.
    if (error instanceof ModelError) throw new ConfigError(error.message, error.details, { cause: error });
    throw error;
  }
}

/** The adapters that the run trains; null: the model itself. Throws ModelError and ConfigError. */
async function resolveAdapter(config: Config): Promise<AdapterConfig | null> {
  const { adapter } = config;
  if (!wantsAdapter(adapter)) return null;
  const baseFormat = config.model.baseFormat === "native" ? null : config.model.baseFormat;
  const { path, r, alpha, targetModules, modulesToSave, dropout, rslora, init } = adapter;
  const dtype = adapter.dtype ?? "float32";
  if (path !== null) {
    const saved = (await readAdapterConfig(path)).config;
    checkSameAdapter(saved, {
      r,
      alpha,
      target_modules: targetModules,
      modules_to_save: modulesToSave,
      rslora,
    });
    return { ...saved, dropout: dropout ?? saved.dropout, dtype, baseFormat };
  }
  return {
    rank: r ?? 8,
    alpha: alpha ?? 8,
    targetModules: targetModules ?? "all-linear",
    modulesToSave: modulesToSave ?? [],
    dropout: dropout ?? 0,
    rslora: rslora ?? false,
    init: init ?? true,
    dtype,
    baseFormat,
    path: null,
    file: "adapter",
  };
}

/** The architecture that the run will have; of a folder no weights are read. Throws ModelError and ConfigError. */
export async function resolveModel(config: Config): Promise<ModelConfig> {
  const { path, override } = config.model;
  const read =
    path === null
      ? ofFields(config, (fields) => parseModelConfig(fields, { file: "model.init" }))
      : await resolveModelConfig(path, override);
  return withAdapter(read, await resolveAdapter(config));
}

/** model.path's weights, or random ones for model.init that depend on train.seed alone. Throws ModelError, and ConfigError for mistakes in model.init. */
export async function openModel(
  config: Config,
  device: Device,
  dtype: DType,
  { memory, zero, signal }: { memory: MemoryOptions; zero: ZeroOptions | null; signal: AbortSignal },
): Promise<CausalLM> {
  const { path, override } = config.model;
  const { seed } = config.train;
  const adapter = await resolveAdapter(config);
  if (path !== null) return loadModel(path, { device, dtype, memory, zero, override, signal, adapter, seed });
  const model = ofFields(config, (fields) =>
    initModel(fields, { device, dtype, memory, zero, seed, adapter, file: "model.init" }),
  );
  try {
    await loadAdapters(model);
    model.states.finishUpdate();
  } catch (error) {
    model.dispose();
    throw error;
  }
  return model;
}

/**
 * Writes the model as the Hugging Face folder `target`, or its adapters as PEFT has them; it appears complete or not at all, with the tokenizer that
 * the run used; returns its path. Throws IoError.
 */
export async function exportModel(config: Config, model: CausalLM, target: string): Promise<string> {
  const { tokenizer: where } = config.data;
  const spec = where === null ? null : resolveTokenizer(where);
  const file = spec?.kind === "json" ? spec.file : null;
  // Only a tokenizer.json has companions; a file of another name stands for itself.
  const own = file !== null && basename(file) === "tokenizer.json" ? dirname(file) : null;
  const written = await writeFolder(
    target,
    async (draft) => {
      const options = spec === null ? {} : { tokenizer: own };
      for (const [name, digest] of await writeExport(model, draft.path, options)) draft.note(name, digest);
      if (spec?.kind === "bytes") writeBytesTokenizer(draft.path);
      else if (file !== null && own === null) await copyFile(file, join(draft.path, "tokenizer.json"));
      // What every row was rendered with is what the model is to be asked with, also where there are tools.
      const template = chatTemplate(config);
      if (template !== null) {
        await writeFile(join(draft.path, "chat_template.jinja"), template.source);
        await rm(join(draft.path, CHAT_TEMPLATE_FOLDER), { recursive: true, force: true });
      }
    },
    { manifest: false },
  );
  return written.path;
}
