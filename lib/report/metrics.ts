// metrics.jsonl: one line a step and one an event, cut back to the checkpoint when a run goes on.

import { closeSync, constants, fstatSync, fsyncSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { toSnake } from "../config/values.js";
import { IoError } from "../errors.js";
import type { RunItem, StepMetrics } from "./events.js";

/** The keys of a step's line, in this order; those of experts and `ranks` follow where there are any. */
export const metricsKeys = [
  "step",
  "epoch",
  "loss",
  "gradNorm",
  "learningRate",
  "tokens",
  "validTokens",
  "seconds",
  "tokensPerSecond",
  "modelTflops",
  "hardwareTflops",
  "mfu",
  "devicePeakBytes",
  "deviceLiveBytes",
  "hostPeakBytes",
  "rssPeakBytes",
  "skipped",
] as const satisfies readonly (keyof StepMetrics)[];

/** Values as JSON has them: keys in snake_case, numbers that are not finite null, bigints numbers. */
export function toJson(value: unknown): unknown {
  if (typeof value === "bigint") return Number(value);
  if (typeof value === "number") return Number.isFinite(value) ? value : null;
  if (Array.isArray(value)) return value.map(toJson);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [toSnake(key), toJson(inner)]));
}

/** A step's metrics or an event as the object of its line; a step always has every key, in the same order. */
export function toRecord(item: RunItem): Record<string, unknown> {
  if (item.event === undefined)
    return {
      ...Object.fromEntries(metricsKeys.map((key) => [toSnake(key), toJson(item[key]) ?? null])),
      ...(item.auxLoss !== undefined && { aux_loss: toJson(item.auxLoss) }),
      ...(item.tokensPerExpert !== undefined && { tokens_per_expert: toJson(item.tokensPerExpert) }),
      ...(item.ranks !== undefined && { ranks: toJson(item.ranks) }),
    };
  const { event, ...rest } = item;
  return { event, ...(toJson(rest) as Record<string, unknown>) };
}

/** The line of a step or an event, with its end. */
export function toLine(item: RunItem): string {
  return `${JSON.stringify(toRecord(item))}\n`;
}

function failure(action: string, file: string, error: unknown): IoError {
  const code = (error as NodeJS.ErrnoException).code ?? String(error);
  const advice =
    code === "ENOSPC" || code === "EDQUOT"
      ? "free some space, then start the run again: it goes on from its last checkpoint"
      : code === "EACCES" || code === "EROFS" || code === "EPERM"
        ? "make the run's folder writable"
        : code === "ENOENT"
          ? "the run's folder is gone"
          : "look at the file system";
  return new IoError(`${file}: cannot be ${action} (${code}); ${advice}`, { file, errno: code }, { cause: error });
}

/** The length of the file's part that stays: whole, valid lines before the first one of a step after `step`. */
function keptBytes(descriptor: number, step: number): number {
  const chunk = Buffer.alloc(1 << 16);
  let kept = 0;
  let position = 0;
  let rest: Buffer = Buffer.alloc(0);
  for (;;) {
    const read = readSync(descriptor, chunk, 0, chunk.length, position);
    // A last line without its end was torn by a crash and is not looked at.
    if (read === 0) return kept;
    let start = position - rest.length;
    const bytes = Buffer.concat([rest, chunk.subarray(0, read)]);
    position += read;
    let from = 0;
    for (let end = bytes.indexOf(10, from); end >= 0; end = bytes.indexOf(10, from)) {
      let record: unknown;
      try {
        record = JSON.parse(bytes.toString("utf8", from, end));
      } catch {
        record = undefined;
      }
      start += end + 1 - from;
      from = end + 1;
      if (typeof record !== "object" || record === null) continue;
      const at = (record as { step?: unknown }).step;
      if (typeof at === "number" && at > step) return kept;
      kept = start;
    }
    rest = bytes.subarray(from);
  }
}

/**
 * Appends to DIR/metrics.jsonl. Each line is one write of the whole line, so a reader that follows the file sees no
 * half lines. Lines reach the disk for certain at `sync`, which belongs before a checkpoint is declared complete:
 * later lines would be removed by a resume anyway.
 */
export class MetricsWriter {
  readonly file: string;
  #descriptor: number | null;
  #bytes: number;

  /**
   * Opens the file, creating it. `resumeStep` is the step of the checkpoint from which the run goes on, 0 for a run
   * that starts: lines after it, and a line torn by a crash, are cut off in one truncation. Throws IoError.
   */
  constructor(file: string, resumeStep: number) {
    this.file = file;
    try {
      this.#descriptor = openSync(file, constants.O_RDWR | constants.O_CREAT | constants.O_APPEND, 0o666);
      try {
        const size = fstatSync(this.#descriptor).size;
        this.#bytes = resumeStep === 0 ? 0 : keptBytes(this.#descriptor, resumeStep);
        if (this.#bytes < size) ftruncateSync(this.#descriptor, this.#bytes);
        fsyncSync(this.#descriptor);
      } catch (error) {
        closeSync(this.#descriptor);
        throw error;
      }
      syncFolder(dirname(file));
    } catch (error) {
      throw failure("opened", file, error);
    }
  }

  /** Appends one line; after a failure the file ends with the line before. Throws IoError. */
  write(item: RunItem): void {
    if (this.#descriptor === null) throw new IoError(`${this.file}: already closed`, { file: this.file });
    const bytes = Buffer.from(toLine(item), "utf8");
    try {
      let written = 0;
      while (written < bytes.length) written += writeSync(this.#descriptor, bytes, written);
      this.#bytes += bytes.length;
    } catch (error) {
      try {
        ftruncateSync(this.#descriptor, this.#bytes);
      } catch {
        // The next open cuts the torn line off.
      }
      throw failure("written", this.file, error);
    }
  }

  /** Returns when all lines are on the disk. Throws IoError. */
  sync(): void {
    if (this.#descriptor === null) return;
    try {
      fsyncSync(this.#descriptor);
    } catch (error) {
      throw failure("written", this.file, error);
    }
  }

  /** Syncs and closes; closing twice is harmless. */
  close(): void {
    if (this.#descriptor === null) return;
    const descriptor = this.#descriptor;
    try {
      this.sync();
    } finally {
      this.#descriptor = null;
      closeSync(descriptor);
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Makes a new file's name durable. */
function syncFolder(folder: string): void {
  const descriptor = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}
