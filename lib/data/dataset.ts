// A dataset: the documents of files as tokens, the plan of each epoch, and its sequences.

import { createHash } from "node:crypto";
import { ArgumentError, ConfigError, DataError } from "../errors.js";
import { IGNORE_INDEX, makeSequence, type Sequence } from "./batch.js";
import { openTokenFiles, type TokenFile } from "./cache.js";
import { type DataEntry, sharesOf, sourcesOf } from "./entries.js";
import { Mixture, type Share } from "./mixture.js";
import { type EpochPlan, type Pieces, planEpoch, type Segment } from "./packing.js";
import { loadTokenizer, resolveTokenizer, type TextTokenizer, type TokenizerSpec } from "./tokenizer.js";

/** What to do with a row of more than sequence_length tokens. */
export type Overlong = "raise" | "truncate" | "split" | "drop";

export interface DataOptions {
  /** Files, patterns and folders, or entries that say more of them (see docs/data.md). */
  files: readonly (string | DataEntry)[];
  /** "bytes", a tokenizer.json, or a folder (such as the model's) that may hold one; absent: rows of ids only. */
  tokenizer?: string | undefined;
  /** Most tokens of a sequence. */
  sequenceLength: number;
  /** Whether documents share sequences; they never attend across each other. Default true. */
  packing?: boolean | undefined;
  /** Default "raise". */
  overlong?: Overlong | undefined;
  /** Default true. */
  shuffle?: boolean | undefined;
  /** Default 0. */
  seed?: number | undefined;
  /** V of the model: every id must lie below it. Absent: ids are only checked not to be negative. */
  vocabSize?: number | undefined;
  /** Folder of the token cache, made where absent. */
  cacheDir: string;
  /** A Jinja template that replaces the tokenizer's own. */
  chatTemplate?: string | undefined;
  /** Roles of a conversation that are trained on, or "all" for all of it and of prompts. Default the assistant's. */
  trainOn?: "assistant" | "all" | readonly string[] | undefined;
  /** The configuration key of `files`, for messages. Default "data.train". */
  key?: string | undefined;
  /** Where relative patterns start; default the working directory. */
  directory?: string | undefined;
  workers?: number | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: { file: string; bytes: number; totalBytes: number }) => void) | undefined;
  /** Called once for each remark, which `dataset.warnings` keeps too. */
  onWarning?: ((message: string) => void) | undefined;
  /** What without effect (see `docs/data_rows.md`) was told before: it is not told again, and what is told joins it. */
  told?: Set<string> | undefined;
}

/** Where a document comes from. */
export interface DocumentInfo {
  file: string;
  line: number;
  tokens: number;
  /** Tokens that the loss counts, of the whole document. */
  validTokens: number;
}

/** The documents of a file, or of a folder of texts: those numbered begin to end - 1. */
export interface SourceRange {
  file: string;
  /** Of data.train. */
  entry: number;
  begin: number;
  end: number;
}

/** One token as `longseq data` shows it. */
export interface TokenView {
  id: number;
  /** Readable form; null without a tokenizer. */
  piece: string | null;
  /** The label aligned with this token; -100 where masked. */
  label: number;
  /** Whether the loss counts the prediction of this token. */
  target: boolean;
}

export interface SampleView {
  sequence: number;
  tokens: number;
  validTokens: number;
  documents: { file: string; line: number; begin: number; end: number; tokens: TokenView[] }[];
}

