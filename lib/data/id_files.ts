// Token files: nothing but ids of two or four bytes each, as nanoGPT and llm.c write them, cut into documents.

import { createHash } from "node:crypto";
import fs from "node:fs";
import { CancelledError, ConfigError, DataError } from "../errors.js";
import type { IdType, Source } from "./formats.js";
import { RANGE_BYTES, readBytes } from "./lines.js";
import { readError } from "./rows.js";

/** Whole documents of a token file: ids begin..end-1, of which the first document is number `firstRow` (from 1). */
export interface IdRange {
  ids: { dtype: IdType; header: number; begin: number; end: number; rowTokens: number | null };
  firstRow: number;
}

/** What one pass over a token file found. */
export interface IdScan {
  /** Hexadecimal SHA-256 of the file's bytes. */
  hash: string;
  bytes: number;
  dtype: IdType;
  ranges: IdRange[];
}

/** llm.c's first number and the type that it stands for; 256 numbers of four bytes come before the ids. */
const LLM_C: ReadonlyMap<number, IdType> = new Map([
  [20240520, "uint16"],
  [20240801, "uint32"],
]);
const LLM_C_HEADER = 1024;
/** A document is held in memory whole, four bytes an id. */
const MOST_TOKENS = 2 ** 28;

const width = (dtype: IdType): number => (dtype === "uint16" ? 2 : 4);

/** The ids in bytes, which begin anywhere. */
function idsOf(bytes: Uint8Array, dtype: IdType): Uint16Array | Uint32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  const count = Math.floor(aligned.byteLength / width(dtype));
  return dtype === "uint16"
    ? new Uint16Array(aligned.buffer, aligned.byteOffset, count)
    : new Uint32Array(aligned.buffer, aligned.byteOffset, count);
}

/** llm.c's header, which counts as one where its number of ids fits the file. */
function headerOf(head: Buffer, size: number): IdType | null {
  if (size < LLM_C_HEADER || head.length < 12) return null;
  const dtype = LLM_C.get(head.readInt32LE(0));
  if (dtype === undefined) return null;
  return size === LLM_C_HEADER + width(dtype) * head.readInt32LE(8) ? dtype : null;
}

/**
 * Reads a token file once: its hash, and ranges of whole documents of about RANGE_BYTES. Documents end behind each `eos`,
 * or begin at each `bos`; without either the file is one stream, cut into rows of `rowTokens` ids.
 * ConfigError where nobody says how ids are stored, DataError where the file's size or a document's cannot be.
 */
