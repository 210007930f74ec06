// The token cache: one file a source file, keyed by content, written atomically and read by ranges.

import { createHash, randomBytes } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { CancelledError, FormatError, IoError, LongseqError } from "../errors.js";
import { concatenate, crc, ENCODING_VERSION, type EncodeOptions, INDEX_COLUMNS, unpackLabels } from "./encode.js";
import type { Source } from "./formats.js";
import { readBytes } from "./lines.js";
import { type SourceScan, scanSource } from "./sources.js";
import { TokenPool } from "./token_pool.js";
import { tokenizerHash } from "./tokenizer.js";

// Layout: a header of HEADER_BYTES (magic, then JSON, then zeros), the records (ids, then label words, of each
// row in the file's order), the index (INDEX_COLUMNS int32 a row, then the lengths of the documents of each row that
// holds several). All integers little endian.
const MAGIC = "longseq tokens 1\n";
const HEADER_BYTES = 4096;
/** Small inputs are encoded on the calling thread: starting a thread would take longer. */
const INLINE_BYTES = 256 * 1024;

interface Header {
  key: string;
  documents: number;
  dataBytes: number;
  indexBytes: number;
  /** SHA-256 of the index; the index holds a checksum of every document. */
  indexHash: string;
  /** What the rows hold that has no effect, each with its first line. */
  unused: [what: string, line: number][];
}

/** How token files are found and made. */
export interface CacheOptions extends EncodeOptions {
  cacheDir: string;
  /** Ids of a row of a token file that is one stream. */
  sequenceLength: number;
  /** Threads that tokenize; a core each but one where absent. The result does not depend on it. */
  workers?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Called as source bytes are turned into tokens. */
  onProgress?: ((progress: { file: string; bytes: number; totalBytes: number }) => void) | undefined;
}

const sha256 = (data: string | Uint8Array) => createHash("sha256").update(data).digest("hex");

/** Turns a refusal of the operating system into an IoError that says what to do. */
function cacheError(action: string, file: string, error: unknown): IoError {
  const { code, message } = error as NodeJS.ErrnoException;
  const what =
    code === "ENOSPC"
      ? "the disk is full"
      : code === "EACCES" || code === "EROFS"
        ? "the folder cannot be written"
        : message;
  const hint = action === "write" ? "; LONGSEQ_CACHE_DIR (or cacheDir) can name another folder" : "";
  return new IoError(`cannot ${action} the token cache ${file}: ${what}${hint}`, { file, code }, { cause: error });
}

const openFile = promisify(fs.open);
const readFile = promisify(fs.read);
const closeFile = promisify(fs.close);

/** Closes the descriptors of datasets that nobody closed. */
const forgotten = new FinalizationRegistry<number>((fd) => fs.close(fd));

/** The tokens of one source file. */
export class TokenFile {
  /** The source, for messages. */
  readonly source: string;
  /** Content key: equal keys hold equal tokens. */
  readonly key: string;
  readonly file: string;
  readonly documents: number;
  /** What the rows hold that has no effect (see `ParsedRow`), each with the first line that holds it. */
  readonly unused: readonly [what: string, line: number][];
  /** What was to be said while it was looked at. */
  readonly notes: readonly string[];
  readonly #names: readonly string[] | null;
  readonly #index: Int32Array;
  /** Where each document's parts begin in the index; null: no document has several. */
  readonly #partsAt: Float64Array | null;
  /** Byte offset of each document's record. */
  readonly #offsets: Float64Array;
  #fd: Promise<number> | null = null;
  #readers = 0;

