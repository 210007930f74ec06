// What lib/data offers to the layers above it.

export { type Batch, collate, type DocumentTokens, IGNORE_INDEX, makeSequence, type Sequence } from "./batch.js";
export {
  type DataOptions,
  Dataset,
  type DocumentInfo,
  type Overlong,
  openData,
  type SampleView,
  type SourceRange,
  type TokenView,
} from "./dataset.js";
export type { DataEntry } from "./entries.js";
export { type Cursor, DataLoader, type LoaderOptions, type Step } from "./loader.js";
export { EpochPlan, type Segment } from "./packing.js";
export { type DataStatistics, type LengthBucket, type SourceStatistics, statisticsOf } from "./statistics.js";
export {
  loadTokenizer,
  resolveTokenizer,
  type TextTokenizer,
  type TokenizerSpec,
  writeBytesTokenizer,
} from "./tokenizer.js";
