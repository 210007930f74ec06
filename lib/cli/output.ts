// What the command line writes: results on stdout, everything else on stderr, and errors as one clear message.

import { appendFileSync } from "node:fs";
import { ConfigError, LongseqError } from "../errors.js";
import { openRankLog } from "../parallel/rank_log.js";
import type { RunItem } from "../report/events.js";
import { toLine } from "../report/metrics.js";

/** Exit codes of the command line. A run stopped by a signal with its state saved exits with 128 + the signal. */
export const exitCode = { done: 0, failed: 1, usage: 2 } as const;

/** A mistake in how the command was called. */
export class UsageError extends ConfigError {}

/** A stream that lines go to. */
export interface LineStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
  on?(event: "error", listener: (error: NodeJS.ErrnoException) => void): unknown;
}

/** A run must not die because its reader went away (`longseq train ... | head`). */
function forgiveClosedPipe(stream: LineStream): void {
  stream.on?.("error", (error) => {
    if (error.code !== "EPIPE") throw error;
  });
}

export class Output {
  readonly stdout: LineStream;
  readonly stderr: LineStream;
  /** Machine-readable lines on stdout and nothing else there. */
  json = false;
  readonly #debug: boolean;
  #status = false;

  constructor(stdout: LineStream, stderr: LineStream, debug: boolean) {
    this.stdout = stdout;
    this.stderr = stderr;
    this.#debug = debug;
    forgiveClosedPipe(stdout);
    forgiveClosedPipe(stderr);
  }

  /** What is done at the moment, on a terminal alone: the next line, or `null`, takes its place. */
  status(text: string | null): void {
    if (!this.stderr.isTTY || (text === null && !this.#status)) return;
    const { columns = 80 } = this.stderr;
    this.stderr.write(`\r\x1b[K${text?.slice(0, columns - 1) ?? ""}`);
    this.#status = text !== null;
  }

  /** A line for people, on stdout; with --json on stderr. */
  line(text: string): void {
    this.status(null);
    (this.json ? this.stderr : this.stdout).write(`${text}\n`);
  }

  /** A remark for people, on stderr. */
  note(text: string): void {
    this.status(null);
    this.stderr.write(`${text}\n`);
  }

  /** One object on one line of stdout, with --json only. Keys are written in snake_case. */
  record(item: RunItem | { event: string; [key: string]: unknown }): void {
    if (this.json) this.stdout.write(toLine(item as RunItem));
  }

  /** Reports an error and returns the exit code it calls for. */
  error(error: unknown): number {
    const { code, message, details, known } = describe(error);
    for (const line of message.split("\n")) this.note(`error: ${line}`);
    // A mistake of the user needs no stack; one of ours does, where it was asked for.
    if (this.#debug && error instanceof Error && error.stack !== undefined) this.note(error.stack);
    else if (!known) this.note("This is a mistake in longseq; LONGSEQ_DEBUG=1 shows where.");
    this.record({ event: "error", code, message, details });
    return error instanceof ConfigError ? exitCode.usage : exitCode.failed;
  }
}

/**
 * For a rank that torchrun, Slurm or mpirun started beside rank 0, which has the terminal: all goes to DIR/ranks/N.log, as
 * the launcher would have it. Throws IoError.
 */
export function outputOfRank(dir: string, rank: number, json: boolean): Output {
  const file = openRankLog(dir, rank);
  // Line by line: what was said last is there however the process ends.
  const stream = { write: (text: string) => appendFileSync(file, text) };
  const output = new Output(stream, stream, false);
  output.json = json;
  return output;
}

/** Code and message of anything thrown; `known` where the cause lies outside longseq. */
function describe(error: unknown): { code: string; message: string; details: object; known: boolean } {
  if (error instanceof LongseqError)
    return { code: error.code, message: error.message, details: error.details, known: true };
  const message = error instanceof Error ? error.message : String(error);
  const { code, syscall, path } = (error ?? {}) as NodeJS.ErrnoException;
  if (code === "ERR_DLOPEN_FAILED")
    return {
      code: "UNSUPPORTED",
      message: `the native addon cannot be loaded: ${message}; longseq doctor says more`,
      details: {},
      known: true,
    };
  // A refusal of the operating system.
  if (typeof code === "string" && typeof syscall === "string")
    return { code: "IO", message, details: { errno: code, syscall, path: path ?? null }, known: true };
  return { code: "INTERNAL", message: `unexpected: ${message}`, details: {}, known: false };
}