export class Dataset {
  /** Rows of the files, in order. */
  readonly documents: number;
  /** Rows that `overlong: drop` left out. */
  readonly dropped: number;
  /** Rows without a label that counts; where all are, nothing can be learned. */
  readonly unlabelled: number;
  /** Tokens of the pieces that are trained on. */
  readonly tokens: number;
  /** Of all rows. */
  readonly longest: number;
  /** Most tokens of a document as it is trained on, so one more than the largest position. */
  readonly longestDocument: number;
  readonly sequenceLength: number;
  /** Equal for equal data and options: a cursor is only good for a dataset of the same fingerprint. */
  readonly fingerprint: string;
  readonly warnings: readonly string[];
  readonly files: readonly string[];
  readonly #files: readonly TokenFile[];
  /** First document of each file. */
  readonly #firsts: Float64Array;
  readonly #pieces: Pieces;
  readonly #planning: { packing: boolean; shuffle: boolean; seed: number; sequenceLength: number };
  /** How often the entries' rows come; null: each once an epoch. */
  readonly mixture: Mixture | null;
  readonly #entryOf: readonly number[];
  readonly #tokenizerSpec: TokenizerSpec | null;
  #tokenizer: TextTokenizer | null = null;
  readonly #plans = new Map<number, EpochPlan>();

