// output.command: a program that gets one JSON line an event on its standard input, for trackers that longseq does not know.

import { type ChildProcess, spawn } from "node:child_process";
import type { RunItem } from "./events.js";
import { toLine } from "./metrics.js";
import type { Tracker } from "./tracker.js";

/** Lines that the program has not read yet may take so much. */
const MOST_WAITING = 16 * 2 ** 20;
/** How long it may go on when the run has ended, and after it was asked to stop. Milliseconds. */
const PATIENCE = 30_000;
const LAST_PATIENCE = 5_000;

/** What a program ended with, in words; null: it did as it should. */
const fault = (code: number | null, signal: NodeJS.Signals | null): string | null =>
  signal !== null ? `it was ended by ${signal}` : code === 0 ? null : `it ended with exit code ${code}`;

export interface CommandOptions {
  /** The folder of the run: LONGSEQ_RUN_DIR of the program. */
  dir: string;
  /** Told when the program ends while the run goes on, or badly. */
  warn: (message: string) => void;
}

/** Runs `command` by the shell. Its output goes to this process's stderr. */
export class CommandTracker implements Tracker {
  readonly name = "output.command";
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;
  #failed: string | null = null;
  #closing = false;

  constructor(command: string, { dir, warn }: CommandOptions) {
    this.#child = spawn(command, {
      shell: true,
      // In a group of its own: Ctrl-C is for the run, whose last lines it still gets, and what it started ends with it.
      detached: true,
      stdio: ["pipe", 2, 2],
      env: { ...process.env, LONGSEQ_RUN_DIR: dir },
    });
    // What it does not read is told by its end.
    this.#child.stdin?.on("error", () => {});
    this.#ended = new Promise((done) => {
      this.#child.on("error", (error) => {
        this.#failed ??= error.message;
        done();
      });
      this.#child.on("close", (code, signal) => {
        const found = fault(code, signal);
        if (!this.#closing) this.#failed ??= found ?? "it ended before the run did";
        else if (found !== null) warn(`output.command: ${found}`);
        done();
      });
    });
  }

  write(item: RunItem): void {
    const { stdin } = this.#child;
    if (this.#failed !== null || stdin === null) throw new Error(this.#failed ?? "it has no standard input");
    if (stdin.writableLength > MOST_WAITING) throw new Error("it does not read what it is given");
    stdin.write(toLine(item));
  }

  /** The shell and what it started. */
  #kill(signal: NodeJS.Signals): void {
    const { pid } = this.#child;
    try {
      if (pid !== undefined) process.kill(-pid, signal);
    } catch {
      // All of them have ended.
    }
  }

  async close(): Promise<void> {
    this.#closing = true;
    this.#child.stdin?.end();
    for (const [signal, patience] of [
      ["SIGTERM", PATIENCE],
      ["SIGKILL", LAST_PATIENCE],
    ] as const) {
      let timer: NodeJS.Timeout | undefined;
      const waited = new Promise<"late">((late) => {
        timer = setTimeout(() => late("late"), patience);
      });
      const how = await Promise.race([this.#ended, waited]);
      clearTimeout(timer);
      if (how !== "late") return;
      this.#kill(signal);
    }
  }
}
