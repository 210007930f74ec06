// What the phases of a run share: its configuration, what it holds open, and what it tells.

import { join } from "node:path";
import type { Config } from "../config/index.js";
import type { Dataset } from "../data/index.js";
import { CancelledError } from "../errors.js";
import type { CausalLM } from "../models/index.js";
import type { AdamW } from "../optim/adamw.js";
import type { Job } from "../parallel/job.js";
import type { Owned } from "../parallel/zero.js";
import type { RunItem } from "../report/events.js";
import type { MetricsWriter } from "../report/metrics.js";
import { Trackers } from "../report/tracker.js";
import type { Device } from "../tensor/device.js";
import type { SamplePrompts } from "./sample.js";
import type { TrainerState } from "./state.js";

/** How often a line about a running step goes to metrics.jsonl. Milliseconds. */
const PROGRESS_LINE_INTERVAL = 10_000;

/** One run, from before anything is open until all is closed. */
export class Session {
  /** Aborted when the run is to stop: by whoever runs it, or by another rank. */
  readonly signal: AbortSignal;
  readonly folder: string;
  readonly checkpoints: string;
  /** What is open already; run.ts closes it, whatever comes between. */
  device: Device | undefined;
  data: Dataset | undefined;
  evalData: Dataset | undefined;
  model: CausalLM | undefined;
  optimizer: AdamW | undefined;
  metrics: MetricsWriter | undefined;
  /** What follows the run beside them, of rank 0. */
  readonly trackers = new Trackers((message) => this.warn(message));
  /** The open run folder, locked: two runs would write each other's metrics and checkpoints. */
  lock: number | undefined;
  /** Steps of the whole run. */
  steps = 0;
  /** The step whose checkpoint is on the disk. */
  saved: number | undefined;
  /** Whether work of this run was given up. */
  broken = false;
  readonly #waiting: RunItem[] = [];
  #lastProgressLine = 0;

  /** device: somebody else's, which outlives the run. */
  constructor(
    readonly config: Config,
    signal: AbortSignal | undefined,
    device: Device | undefined,
    /** This process among those of the run. */
    readonly job: Job,
  ) {
    this.folder = config.output.dir;
    this.checkpoints = join(this.folder, "checkpoints");
    this.device = device;
    const stop = new AbortController();
    job.onStop = () => stop.abort();
    this.signal = signal === undefined ? stop.signal : AbortSignal.any([signal, stop.signal]);
    const ask = () => job.requestStop();
    this.signal.addEventListener("abort", ask, { once: true });
    // It may have come while the ranks met.
    if (this.signal.aborted) ask();
  }

  /** Gives up the queued work of an aborted run. */
  readonly abort = (): void => this.device?.cancel();

  checkAborted(): void {
    if (this.signal.aborted) throw new CancelledError("the run was stopped");
  }

  /** An abort while something is made ready ends as every other one does. */
  async abortable<T>(work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      this.checkAborted();
      throw error;
    }
  }

  /** An item for the consumer; all but most progress is also a line of metrics.jsonl. */
  record<Item extends RunItem>(item: Item): Item {
    if (item.event === "progress") {
      const now = performance.now();
      if (now - this.#lastProgressLine < PROGRESS_LINE_INTERVAL) return item;
      this.#lastProgressLine = now;
    }
    this.metrics?.write(item);
    this.trackers.write(item);
    return item;
  }

  /** Tells `item` at the next flush; first: before what waits already. */
  tell(item: RunItem, { first = false } = {}): void {
    if (first) this.#waiting.unshift(item);
    else this.#waiting.push(item);
  }

  warn(message: string, details: Record<string, unknown> = {}): void {
    this.tell({ event: "warning", message, ...details });
  }

  *flush(): Generator<RunItem, void, void> {
    for (let item = this.#waiting.shift(); item !== undefined; item = this.#waiting.shift()) yield this.record(item);
  }
}

/** What a step needs, once all of it is open. */
export interface Training {
  readonly session: Session;
  readonly device: Device;
  readonly model: CausalLM;
  /** What this rank holds of the model, and updates. */
  readonly owned: readonly Owned[];
  readonly optimizer: AdamW;
  readonly data: Dataset;
  readonly state: TrainerState;
  /** null: none are asked for. */
  readonly samples: SamplePrompts | null;
  /** The last step before this run. */
  readonly startStep: number;
  /** binding.stepsFinished before the first step of this run. */
  readonly finishedBefore: number;
}
