// The body of a tokenizing worker thread: takes ranges of lines, gives back the records of the token cache.

import fs from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { LongseqError } from "../errors.js";
import { type EncodedRange, type EncodeOptions, RowEncoder } from "./encode.js";
import { type LineRange, readError } from "./rows.js";

/** What the main thread asks for. */
export interface RangeRequest {
  id: number;
  file: string;
  range: LineRange;
}

/** An error in a form that crosses threads; `kind` is the class's name. */
export interface PlainError {
  kind: string;
  message: string;
  details: Record<string, unknown>;
}

/** What a worker answers. */
export type RangeReply = { id: number; encoded: EncodedRange; error?: undefined } | { id: number; error: PlainError };

/** Opens the file, encodes the range, closes the file. */
export function encodeFileRange(encoder: RowEncoder, file: string, range: LineRange) {
  let fd: number;
  try {
    fd = fs.openSync(file, "r");
  } catch (error) {
    throw readError(file, error);
  }
  try {
    return encoder.encodeRange(fd, file, range);
  } finally {
    fs.closeSync(fd);
  }
}

if (parentPort !== null && (workerData as { longseq?: string } | null)?.longseq === "tokens") {
  const port = parentPort;
  const encoder = new RowEncoder((workerData as { options: EncodeOptions }).options);
  port.on("message", ({ id, file, range }: RangeRequest) => {
    try {
      const encoded = encodeFileRange(encoder, file, range);
      const { data, index, parts } = encoded;
      const reply: RangeReply = { id, encoded };
      port.postMessage(
        reply,
        [data, index, parts].map(({ buffer }) => buffer as ArrayBuffer),
      );
    } catch (error) {
      const details = error instanceof LongseqError ? error.details : {};
      const plain = { kind: (error as Error).name, message: (error as Error).message, details };
      const reply: RangeReply = { id, error: plain };
      port.postMessage(reply);
    }
  });
}
