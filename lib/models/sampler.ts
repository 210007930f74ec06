// How the next token is chosen from its logits: the largest, or by chance, in transformers' order: repetition penalty,
// temperature, top-k, top-p, min-p.

import { CounterRandom } from "../data/philox.js";
import { ArgumentError } from "../errors.js";

export interface SamplingOptions {
  /** Logits are divided by it; 0: the largest is taken, nothing is left to chance. Default 0. */
  readonly temperature?: number;
  /** Only so many of the likeliest; 0: all. Default 0. */
  readonly topK?: number;
  /** Only the likeliest that together reach this probability. Default 1: all. */
  readonly topP?: number;
  /** Only those with at least this share of the likeliest one's probability. Default 0: all. */
  readonly minP?: number;
  /** Logits of tokens that were there (the prompt's too) are divided by it, negative ones multiplied. Default 1. */
  readonly repetitionPenalty?: number;
  /** Of the choices. Default 0. */
  readonly seed?: number;
}

/** What a number of the options must be. */
const ranges: Record<keyof SamplingOptions, [what: string, holds: (value: number) => boolean]> = {
  temperature: ["a number, 0 or more", (value) => value >= 0 && Number.isFinite(value)],
  topK: ["a whole number, 0 or more", (value) => Number.isSafeInteger(value) && value >= 0],
  topP: ["a number above 0, at most 1", (value) => value > 0 && value <= 1],
  minP: ["a number from 0 to 1", (value) => value >= 0 && value <= 1],
  repetitionPenalty: ["a number from 0.001 to 1000", (value) => value >= 1e-3 && value <= 1e3],
  seed: ["a whole number, 0 or more", (value) => Number.isSafeInteger(value) && value >= 0],
};

/** What was chosen, and the natural log of its probability in the logits as they came. */
export interface Choice {
  readonly id: number;
  readonly logProbability: number;
}

/** Chooses the tokens of one sequence, from its first one on. */
export class Sampler {
  readonly #options: Required<SamplingOptions>;
  readonly #random: CounterRandom;
  readonly #seen = new Set<number>();

  /** sequence: its number among those that share a seed. Throws ArgumentError. */
  constructor(options: SamplingOptions = {}, sequence = 0) {
    const { temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1, seed = 0 } = options;
    this.#options = { temperature, topK, topP, minP, repetitionPenalty, seed };
    for (const [name, [what, holds]] of Object.entries(ranges)) {
      const value = this.#options[name as keyof SamplingOptions];
      if (typeof value !== "number" || !holds(value))
        throw new ArgumentError(`generate: ${name} is ${String(value)}, expected ${what}`);
    }
    this.#random = new CounterRandom(seed, sequence);
  }

  /** Whether the choice hangs on the largest logit alone. */
  get isPlain(): boolean {
    return this.#options.temperature === 0 && this.#options.repetitionPenalty === 1;
  }

  /** Tokens that are there already. */
  see(ids: Iterable<number | bigint>): void {
    if (this.#options.repetitionPenalty !== 1) for (const id of ids) this.#seen.add(Number(id));
  }

  /** logits [V], which may be overwritten. */
  choose(logits: Float32Array): Choice {
    const { temperature, topK, topP, minP, repetitionPenalty } = this.#options;
    const { most, logSum } = logSumExp(logits);
    if (!Number.isFinite(most) || Number.isNaN(logSum))
      throw new ArgumentError("generate: the model's logits are not finite numbers, so no token can be chosen");
    const raw = repetitionPenalty === 1 ? logits : logits.slice();
    for (const id of this.#seen) {
      const value = logits[id] as number;
      logits[id] = value < 0 ? value * repetitionPenalty : value / repetitionPenalty;
    }
    const chosen = (id: number, value: number): Choice => {
      this.see([id]);
      return { id, logProbability: value - logSum };
    };
    if (temperature === 0) {
      const id = largest(logits);
      return chosen(id, raw[id] as number);
    }
    // In float64 and below 0, where no temperature makes them infinite.
    const top = logits[largest(logits)] as number;
    const scaled = temperature === 1 ? logits : Float64Array.from(logits, (value) => (value - top) / temperature);
    const { ids, weights, total } = candidates(scaled, { topK, topP, minP });
    // 53 random bits, so that rare tokens of a large vocabulary come as often as they should.
    const draw = ((this.#random.word() >>> 5) * 2 ** 26 + (this.#random.word() >>> 6)) / 2 ** 53;
    let left = draw * total;
    let at = 0;
    while (at < ids.length - 1 && left >= (weights[at] as number)) left -= weights[at++] as number;
    const id = ids[at] as number;
    return chosen(id, raw[id] as number);
  }
}

/** The first of the largest. */
function largest(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}

function logSumExp(values: Float32Array): { most: number; logSum: number } {
  let most = Number.NEGATIVE_INFINITY;
  for (const value of values) if (value > most) most = value;
  let sum = 0;
  for (const value of values) sum += Math.exp(value - most);
  return { most, logSum: most + Math.log(sum) };
}

/** Tokens that may be chosen, likeliest first, and weights in proportion to their probabilities. */
function candidates(
  logits: Float32Array | Float64Array,
  { topK, topP, minP }: { topK: number; topP: number; minP: number },
): { ids: Uint32Array; weights: Float64Array; total: number } {
  let ids = Uint32Array.from(logits, (_, id) => id);
  if (topK > 0 && topK < logits.length) {
    // As many as tie with the last of them stay.
    const least = logits.slice().sort()[logits.length - topK] as number;
    ids = ids.filter((id) => (logits[id] as number) >= least);
  }
  if (topP < 1 || minP > 0) ids.sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b);
  const most = ids.reduce((best, id) => Math.max(best, logits[id] as number), Number.NEGATIVE_INFINITY);
  const weights = Float64Array.from(ids, (id) => Math.exp((logits[id] as number) - most));
  let total = weights.reduce((sum, weight) => sum + weight, 0);
  let count = ids.length;
  if (topP < 1) {
    let sum = 0;
    count = 0;
    while (count < ids.length && (count === 0 || sum < topP * total)) sum += weights[count++] as number;
    total = sum;
  }
  if (minP > 0) while (count > 1 && (weights[count - 1] as number) < minP) total -= weights[--count] as number;
  return { ids: ids.subarray(0, count), weights: weights.subarray(0, count), total };
}
