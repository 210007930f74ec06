// What the rest of longseq uses of the configuration.

export { tokenCacheDir } from "./cache_dir.js";
export { type ConfigDifference, configDifference } from "./compare.js";
export { type ConfigProblem, isOverride, loadConfig, parseConfig, parseConfigObject } from "./load.js";
export {
  type Config,
  type ConfigInput,
  configSchema,
  type HuggingFaceFields,
  type ModelOverride,
  wantsAdapter,
} from "./schema.js";
export { valueAt } from "./value_at.js";
export { canonicalJson, yamlOf } from "./write.js";
