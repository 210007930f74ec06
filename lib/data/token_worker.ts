// The body of a tokenizing worker thread: takes pieces of sources, gives back the records of the token cache.

import { parentPort, workerData } from "node:worker_threads";
import { LongseqError } from "../errors.js";
import { type EncodedRange, type EncodeOptions, RowEncoder } from "./encode.js";
import type { Source } from "./formats.js";
import type { WorkItem } from "./sources.js";

/** What the main thread asks for. */
export interface RangeRequest {
  id: number;
  source: Source;
  item: WorkItem;
}

/** An error in a form that crosses threads; `kind` is the class's name. */
export interface PlainError {
  kind: string;
  message: string;
  details: Record<string, unknown>;
}

/** What a worker answers. */
export type RangeReply = { id: number; encoded: EncodedRange; error?: undefined } | { id: number; error: PlainError };

if (parentPort !== null && (workerData as { longseq?: string } | null)?.longseq === "tokens") {
  const port = parentPort;
  const encoder = new RowEncoder((workerData as { options: EncodeOptions }).options);
  port.on("message", ({ id, source, item }: RangeRequest) => {
    try {
      const encoded = encoder.encodeItem(source, item);
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
