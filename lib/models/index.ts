// Language models: loading, initialising, saving; a family is one file here and one entry of the registry.

export type { AdapterConfig } from "./adapter.js";
export type { Integers, LossInput, ModelInput } from "./batch.js";
export { type ModelConfig, modelShape } from "./config.js";
export { CausalLM, Decoder, type LayerHook, type MemoryOptions } from "./decoder.js";
export { configText, type ExportOptions, exportFields, writeModelFiles } from "./export.js";
export type { ConfigFields } from "./fields.js";
export type { GeneratedToken, GenerateOptions } from "./generate.js";
export { type InitOptions, initModel } from "./init.js";
export { type LoadOptions, loadModel, type ModelOptions, readModelConfig } from "./load.js";
export { type Merged, type MergeOptions, mergeAdapter } from "./merge.js";
export { readAdapterConfig, type SavedAdapter } from "./peft.js";
export { parseModelConfig } from "./registry.js";
export type { ConfigOverride } from "./rope_fields.js";
export { Sampler, type SamplingOptions } from "./sampler.js";
export { helpExport, saveModel, writeExport } from "./save.js";
