// The Trainer: one configuration to a trained, exported model, with checkpoints, evaluation, metrics and resume.

import { type Config, type ConfigInput, parseConfigObject } from "../config/index.js";
import { ArgumentError, ConfigError } from "../errors.js";
import { init } from "../parallel/job.js";
import type { RunItem } from "../report/events.js";
import type { Device } from "../tensor/device.js";
import { runToTheEnd } from "./run.js";
import { Session } from "./session.js";

/** What `for await (const event of trainer.run())` gives. */
export type TrainEvent = RunItem;

export interface RunOptions {
  /** Aborting stops the run within about a layer's time: the state of the last finished step is saved. */
  signal?: AbortSignal;
  /** Told of every line of metrics.jsonl, as it is written. What it throws ends the telling, not the run: a warning says it. */
  onEvent?: (item: RunItem) => unknown;
}

/**
 * Trains as its configuration says. Takes the keys of the YAML file in camelCase. Throws ConfigError for a
 * configuration that is not right.
 */
export class Trainer {
  readonly config: Config;
  readonly #device: Device | undefined;
  #running = false;

  /** device: one that is open already, to run on instead of the one that the configuration names. */
  constructor(config: ConfigInput | Config, { device }: { device?: Device } = {}) {
    this.config = parseConfigObject(config);
    this.#device = device;
    if (this.config.device === "meta")
      throw new ConfigError(
        "device: meta computes nothing, so there is nothing to train; longseq plan says what a run would take, " +
          "device: cpu trains",
      );
  }

  /**
   * Runs to the end, or goes on from the newest checkpoint of output.dir. Gives what was planned, a step's metrics as it
   * ends, and events in between; the same lines go to DIR/metrics.jsonl. At most two steps are queued on the device; a
   * consumer that is slow slows nothing but itself. Throws ConfigError, DataError, ModelError, OutOfMemoryError, IoError
   * (a save failed; earlier checkpoints are untouched), TrainingError (nothing finite any more) and, after `signal` was
   * aborted and the state saved, CancelledError.
   */
  async *run(options: RunOptions = {}): AsyncGenerator<TrainEvent, void, void> {
    if (this.#running) throw new ArgumentError("Trainer.run: this trainer is running already; make another one");
    this.#running = true;
    try {
      const session = new Session(this.config, options.signal, this.#device, await init(process.env, options.signal));
      const { onEvent } = options;
      if (onEvent !== undefined)
        session.trackers.add("onEvent", () => ({ name: "onEvent", write: onEvent, close: async () => {} }));
      yield* runToTheEnd(session);
    } finally {
      this.#running = false;
    }
  }
}
