// The longest sequence that would fit the limits of a run.

import type { Config } from "../config/index.js";
import { ladder, leading, type Rung } from "./ladder.js";
import { MOST_ATTENDED, type Workload } from "./measure.js";
import { furthest, type PlanFacts, Trials } from "./trials.js";

/** Lengths that are tried, about 1% apart and the same ones whatever length was asked for: 1, 2, ... 128, then so many to an octave. */
const OCTAVE = 64;
const lengthAt = (index: number): number => (index <= 128 ? index : Math.floor(128 * 2 ** ((index - 128) / OCTAVE)));

/** The last index whose length is not above so many tokens. */
const indexOf = (tokens: number): number =>
  tokens <= 128 ? Math.floor(tokens) : Math.floor(128 + OCTAVE * Math.log2(tokens / 128));

/** Tokens of a rank beyond which a rung's needs are nearly linear in the length: where they are first looked at. */
const LINEAR = [2 ** 17, 2 ** 18] as const;

export interface Longest {
  tokens: number;
  rung: Rung;
  open: boolean;
}

/**
 * Tokens of the longest sequence, to 1%, that fits the limits on some rung, and the first such rung; null where not even
 * a token does, or none that is longer than `above`. open: the limits leave room for more than is ever tried. `workAt`: the
 * workload of sequences of so many tokens.
 */
export function longestSequence(
  config: Config,
  facts: PlanFacts,
  workAt: (tokens: number) => Workload,
  above = 0,
): Longest | null {
  const { model } = facts;
  const rungs = ladder(config.memory, model);
  const { ring, ulysses } = facts.ranks ?? { ring: 1, ulysses: 1 };
  const parts = ring * ulysses;
  const last = indexOf((MOST_ATTENDED * ring) / config.train.microBatchSize);
  const benches = new Map<number, Trials>();
  const benchAt = (tokens: number): Trials => {
    const work = workAt(tokens);
    const at = { ...facts, tokens: Math.ceil(work.micro.tokens / parts), work };
    const found = benches.get(tokens) ?? new Trials(config, at, undefined);
    benches.set(tokens, found);
    return found;
  };
  const slackAt = (index: number, rung: Rung): number => {
    return benchAt(lengthAt(index)).slack(rung);
  };
  const begin = indexOf(above);
  let best = begin;
  // What has fewer layers run again is asked first: the others then need only be looked at there.
  for (const rung of leading(rungs, model).sort((a, b) => a.checkpointEvery - b.checkpointEvery)) {
    if (best > 0 && !(best < last && slackAt(best + 1, rung) >= 0)) continue;
    const ends = LINEAR.map((tokens) => Math.min(last, indexOf(tokens * parts)));
    const known = ends.map((index) => ({ index, slack: slackAt(index, rung) }));
    best = furthest(best, last + 1, (index) => slackAt(index, rung), { known, at: lengthAt, indexOf });
  }
  const fits = (rung: Rung) => slackAt(best, rung) >= 0;
  const found = best > begin && rungs.find(fits);
  return found ? { tokens: lengthAt(best), rung: found, open: best === last } : null;
}