  /** Use `openData`. */
  constructor(
    files: readonly TokenFile[],
    spec: TokenizerSpec | null,
    options: DataOptions,
    /** What the entries say, and the entry of each file; the files of an entry follow each other. */
    entries: { shares: readonly Share[]; ofFile: readonly number[] },
  ) {
    const { sequenceLength, overlong = "raise", packing = true, shuffle = true, seed = 0 } = options;
    const key = options.key ?? "data.train";
    this.#files = files;
    this.files = files.map(({ source }) => source);
    this.#entryOf = entries.ofFile;
    this.#tokenizerSpec = spec;
    this.sequenceLength = sequenceLength;
    this.#planning = { packing, shuffle, seed, sequenceLength };
    this.#firsts = new Float64Array(files.length);
    let documents = 0;
    files.forEach((file, f) => {
      this.#firsts[f] = documents;
      documents += file.documents;
    });
    this.documents = documents;
    if (documents === 0) throw new DataError(`${key}: no rows in ${list(this.files)}`, { files: this.files });

    /** Where an overlong row is cut. */
    const cut = (file: TokenFile, d: number) => cuts(file.parts(d) ?? [file.length(d)], sequenceLength);
    let pieces = 0;
    let longest = 0;
    let overlongRows = 0;
    let firstOverlong: { file: TokenFile; document: number } | null = null;
    let unlabelled = 0;
    let firstUnlabelled: string | null = null;
    for (const file of files) {
      for (let d = 0; d < file.documents; d++) {
        const length = file.length(d);
        longest = Math.max(longest, length);
        if (file.validTargets(d) === 0) {
          unlabelled++;
          firstUnlabelled ??= showPlace(file.place(d));
        }
        if (length > sequenceLength) {
          overlongRows++;
          firstOverlong ??= { file, document: d };
          pieces += overlong === "split" ? cut(file, d).length - 1 : overlong === "drop" ? 0 : 1;
        } else pieces++;
      }
    }
    this.longest = longest;
    if (firstOverlong !== null && overlong === "raise") {
      const { file, document } = firstOverlong;
      const place = file.place(document);
      const more = overlongRows > 1 ? ` (${overlongRows} rows are overlong, the longest of ${longest})` : "";
      throw new DataError(
        `${showPlace(place)}: the row has ${file.length(document)} tokens, more than data.sequence_length ${sequenceLength}${more}; ` +
          "raise data.sequence_length, or set data.overlong to truncate, split or drop",
        { ...place, tokens: file.length(document), overlongRows, longest },
      );
    }
    if (pieces === 0) {
      throw new DataError(
        `${key}: no usable rows: all ${documents} have more than data.sequence_length ${sequenceLength} tokens and data.overlong is drop`,
        { files: this.files, longest },
      );
    }
    this.#pieces = { document: new Uint32Array(pieces), begin: new Int32Array(pieces), end: new Int32Array(pieces) };
    let at = 0;
    let tokens = 0;
    let dropped = 0;
    let longestDocument = 0;
    const ranges = entries.shares.map(() => ({ begin: 0, end: 0, tokens: 0 }));
    const add = (document: number, begin: number, end: number) => {
      this.#pieces.document[at] = document;
      this.#pieces.begin[at] = begin;
      this.#pieces.end[at++] = end;
      tokens += end - begin;
    };
    files.forEach((file, f) => {
      const range = ranges[entries.ofFile[f] as number] as (typeof ranges)[number];
      if (range.end === 0) range.begin = at;
      const tokensBefore = tokens;
      for (let d = 0; d < file.documents; d++) {
        const document = (this.#firsts[f] as number) + d;
        const length = file.length(d);
        if (length <= sequenceLength || overlong !== "drop")
          for (const part of file.parts(d) ?? [length])
            longestDocument = Math.max(longestDocument, Math.min(part, sequenceLength));
        if (length <= sequenceLength) add(document, 0, length);
        else if (overlong === "truncate") add(document, 0, sequenceLength);
        else if (overlong === "drop") dropped++;
        else {
          const bounds = cut(file, d);
          for (let i = 1; i < bounds.length; i++) add(document, bounds[i - 1] as number, bounds[i] as number);
        }
      }
      range.end = at;
      range.tokens += tokens - tokensBefore;
    });
    this.mixture = Mixture.of(entries.shares, ranges);
    this.tokens = tokens;
    this.dropped = dropped;
    this.longestDocument = longestDocument;
    this.unlabelled = unlabelled;
    const warnings: string[] = [];
    if (dropped > 0)
      warnings.push(`${key}: ${dropped} of ${documents} rows have more than ${sequenceLength} tokens and were dropped`);
    if (overlong === "truncate" && overlongRows > 0) {
      warnings.push(
        `${key}: ${overlongRows} of ${documents} rows have more than ${sequenceLength} tokens and were cut`,
      );
    }
    if (firstUnlabelled !== null) {
      const rows = unlabelled === 1 ? "1 row has" : `${unlabelled} rows have`;
      warnings.push(`${firstUnlabelled}: the row has no valid label and adds nothing to the loss (${rows} none)`);
    }
    const unused = new Map<string, string>();
    for (const file of files) {
      warnings.push(...file.notes);
      for (const [what, number] of file.unused) {
        if (!unused.has(what) && !options.told?.has(what)) unused.set(what, showPlace(file.placeOf(number)));
      }
    }
    for (const what of unused.keys()) options.told?.add(what);
    if (unused.size > 0) {
      const told = [...unused].map(([what, where]) => `${what} (first at ${where})`).join(", ");
      warnings.push(`${key}: the rows hold what has no effect here: ${told}`);
    }
    this.warnings = warnings;
    for (const warning of warnings) options.onWarning?.(warning);
    const mixing = this.mixture === null ? [] : [this.mixture];
    this.fingerprint = createHash("sha256")
      .update(
        JSON.stringify([files.map((file) => file.key), sequenceLength, overlong, packing, shuffle, seed, ...mixing]),
      )
      .digest("hex");
  }

  #locate(document: number): { file: TokenFile; row: number } {
    let low = 0;
    let high = this.#files.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#firsts[middle] as number) <= document) low = middle;
      else high = middle - 1;
    }
    const file = this.#files[low] as TokenFile;
    return { file, row: document - (this.#firsts[low] as number) };
  }

  /** Source and length of a document (from 0, in the files' order). */
  documentInfo(document: number): DocumentInfo {
    if (!Number.isInteger(document) || document < 0 || document >= this.documents) {
      throw new ArgumentError(`document must be 0 to ${this.documents - 1}, not ${document}`);
    }
    const { file, row } = this.#locate(document);
    return { ...file.place(row), tokens: file.length(row), validTokens: file.validTargets(row) };
  }

  /** Which documents are of which file, in order. */
  get sources(): SourceRange[] {
    return this.#files.map(({ source, documents }, f) => {
      const begin = this.#firsts[f] as number;
      return { file: source, entry: this.#entryOf[f] as number, begin, end: begin + documents };
    });
  }