  constructor({ file: source, note }: Source, scan: SourceScan, file: string, header: Header, index: Int32Array) {
    const notes = note === null ? scan.notes : [...scan.notes, note];
    this.source = source;
    this.notes = notes;
    this.#names = scan.names;
    this.key = header.key;
    this.file = file;
    this.documents = header.documents;
    this.unused = header.unused;
    this.#index = index;
    this.#offsets = new Float64Array(header.documents);
    this.#partsAt = index.length > INDEX_COLUMNS * header.documents ? new Float64Array(header.documents) : null;
    let partsAt = INDEX_COLUMNS * header.documents;
    let at = HEADER_BYTES;
    for (let d = 0; d < header.documents; d++) {
      this.#offsets[d] = at;
      at += 4 * (this.length(d) + Math.abs(this.#column(d, 2)));
      if (this.#partsAt === null) continue;
      this.#partsAt[d] = partsAt;
      if (this.#column(d, 5) > 1) partsAt += this.#column(d, 5);
    }
  }

  #column(document: number, column: number): number {
    return this.#index[document * INDEX_COLUMNS + column] as number;
  }

  /** Tokens of a document. */
  length(document: number): number {
    return this.#column(document, 0);
  }

  /** The source line or row (from 1) of a document, and its file: the source, or the text of it in a folder. */
  place(document: number): { file: string; line: number } {
    return this.placeOf(this.#column(document, 1));
  }

  /** The same of a number as the cache keeps it. */
  placeOf(number: number): { file: string; line: number } {
    return this.#names === null
      ? { file: this.source, line: number }
      : { file: this.#names[number - 1] ?? this.source, line: 1 };
  }

  /** Lengths of the documents that a packed row holds, which attend apart; null: it is one document. */
  parts(document: number): Int32Array | null {
    const count = this.#column(document, 5);
    if (this.#partsAt === null || count === 1) return null;
    const at = this.#partsAt[document] as number;
    return this.#index.subarray(at, at + count);
  }

  /** Labels of a document that are not ignored, those of first tokens apart (nothing predicts them). */
  validTargets(document: number): number {
    return this.#column(document, 3);
  }

  async #read(target: Int32Array, position: number): Promise<void> {
    this.#fd ??= openFile(this.file, "r").then((fd) => {
      forgotten.register(this, fd, this);
      return fd;
    });
    this.#readers++;
    try {
      const fd = await this.#fd;
      const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
      for (let done = 0; done < bytes.length; ) {
        const { bytesRead } = await readFile(fd, bytes, done, Math.min(bytes.length - done, 1 << 30), position + done);
        if (bytesRead === 0)
          throw new FormatError(`the token cache ${this.file} is cut short; delete it and start again`);
        done += bytesRead;
      }
    } catch (error) {
      if (error instanceof LongseqError) throw error;
      throw cacheError("read", this.file, error);
    } finally {
      this.#readers--;
    }
  }

  /**
   * Tokens begin..end-1 of a document and their labels (null: equal to the ids). A whole document is checked against
   * its checksum: a FormatError says that the cache is damaged.
   */
  async read(
    document: number,
    begin: number,
    end: number,
  ): Promise<{ inputIds: Int32Array; labels: Int32Array | null }> {
    const length = this.length(document);
    const labelWords = this.#column(document, 2);
    const offset = this.#offsets[document] as number;
    const inputIds = new Int32Array(end - begin);
    await this.#read(inputIds, offset + 4 * begin);
    let words: Int32Array | null = null;
    if (labelWords !== 0) {
      words = new Int32Array(Math.abs(labelWords));
      await this.#read(words, offset + 4 * length);
    }
    if (begin === 0 && end === length) {
      let checksum = crc(inputIds, 0);
      if (words !== null) checksum = crc(words, checksum);
      if ((checksum | 0) !== this.#column(document, 4)) {
        throw new FormatError(
          `the token cache ${this.file} is damaged (document of ${this.source}:${this.place(document).line}); delete it and start again`,
          { file: this.file },
        );
      }
    }
    return { inputIds, labels: words === null ? null : unpackLabels(words, labelWords < 0, inputIds, begin) };
  }

  /** Closes the file if no read is under way; a later read opens it again. */
  async close(): Promise<void> {
    if (this.#fd === null || this.#readers > 0) return;
    const opening = this.#fd;
    this.#fd = null;
    const fd = await opening.catch(() => null);
    if (fd === null) return;
    forgotten.unregister(this);
    await closeFile(fd);
  }
}

/** Opens a cache file; null where it is absent, of another key or damaged. */
function openTokenFile(source: Source, scan: SourceScan, file: string, key: string): TokenFile | null {
  let fd: number;
  try {
    fd = fs.openSync(file, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw cacheError("open", file, error);
  }
  try {
    const size = fs.fstatSync(fd).size;
    if (size < HEADER_BYTES) return null;
    const head = Buffer.alloc(HEADER_BYTES);
    readBytes(fd, file, head, 0);
    const text = head.toString("latin1");
    const lines = text.slice(MAGIC.length).split("\n");
    if (!text.startsWith(MAGIC) || lines.length < 2 || sha256(lines[1] as string) !== lines[0]) return null;
    const header = JSON.parse(lines[1] as string) as Header;
    if (header.key !== key || size !== HEADER_BYTES + header.dataBytes + header.indexBytes) return null;
    if (header.indexBytes < 4 * INDEX_COLUMNS * header.documents) return null;
    const index = new Int32Array(header.indexBytes / 4);
    const bytes = new Uint8Array(index.buffer);
    readBytes(fd, file, bytes, HEADER_BYTES + header.dataBytes);
    return sha256(bytes) === header.indexHash ? new TokenFile(source, scan, file, header, index) : null;
  } finally {
    fs.closeSync(fd);
  }
}

async function writeAll(handle: fs.promises.FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, Math.min(bytes.length - done, 1 << 30), position + done);
    done += bytesWritten;
  }
}

const bytesOf = (words: Int32Array) => new Uint8Array(words.buffer, words.byteOffset, words.byteLength);

/** Removes what a killed process of this machine left half-written. */
function removeAbandoned(directory: string): void {
  for (const name of fs.readdirSync(directory)) {
    const match = /^\.tmp-(.+)-(\d+)-[0-9a-f]+$/.exec(name);
    if (match === null || match[1] !== os.hostname()) continue;
    try {
      process.kill(Number(match[2]), 0);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ESRCH") fs.rmSync(path.join(directory, name), { force: true });
    }
  }
}

/** Tokenizes a source file into a temporary file, then renames it into place. */
async function buildTokenFile(
  source: Source,
  scan: SourceScan,
  file: string,
  key: string,
  pool: TokenPool,
  options: CacheOptions,
  onBytes: (bytes: number) => void,
): Promise<TokenFile> {
  const directory = path.dirname(file);
  const temporary = path.join(directory, `.tmp-${os.hostname()}-${process.pid}-${randomBytes(6).toString("hex")}`);
  let handle: fs.promises.FileHandle;
  try {
    handle = await fs.promises.open(temporary, "wx");
  } catch (error) {
    throw cacheError("write", temporary, error);
  }
  const write = async (bytes: Uint8Array, position: number) => {
    try {
      await writeAll(handle, bytes, position);
    } catch (error) {
      throw cacheError("write", temporary, error);
    }
  };
  try {
    let position = HEADER_BYTES;
    const indices: Int32Array[] = [];
    const parts: Int32Array[] = [];
    const unused = new Map<string, number>();
    for await (const { encoded, done } of pool.encode(source, scan.items(), options.signal)) {
      await write(bytesOf(encoded.data), position);
      position += encoded.data.byteLength;
      indices.push(encoded.index);
      parts.push(encoded.parts);
      for (const [what, line] of encoded.unused) if (!unused.has(what)) unused.set(what, line);
      if (done > 0) onBytes(done);
    }
    const index = concatenate([...indices, ...parts]);
    await write(bytesOf(index), position);
    const header: Header = {
      key,
      documents: indices.reduce((sum, { length }) => sum + length, 0) / INDEX_COLUMNS,
      dataBytes: position - HEADER_BYTES,
      indexBytes: index.byteLength,
      indexHash: sha256(bytesOf(index)),
      unused: [...unused],
    };
    const json = JSON.stringify(header);
    const head = Buffer.alloc(HEADER_BYTES);
    head.write(`${MAGIC}${sha256(json)}\n${json}\n`, "latin1");
    await write(head, 0);
    try {
      await handle.sync();
      await handle.close();
      // Another process may have put the same content there: replacing it with equal bytes does no harm.
      await fs.promises.rename(temporary, file);
      const folder = await fs.promises.open(directory, "r");
      await folder.sync().finally(() => folder.close());
    } catch (error) {
      throw cacheError("write", file, error);
    }
    return new TokenFile(source, scan, file, header, index);
  } catch (error) {
    await handle.close().catch(() => {});
    await fs.promises.rm(temporary, { force: true });
    throw error;
  }
}

/**
 * The tokens of the given sources, in order: from the cache where their content, the tokenizer, the template, V and
 * the format are known, else made now. A damaged cache file is made anew.
 * Throws DataError for bad rows (FILE:LINE), IoError where a file cannot be read or the cache not be written,
 * CancelledError when the signal aborts.
 */
export async function openTokenFiles(sources: readonly Source[], options: CacheOptions): Promise<TokenFile[]> {
  const encodeOptions: EncodeOptions = {
    tokenizer: options.tokenizer,
    vocabSize: options.vocabSize,
    chatTemplate: options.chatTemplate,
    trainOn: options.trainOn,
    noTokenizerHint: options.noTokenizerHint,
  };
  const settings = JSON.stringify([
    ENCODING_VERSION,
    tokenizerHash(options.tokenizer),
    options.vocabSize,
    options.chatTemplate,
    os.endianness(),
    // What came later joins where it is not as it was before.
    ...(options.trainOn === "assistant" ? [] : [options.trainOn]),
  ]);
  try {
    fs.mkdirSync(options.cacheDir, { recursive: true });
    removeAbandoned(options.cacheDir);
  } catch (error) {
    throw cacheError("write", options.cacheDir, error);
  }
  const files: (TokenFile | null)[] = [];
  const missing: { at: number; source: Source; scan: SourceScan; file: string; key: string }[] = [];
  for (const source of sources) {
    const scan = await scanSource(source, options.sequenceLength, options.signal);
    // Lines of JSON are what a cache held first; their keys stay.
    const reading = scan.reading === null ? "" : `\n${JSON.stringify(scan.reading)}`;
    const key = sha256(`${settings}\n${scan.hash}${reading}`);
    const file = path.join(options.cacheDir, `${key.slice(0, 32)}.tokens`);
    const opened = openTokenFile(source, scan, file, key);
    if (opened === null) missing.push({ at: files.length, source, scan, file, key });
    files.push(opened);
  }
  if (missing.length > 0) {
    const totalBytes = missing.reduce((sum, { scan }) => sum + scan.bytes, 0);
    const ranges = missing.reduce((sum, { scan }) => sum + scan.pieces, 0);
    const cores = options.workers ?? Math.max(1, os.availableParallelism() - 1);
    const workers = options.workers === undefined && totalBytes <= INLINE_BYTES ? 0 : Math.min(cores, ranges);
    const pool = new TokenPool(encodeOptions, workers);
    const stop = () => void pool.close();
    options.signal?.addEventListener("abort", stop);
    const building: Promise<unknown>[] = [];
    const byKey = new Map<string, Promise<unknown>>();
    try {
      let bytesDone = 0;
      const build = async ({ at, source, scan, file, key }: (typeof missing)[number], twin?: Promise<unknown>) => {
        // The same content may stand in the list twice.
        await twin?.catch(() => {});
        let seen = 0;
        const onBytes = (bytes: number) => {
          bytesDone += bytes - seen;
          seen = bytes;
          options.onProgress?.({ file: source.file, bytes: bytesDone, totalBytes });
        };
        files[at] =
          (twin === undefined ? null : openTokenFile(source, scan, file, key)) ??
          (await buildTokenFile(source, scan, file, key, pool, options, onBytes));
        onBytes(scan.bytes);
      };
      // Several files at once, since many may be small; they are awaited in order, so the first fault in the files'
      // order is the one that is told.
      for (let next = 0, awaited = 0; awaited < missing.length; awaited++) {
        while (next < missing.length && next - awaited < Math.max(1, 2 * workers)) {
          const item = missing[next++] as (typeof missing)[number];
          const promise = build(item, byKey.get(item.key));
          promise.catch(() => {});
          byKey.set(item.key, promise);
          building.push(promise);
        }
        await building[awaited];
      }
    } catch (error) {
      await pool.close();
      await Promise.allSettled(building);
      if (options.signal?.aborted) throw new CancelledError("tokenizing was given up", {}, { cause: error });
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", stop);
      await pool.close();
    }
  }
  return files as TokenFile[];
}
