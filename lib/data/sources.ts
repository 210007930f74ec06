// From a source to work for the tokenizing threads: what one pass finds, and the pieces that rows are read from.

import { createHash } from "node:crypto";
import fs from "node:fs";
import { CancelledError, ConfigError } from "../errors.js";
import type { Source } from "./formats.js";
import { forEachDocument, type IdRange, scanIds } from "./id_files.js";
import { elementsOf, type RowBytes } from "./json_list.js";
import { forEachLine, type LineBytes, type LineRange, linesOf, RANGE_BYTES, readRange, scanFile } from "./lines.js";
import { parseRow, type Row, readError } from "./rows.js";
import { readText, scanTexts, type TextFiles } from "./texts.js";
import { unpack } from "./unpack.js";

/** A piece of a source that one thread turns into tokens. */
export type WorkItem = LineRange | LineBytes | RowBytes | TextFiles | IdRange;

/** What one pass over a source found. */
export interface SourceScan {
  /** Hexadecimal SHA-256 of its bytes. */
  hash: string;
  bytes: number;
  /** How its bytes become rows, where that is not by lines of JSON; it joins the key of its tokens. */
  reading: readonly unknown[] | null;
  /** About how many pieces there will be. */
  pieces: number;
  /** Its pieces, in order, each with how many bytes of the source are done behind it (0: not known). */
  items(): AsyncIterable<{ item: WorkItem; done: number }>;
  /** Of a folder the files of its documents; null: documents are lines or rows of the source itself. */
  names: readonly string[] | null;
  /** What is to be said of it. */
  notes: readonly string[];
}

const listed = (items: readonly WorkItem[], done: (item: WorkItem) => number) =>
  async function* () {
    for (const item of items) yield { item, done: done(item) };
  };

const streamed = (items: () => AsyncIterable<WorkItem>) =>
  async function* () {
    for await (const item of items()) yield { item, done: 0 };
  };

async function hashOf(file: string, signal?: AbortSignal): Promise<{ hash: string; bytes: number }> {
  const hash = createHash("sha256");
  let bytes = 0;
  try {
    for await (const chunk of fs.createReadStream(file, { highWaterMark: 1 << 20 }) as AsyncIterable<Buffer>) {
      if (signal?.aborted) throw new CancelledError(`reading ${file} was given up`, { file });
      hash.update(chunk);
      bytes += chunk.length;
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall !== undefined) throw readError(file, error);
    throw error;
  }
  return { hash: hash.digest("hex"), bytes };
}

async function* fileChunks(file: string): AsyncGenerator<Uint8Array> {
  try {
    yield* fs.createReadStream(file, { highWaterMark: 1 << 20 }) as AsyncIterable<Uint8Array>;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall !== undefined) throw readError(file, error);
    throw error;
  }
}

/** The first byte of content that is no white space and no byte order mark, or -1. */
async function firstByte(chunks: AsyncIterable<Uint8Array>): Promise<number> {
  for await (const chunk of chunks) {
    const found = chunk.find((byte) => ![32, 9, 10, 13, 0xef, 0xbb, 0xbf].includes(byte));
    if (found !== undefined) return found;
  }
  return -1;
}

/** Whether a file of rows is one JSON list, by its name and how it begins; else it has a row a line. */
async function isList(source: Source): Promise<boolean> {
  if (source.type !== "json") return false;
  const chunks = source.compression === "none" ? fileChunks(source.file) : unpack(source);
  return (await firstByte(chunks)) === "[".charCodeAt(0);
}

/**
 * Reads a source once.
 * @param sequenceLength what a token file without document ends is cut into.
 * Throws DataError for what cannot be read as its format, ConfigError for what its entry must say, IoError where reading
 * fails. Compressed and columnar files are only looked through later, where their tokens are not known.
 */
export async function scanSource(source: Source, sequenceLength: number, signal?: AbortSignal): Promise<SourceScan> {
  const { file, type, compression, columns } = source;
  const renamed = columns === null ? [] : [Object.entries(columns).sort(([a], [b]) => (a < b ? -1 : 1))];
  const rest = { names: null, notes: [] };
  if (type === "text") {
    const { hash, bytes, texts, groups, notes } = await scanTexts(file, source.folder, source.told, signal);
    const items = listed(groups, () => 0);
    return { hash, bytes, reading: ["text"], pieces: groups.length, items, names: texts, notes };
  }
  if (type === "tokens") {
    const { hash, bytes, dtype, ranges } = await scanIds(source, sequenceLength, signal);
    const { eos, bos } = source;
    const stream = eos === null && bos === null;
    const reading = ["tokens", dtype, eos, bos, stream ? sequenceLength : null];
    return { hash, bytes, reading, pieces: ranges.length, items: listed(ranges, () => 0), ...rest };
  }
  if (type === "parquet") {
    const { hash, bytes } = await hashOf(file, signal);
    const items = streamed(async function* () {
      // Its reader is loaded where there is such a file, not with every thread.
      const { parquetRows } = await import("./parquet.js");
      yield* parquetRows(source);
    });
    return { hash, bytes, reading: ["parquet", ...renamed], pieces: Math.ceil(bytes / RANGE_BYTES), items, ...rest };
  }
  if (compression === "none" && !(await isList(source))) {
    const { hash, bytes, ranges } = await scanFile(file, signal);
    const reading = columns === null ? null : ["lines", ...renamed];
    const items = listed(ranges, (item) => (item as LineRange).end);
    return { hash, bytes, reading, pieces: ranges.length, items, ...rest };
  }
  const { hash, bytes } = await hashOf(file, signal);
  const list = await isList(source);
  const chunks = () => (compression === "none" ? fileChunks(file) : unpack(source));
  const items = streamed(() => (list ? elementsOf(file, chunks()) : linesOf(file, chunks())));
  const reading = [list ? "list" : "lines", compression, ...renamed];
  return { hash, bytes, reading, pieces: Math.ceil((4 * bytes) / RANGE_BYTES), items, ...rest };
}

/** A row as it was found. */
export interface FoundRow {
  row: Row;
  unused: readonly string[];
  /** Where messages say it stands. */
  file: string;
  line: number;
  /** Its line, its row, or the number of its text in the folder. */
  number: number;
}

/** The rows of a piece, in order, read and checked. Every fault is a DataError that says where. */
export function forEachRow(
  source: Source,
  item: WorkItem,
  vocabSize: number | null,
  visit: (found: FoundRow) => void,
): void {
  const { file, columns } = source;
  const parsed = (bytes: Uint8Array, number: number) => {
    visit({ ...parseRow(bytes, file, number, vocabSize, columns), file, line: number, number });
  };
  if ("ids" in item)
    forEachDocument(source, item, vocabSize, (inputIds, number) => {
      visit({ row: { kind: "tokens", inputIds, labels: null, parts: null }, unused: [], file, line: number, number });
    });
  else if ("texts" in item)
    item.texts.forEach((name, i) => {
      const row = { kind: "text" as const, text: readText(name) };
      if (row.text === "") throw new ConfigError(`${name} is empty`, { file: name });
      visit({ row, unused: [], file: name, line: 1, number: item.firstText + i });
    });
  else if ("rows" in item) {
    item.ends.forEach((end, i) => {
      parsed(item.rows.subarray(item.ends[i - 1] ?? 0, end), item.firstRow + i);
    });
  } else if ("lines" in item) forEachLine(item.lines, item.firstLine, parsed);
  else forEachLine(readRange(file, item), item.firstLine, parsed);
}
