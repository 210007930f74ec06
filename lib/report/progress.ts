// Progress for people, on stderr: a bar where there is a terminal, else one line a step.

import cliProgress from "cli-progress";
import type { PlanEvent, RunEvent, RunItem, StepMetrics } from "./events.js";
import { formatBytes, formatDuration, formatLoss, formatSi } from "./format.js";

/** Estimates the time left from finished steps and, before the first one ends, from the part of it that is done. */
export class TimeLeft {
  readonly #now: () => number;
  #steps: number;
  #finished = 0;
  #fraction = 0;
  #stepStart: number;
  readonly #recent: number[] = [];
  /** Steps whose end was seen. */
  #ended = 0;

  /** `steps`: of the whole run, 0 while unknown. `now`: a clock in seconds. */
  constructor(steps: number, now: () => number) {
    this.#steps = steps;
    this.#now = now;
    this.#stepStart = now();
  }

  /** A run of `steps` steps starts, or goes on after `finished` of them. */
  plan(steps: number, finished: number): void {
    this.#steps = steps;
    this.#finished = finished;
    this.#fraction = 0;
    this.#stepStart = this.#now();
  }

  /** The running step has done this part of its work, 0 to 1. */
  progress(step: number, fraction: number): void {
    if (step <= this.#finished) return;
    // Two steps may be queued; the first sign of a new one is when it starts.
    if (this.#fraction === 0 && fraction <= 0) this.#stepStart = this.#now();
    this.#fraction = Math.min(1, Math.max(this.#fraction, fraction));
  }

  finish(step: number, seconds: number): void {
    this.#finished = step;
    this.#fraction = 0;
    this.#stepStart = this.#now();
    // The first step warms up caches and threads; it counts only while there is no other.
    if (this.#ended === 1) this.#recent.pop();
    this.#ended++;
    this.#recent.push(seconds);
    if (this.#recent.length > 20) this.#recent.shift();
  }

  /** Steps done, the running one's part included. */
  get done(): number {
    return this.#finished + this.#fraction;
  }

  /** Of the running step. */
  get fraction(): number {
    return this.#fraction;
  }

  get steps(): number {
    return this.#steps;
  }

  /** Seconds to the end of the run; NaN while there is nothing to estimate from. */
  get seconds(): number {
    if (this.#steps === 0) return Number.NaN;
    const left = Math.max(0, this.#steps - this.#finished);
    if (left === 0) return 0;
    const elapsed = this.#now() - this.#stepStart;
    if (this.#recent.length > 0) {
      const mean = this.#recent.reduce((sum, value) => sum + value, 0) / this.#recent.length;
      return Math.max(mean * left - Math.min(elapsed, mean), 0);
    }
    return this.#fraction > 0 ? (elapsed / this.#fraction) * (left - this.#fraction) : Number.NaN;
  }
}

/** Where progress goes; process.stderr is one. */
export interface ProgressStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

export interface ProgressOptions {
  stream?: NodeJS.WriteStream | ProgressStream;
  /** A clock in seconds. */
  now?: () => number;
  /** Overrides what the stream says of itself. */
  terminal?: boolean;
}

const bar = (part: number, width: number) => {
  const full = Math.round(Math.min(1, Math.max(0, part)) * width);
  return "█".repeat(full) + "░".repeat(width - full);
};

/** Shows the items of `trainer.run()` as they come; `stop` leaves the terminal as it was. */
export class ProgressDisplay {
  readonly #stream: ProgressStream;
  readonly #time: TimeLeft;
  readonly #terminal: boolean;
  #bars: cliProgress.MultiBar | null = null;
  #bar: cliProgress.SingleBar | null = null;
  #last: StepMetrics | null = null;
  #phase = "";

  constructor(options: ProgressOptions = {}) {
    this.#stream = options.stream ?? process.stderr;
    this.#terminal = options.terminal ?? this.#stream.isTTY === true;
    this.#time = new TimeLeft(0, options.now ?? (() => performance.now() / 1000));
  }

  show(item: RunItem): void {
    if (item.event === undefined) this.#step(item);
    else this.#event(item);
  }

  /** One line above the bar. */
  log(line: string): void {
    if (this.#bars === null) this.#stream.write(`${line}\n`);
    else {
      this.#bars.log(`${line}\n`);
      this.#bars.update();
    }
  }

  stop(): void {
    this.#bars?.stop();
    this.#bars = null;
    this.#bar = null;
  }

  #event(item: RunEvent): void {
    switch (item.event) {
      case "plan":
        this.#time.plan(item.steps, item.startStep ?? 0);
        this.log(planLine(item));
        this.#draw();
        break;
      case "progress":
        this.#time.progress(item.step, item.fraction);
        this.#phase = item.phase ?? "";
        this.#draw();
        break;
      case "eval":
        this.log(`eval after step ${item.step}: loss ${formatLoss(item.loss)}`);
        break;
      case "sample":
        // On one line, whatever it says.
        this.log(`sample after step ${item.step}: ${JSON.stringify(item.prompt)} ${JSON.stringify(item.text)}`);
        break;
      case "save":
        this.log(`saved ${item.path}`);
        break;
      case "warning":
        this.log(`warning: ${item.message}`);
        break;
      case "done":
        this.stop();
        break;
    }
  }

  #step(metrics: StepMetrics): void {
    this.#time.finish(metrics.step, metrics.seconds);
    this.#last = metrics;
    this.#phase = "";
    if (this.#terminal) this.#draw();
    else this.#stream.write(`${stepLine(metrics, this.#time.steps, this.#time.seconds)}\n`);
  }

  #draw(): void {
    if (!this.#terminal) return;
    if (this.#bar === null) {
      this.#bars = new cliProgress.MultiBar({
        stream: this.#stream as NodeJS.WritableStream,
        format: (_options, params) => this.#format(params.maxWidth),
        hideCursor: true,
        linewrap: null,
        // Signals belong to the command line.
        gracefulExit: false,
        noTTYOutput: !this.#stream.isTTY,
        fps: 8,
      });
      this.#bar = this.#bars.create(Math.max(1, this.#time.steps), 0);
    }
    this.#bar.setTotal(Math.max(1, this.#time.steps));
    this.#bar.update(this.#time.done);
  }

  #format(width: number): string {
    const time = this.#time;
    const part = time.steps > 0 ? time.done / time.steps : 0;
    const running = Math.min(Math.floor(time.done) + (time.fraction > 0 && time.fraction < 1 ? 1 : 0), time.steps);
    const parts = [`step ${running}/${time.steps || "?"}`];
    if (time.fraction > 0 && time.fraction < 1)
      parts.push(`${this.#phase === "" ? "in the step" : this.#phase} ${Math.floor(time.fraction * 100)}%`);
    if (this.#last !== null) {
      parts.push(`loss ${formatLoss(this.#last.loss)}`, `${formatSi(this.#last.tokensPerSecond)} tok/s`);
      parts.push(formatBytes(this.#last.devicePeakBytes));
    }
    parts.push(`${formatDuration(time.seconds)} left`);
    const percent = `${Math.floor(part * 100)}%`.padStart(4);
    const tail = ` ${percent}  ${parts.join("  ")}`;
    const space = (width > 0 ? width : 80) - tail.length - 1;
    return (space >= 8 ? bar(part, Math.min(30, space)) + tail : tail.trimStart()).slice(0, Math.max(1, width || 80));
  }
}

/** One step on one line. `secondsLeft` may be NaN. */
export function stepLine(metrics: StepMetrics, steps: number, secondsLeft: number): string {
  const parts = [
    `step ${metrics.step}${steps > 0 ? `/${steps}` : ""}`,
    `loss ${formatLoss(metrics.loss)}`,
    `grad ${formatLoss(metrics.gradNorm)}`,
    `lr ${metrics.learningRate.toExponential(2)}`,
    `${formatDuration(metrics.seconds)}`,
    `${formatSi(metrics.tokensPerSecond)} tok/s`,
    `${formatBytes(metrics.devicePeakBytes)}`,
  ];
  if (Number.isFinite(secondsLeft)) parts.push(`${formatDuration(secondsLeft)} left`);
  if (metrics.skipped) parts.push("skipped: not finite");
  return parts.join("  ");
}

/** What was planned, on one line. */
function planLine(plan: PlanEvent): string {
  const { event: _, steps, startStep, message, memory, ...details } = plan;
  if (typeof message === "string") return message;
  const start = startStep ? `going on after step ${startStep} of ${steps}` : `${steps} steps`;
  // What was chosen of memory comes with words of its own; the numbers are for programs.
  const words = ["device", "dtype", "parameters", "sequences"];
  const rest = Object.entries(details)
    .filter(([key]) => memory === undefined || words.includes(key))
    .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value))
    .map(([key, value]) => {
      const words = key.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`).replaceAll("_", " ");
      const bytes = / bytes$|^bytes$/.test(words);
      const shown =
        typeof value === "number"
          ? bytes
            ? formatBytes(value)
            : value >= 1e6
              ? formatSi(value)
              : String(value)
          : String(value);
      return `${bytes ? words.replace(/ ?bytes$/, "") : words} ${shown}`.trim();
    });
  return [[start, ...rest].join(", "), ...(memory === undefined ? [] : [memory])].join("; ");
}
