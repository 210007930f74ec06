// Hands pieces of sources to worker threads and gives the records back in the file's order.

import type { Worker } from "node:worker_threads";
import * as errors from "../errors.js";
import { startThread } from "../thread.js";
import { type EncodedRange, type EncodeOptions, RowEncoder } from "./encode.js";
import type { Source } from "./formats.js";
import type { WorkItem } from "./sources.js";
import type { PlainError, RangeReply, RangeRequest } from "./token_worker.js";

function revive({ kind, message, details }: PlainError): Error {
  switch (kind) {
    case "DataError":
      return new errors.DataError(message, details);
    case "IoError":
      return new errors.IoError(message, details);
    case "FormatError":
      return new errors.FormatError(message, details);
    case "ConfigError":
      return new errors.ConfigError(message, details);
    default:
      return new errors.LongseqError("DATA", `a tokenizing worker failed: ${message}`, { kind, ...details });
  }
}

interface Waiting {
  resolve: (range: EncodedRange) => void;
  reject: (error: Error) => void;
}

const startWorker = (options: EncodeOptions): Worker =>
  startThread(new URL("./token_worker", import.meta.url), { longseq: "tokens", options });

/**
 * Encodes pieces on `workers` threads; with none, on the calling thread. Threads start when first needed. What comes
 * back does not depend on their number.
 */
export class TokenPool {
  readonly #options: EncodeOptions;
  readonly #count: number;
  readonly #workers: { worker: Worker; waiting: Map<number, Waiting> }[] = [];
  #encoder: RowEncoder | null = null;
  #nextId = 0;
  #inWork = 0;
  #closed = false;
  readonly #waitingForSlot: (() => void)[] = [];

  constructor(options: EncodeOptions, workers: number) {
    this.#options = options;
    this.#count = workers;
  }

  #start(): { worker: Worker; waiting: Map<number, Waiting> } {
    const waiting = new Map<number, Waiting>();
    const worker = startWorker(this.#options);
    const entry = { worker, waiting };
    const fail = (error: Error) => {
      for (const { reject } of waiting.values()) reject(error);
      waiting.clear();
    };
    worker.on("message", (reply: RangeReply) => {
      const waiter = waiting.get(reply.id);
      waiting.delete(reply.id);
      if (waiter === undefined) return;
      if (reply.error !== undefined) waiter.reject(revive(reply.error));
      else waiter.resolve(reply.encoded);
    });
    worker.on("error", (error) =>
      fail(new errors.LongseqError("DATA", `a tokenizing worker failed: ${error.message}`, {}, { cause: error })),
    );
    worker.on("exit", () => fail(new errors.CancelledError("a tokenizing worker ended before its work was done")));
    this.#workers.push(entry);
    return entry;
  }

  async #encode(source: Source, item: WorkItem): Promise<EncodedRange> {
    const { file } = source;
    if (this.#closed) throw new errors.CancelledError(`tokenizing ${file} was given up`, { file });
    if (this.#count === 0) {
      this.#encoder ??= new RowEncoder(this.#options);
      return this.#encoder.encodeItem(source, item);
    }
    const idle = this.#workers.find(({ waiting }) => waiting.size === 0);
    const least = () => this.#workers.reduce((a, b) => (b.waiting.size < a.waiting.size ? b : a));
    const { worker, waiting } = idle ?? (this.#workers.length < this.#count ? this.#start() : least());
    const request: RangeRequest = { id: this.#nextId++, source, item };
    return new Promise((resolve, reject) => {
      waiting.set(request.id, { resolve, reject });
      worker.postMessage(request);
    });
  }

  /** Waits until fewer than two ranges a thread are in work or waiting to be written, whichever files they are of. */
  async #slot(): Promise<void> {
    while (this.#inWork >= Math.max(1, 2 * this.#count)) {
      await new Promise<void>((resolve) => this.#waitingForSlot.push(resolve));
    }
    this.#inWork++;
  }

  #release(): void {
    this.#inWork--;
    this.#waitingForSlot.shift()?.();
  }

  /**
   * The records of each piece in order, with the bytes of the source that are done behind it. Several sources may be
   * encoded at once; together they hold bounded memory.
   */
  async *encode(
    source: Source,
    items: AsyncIterable<{ item: WorkItem; done: number }>,
    signal?: AbortSignal,
  ): AsyncGenerator<{ encoded: EncodedRange; done: number }> {
    const { file } = source;
    const pieces = items[Symbol.asyncIterator]();
    const inWork: { encoded: Promise<EncodedRange>; done: number }[] = [];
    let more = true;
    try {
      while (more || inWork.length > 0) {
        while (more && (inWork.length === 0 || this.#inWork < 2 * this.#count)) {
          await this.#slot();
          let next: IteratorResult<{ item: WorkItem; done: number }>;
          try {
            if (signal?.aborted) throw new errors.CancelledError(`tokenizing ${file} was given up`, { file });
            next = await pieces.next();
          } catch (error) {
            this.#release();
            // What was read before the fault comes first: it may hold one of its own.
            for (const { encoded } of inWork) await encoded;
            throw error;
          }
          if (next.done) {
            this.#release();
            more = false;
            break;
          }
          const encoded = this.#encode(source, next.value.item);
          // A later piece may fail while an earlier one is awaited; it is reported in its turn.
          encoded.catch(() => {});
          inWork.push({ encoded, done: next.value.done });
        }
        const first = inWork[0];
        if (first === undefined) continue;
        yield { encoded: await first.encoded, done: first.done };
        inWork.shift();
        this.#release();
      }
    } finally {
      for (const _ of inWork) this.#release();
      await pieces.return?.();
    }
  }

  /** Ends the threads; work not yet given back is lost. */
  async close(): Promise<void> {
    this.#closed = true;
    const workers = this.#workers.splice(0);
    await Promise.all(workers.map(({ worker }) => worker.terminate()));
  }
}
