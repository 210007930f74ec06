// The learning rate of each step: a warm-up, then constant, linear, cosine or wsd (warm-up, stable, decay).

export type ScheduleKind = "constant" | "linear" | "cosine" | "wsd";

export interface ScheduleOptions {
  schedule: ScheduleKind;
  learningRate: number;
  minLearningRate: number;
  warmupSteps: number;
  /** Of wsd; null: a fifth of the steps, at least one. */
  decaySteps: number | null;
}

/**
 * The learning rate of step `s` (from 0) of `steps`. During the warm-up rate x (s + 1) / warmup; after it
 * linear and cosine follow the progress (s - warmup) / (steps - warmup) and reach the minimum at `steps`; wsd stays at
 * the rate and falls linearly over the last `decaySteps`.
 */
export function learningRateAt(s: number, steps: number, options: ScheduleOptions): number {
  const { schedule, learningRate: rate, minLearningRate: least, warmupSteps: warmup } = options;
  if (s < warmup) return (rate * (s + 1)) / warmup;
  const progress = steps > warmup ? Math.min(1, (s - warmup) / (steps - warmup)) : 1;
  switch (schedule) {
    case "constant":
      return rate;
    case "linear":
      return least + (rate - least) * (1 - progress);
    case "cosine":
      return least + (rate - least) * 0.5 * (1 + Math.cos(Math.PI * progress));
    case "wsd": {
      const decay = options.decaySteps ?? Math.max(1, Math.floor(steps / 5));
      return s < steps - decay ? rate : least + ((rate - least) * Math.max(0, steps - s)) / decay;
    }
  }
}
