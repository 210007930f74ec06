// What follows a run beside metrics.jsonl: a tracker's failure is told once, and the run goes on without it.

import type { RunItem } from "./events.js";

export interface Tracker {
  /** What messages call it. */
  readonly name: string;
  write(item: RunItem): void;
  close(): Promise<void>;
}

/** Trackers together. */
export class Trackers {
  readonly #trackers: Tracker[] = [];
  readonly #warn: (message: string) => void;

  constructor(warn: (message: string) => void) {
    this.#warn = warn;
  }

  /** Adds the tracker that `open` gives. */
  add(name: string, open: () => Tracker): void {
    try {
      this.#trackers.push(open());
    } catch (error) {
      this.#warn(`${name} follows nothing of this run: ${(error as Error).message}`);
    }
  }

  write(item: RunItem): void {
    for (const tracker of [...this.#trackers]) {
      try {
        tracker.write(item);
      } catch (error) {
        this.#trackers.splice(this.#trackers.indexOf(tracker), 1);
        this.#warn(`${tracker.name} no longer follows the run: ${(error as Error).message}`);
        void tracker.close().catch(() => {});
      }
    }
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#trackers.splice(0).map((tracker) => tracker.close()));
  }
}
