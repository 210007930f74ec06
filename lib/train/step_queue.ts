// The steps that are queued on the device: enqueued whole, told of while they run, counted when they end.

import { binding } from "../binding.js";
import type { Cursor, Step } from "../data/index.js";
import { randomKey } from "../models/random_key.js";
import { type ExpertBalance, expertBalance, type Routing } from "../nn/routing.js";
import type { ProgressEvent, RankSpread, RunItem, StepMetrics } from "../report/events.js";
import { modelFlops } from "../report/model_flops.js";
import { layerAtWork } from "../tensor/layer.js";
import type { Tensor } from "../tensor/tensor.js";
import { rssPeak } from "./limits.js";
import { learningRateAt } from "./schedule.js";
import type { Training } from "./session.js";
import { enqueueStep, type StepScalars } from "./step.js";

/** How often a running step is looked at. Milliseconds. */
const PROGRESS_INTERVAL = 250;

/** A line of metrics has the figures of each rank up to so many. */
const MOST_RANKS_EACH = 64;

/** One step between its enqueuing and its report. */
interface Queued {
  step: number;
  cursor: Cursor;
  epoch: number;
  tokens: number;
  validTokens: number;
  learningRate: number;
  modelFlops: number;
  hardwareFlops: number;
  devicePeakBytes: number;
  deviceLiveBytes: number;
  hostPeakBytes: number;
  loss: Tensor;
  norm: Tensor;
  finite: Tensor;
  routing: Routing | null;
  /** Settles when the step is over on the device. */
  read: Promise<StepRead>;
  marks: Mark[];
}

interface StepRead {
  loss: number;
  norm: number;
  finite: boolean;
  balance: ExpertBalance | null;
  /** performance.now() when it was seen. */
  time: number;
}

/** A place in the compute queue: passed when the device's last marker is `value` or more. */
interface Mark {
  value: number;
  /** FLOPs of the step that lie before it. */
  flops: number;
  phase: string;
  /** From 0; -1 between layers. */
  layer: number;
}

/** Steps between their enqueuing and their report, oldest first. */
export class StepQueue {
  readonly #training: Training;
  readonly #queued: Queued[] = [];
  /** When the step before ended; undefined: the next one counts from its first enqueue. */
  #since: number | undefined;
  #marker = 0;

  constructor(training: Training) {
    this.#training = training;
  }

  get length(): number {
    return this.#queued.length;
  }

  /** The next step's seconds begin with its own enqueuing: something else was done since the last one. */
  restartClock(): void {
    this.#since = undefined;
  }

  /** Puts a whole step into the device's queue; nothing is read in its middle. */
  enqueue(step: number, data: Step): void {
    const { device, model, optimizer, owned, session } = this.#training;
    const { train } = session.config;
    this.#since ??= performance.now();
    const { mesh } = session.job;
    // A rank that does not do what the others do is found out in the first step; or in any, where that is asked for.
    const first = step === this.#training.startStep + 1;
    if (first) mesh.compare(device, true);
    device.step = `step ${step}`;
    const flopsBefore = device.totalFlops();
    const marks: Mark[] = [];
    const mark = (phase: string) => {
      binding.marker(device.native, ++this.#marker);
      marks.push({ value: this.#marker, flops: device.totalFlops() - flopsBefore, phase, layer: layerAtWork() });
    };
    const learningRate = learningRateAt(step - 1, session.steps, train);
    const made = enqueueStep({
      model,
      optimizer,
      owned,
      mesh,
      micro: data.micro,
      validTokens: data.validTokens,
      clipGradNorm: train.clipGradNorm,
      learningRate,
      dropoutSeed: randomKey(`dropout of step ${step}`, train.seed),
      mark,
    });
    device.step = "";
    if (first && process.env.LONGSEQ_COMM_CHECK !== "1") mesh.compare(device, false);
    const read = readStep(made);
    // Whoever needs it awaits it; a run that ends early must not leave it unhandled.
    read.catch(() => {});
    const memory = device.memory();
    this.#queued.push({
      step,
      cursor: data.cursor,
      epoch: data.epoch,
      tokens: data.tokens,
      validTokens: data.validTokens,
      learningRate,
      modelFlops: modelFlops(model.shape, data.documents),
      // All ranks do the same amount of work.
      hardwareFlops: (device.totalFlops() - flopsBefore) * session.job.world,
      devicePeakBytes: memory.peak,
      deviceLiveBytes: memory.live,
      hostPeakBytes: device.memory("host").peak,
      ...made,
      read,
      marks,
    });
  }

  /** Waits for the oldest queued step, telling how far it is, and gives its metrics. */
  async *finishOldest(): AsyncGenerator<RunItem, void, void> {
    const { session } = this.#training;
    const queued = this.#queued[0] as Queued;
    let shown = 0;
    for (;;) {
      let timer: NodeJS.Timeout | undefined;
      const tick = new Promise<"tick">((resolve) => {
        timer = setTimeout(resolve, PROGRESS_INTERVAL, "tick");
      });
      const first = await Promise.race([queued.read, tick]).finally(() => clearTimeout(timer));
      if (first !== "tick") {
        // Before it is taken out: a run that stops meanwhile still finds it.
        const ranks = await this.#spread(queued, first);
        this.#queued.shift();
        release(queued);
        yield this.#account(queued, first, ranks);
        return;
      }
      const { fraction, ...where } = this.#where(queued);
      if (fraction > shown) yield session.record({ event: "progress", step: queued.step, fraction, ...where });
      shown = Math.max(shown, fraction);
    }
  }

  #where(queued: Queued): Pick<ProgressEvent, "fraction" | "phase" | "layer" | "layers"> {
    const passed = binding.lastMarker(this.#training.device.native);
    let low = 0;
    let high = queued.marks.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((queued.marks[middle] as Mark).value <= passed) low = middle + 1;
      else high = middle;
    }
    const at = queued.marks[low - 1];
    const all = queued.hardwareFlops / this.#training.session.job.world;
    const fraction = at === undefined || all === 0 ? 0 : at.flops / all;
    const layer = at?.layer ?? -1;
    const { layers } = this.#training.model.shape;
    return { fraction, phase: at?.phase ?? "forward", ...(layer >= 0 && { layer: layer + 1, layers }) };
  }

