// The Trainer: one configuration to a trained, exported model, with checkpoints, evaluation, metrics and resume.

import { closeSync, mkdirSync, openSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { noGrad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { cleanStale, newestValid, pruneCheckpoints, writeFileDurably } from "../checkpoint/atomic.js";
import { type Config, type ConfigInput, parseConfigObject } from "../config/index.js";
import { type Cursor, DataLoader, type Dataset, openData, type Step } from "../data/index.js";
import { ArgumentError, CancelledError, ConfigError, DataError, IoError, TrainingError } from "../errors.js";
import type { CausalLM } from "../models/index.js";
import type { AdamW } from "../optim/adamw.js";
import type { EvalEvent, RunItem, StepMetrics } from "../report/events.js";
import { MetricsWriter } from "../report/metrics.js";
import { modelFlops } from "../report/model_flops.js";
import { Device } from "../tensor/device.js";
import { type Parameter, Tensor } from "../tensor/tensor.js";
import { dataOptions } from "./data_options.js";
import { type Peaks, rssPeak } from "./limits.js";
import { workloadOf } from "./measure.js";
import { exportModel, openModel, resolveModel } from "./model.js";
import { type Choice, chooseMemory, describeChoice } from "./plan.js";
import { ratesOf } from "./rates.js";
import { learningRateAt } from "./schedule.js";
import { checkSameRun, configRecord, loadTensors, readState, saveCheckpoint, type TrainerState } from "./state.js";
import { enqueueStep, evaluationLoss, makeOptimizer, trainedParameters } from "./step.js";
import { deviceName, deviceOptions, limitsOn, runDtype, standIn } from "./target.js";
import { nominalTokens, type PlanFacts } from "./trials.js";

/** What `for await (const event of trainer.run())` gives. */
export type TrainEvent = RunItem;

export interface RunOptions {
  /** Aborting stops the run within about a layer's time: the state of the last finished step is saved. */
  signal?: AbortSignal;
}

/** Steps that may be queued on the device at once. */
const MOST_QUEUED = 2;
/** Steps in a row that may be left out because they were not finite. */
const MOST_SKIPPED = 5;
/** How often a running step is looked at, and how often what was seen goes to metrics.jsonl. Milliseconds. */
const PROGRESS_INTERVAL = 250;
const PROGRESS_LINE_INTERVAL = 10_000;

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
    const run = new Run(this.config, options.signal, this.#device);
    try {
      yield* run.all();
    } finally {
      await run.close();
      this.#running = false;
    }
  }
}

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
  /** Settles when the step is over on the device. */
  read: Promise<StepRead>;
  marks: Mark[];
}

interface StepRead {
  loss: number;
  norm: number;
  finite: boolean;
  /** performance.now() when it was seen. */
  time: number;
}

interface Resumed {
  path: string;
  state: TrainerState;
}

/** A place in the compute queue: passed when the device's last marker is `value` or more. */
interface Mark {
  value: number;
  /** FLOPs of the step that lie before it. */
  flops: number;
  phase: string;
}

/** Devices of runs that ended, by settings: opening one starts threads. A run has its device for itself. */
const idle = new Map<string, Device[]>();

const deviceKey = (name: string, config: Config): string => `${name} ${JSON.stringify(deviceOptions(config))}`;

const takeDevice = (name: string, config: Config): Device =>
  idle.get(deviceKey(name, config))?.pop() ?? new Device(name, deviceOptions(config));

function giveBack(device: Device, config: Config): void {
  const key = deviceKey(device.name, config);
  idle.set(key, [...(idle.get(key) ?? []), device]);
}

