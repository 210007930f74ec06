// Compressed files as streams of bytes, with a limit on what they may unpack to; gzip by zlib, zstd by fzstd.

import fs from "node:fs";
import { pipeline } from "node:stream";
import zlib from "node:zlib";
import { Decompress } from "fzstd";
import { DataError } from "../errors.js";
import { expansionError, expansionLimit, type Source } from "./formats.js";
import { readError } from "./rows.js";

/**
 * Bytes that go into the zstd decoder at once. A block of 4 bytes can stand for 128 KiB of one byte repeated, so that
 * much of a hostile file gives at most 32 MiB before the limit is looked at.
 */
const ZSTD_PIECE = 1024;

function damaged(source: Source, what: string, produced: number, error: unknown): Error {
  const { code, syscall, message } = error as NodeJS.ErrnoException;
  if (syscall !== undefined) return readError(source.file, error);
  const why =
    code === "Z_BUF_ERROR" || message === "unexpected EOF" ? "it ends too early; was it copied whole?" : message;
  return new DataError(
    `${source.file} is damaged ${what} data: ${why} (after ${produced} bytes of output)`,
    { file: source.file, produced },
    { cause: error },
  );
}

async function* gzipBytes(file: string): AsyncGenerator<Uint8Array> {
  const unpacked = zlib.createGunzip({ chunkSize: 256 * 1024 });
  // The stream that is read from below gets whatever goes wrong.
  pipeline(fs.createReadStream(file, { highWaterMark: 256 * 1024 }), unpacked, () => {});
  yield* unpacked;
}

async function* zstdBytes(file: string): AsyncGenerator<Uint8Array> {
  let ready: Uint8Array[] = [];
  const decoder = new Decompress((chunk) => {
    if (chunk.length > 0) ready.push(chunk);
  });
  for await (const chunk of fs.createReadStream(file, { highWaterMark: 64 * 1024 }) as AsyncIterable<Uint8Array>) {
    for (let at = 0; at < chunk.length; at += ZSTD_PIECE) {
      decoder.push(chunk.subarray(at, at + ZSTD_PIECE));
      const pieces = ready;
      ready = [];
      yield* pieces;
    }
  }
  decoder.push(new Uint8Array(0), true);
  yield* ready;
}

/**
 * The bytes that a compressed file stands for, a piece at a time; of several gzip members or zstd frames one after the
 * other. Throws DataError where the data are damaged, ConfigError where they are more than `source.expansion` allows.
 */
export async function* unpack(source: Source): AsyncGenerator<Uint8Array> {
  const { file, compression, expansion } = source;
  let produced = 0;
  let size: number;
  try {
    size = (await fs.promises.stat(file)).size;
  } catch (error) {
    throw readError(file, error);
  }
  const limit = expansionLimit(size, expansion);
  const chunks = compression === "gzip" ? gzipBytes(file) : zstdBytes(file);
  try {
    for (;;) {
      let next: IteratorResult<Uint8Array>;
      try {
        next = await chunks.next();
      } catch (error) {
        throw damaged(source, compression, produced, error);
      }
      if (next.done) return;
      produced += next.value.length;
      if (produced > limit) throw expansionError(file, size, expansion);
      yield next.value;
    }
  } finally {
    // Whoever has seen enough leaves no file open.
    await chunks.return(undefined);
  }
}
