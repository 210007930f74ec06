// Plans an epoch: the order of the documents and which of them share a sequence, a pure function of lengths and seed.

import type { Mixture } from "./mixture.js";
import { permutation } from "./philox.js";

/** How far ahead in the epoch's order packing looks for a document that fits. */
export const PACKING_WINDOW = 1024;

/** Tokens begin..end-1 of a document. */
export interface Segment {
  document: number;
  begin: number;
  end: number;
}

/** The pieces of the documents that are trained on, in the documents' order. */
export interface Pieces {
  document: Uint32Array;
  begin: Int32Array;
  end: Int32Array;
}

/** The sequences of an epoch. Sequence i holds the pieces `order[starts[i]] .. order[starts[i + 1] - 1]`. */
export class EpochPlan {
  readonly epoch: number;
  readonly #pieces: Pieces;
  readonly #order: Uint32Array;
  readonly #starts: Uint32Array;

  constructor(epoch: number, pieces: Pieces, order: Uint32Array, starts: Uint32Array) {
    this.epoch = epoch;
    this.#pieces = pieces;
    this.#order = order;
    this.#starts = starts;
  }

  /** How many sequences the epoch has. */
  get sequences(): number {
    return this.#starts.length - 1;
  }

  /** The documents, or pieces of them, of sequence i. */
  segments(i: number): Segment[] {
    const { document, begin, end } = this.#pieces;
    const segments: Segment[] = [];
    for (let k = this.#starts[i] as number; k < (this.#starts[i + 1] as number); k++) {
      const piece = this.#order[k] as number;
      segments.push({ document: document[piece] as number, begin: begin[piece] as number, end: end[piece] as number });
    }
    return segments;
  }

  /** T of sequence i. */
  tokens(i: number): number {
    return this.segments(i).reduce((sum, { begin, end }) => sum + end - begin, 0);
  }
}

/**
 * Packs pieces, taken in `order`, into sequences of at most `capacity` tokens, each piece whole.
 * A sequence opens with the oldest piece not yet placed; then, while one fits, the longest that fits (the oldest of
 * equals) among the next PACKING_WINDOW pieces joins it. Inside a sequence pieces keep the order's order.
 * Returns the order sequence by sequence, and where each sequence starts. No piece may be longer than `capacity`.
 */
export function packBestFit(
  lengths: Int32Array,
  order: Uint32Array,
  capacity: number,
): { order: Uint32Array; starts: Uint32Array } {
  const count = order.length;
  const placed = new Uint8Array(count);
  const packed = new Uint32Array(count);
  const starts: number[] = [];
  // The window: ranks (places in `order`) sorted by length ascending, and by rank descending among equals, so that the
  // best fit is the last one that is not too long.
  const window: number[] = [];
  let incoming = 0;
  const lengthOf = (rank: number) => lengths[order[rank] as number] as number;
  /** How many of the window come before (length, rank). */
  const search = (length: number, rank: number) => {
    let low = 0;
    let high = window.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const other = window[middle] as number;
      const otherLength = lengthOf(other);
      if (otherLength < length || (otherLength === length && other > rank)) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const refill = () => {
    while (window.length < PACKING_WINDOW && incoming < count) {
      window.splice(search(lengthOf(incoming), incoming), 0, incoming);
      incoming++;
    }
  };
  let oldest = 0;
  let at = 0;
  for (;;) {
    while (oldest < count && placed[oldest] === 1) oldest++;
    if (oldest === count) break;
    refill();
    starts.push(at);
    const ranks: number[] = [];
    let room = capacity;
    let pick = search(lengthOf(oldest), oldest);
    while (pick >= 0) {
      const rank = window[pick] as number;
      window.splice(pick, 1);
      placed[rank] = 1;
      ranks.push(rank);
      room -= lengthOf(rank);
      refill();
      pick = room > 0 ? search(room, -1) - 1 : -1;
    }
    ranks.sort((a, b) => a - b);
    for (const rank of ranks) packed[at++] = order[rank] as number;
  }
  starts.push(at);
  return { order: packed, starts: Uint32Array.from(starts) };
}

/**
 * The plan of an epoch (from 0). Shuffled, its order is a permutation that depends on (pieces, seed, epoch) alone;
 * otherwise it is the files' order. A mixture has an order of its own, in which pieces may be missing or come again.
 * Without packing each piece is a sequence.
 */
export function planEpoch(
  pieces: Pieces,
  options: { packing: boolean; shuffle: boolean; seed: number; sequenceLength: number },
  epoch: number,
  mixture: Mixture | null = null,
): EpochPlan {
  let order: Uint32Array;
  if (mixture !== null) order = mixture.order(epoch, options.shuffle, options.seed);
  else if (options.shuffle) order = permutation(pieces.document.length, options.seed, epoch);
  else order = new Uint32Array(pieces.document.length).map((_, i) => i);
  const count = order.length;
  if (options.packing) {
    const lengths = new Int32Array(pieces.document.length);
    for (let i = 0; i < lengths.length; i++) lengths[i] = (pieces.end[i] as number) - (pieces.begin[i] as number);
    const packed = packBestFit(lengths, order, options.sequenceLength);
    return new EpochPlan(epoch, pieces, packed.order, packed.starts);
  }
  const starts = new Uint32Array(count + 1);
  for (let i = 0; i <= count; i++) starts[i] = i;
  return new EpochPlan(epoch, pieces, order, starts);
}