  #secondsUntil(time: number): number {
    return Math.max(time - (this.#since ?? time), 0.001) / 1000;
  }

  /** What differs between ranks. All of them ask after each step. */
  async #spread({ devicePeakBytes, hostPeakBytes }: Queued, { time }: StepRead): Promise<StepMetrics["ranks"]> {
    const { job } = this.#training.session;
    if (job.world === 1) return undefined;
    const own = { seconds: this.#secondsUntil(time), devicePeakBytes, hostPeakBytes };
    const all = await job.swap(own);
    const of = (key: keyof typeof own): RankSpread => {
      const values = all.map((one) => one[key]);
      const max = Math.max(...values);
      const spread = { min: Math.min(...values), max, maxRank: values.indexOf(max) };
      return values.length > MOST_RANKS_EACH ? spread : { ...spread, each: values };
    };
    return { seconds: of("seconds"), devicePeakBytes: of("devicePeakBytes"), hostPeakBytes: of("hostPeakBytes") };
  }

  /** Counts a step as finished; its metrics. */
  #account(queued: Queued, { loss, norm, finite, balance, time }: StepRead, ranks?: StepMetrics["ranks"]): StepMetrics {
    const { state, device, session } = this.#training;
    const seconds = this.#secondsUntil(time);
    this.#since = time;
    state.step = queued.step;
    state.cursor = queued.cursor;
    state.skipped += finite ? 0 : 1;
    state.skippedInARow = finite ? 0 : state.skippedInARow + 1;
    const peakRate = device.info.peakBf16Flops * session.job.world;
    const modelRate = queued.modelFlops / seconds;
    return session.record<StepMetrics>({
      step: queued.step,
      epoch: queued.epoch,
      loss,
      gradNorm: norm,
      learningRate: queued.learningRate,
      tokens: queued.tokens,
      validTokens: queued.validTokens,
      seconds,
      tokensPerSecond: queued.tokens / seconds,
      modelTflops: modelRate / 1e12,
      hardwareTflops: queued.hardwareFlops / seconds / 1e12,
      mfu: peakRate > 0 ? modelRate / peakRate : null,
      devicePeakBytes: queued.devicePeakBytes,
      deviceLiveBytes: queued.deviceLiveBytes,
      hostPeakBytes: queued.hostPeakBytes,
      rssPeakBytes: rssPeak(),
      skipped: !finite,
      ...(balance !== null && balance),
      ...(ranks !== undefined && { ranks }),
    });
  }

  /** After the device's queue was given up: counts the steps up to `finished`, whose update was done. */
  async *drop(finished: number): AsyncGenerator<RunItem, void, void> {
    for (let queued = this.#queued[0]; queued !== undefined; queued = this.#queued[0]) {
      if (queued.step <= finished) {
        // Only its figures were not read any more: they still lie on the device, but for counts of experts.
        const stale = queued;
        const read = await queued.read.catch(() => readStep({ ...stale, routing: null }));
        yield this.#account(queued, read);
      }
      this.#queued.shift();
      release(queued);
    }
  }

  /** Frees what is left, once nothing of it runs any more. */
  async clear(): Promise<void> {
    await Promise.allSettled(this.#queued.map(({ read }) => read));
    for (const queued of this.#queued.splice(0)) release(queued);
  }
}

/** Reads a step's figures once everything before is done. */
async function readStep(step: StepScalars): Promise<StepRead> {
  const { routing } = step;
  const [loss, norm, finite, load] = await Promise.all([
    step.loss.item(),
    step.norm.item(),
    step.finite.item(),
    routing?.load.data(),
  ]);
  const balance = routing && expertBalance(load as Float64Array, routing.sizes);
  return { loss, norm, finite: finite !== 0, balance, time: performance.now() };
}

function release(queued: Queued): void {
  queued.loss.dispose();
  queued.norm.dispose();
  queued.finite.dispose();
}