/** mkdir with all parents; Node's recursive form never ends where a file system answers ENOENT, as /proc does. */
function makeFolders(folder: string): void {
  try {
    mkdirSync(folder);
    return;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return;
    if (code !== "ENOENT" || dirname(folder) === folder) throw error;
  }
  makeFolders(dirname(folder));
  // The second refusal is the answer.
  try {
    mkdirSync(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
}

/** Everything of one run. */
class Run {
  readonly #config: Config;
  readonly #signal: AbortSignal | undefined;
  readonly #folder: string;
  readonly #checkpoints: string;
  readonly #waiting: RunItem[] = [];
  readonly #queued: Queued[] = [];
  /** Whether the device is somebody else's. */
  readonly #lent: boolean;
  /** The open run folder, locked: two runs would write each other's metrics and checkpoints. */
  #lock: number | undefined;
  #device: Device | undefined;
  #model: CausalLM | undefined;
  #parameters: [string, Parameter][] = [];
  #optimizer: AdamW | undefined;
  #data: Dataset | undefined;
  #evalData: Dataset | undefined;
  #metrics: MetricsWriter | undefined;
  #state: TrainerState | undefined;
  /** The step whose checkpoint is on the disk. */
  #saved: number | undefined;
  #steps = 0;
  #startStep = 0;
  /** binding.stepsFinished before the first step of this run. */
  #finishedBefore = 0;
  /** When the step before ended; undefined: the next one counts from its first enqueue. */
  #since: number | undefined;
  /** Whether work of this run was given up. */
  #broken = false;
  #marker = 0;
  #lastProgressLine = 0;
  readonly #abort = () => this.#device?.cancel();

  constructor(config: Config, signal: AbortSignal | undefined, device: Device | undefined) {
    this.#config = config;
    this.#signal = signal;
    this.#lent = device !== undefined;
    this.#device = device;
    this.#folder = config.output.dir;
    this.#checkpoints = join(this.#folder, "checkpoints");
  }

  async *all(): AsyncGenerator<RunItem, void, void> {
    this.#checkAborted();
    const resumed = await this.#findCheckpoint();
    // A GPU that cannot be used is said before the data are made ready; a finished run needs none.
    if (resumed === undefined || this.#exported() !== resumed.state.step) this.#openDevice();
    const finished = (await this.#openData(resumed)) >= this.#steps;
    if (finished && resumed !== undefined && this.#exported() === resumed.state.step) {
      this.#finish(resumed.state.step);
      yield* this.#flush();
      return;
    }
    await this.#open(resumed);
    yield* this.#flush();
    try {
      yield* this.#train();
    } catch (error) {
      if (!(error instanceof CancelledError) && this.#signal?.aborted !== true) throw error;
      yield* this.#stop(error);
    }
  }

  /** Frees what the run holds; whatever is still queued is given up. */
  async close(): Promise<void> {
    this.#signal?.removeEventListener("abort", this.#abort);
    const device = this.#device;
    if (device !== undefined) {
      this.#broken ||= this.#queued.length > 0;
      device.cancel();
      await Promise.allSettled(this.#queued.map(({ read }) => read));
      for (const queued of this.#queued) release(queued);
      this.#queued.length = 0;
      this.#optimizer?.zeroGrad();
      this.#optimizer?.dispose();
      this.#model?.dispose();
      await device.resume();
      device.setLimit(0);
      device.setLimit(0, "host");
      device.trim();
      // After a failure, or updates that were given up, its counts no longer fit: another run opens another one.
      if (!this.#lent && !this.#broken && binding.failure(device.native) === null) giveBack(device, this.#config);
    }
    this.#metrics?.close();
    await this.#data?.close();
    await this.#evalData?.close();
    if (this.#lock !== undefined) closeSync(this.#lock);
    this.#lock = undefined;
  }

  // ---- what the phases share ----

  get #names(): Map<Parameter, string> {
    return new Map(this.#parameters.map(([name, parameter]) => [parameter, name]));
  }

  #checkAborted(): void {
    if (this.#signal?.aborted) throw new CancelledError("the run was stopped");
  }

  /** An item for the consumer; all but progress is also a line of metrics.jsonl. */
  #record<Item extends RunItem>(item: Item): Item {
    if (item.event === "progress") {
      const now = performance.now();
      if (now - this.#lastProgressLine < PROGRESS_LINE_INTERVAL) return item;
      this.#lastProgressLine = now;
    }
    this.#metrics?.write(item);
    return item;
  }

  *#flush(): Generator<RunItem, void, void> {
    for (let item = this.#waiting.shift(); item !== undefined; item = this.#waiting.shift()) yield this.#record(item);
  }

  #warn(message: string, details: Record<string, unknown> = {}): void {
    this.#waiting.push({ event: "warning", message, ...details });
  }

  // ---- opening ----

  /** The checkpoint to go on from; undefined to start afresh. */
  async #findCheckpoint(): Promise<Resumed | undefined> {
    const { resume } = this.#config.output;
    const folder = this.#folder;
    let names: string[] = [];
    try {
      names = readdirSync(folder);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOTDIR") throw new ConfigError(`output.dir: ${folder} is a file; give the path of a folder`);
      if (code !== "ENOENT") throw new IoError(`output.dir: cannot look into ${folder}: ${(error as Error).message}`);
    }
    if (resume === "never" && names.length > 0)
      throw new ConfigError(
        `output.dir: ${folder} is not empty and output.resume is never; give another folder, or set output.resume to auto`,
        { folder },
      );
    try {
      makeFolders(folder);
    } catch (error) {
      throw new IoError(
        `output.dir: cannot make ${folder}: ${(error as Error).message}`,
        { path: folder, errno: (error as NodeJS.ErrnoException).code },
        { cause: error },
      );
    }
    this.#lock = openSync(folder, "r");
    if (!binding.takeLock(this.#lock))
      throw new ConfigError(
        `output.dir: another run is training into ${folder}; wait for its end, stop it, or give another folder`,
        { folder },
      );
    await cleanStale(folder);
    await cleanStale(this.#checkpoints);
    const { checkpoint, passedOver } = await newestValid(this.#checkpoints);
    for (const { path, reason } of passedOver)
      this.#warn(`${path} cannot be used and is passed over: ${reason}`, { path });
    const first = passedOver[0];
    if (checkpoint === undefined && first !== undefined)
      throw new IoError(
        `${this.#checkpoints}: none of its ${passedOver.length} checkpoints can be used (${first.path}: ${first.reason}); ` +
          "restore one of them, move the folder away, or give another output.dir to start afresh",
        { path: this.#checkpoints },
      );
    if (checkpoint === undefined) return undefined;
    const state = await readState(checkpoint.path);
    checkSameRun(state, this.#config, checkpoint.path);
    this.#saved = checkpoint.step;
    return { path: checkpoint.path, state };
  }

  /** The step whose model is in DIR/model, by DIR/finished.json; undefined where there is none. */
  #exported(): number | undefined {
    try {
      const text = readFileSync(join(this.#folder, "finished.json"), "utf8");
      readdirSync(join(this.#folder, "model"));
      return (JSON.parse(text) as { step: number }).step;
    } catch {
      return undefined;
    }
  }

  #finish(step: number): void {
    const path = join(this.#folder, "model");
    this.#waiting.push({
      event: "done",
      step,
      path,
      message:
        `${this.#folder} is finished: ${step} of ${Math.max(step, this.#steps)} steps are done and the model is in ${path}; ` +
        "to go on raise the number of steps, to start afresh give another output.dir",
    });
  }

  /** Opens the data; returns how many steps are finished. */
  async #openData(resumed: Resumed | undefined): Promise<number> {
    const config = this.#config;
    const warn = (message: string) => this.#warn(message);
    const signal = this.#signal;
    const dataSettings = { signal, onWarning: warn };
    this.#data = await this.#giveUp(openData({ ...dataOptions(config, false), ...dataSettings }));
    if (resumed !== undefined && resumed.state.fingerprint !== this.#data.fingerprint)
      throw new ConfigError(
        `${resumed.path} was made with other training data: files, their rows or the tokenizer have changed since; ` +
          "put them back to go on with it, or give another output.dir to start afresh",
        { path: resumed.path },
      );
    const { documents, unlabelled } = this.#data;
    if (unlabelled === documents)
      throw new DataError(
        `data.train: no usable rows: none of the ${documents} documents has a label that counts; longseq data shows them`,
        { documents },
      );
    if (config.data.eval.length > 0)
      this.#evalData = await this.#giveUp(openData({ ...dataOptions(config, true), ...dataSettings }));

    const { train } = config;
    this.#steps = train.steps ?? this.#data.totalSteps(train.epochs as number, train.batchSize);
    return resumed?.state.step ?? 0;
  }

  #openDevice(): Device {
    this.#device ??= takeDevice(
      deviceName(this.#config, (message) => this.#warn(message)),
      this.#config,
    );
    return this.#device;
  }

  /** Opens the model and the optimizer on the device, in the state of the checkpoint. */
  async #open(resumed: Resumed | undefined): Promise<void> {
    const config = this.#config;
    const { train } = config;
    const dataset = this.#data as Dataset;
    const device = this.#openDevice();
    const architecture = await this.#giveUp(resolveModel(config));
    const dtype = runDtype(config, architecture, device.type);
    const limits = limitsOn(config, device);
    const choice = this.#choose(resumed, { model: architecture, dtype, limits });
    const { plan } = choice;
    this.#signal?.addEventListener("abort", this.#abort, { once: true });
    this.#checkAborted();
    device.resetPeaks();
    const shares = limits.shares(choice.measured.needs);
    device.setLimit(shares.device);
    device.setLimit(shares.host, "host");
    const model = await this.#giveUp(openModel(config, device, dtype, plan, this.#signal));
    this.#model = model;
    this.#parameters = trainedParameters(model);
    this.#optimizer = makeOptimizer(this.#parameters, train, plan);
    this.#state = resumed?.state ?? {
      version: 1,
      step: 0,
      cursor: { epoch: 0, sequence: 0 },
      fingerprint: dataset.fingerprint,
      plan,
      skipped: 0,
      skippedInARow: 0,
      evaluated: 0,
      config: {},
    };
    this.#state.config = configRecord(config);
    this.#state.plan = plan;
    this.#startStep = this.#state.step;
    const state = this.#optimizer.namedState(this.#names);
    if (resumed !== undefined) await loadTensors(resumed.path, this.#parameters, state);
    // From here on a signal finds parameters and states complete.
    await device.synchronize();
    this.#finishedBefore = binding.stepsFinished(device.native);
    this.#metrics = new MetricsWriter(join(this.#folder, "metrics.jsonl"), this.#startStep);
    const parameters = this.#parameters.reduce((total, [, { size }]) => total + size, 0);
    this.#waiting.unshift({
      event: "plan",
      steps: this.#steps,
      startStep: this.#startStep,
      device: device.info.name,
      dtype,
      parameters,
      sequences: dataset.plan(0).sequences,
      ...planDetails(choice, shares),
    });
  }

  /** What `memory` leaves open, chosen by steps on `meta` before anything large is opened. */
  #choose(resumed: Resumed | undefined, given: Pick<PlanFacts, "model" | "dtype" | "limits">): Choice {
    const config = this.#config;
    const data = this.#data as Dataset;
    const device = this.#device as Device;
    const facts: PlanFacts = {
      ...given,
      work: workloadOf(config, data, this.#evalData, this.#steps),
      tokens: nominalTokens(config, data.longest),
      rates: ratesOf(device.isGpu ? "cuda" : "cpu"),
      on: standIn(config, device.profile),
    };
    const choice = chooseMemory(config, facts, resumed?.state.plan);
    for (const warning of choice.warnings) this.#warn(warning);
    return choice;
  }

  /** An abort while data is made ready ends as every other one does. */
  async #giveUp<T>(work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      this.#checkAborted();
      throw error;
    }
  }

  // ---- training ----

  async *#train(): AsyncGenerator<RunItem, void, void> {
    const { train, output } = this.#config;
    const data = this.#data as Dataset;
    const state = this.#state as TrainerState;
    const loader = new DataLoader(data, {
      batchSize: train.batchSize,
      cursor: state.cursor,
      epochs: train.epochs ?? Number.POSITIVE_INFINITY,
    });
    // Of a run that was stopped between a step and its evaluation.
    if (state.step > 0) yield* this.#evaluateIfDue();
    if (state.step < this.#steps) yield { event: "progress", step: state.step + 1, fraction: 0, phase: "forward" };

    for (let step = state.step + 1; step <= this.#steps; step++) {
      this.#checkAborted();
      const next = await loader.nextStep(train.microBatchSize);
      this.#checkAborted();
      if (next === null)
        throw new TrainingError(`the data ended at step ${step} of ${this.#steps}; was it changed during the run?`);
      const trace = step - this.#startStep <= output.traceSteps;
      if (trace) this.#startTrace();
      this.#enqueue(step, next);
      const save = output.saveEvery > 0 && step % output.saveEvery === 0;
      const settle = trace || save || step === this.#steps || this.#evaluationDue(step);
      while (this.#queued.length > (settle ? 0 : MOST_QUEUED - 1)) yield* this.#finishOldest();
      if (!settle) continue;
      if (trace) await this.#stopTrace(step);
      yield* this.#evaluateIfDue();
      if (save && step < this.#steps) {
        await this.#refuseBroken();
        yield await this.#save();
      }
      this.#since = undefined;
    }

    this.#checkAborted();
    await this.#refuseBroken();
    if (this.#saved !== state.step) yield await this.#save();
    const path = await exportModel(this.#config, this.#model as CausalLM, join(this.#folder, "model"));
    await writeFileDurably(join(this.#folder, "finished.json"), `${JSON.stringify({ step: state.step })}\n`);
    yield this.#record({ event: "save", step: state.step, path });
    yield this.#record({ event: "done", step: state.step, path, skipped: state.skipped });
  }

  /** Puts a whole step into the device's queue; nothing is read in its middle. */
  #enqueue(step: number, data: Step): void {
    const device = this.#device as Device;
    const model = this.#model as CausalLM;
    const optimizer = this.#optimizer as AdamW;
    const { train } = this.#config;
    this.#since ??= performance.now();
    const flopsBefore = device.totalFlops();
    const marks: Mark[] = [];
    const mark = (phase: string) => {
      binding.marker(device.native, ++this.#marker);
      marks.push({ value: this.#marker, flops: device.totalFlops() - flopsBefore, phase });
    };
    const learningRate = learningRateAt(step - 1, this.#steps, train);
    const made = enqueueStep({
      model,
      optimizer,
      parameters: this.#parameters,
      micro: data.micro,
      validTokens: data.validTokens,
      clipGradNorm: train.clipGradNorm,
      learningRate,
      mark,
    });
    const flops = data.micro.reduce((sum, { cuSeqlens }) => {
      const lengths = Array.from(cuSeqlens.subarray(1), (end, i) => Number(end - (cuSeqlens[i] as bigint)));
      return sum + modelFlops(model.shape, lengths);
    }, 0);
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
      modelFlops: flops,
      hardwareFlops: device.totalFlops() - flopsBefore,
      devicePeakBytes: memory.peak,
      deviceLiveBytes: memory.live,
      hostPeakBytes: device.memory("host").peak,
      ...made,
      read,
      marks,
    });
  }

  /** Waits for the oldest queued step, telling how far it is, and gives its metrics. */
  async *#finishOldest(): AsyncGenerator<RunItem, void, void> {
    const queued = this.#queued[0] as Queued;
    let shown = 0;
    for (;;) {
      let timer: NodeJS.Timeout | undefined;
      const tick = new Promise<"tick">((resolve) => {
        timer = setTimeout(resolve, PROGRESS_INTERVAL, "tick");
      });
      const first = await Promise.race([queued.read, tick]).finally(() => clearTimeout(timer));
      if (first !== "tick") {
        this.#queued.shift();
        release(queued);
        yield this.#account(queued, first);
        await this.#checkFinite(queued);
        return;
      }
      const { fraction, phase } = this.#where(queued);
      if (fraction > shown) yield this.#record({ event: "progress", step: queued.step, fraction, phase });
      shown = Math.max(shown, fraction);
    }
  }

  #where(queued: Queued): { fraction: number; phase: string } {
    const passed = binding.lastMarker((this.#device as Device).native);
    let low = 0;
    let high = queued.marks.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((queued.marks[middle] as Mark).value <= passed) low = middle + 1;
      else high = middle;
    }
    const at = queued.marks[low - 1];
    const fraction = at === undefined || queued.hardwareFlops === 0 ? 0 : at.flops / queued.hardwareFlops;
    return { fraction, phase: at?.phase ?? "forward" };
  }

  /** Counts a step as finished; its metrics. */
  #account(queued: Queued, { loss, norm, finite, time }: StepRead): StepMetrics {
    const state = this.#state as TrainerState;
    const seconds = Math.max(time - (this.#since ?? time), 0.001) / 1000;
    this.#since = time;
    state.step = queued.step;
    state.cursor = queued.cursor;
    state.skipped += finite ? 0 : 1;
    state.skippedInARow = finite ? 0 : state.skippedInARow + 1;
    const peakRate = (this.#device as Device).info.peakBf16Flops;
    const modelRate = queued.modelFlops / seconds;
    return this.#record<StepMetrics>({
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
    });
  }

  async #checkFinite(queued: Queued): Promise<void> {
    const { skippedInARow, step } = this.#state as TrainerState;
    if (skippedInARow < MOST_SKIPPED) return;
    const broken = await this.#brokenParameter();
    const { train, model } = this.#config;
    throw new TrainingError(
      `the loss or the gradient was not finite in ${MOST_SKIPPED} steps in a row, ${step - MOST_SKIPPED + 1} to ${step}; ` +
        "these steps changed nothing. " +
        (broken === undefined
          ? `All weights are finite: look at train.learning_rate (${train.learningRate}; the step used ${queued.learningRate}), ` +
            "train.warmup_steps and the rows of these steps (longseq data shows them)"
          : `Parameter ${broken} holds values that are not finite: look at the weights of ` +
            `${model.path ?? "the model"}${step > MOST_SKIPPED ? ", or start from an older checkpoint with a lower train.learning_rate" : ""}`),
      { step, parameter: broken ?? null },
    );
  }

  /** A model that is broken is neither saved over good checkpoints nor exported. */
  async #refuseBroken(): Promise<void> {
    const { skippedInARow, step } = this.#state as TrainerState;
    const broken = skippedInARow > 0 ? await this.#brokenParameter() : undefined;
    if (broken === undefined) return;
    const { train, model } = this.#config;
    throw new TrainingError(
      `parameter ${broken} holds values that are not finite, so the last ${skippedInARow} of ${step} steps changed ` +
        `nothing and there is nothing to save: look at the weights of ${model.path ?? "the model"} or at ` +
        `train.learning_rate (${train.learningRate})`,
      { step, parameter: broken },
    );
  }

  /** The first parameter with a value that is not finite; enqueues the question, and answers at the next read. */
  async #brokenParameter(): Promise<string | undefined> {
    const device = this.#device as Device;
    const sums = noGrad(() =>
      this.#parameters.map(([name, parameter]) => {
        const sum = Tensor.full([], 0, { device, dtype: "float64", tier: parameter.tier }).keep();
        binding.ops.normSquared(parameter.native(), sum.native());
        return { name, sum };
      }),
    );
    const values = await Promise.all(sums.map(({ sum }) => sum.item())).finally(() => {
      for (const { sum } of sums) sum.dispose();
    });
    return sums.find((_, i) => !Number.isFinite(values[i]))?.name;
  }

  // ---- evaluation, saving, tracing ----

  #evaluationDue(step: number): boolean {
    if (this.#evalData === undefined || (this.#state as TrainerState).evaluated >= step) return false;
    const { evalEvery } = this.#config.train;
    return step === this.#steps || (evalEvery > 0 && step % evalEvery === 0);
  }

  /** Mean loss over all valid labels of data.eval, with the parameters as they are. */
  async *#evaluateIfDue(): AsyncGenerator<RunItem, void, void> {
    const state = this.#state as TrainerState;
    if (!this.#evaluationDue(state.step)) return;
    const model = this.#model as CausalLM;
    const loader = new DataLoader(this.#evalData as Dataset, { batchSize: this.#config.train.microBatchSize });
    const pending: { loss: Tensor; read: Promise<number> }[] = [];
    let total = 0;
    let tokens = 0;
    let validTokens = 0;
    try {
      for (let batch = await loader.nextBatch(); batch !== null; batch = await loader.nextBatch()) {
        this.#checkAborted();
        tokens += batch.tokens;
        validTokens += batch.validTokens;
        const loss = evaluationLoss(model, batch);
        const read = loss.item();
        read.catch(() => {});
        pending.push({ loss, read });
        // One runs, one waits.
        while (pending.length >= MOST_QUEUED) total += await takeFirst(pending);
      }
      while (pending.length > 0) total += await takeFirst(pending);
    } finally {
      for (const { loss } of pending) loss.dispose();
    }
    state.evaluated = state.step;
    const event: EvalEvent = {
      event: "eval",
      step: state.step,
      loss: validTokens > 0 ? total / validTokens : null,
      tokens,
      validTokens,
    };
    yield this.#record(event);
  }

  /** Saves the state of the last finished step, then removes what `keep` does not keep. */
  async #save(): Promise<RunItem> {
    const state = this.#state as TrainerState;
    // Lines after the newest checkpoint are cut off by a resume, so those before it must be on the disk first.
    this.#metrics?.sync();
    const path = await saveCheckpoint(
      this.#checkpoints,
      state,
      this.#parameters,
      (this.#optimizer as AdamW).namedState(this.#names),
    );
    this.#saved = state.step;
    await pruneCheckpoints(this.#checkpoints, this.#config.output.keep);
    return this.#record({ event: "save", step: state.step, path });
  }

  #startTrace(): void {
    (this.#device as Device).startTrace();
  }

  async #stopTrace(step: number): Promise<void> {
    const device = this.#device as Device;
    await device.synchronize();
    const trace = device.stopTrace();
    makeFolders(join(this.#folder, "trace"));
    await writeFileDurably(join(this.#folder, "trace", `step-${step}.json`), trace);
  }

  // ---- stopping ----

  /** After the queues were cancelled: back to the last finished step, which is saved. */
  async *#stop(cause: unknown): AsyncGenerator<RunItem, void, void> {
    const device = this.#device as Device;
    const state = this.#state as TrainerState;
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#broken = true;
    device.cancel();
    await device.resume();
    const failure = binding.failure(device.native);
    if (failure !== null) throw cause;
    const finished = this.#startStep + binding.stepsFinished(device.native) - this.#finishedBefore;
    for (let queued = this.#queued[0]; queued !== undefined; queued = this.#queued[0]) {
      // The update was done and only its figures were not read any more: they still lie on the device.
      if (queued.step <= finished) {
        const read = await queued.read.catch(() => readStep(queued));
        yield this.#account(queued, read);
      }
      this.#queued.shift();
      release(queued);
    }
    (this.#optimizer as AdamW).zeroGrad();
    if (this.#saved !== state.step) yield await this.#save();
    throw new CancelledError(
      `stopped after step ${state.step} of ${this.#steps}; the state is saved in ${this.#checkpoints}, ` +
        "and the same configuration goes on from there",
      { step: state.step },
      { cause },
    );
  }
}

/** What the plan event tells of the choice. */
function planDetails(choice: Choice, shares: Peaks): Record<string, unknown> {
  const { states, directory, ...plan } = choice.plan;
  const { peaks } = choice.measured;
  return {
    ...plan,
    ...(directory !== null && { directory }),
    ...(Object.values(states).includes("host") && { states }),
    rung: choice.rung,
    metaRuns: choice.runs,
    devicePeakBytes: peaks.device,
    hostPeakBytes: peaks.host,
    deviceLimitBytes: shares.device,
    hostLimitBytes: shares.host,
    memory: describeChoice(choice, shares),
  };
}

/** Reads a step's figures once everything before is done. */
async function readStep(step: { loss: Tensor; norm: Tensor; finite: Tensor }): Promise<StepRead> {
  const [loss, norm, finite] = await Promise.all([step.loss.item(), step.norm.item(), step.finite.item()]);
  return { loss, norm, finite: finite !== 0, time: performance.now() };
}

function release(queued: Queued): void {
  queued.loss.dispose();
  queued.norm.dispose();
  queued.finite.dispose();
}

async function takeFirst(pending: { loss: Tensor; read: Promise<number> }[]): Promise<number> {
  const first = pending[0] as (typeof pending)[number];
  const value = await first.read;
  pending.shift();
  first.loss.dispose();
  return value;
}