  /** The sequences of an epoch (from 0); the last few plans are kept. */
  plan(epoch: number): EpochPlan {
    if (!Number.isSafeInteger(epoch) || epoch < 0)
      throw new ArgumentError(`epoch must be an integer from 0, not ${epoch}`);
    // Without shuffling every epoch is the same, unless a mixture goes on where the last one ended.
    const which = this.#planning.shuffle || this.mixture?.whole === false ? epoch : 0;
    let plan = this.#plans.get(which);
    if (plan === undefined) {
      plan = planEpoch(this.#pieces, this.#planning, which, this.mixture);
      this.#plans.set(which, plan);
      const oldest = this.#plans.keys().next().value;
      if (this.#plans.size > 3 && oldest !== undefined) this.#plans.delete(oldest);
    }
    return plan;
  }

  /** How many sequences `epochs` epochs have together; a fraction counts that part of its epoch, rounded up. */
  totalSequences(epochs: number): number {
    if (!(epochs >= 0) || !Number.isFinite(epochs))
      throw new ArgumentError(`epochs must be a number from 0, not ${epochs}`);
    const whole = Math.floor(epochs);
    let total = 0;
    const { packing, shuffle } = this.#planning;
    const sameEvery = packing ? !shuffle && this.mixture?.whole !== false : this.mixture?.even !== false;
    if (sameEvery) total = whole * this.plan(0).sequences;
    else for (let epoch = 0; epoch < whole; epoch++) total += this.plan(epoch).sequences;
    if (epochs > whole) total += Math.ceil((epochs - whole) * this.plan(whole).sequences);
    return total;
  }

  /** Steps of `batchSize` sequences that `epochs` epochs take, the epochs' sequences laid end to end. */
  totalSteps(epochs: number, batchSize: number): number {
    return Math.ceil(this.totalSequences(epochs) / batchSize);
  }

  /** Sequence i of an epoch, with targets, positions and document bounds. */
  async sequence(epoch: number, i: number): Promise<Sequence> {
    const plan = this.plan(epoch);
    if (!Number.isInteger(i) || i < 0 || i >= plan.sequences) {
      throw new ArgumentError(`epoch ${epoch} has sequences 0 to ${plan.sequences - 1}, not ${i}`);
    }
    const segments = plan.segments(i);
    const read = await Promise.all(segments.map((segment) => this.readSegment(segment)));
    return makeSequence(
      segments.flatMap((segment, k) => {
        const { inputIds, labels } = read[k] as (typeof read)[number];
        return this.documentsIn(segment).map(({ begin, end }) => {
          const [from, to] = [begin - segment.begin, end - segment.begin];
          return { inputIds: inputIds.subarray(from, to), labels: labels?.subarray(from, to) ?? null };
        });
      }),
    );
  }

  /** The documents of a segment, which attend apart, as segments: itself unless its row is a packed one. */
  documentsIn(segment: Segment): Segment[] {
    const { document, begin, end } = segment;
    const { file, row } = this.#locate(document);
    const parts = file.parts(row);
    if (parts === null) return [segment];
    const found: Segment[] = [];
    let at = 0;
    for (const length of parts) {
      const from = Math.max(at, begin);
      const to = Math.min(at + length, end);
      if (from < to) found.push({ document, begin: from, end: to });
      at += length;
    }
    return found;
  }

  /** The ids of a segment and the labels aligned with them (null: equal to the ids). */
  async readSegment({ document, begin, end }: Segment): Promise<{ inputIds: Int32Array; labels: Int32Array | null }> {
    const { file, row } = this.#locate(document);
    const read = await file.read(row, begin, end);
    // With very many files not all may stay open at once.
    if (this.#files.length > 64) await file.close();
    return read;
  }

  /** Sequence i of an epoch in readable form, for `longseq data`. */
  async describeSample(i: number, epoch = 0): Promise<SampleView> {
    const segments = this.plan(epoch).segments(i);
    if (this.#tokenizerSpec !== null) this.#tokenizer ??= loadTokenizer(this.#tokenizerSpec);
    let total = 0;
    let validTokens = 0;
    const documents: SampleView["documents"] = [];
    for (const segment of segments.flatMap((whole) => this.documentsIn(whole))) {
      const { file, line } = this.documentInfo(segment.document);
      const { inputIds, labels } = await this.readSegment(segment);
      const tokens = Array.from(inputIds, (id, k): TokenView => {
        const label = (labels ?? inputIds)[k] as number;
        const target = k > 0 && label !== IGNORE_INDEX;
        if (target) validTokens++;
        return { id, piece: this.#tokenizer?.piece(id) ?? null, label, target };
      });
      total += tokens.length;
      documents.push({ file, line, begin: segment.begin, end: segment.end, tokens });
    }
    return { sequence: i, tokens: total, validTokens, documents };
  }

  /** Closes the cache's files; a later read opens them again. */
  async close(): Promise<void> {
    await Promise.all(this.#files.map((file) => file.close()));
  }
}

/**
 * Cuts a row into pieces of at most `most` tokens, between its documents where that can be: a document longer than
 * `most` is cut as a row of its own would be. Returns the bounds of the pieces, from 0 to the row's end.
 */
function cuts(parts: ArrayLike<number>, most: number): number[] {
  const bounds = [0];
  let begin = 0;
  let at = 0;
  for (let i = 0; i < parts.length; i++) {
    const end = at + (parts[i] as number);
    if (end - begin > most && at > begin) {
      bounds.push(at);
      begin = at;
    }
    for (; end - begin > most; begin += most) bounds.push(begin + most);
    at = end;
  }
  bounds.push(at);
  return bounds;
}

const showPlace = ({ file, line }: { file: string; line: number }): string => `${file}:${line}`;

function list(files: readonly string[]): string {
  return files.length <= 3 ? files.join(", ") : `${files.slice(0, 3).join(", ")} and ${files.length - 3} more files`;
}

/**
 * Opens training or evaluation data: finds the files, makes or finds their tokens, and checks lengths.
 * Throws ConfigError for options and paths, DataError for bad rows (FILE:LINE: ...), for overlong rows under
 * `overlong: "raise"` and where no row is left, IoError where reading or writing fails.
 */
export async function openData(options: DataOptions): Promise<Dataset> {
  if (typeof options !== "object" || options === null)
    throw new ArgumentError("openData: expected options of {files, sequenceLength, ...}");
  const { sequenceLength, overlong = "raise", seed = 0 } = options;
  if (!Number.isSafeInteger(sequenceLength) || sequenceLength < 2 || sequenceLength > 0x7fffffff) {
    throw new ConfigError(`data.sequence_length must be an integer from 2 to ${0x7fffffff}, not ${sequenceLength}`);
  }
  if (!["raise", "truncate", "split", "drop"].includes(overlong)) {
    throw new ConfigError(`data.overlong must be raise, truncate, split or drop, not ${JSON.stringify(overlong)}`);
  }
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new ConfigError(`train.seed must be an integer from 0 to 2^53 - 1, not ${seed}`);
  }
  const sources = sourcesOf(options.files, options.key, options.directory);
  const where = options.tokenizer;
  const spec = where === undefined ? null : resolveTokenizer(where);
  const files = await openTokenFiles(sources, {
    tokenizer: spec,
    vocabSize: options.vocabSize ?? null,
    chatTemplate: options.chatTemplate ?? null,
    trainOn: options.trainOn ?? "assistant",
    noTokenizerHint:
      where === undefined
        ? `none is given; set data.tokenizer to a tokenizer.json or to "bytes"`
        : `${where} holds no tokenizer.json; set data.tokenizer to a tokenizer.json or to "bytes"`,
    cacheDir: options.cacheDir,
    sequenceLength,
    workers: options.workers,
    signal: options.signal,
    onProgress: options.onProgress,
  });
  const entries = { shares: sharesOf(options.files, options.key), ofFile: sources.map(({ entry }) => entry) };
  return new Dataset(files, spec, options, entries);
}
