// Mixtures: how much of each entry of data.train an epoch holds, by weights or by numbers of passes.

import { DataError } from "../errors.js";
import { permutation } from "./philox.js";

/** What an entry says of how often it is taken. */
export interface Share {
  /** The entry, for messages. */
  name: string;
  /** Its part of the tokens, beside the other weights. */
  weight: number | null;
  /** How often its rows come in an epoch of the run; null: once. */
  epochs: number | null;
}

/** The pieces of an entry, which follow each other. */
export interface EntryPieces {
  begin: number;
  end: number;
  tokens: number;
}

/**
 * Each entry is an endless stream: its pieces, pass after pass, each pass in an order of its own. An epoch takes the next
 * `rate` pieces of each stream, so that what one epoch leaves comes in the next ones, and no piece is taken again before
 * all others of its entry have been. With weights, rates are such that tokens stand to each other as the weights do, and that
 * of the entry which lasts the shortest is one pass.
 */
export class Mixture {
  readonly #entries: readonly EntryPieces[];
  /** Pieces of each entry in an epoch, a mean that may have a fraction. */
  readonly #rates: readonly number[];
  readonly #weighted: boolean;

  private constructor(entries: readonly EntryPieces[], rates: readonly number[], weighted: boolean) {
    this.#entries = entries;
    this.#rates = rates;
    this.#weighted = weighted;
  }

  /**
   * Null where every entry comes once an epoch and no weights are given.
   * Throws DataError where a weighted entry has no tokens, or where an epoch would hold nothing.
   */
  static of(shares: readonly Share[], entries: readonly EntryPieces[]): Mixture | null {
    const weighted = shares.some(({ weight }) => weight !== null);
    if (!weighted && shares.every(({ epochs }) => epochs === null || epochs === 1)) return null;
    const counts = entries.map(({ begin, end }) => end - begin);
    let passes = shares.map(({ epochs }) => epochs ?? 1);
    if (weighted) {
      const empty = entries.findIndex(({ tokens }) => tokens === 0);
      if (empty >= 0) {
        const { name, weight } = shares[empty] as Share;
        throw new DataError(`${name} has a weight of ${weight} and no usable rows; give it rows, or leave it out`);
      }
      const speeds = shares.map(({ weight }, i) => (weight as number) / (entries[i] as EntryPieces).tokens);
      const fastest = Math.max(...speeds);
      passes = speeds.map((speed) => speed / fastest);
    }
    const rates = passes.map((pass, i) => pass * (counts[i] as number));
    if (!rates.some((rate) => rate >= 1)) {
      const told = shares.map(({ name, epochs }) => `${name} (epochs: ${epochs ?? 1})`).join(", ");
      throw new DataError(`an epoch would hold less than one row of ${told}; raise their epochs`);
    }
    return new Mixture(entries, rates, weighted);
  }

  /** Whether every epoch has as many pieces of each entry. */
  get even(): boolean {
    return this.#rates.every((rate) => Number.isInteger(rate));
  }

  /** Whether every epoch has the same pieces: whole passes. */
  get whole(): boolean {
    return this.#rates.every((rate, i) => {
      const { begin, end } = this.#entries[i] as EntryPieces;
      return begin === end || rate % (end - begin) === 0;
    });
  }

  /** Passes over each entry that an epoch makes. */
  get passes(): number[] {
    return this.#rates.map((rate, i) => {
      const { begin, end } = this.#entries[i] as EntryPieces;
      return end === begin ? 0 : rate / (end - begin);
    });
  }

  /**
   * The pieces of an epoch (from 0) in order. Shuffled: by the seed. Else entry after entry, each in its files' order, but
   * with weights spread evenly among each other.
   */
  order(epoch: number, shuffle: boolean, seed: number): Uint32Array {
    const found: number[] = [];
    const places: number[] = [];
    this.#entries.forEach(({ begin, end }, i) => {
      const count = end - begin;
      const rate = this.#rates[i] as number;
      const first = Math.floor(epoch * rate);
      const last = Math.floor((epoch + 1) * rate);
      let pass = -1;
      let order: Uint32Array | null = null;
      for (let k = first; k < last; k++) {
        const at = k % count;
        if (shuffle && Math.floor(k / count) !== pass) {
          pass = Math.floor(k / count);
          // A stream of the generator for each entry, apart from those of the epochs.
          order = permutation(count, seed, (i + 1) * 2 ** 32 + pass);
        }
        places.push((k - first + 0.5) / (last - first));
        found.push(begin + (order === null ? at : (order[at] as number)));
      }
    });
    if (shuffle) return permutation(found.length, seed, epoch).map((k) => found[k] as number);
    if (!this.#weighted) return Uint32Array.from(found);
    const ranks = Array.from(found.keys()).sort((a, b) => (places[a] as number) - (places[b] as number) || a - b);
    return Uint32Array.from(ranks, (k) => found[k] as number);
  }

  /** What a cursor's dataset depends on. */
  toJSON(): unknown {
    return { rates: this.#rates, weighted: this.#weighted };
  }
}
