// A rank's part of a sequence: which tokens it holds, and what it still has to know of the others.

import type { Batch } from "../data/batch.js";
import { IGNORE_INDEX } from "../data/batch.js";
import type { SequenceGroup } from "../parallel/mesh.js";
import { stretchOf } from "./ring.js";

/**
 * A batch of which this rank has S tokens. positions: those of the tokens that its attention has after an exchange for
 * heads; cuSeqlens: those of the whole sequence.
 */
export interface ShardedBatch extends Batch {
  group: SequenceGroup;
  /** This rank's tokens that are no padding: the first so many. */
  counted: number;
  /** From its token `at` on they are those of the sequence from `begin` on. */
  pieces: { at: number; begin: number }[];
}

/** Tokens of each rank: as many for all, and of a ring an even number for each group that exchanges heads. */
export function partLength(tokens: number, { size, ring }: Pick<SequenceGroup, "size" | "ring">): number {
  const length = Math.ceil(tokens / size);
  const ulysses = size / (ring?.size ?? 1);
  return ring !== null && (length * ulysses) % 2 !== 0 ? length + 1 : length;
}

/**
 * This rank's part of a batch, which may be that already. Where the tokens do not divide, documents of one padding token each (id 0, no label) are
 * laid behind them, which nothing attends and which add nothing to a loss or a gradient.
 */
export function shardBatch(batch: Batch, group: SequenceGroup | null): Batch | ShardedBatch {
  if (group === null || "group" in batch) return batch;
  const { rank, size, ring } = group;
  const length = partLength(batch.tokens, group);
  const [rings, ulysses] = [ring?.size ?? 1, size / (ring?.size ?? 1)];
  /** Stretches of the sequence that this rank and those of its heads hold, and where this rank's part of them begins. */
  const stretch = (length * ulysses) / (rings > 1 ? 2 : 1);
  const starts = rings > 1 ? [0, 1].map((half) => stretchOf(Math.floor(rank / ulysses), half, rings) * stretch) : [0];
  const own = (rank % ulysses) * length;
  // Tokens from .. from + count - 1 of the stretches, one behind the other: where they lie in the sequence.
  function* pieces(from: number, count: number): Generator<{ at: number; begin: number; end: number }> {
    for (let at = 0; at < count; ) {
      const [which, within] = [Math.floor((from + at) / stretch), (from + at) % stretch];
      const piece = Math.min(count - at, stretch - within);
      const begin = (starts[which] as number) + within;
      yield { at, begin, end: Math.max(begin, Math.min(begin + piece, batch.tokens)) };
      at += piece;
    }
  }
  const take = <Values extends Int32Array | BigInt64Array>(source: Values, out: Values, from: number): Values => {
    for (const { at, begin, end } of pieces(from, out.length))
      if (begin < end) out.set(source.subarray(begin, end) as never, at);
    return out;
  };
  const targets = take(batch.targets, new Int32Array(length).fill(IGNORE_INDEX), own);
  const padding = length * size - batch.tokens;
  const real = batch.counted ?? batch.tokens;
  const cuSeqlens = new BigInt64Array(batch.cuSeqlens.length + padding);
  cuSeqlens.set(batch.cuSeqlens);
  for (let i = 0; i < padding; i++) cuSeqlens[batch.cuSeqlens.length + i] = BigInt(batch.tokens + i + 1);
  return {
    ...batch,
    inputIds: take(batch.inputIds, new Int32Array(length), own),
    targets,
    positions: take(batch.positions, new BigInt64Array(length * ulysses), 0),
    cuSeqlens,
    tokens: length,
    validTokens: targets.reduce((count, target) => count + (target === IGNORE_INDEX ? 0 : 1), 0),
    // Padding lies behind all of them.
    counted: [...pieces(own, length)].reduce(
      (sum, { begin, end }) => sum + Math.max(0, Math.min(end, real) - begin),
      0,
    ),
    pieces: [...pieces(own, length)].map(({ at, begin }) => ({ at, begin })),
    group,
  };
}

/** How many groups of a ring the ranks of a sequence form, where nobody says: the fewest that the heads allow. */
export function fewestRings(ranks: number, served: (ulysses: number) => boolean): number | undefined {
  for (let ring = 1; ring <= ranks; ring++) if (ranks % ring === 0 && served(ranks / ring)) return ring;
  return undefined;
}
