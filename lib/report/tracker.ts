// What follows a run beside metrics.jsonl: a tracker's failure is told once, and the run goes on without it.

import type { RunItem } from "./events.js";

export interface Tracker {
  /** What messages call it. */
  readonly name: string;
  /** A promise is not waited for before the end of the run. */
  write(item: RunItem): unknown;
  close(): Promise<void>;
}

/** What went wrong, whatever was thrown. */
const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Trackers together. */
export class Trackers {
  readonly #trackers: Tracker[] = [];
  /** What was begun and has not ended. */
  readonly #pending = new Set<Promise<void>>();
  readonly #warn: (message: string) => void;

  constructor(warn: (message: string) => void) {
    this.#warn = warn;
  }

  /** Adds the tracker that `open` gives. */
  add(name: string, open: () => Tracker): void {
    try {
      this.#trackers.push(open());
    } catch (error) {
      this.#warn(`${name} follows nothing of this run: ${reason(error)}`);
    }
  }

  write(item: RunItem): void {
    for (const tracker of [...this.#trackers]) {
      try {
        const written = tracker.write(item);
        if (!(written instanceof Promise)) continue;
        const settled: Promise<void> = written
          .catch((error) => this.#drop(tracker, error))
          .finally(() => this.#pending.delete(settled));
        this.#pending.add(settled);
      } catch (error) {
        this.#drop(tracker, error);
      }
    }
  }

  #drop(tracker: Tracker, error: unknown): void {
    const at = this.#trackers.indexOf(tracker);
    // Told already, by an item before.
    if (at < 0) return;
    this.#trackers.splice(at, 1);
    this.#warn(`${tracker.name} no longer follows the run: ${reason(error)}`);
    void tracker.close().catch(() => {});
  }

  async close(): Promise<void> {
    await Promise.all(this.#pending);
    await Promise.allSettled(this.#trackers.splice(0).map((tracker) => tracker.close()));
  }
}