export async function scanIds(source: Source, rowTokens: number, signal?: AbortSignal): Promise<IdScan> {
  const { file, eos, bos } = source;
  let handle: fs.promises.FileHandle;
  try {
    handle = await fs.promises.open(file, "r");
  } catch (error) {
    throw readError(file, error);
  }
  try {
    const { size } = await handle.stat();
    const head = Buffer.alloc(Math.min(12, size));
    await handle.read(head, 0, head.length, 0);
    const told = headerOf(head, size);
    if (told !== null && source.dtype !== null && told !== source.dtype)
      throw new ConfigError(`${file} has a header of llm.c's, which says ${told}, but its dtype is ${source.dtype}`, {
        file,
      });
    const dtype = source.dtype ?? told;
    if (dtype === null)
      throw new ConfigError(
        `${file}: how its ids are stored is not known; say so in its entry: {path: ..., dtype: uint16} or uint32 ` +
          "(as do the endings .u16 and .u32)",
        { file },
      );
    if (fs.existsSync(file.replace(/\.bin$/i, ".idx")) && /\.bin$/i.test(file))
      throw new DataError(
        `${file} has an index beside it (.idx, as Megatron writes it), which is not read; write the documents as rows {input_ids}`,
        { file },
      );
    const header = told === null ? 0 : LLM_C_HEADER;
    const bytesPerId = width(dtype);
    if ((size - header) % bytesPerId !== 0)
      throw new DataError(
        `${file} has ${size} bytes, which is no whole number of ids of ${bytesPerId} bytes; is it cut short?`,
        {
          file,
        },
      );
    const total = (size - header) / bytesPerId;
    const hash = createHash("sha256");
    const ranges: IdRange[] = [];
    const stream = eos === null && bos === null;
    let range = { begin: 0, firstRow: 1 };
    let documents = 0;
    let documentBegin = 0;
    /** A document ends before this id. */
    const cut = (at: number) => {
      if (at === documentBegin) return;
      if (at - documentBegin > MOST_TOKENS)
        throw new DataError(
          `${file}: document ${documents + 1} has ${at - documentBegin} tokens, more than ${MOST_TOKENS}; is the ${eos === null ? "bos" : "eos"} of its entry right?`,
          { file },
        );
      documents++;
      documentBegin = at;
      if ((at - range.begin) * bytesPerId >= RANGE_BYTES || at === total) {
        const ids = { dtype, header, begin: range.begin, end: at, rowTokens: stream ? rowTokens : null };
        ranges.push({ ids, firstRow: range.firstRow });
        range = { begin: at, firstRow: documents + 1 };
      }
    };
    if (stream)
      for (let at = Math.min(rowTokens, total); at > documentBegin; at = Math.min(at + rowTokens, total)) cut(at);
    const buffer = Buffer.allocUnsafeSlow(1024 * 1024);
    for (let position = 0; position < size; ) {
      if (signal?.aborted) throw new CancelledError(`reading ${file} was given up`, { file });
      // Whole ids at a time: a read may end earlier than asked.
      const want = Math.min(buffer.length, size - position);
      let got = 0;
      while (got < want) {
        const { bytesRead } = await handle.read(buffer, got, want - got, position + got);
        if (bytesRead === 0) throw new DataError(`${file} became shorter while it was being read`, { file });
        got += bytesRead;
      }
      const chunk = buffer.subarray(0, got);
      hash.update(chunk);
      if (!stream) {
        const skip = position < header ? header : 0;
        const ids = idsOf(chunk.subarray(skip), dtype);
        const first = (position + skip - header) / bytesPerId;
        for (let i = 0; i < ids.length; i++) {
          if (ids[i] === bos) cut(first + i);
          if (ids[i] === eos) cut(first + i + 1);
        }
      }
      position += got;
    }
    if (!stream) cut(total);
    return { hash: hash.digest("hex"), bytes: size, dtype, ranges };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall !== undefined) throw readError(file, error);
    throw error;
  } finally {
    await handle.close();
  }
}

/** The documents of a range, in order. DataError where an id cannot be. */
export function forEachDocument(
  { file, eos, bos }: Source,
  { ids: range, firstRow }: IdRange,
  vocabSize: number | null,
  visit: (ids: Int32Array, row: number) => void,
): void {
  const { dtype, header, begin, end, rowTokens } = range;
  const bytes = Buffer.allocUnsafeSlow((end - begin) * width(dtype));
  let fd: number;
  try {
    fd = fs.openSync(file, "r");
  } catch (error) {
    throw readError(file, error);
  }
  try {
    readBytes(fd, file, bytes, header + begin * width(dtype));
  } finally {
    fs.closeSync(fd);
  }
  const ids = idsOf(bytes, dtype);
  const limit = vocabSize ?? 0x7fffffff;
  let row = firstRow;
  let from = 0;
  const give = (to: number) => {
    if (to === from) return;
    visit(Int32Array.from(ids.subarray(from, to)), row++);
    from = to;
  };
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i] as number;
    if (id >= limit) {
      const rule = vocabSize === null ? "below 2^31" : `0 to ${vocabSize - 1} (the vocabulary has ${vocabSize} tokens)`;
      throw new DataError(
        `${file}: token ${begin + i} is ${id}; a token id is ${rule}. Is it stored as ${dtype}, and for this model?`,
        { file, token: begin + i, id },
      );
    }
    if (id === bos) give(i);
    if (id === eos) give(i + 1);
    if (rowTokens !== null && i - from === rowTokens) give(i);
  }
  give(ids.length);
}
