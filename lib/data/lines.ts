// Files of lines: read once as bytes for their hash, and cut into ranges of whole lines of about the same size.

import { createHash } from "node:crypto";
import fs from "node:fs";
import { CancelledError, ConfigError, IoError } from "../errors.js";
import { refuseForeignBytes } from "./formats.js";
import { readError, rowError } from "./rows.js";

/** A line longer than this cannot become a JavaScript string. */
export const MAX_LINE_BYTES = 512 * 1024 * 1024 - 64;
/** Lines are handed out in groups of about this many bytes; a constant, so that results never depend on workers. */
export const RANGE_BYTES = 4 * 1024 * 1024;

/** Whole lines of a file: bytes begin..end-1, the first of them being line `firstLine` (from 1). */
export interface LineRange {
  begin: number;
  end: number;
  firstLine: number;
}

/** What one pass over a file found. */
export interface FileScan {
  /** Hexadecimal SHA-256 of the file's bytes. */
  hash: string;
  bytes: number;
  ranges: LineRange[];
}

/**
 * Reads a file once: its hash, and ranges of whole lines of about RANGE_BYTES. A UTF-8 byte order mark at the start
 * is left out of the first range. Files of any size; memory stays at one read buffer.
 * Throws DataError for other formats and for a line over MAX_LINE_BYTES, IoError where reading fails.
 */
export async function scanFile(file: string, signal?: AbortSignal): Promise<FileScan> {
  let handle: fs.promises.FileHandle;
  try {
    handle = await fs.promises.open(file, "r");
  } catch (error) {
    throw readError(file, error);
  }
  try {
    if ((await handle.stat()).isDirectory()) {
      throw new ConfigError(`${file} is a folder; name the .jsonl files in it`, { file });
    }
    const hash = createHash("sha256");
    const buffer = Buffer.allocUnsafe(1024 * 1024);
    const ranges: LineRange[] = [];
    let position = 0;
    let line = 1;
    let lineBegin = 0;
    let range: LineRange = { begin: 0, end: 0, firstLine: 1 };
    for (;;) {
      if (signal?.aborted) throw new CancelledError(`reading ${file} was given up`, { file });
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, position);
      const chunk = buffer.subarray(0, bytesRead);
      if (position === 0) {
        refuseForeignBytes(file, chunk);
        if (chunk[0] === 0xef && chunk[1] === 0xbb && chunk[2] === 0xbf) {
          range = { begin: 3, end: 3, firstLine: 1 };
          lineBegin = 3;
        }
      }
      if (bytesRead === 0) break;
      hash.update(chunk);
      for (let i = chunk.indexOf(10); i >= 0; i = chunk.indexOf(10, i + 1)) {
        const end = position + i + 1;
        checkLineLength(file, line, end - lineBegin);
        line++;
        lineBegin = end;
        if (end - range.begin >= RANGE_BYTES) {
          range.end = end;
          ranges.push(range);
          range = { begin: end, end, firstLine: line };
        }
      }
      position += bytesRead;
      checkLineLength(file, line, position - lineBegin);
    }
    if (position > range.begin) {
      range.end = position;
      ranges.push(range);
    }
    return { hash: hash.digest("hex"), bytes: position, ranges };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall !== undefined) throw readError(file, error);
    throw error;
  } finally {
    await handle.close();
  }
}

function checkLineLength(file: string, line: number, bytes: number): void {
  if (bytes > MAX_LINE_BYTES) {
    throw rowError(file, line, "the line is longer than 512 MiB; split the row into several");
  }
}

/** Reads exactly the bytes begin..end-1 (any number, also over the 2 GiB that one read may ask for). */
export function readBytes(fd: number, file: string, target: Uint8Array, position: number): void {
  let done = 0;
  while (done < target.byteLength) {
    const want = Math.min(target.byteLength - done, 1 << 30);
    let got: number;
    try {
      got = fs.readSync(fd, target, done, want, position + done);
    } catch (error) {
      throw readError(file, error);
    }
    if (got === 0) {
      throw new IoError(
        `${file} ended at byte ${position + done}, before byte ${position + target.byteLength}: it changed while it was being read`,
        {
          file,
        },
      );
    }
    done += got;
  }
}

/** Calls `visit` with each line that is not blank, without its line end, and with its number. */
export function forEachLine(
  bytes: Uint8Array,
  firstLine: number,
  visit: (line: Uint8Array, number: number) => void,
): void {
  let number = firstLine;
  for (let begin = 0; begin < bytes.length; number++) {
    const newline = bytes.indexOf(10, begin);
    const next = newline < 0 ? bytes.length : newline + 1;
    let end = newline < 0 ? bytes.length : newline;
    if (end > begin && bytes[end - 1] === 13) end--;
    const line = bytes.subarray(begin, end);
    if (line.some((byte) => byte !== 32 && byte !== 9 && byte !== 13)) visit(line, number);
    begin = next;
  }
}

/** The bytes of a range. */
export function readRange(file: string, { begin, end }: LineRange): Uint8Array {
  let fd: number;
  try {
    fd = fs.openSync(file, "r");
  } catch (error) {
    throw readError(file, error);
  }
  try {
    const bytes = Buffer.allocUnsafe(end - begin);
    readBytes(fd, file, bytes, begin);
    return bytes;
  } finally {
    fs.closeSync(fd);
  }
}

/** Lines that were unpacked, the first of them being line `firstLine`. */
export interface LineBytes {
  lines: Uint8Array;
  firstLine: number;
}

/** Cuts unpacked bytes into groups of whole lines as `scanFile` cuts a file. */
export async function* linesOf(file: string, chunks: AsyncIterable<Uint8Array>): AsyncGenerator<LineBytes> {
  let held: Uint8Array[] = [];
  let size = 0;
  /** Bytes since the last line end. */
  let open = 0;
  let line = 1;
  let firstLine = 1;
  let start = true;
  for await (const whole of chunks) {
    if (whole.length === 0) continue;
    let chunk = whole;
    if (start) {
      start = false;
      if (chunk[0] === 0xef && chunk[1] === 0xbb && chunk[2] === 0xbf) chunk = chunk.subarray(3);
    }
    let lastEnd = 0;
    for (let i = chunk.indexOf(10); i >= 0; i = chunk.indexOf(10, i + 1)) {
      checkLineLength(file, line, open + i + 1 - lastEnd);
      open = 0;
      line++;
      lastEnd = i + 1;
    }
    open += chunk.length - lastEnd;
    checkLineLength(file, line, open);
    if (lastEnd > 0 && size + lastEnd >= RANGE_BYTES) {
      held.push(chunk.subarray(0, lastEnd));
      yield { lines: Buffer.concat(held), firstLine };
      firstLine = line;
      held = [];
      size = 0;
      chunk = chunk.subarray(lastEnd);
    }
    if (chunk.length > 0) {
      held.push(chunk);
      size += chunk.length;
    }
  }
  if (size > 0) yield { lines: Buffer.concat(held), firstLine };
}
