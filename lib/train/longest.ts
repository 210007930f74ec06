// The longest sequence that would fit the limits of a run.

import type { Config } from "../config/index.js";
import { ladder, type Rung } from "./ladder.js";
import type { Peaks } from "./limits.js";
import type { Workload } from "./measure.js";
import { bisect, type PlanFacts, Trials } from "./trials.js";

/**
 * Lengths that are tried, about 1% apart and the same ones whatever length was asked for: 1, 2, ... 128, then so many to
 * an octave; to 256M, whose positions are the most that one array of JavaScript holds twice.
 */
const OCTAVE = 64;
const LENGTHS = 128 + OCTAVE * 21;
const lengthAt = (index: number): number => (index <= 128 ? index : Math.floor(128 * 2 ** ((index - 128) / OCTAVE)));

/** Two lengths beyond which a rung's needs are nearly linear in the length; steps of these take little time. */
const [NEAR, FAR] = [lengthAt(128 + 7 * OCTAVE), lengthAt(128 + 8 * OCTAVE)];
/** How far, in lengths that are tried, a rung may reach beyond what that line says: 3%. */
const MARGIN = 3;

/** The largest index that `fits`, which is taken for monotone and holds for `low`; quickest where that is near `guess`. */
function furthest(low: number, guess: number, fits: (index: number) => boolean): number {
  let [from, step] = [low, 1];
  let to = Math.max(guess, low + 1);
  if (fits(to)) {
    for (from = to; fits(from + step); step *= 2) from += step;
    to = from + step;
  } else {
    for (; to - step > low && !fits(to - step); step *= 2) to -= step;
    from = Math.max(low, to - step);
  }
  return bisect(from + 1, to, (index) => index === to || !fits(index)) - 1;
}

/**
 * Tokens of the longest sequence, to 1%, that fits the limits on some rung, and the first such rung; null where not even
 * a token does. `workAt`: the workload of sequences of so many tokens.
 */
export function longestSequence(
  config: Config,
  facts: PlanFacts,
  workAt: (tokens: number) => Workload,
): { tokens: number; rung: Rung } | null {
  const rungs = ladder(config.memory, facts.model);
  const benchAt = (tokens: number) => {
    const work = workAt(tokens);
    const { ring, ulysses } = facts.ranks ?? { ring: 1, ulysses: 1 };
    return new Trials(config, { ...facts, tokens: Math.ceil(work.micro.tokens / (ring * ulysses)), work }, undefined);
  };
  const [near, far] = [benchAt(NEAR), benchAt(FAR)];
  const guesses = rungs.map((rung) => {
    const [a, b] = [near.of(rung).needs, far.of(rung).needs];
    const needs = (tier: keyof Peaks, tokens: number) =>
      a[tier] + ((b[tier] - a[tier]) / (FAR - NEAR)) * (tokens - NEAR);
    const fits = (index: number) =>
      facts.limits.fits({ device: needs("device", lengthAt(index)), host: needs("host", lengthAt(index)) });
    return { rung, guess: bisect(1, LENGTHS, (index) => index === LENGTHS || !fits(index)) - 1 };
  });
  let best = 0;
  const hopeless = (guess: number) => lengthAt(best) > FAR && guess + MARGIN < best;
  for (const { rung, guess } of guesses.toSorted((one, other) => other.guess - one.guess))
    if (!hopeless(guess))
      best = furthest(best, guess, (index) => index <= LENGTHS && benchAt(lengthAt(index)).fits(rung));
  const bench = benchAt(lengthAt(best));
  const found = best > 0 && guesses.find(({ rung, guess }) => !hopeless(guess) && bench.fits(rung));
  return found ? { tokens: lengthAt(best), rung: found.rung } : null;
}
