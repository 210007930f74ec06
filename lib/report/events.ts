// What a training run reports: one metrics object a step, and events in between.

/** The figures of one finished step, in the order of a metrics.jsonl line. */
export interface StepMetrics {
  /** A step's metrics carry no event name. */
  event?: undefined;
  /** From 1. */
  step: number;
  /** Passes over the training data, as a fraction. */
  epoch: number;
  /** Mean over the step's valid labels, with the parameters the step started from. */
  loss: number | null;
  /** Global L2 norm before clipping. */
  gradNorm: number | null;
  learningRate: number;
  /** Input tokens of the step, over the whole job. */
  tokens: number;
  /** Labels that counted in the loss. */
  validTokens: number;
  /** From the completion of the step before to this one's, without evaluation and saves. */
  seconds: number;
  tokensPerSecond: number;
  /** 10^12 floating-point operations a second that the model needs; recomputation is not counted. */
  modelTflops: number | null;
  /** The same of what ran. */
  hardwareTflops: number | null;
  /** modelTflops over the device's dense bfloat16 rate; null where that is unknown. */
  mfu: number | null;
  /** Reserved bytes at their highest. */
  devicePeakBytes: number;
  deviceLiveBytes: number;
  hostPeakBytes: number;
  /** Highest resident memory of the process. */
  rssPeakBytes: number;
  /** The step's update was left out because its loss or gradient was not finite. */
  skipped: boolean | number;
  /** Of a model with experts: the load-balancing loss, not yet multiplied by its factor. */
  auxLoss?: number;
  /** Tokens of an expert of a layer: of the one with most, and on average. */
  tokensPerExpert?: { max: number; mean: number };
  /** Of a job of several ranks, whose other figures of time and memory are rank 0's. */
  ranks?: Record<"seconds" | "devicePeakBytes" | "hostPeakBytes", RankSpread>;
}

/** A figure over the ranks of a job. */
export interface RankSpread {
  min: number;
  max: number;
  /** The first rank with the largest. */
  maxRank: number;
  /** Of every rank, by rank; absent where there are more than 64, for every step's line has it. */
  each?: number[];
}

/** What was chosen before the first step. */
export interface PlanEvent {
  event: "plan";
  /** Steps of the whole run. */
  steps: number;
  /** Steps that were finished before, when a run goes on. */
  startStep?: number;
  /** What was chosen of memory and what it takes, in words. */
  memory?: string;
  [detail: string]: unknown;
}

/** Where a step that is still running stands. */
export interface ProgressEvent {
  event: "progress";
  /** The running step, from 1. */
  step: number;
  /** Of the step's work, 0 to 1. */
  fraction: number;
  /** Such as "forward" or "backward". */
  phase?: string;
  /** The layer that was begun last, from 1; absent between layers. `layers`: how many there are. */
  layer?: number;
  layers?: number;
  [detail: string]: unknown;
}

export interface EvalEvent {
  event: "eval";
  step: number;
  loss: number | null;
  [detail: string]: unknown;
}

/** What the model said behind a prompt of train.sample_prompts, greedily. */
export interface SampleEvent {
  event: "sample";
  step: number;
  prompt: string;
  /** Without special tokens. */
  text: string;
  ids: number[];
  [detail: string]: unknown;
}

/** A checkpoint or the finished model was written. */
export interface SaveEvent {
  event: "save";
  step: number;
  path: string;
  [detail: string]: unknown;
}

export interface WarningEvent {
  event: "warning";
  message: string;
  [detail: string]: unknown;
}

/** The run has ended: everything was done, or the run was stopped and its state saved. */
export interface DoneEvent {
  event: "done";
  step: number;
  [detail: string]: unknown;
}

export type RunEvent = PlanEvent | ProgressEvent | EvalEvent | SampleEvent | SaveEvent | WarningEvent | DoneEvent;
/** What `for await (const item of trainer.run())` gives; metrics are those without `event`. */
export type RunItem = StepMetrics | RunEvent;
