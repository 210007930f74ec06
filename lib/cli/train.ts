// `longseq train`: runs the Trainer, shows its progress and turns its end into an exit code.

import { existsSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { type Config, loadConfig } from "../config/index.js";
import { CancelledError } from "../errors.js";
import { placeOf } from "../parallel/environment.js";
import type { DoneEvent, RunItem, StepMetrics } from "../report/events.js";
import { formatDuration, formatLoss } from "../report/format.js";
import { ProgressDisplay } from "../report/progress.js";
import { exitCode, type Output, outputOfRank } from "./output.js";
import { installSignals, type Stop, signalName } from "./signals.js";

/** What the command line uses of `Trainer`. */
export interface TrainerLike {
  run(options: { signal: AbortSignal }): AsyncIterable<RunItem>;
}

export interface TrainParts {
  createTrainer(config: Config): TrainerLike | Promise<TrainerLike>;
  installSignals(): Promise<Stop>;
}

export const trainParts: TrainParts = {
  // Loaded here, so that --help and a mistake in the configuration need no native code.
  async createTrainer(config) {
    const { Trainer } = await import("../train/trainer.js");
    return new Trainer(config);
  },
  installSignals,
};

export interface TrainOptions {
  quiet: boolean;
}

/**
 * Runs to the end, or to a signal; returns the exit code. Throws what the run throws. Of ranks that another starter than
 * the launcher started, the first alone writes to `terminal`; errors of all are the caller's to show.
 */
export async function train(
  file: string,
  overrides: readonly string[],
  options: TrainOptions,
  terminal: Output,
  parts: TrainParts = trainParts,
): Promise<number> {
  const config = loadConfig(file, overrides);
  const place = placeOf(process.env);
  const output =
    place === undefined || place.hosted || place.rank === 0
      ? terminal
      : outputOfRank(config.output.dir, place.rank, terminal.json);
  const stop = await parts.installSignals();
  const trainer = await parts.createTrainer(config);
  const display = options.quiet ? null : new ProgressDisplay({ stream: output.stderr });
  const start = performance.now();
  let last: StepMetrics | null = null;
  let done: DoneEvent | null = null;
  let saved = false;
  const announce = () => {
    const number = stop.received();
    if (number !== null)
      display?.log(`${signalName(number)}: stopping; the state is saved first (once more: end at once, unsaved)`);
  };
  stop.signal.addEventListener("abort", announce, { once: true });
  let failed = true;
  let stoppedByAnother = false;
  const { joined, leave } = await import("../parallel/job.js");
  try {
    for await (const item of trainer.run({ signal: stop.signal })) {
      output.record(item);
      if (item.event === undefined) last = item;
      else if (item.event === "done") done = item;
      else if (item.event === "save") saved = true;
      display?.show(item);
    }
    failed = false;
  } catch (error) {
    // Giving up was what a signal asked for, to this rank or to another; every other failure is one.
    if (!(error instanceof CancelledError)) throw error;
    const byAnother = error.details.byAnother === true || ((await joined())?.stopAsked ?? false);
    stoppedByAnother = stop.received() === null && byAnother;
    if (stop.received() === null && !stoppedByAnother) throw error;
    failed = false;
  } finally {
    await leave({ failed });
    stop.signal.removeEventListener("abort", announce);
    display?.stop();
  }
  // Another rank's signal is not known here: that of schedulers is named.
  const number = stop.received() ?? (stoppedByAnother ? constants.signals.SIGTERM : null);
  // A signal that comes when all is done stops nothing.
  if (number !== null && (done === null || done.stopped === true)) {
    const { dir } = config.output;
    saved ||= last !== null || existsSync(join(dir, "checkpoints"));
    output.note(
      `stopped ${stoppedByAnother ? "with the rank that a signal reached" : `by ${signalName(number)}`}${last ? ` after step ${last.step}` : ""}; ` +
        (saved
          ? `the state is saved in ${dir}, and the same command goes on from there`
          : "no step was done, so nothing is saved"),
    );
    return 128 + number;
  }
  if (!output.json && !options.quiet) {
    if (typeof done?.message === "string") output.line(done.message);
    else if (last !== null)
      output.line(
        `done: ${last.step} ${last.step === 1 ? "step" : "steps"} in ` +
          `${formatDuration((performance.now() - start) / 1000)}, loss ${formatLoss(last.loss)}; ` +
          `the model is in ${typeof done?.path === "string" ? done.path : `${config.output.dir}/model`}`,
      );
  }
  return exitCode.done;
}
