// Token losses added up by the position of the token in its document.

import { ArgumentError } from "../errors.js";
import type { LossFigures, PositionFigures } from "../report/eval_results.js";

/** The first bucket's end where buckets double. */
const FIRST = 128;

/** Sum, sum of squares and count of losses. */
class Sums {
  tokens = 0;
  sum = 0;
  squares = 0;

  add(loss: number): void {
    this.tokens++;
    this.sum += loss;
    this.squares += loss * loss;
  }

  figures(): LossFigures {
    const { tokens, sum, squares } = this;
    const loss = tokens > 0 && Number.isFinite(sum) ? sum / tokens : null;
    const variance = loss !== null && tokens > 1 ? Math.max(0, (squares - tokens * loss * loss) / (tokens - 1)) : null;
    return {
      tokens,
      loss,
      perplexity: loss === null ? null : Math.exp(loss),
      standardError: variance === null ? null : Math.sqrt(variance / tokens),
    };
  }
}

/**
 * Losses by how many tokens of its document a token has before it. Buckets are of `width` tokens each, or double from
 * 128 on (0 to 127, 128 to 255, 256 to 511, ...) where it is null.
 */
export class PositionLosses {
  readonly #width: number | null;
  readonly #buckets: Sums[] = [];
  readonly #total = new Sums();

  constructor(width: number | null = null) {
    if (width !== null && (!Number.isSafeInteger(width) || width < 1))
      throw new ArgumentError(`PositionLosses: width is ${width}, expected a whole number, 1 or more, or null`);
    this.#width = width;
  }

  #bucketOf(position: number): number {
    if (this.#width !== null) return Math.floor(position / this.#width);
    return position < FIRST ? 0 : Math.floor(Math.log2(position / FIRST)) + 1;
  }

  #bounds(bucket: number): { begin: number; end: number } {
    const width = this.#width;
    if (width !== null) return { begin: bucket * width, end: (bucket + 1) * width };
    return { begin: bucket === 0 ? 0 : FIRST * 2 ** (bucket - 1), end: FIRST * 2 ** bucket };
  }

  /** A token at a position, from 0, of its document. */
  add(position: number, loss: number): void {
    const bucket = this.#bucketOf(position);
    while (this.#buckets.length <= bucket) this.#buckets.push(new Sums());
    (this.#buckets[bucket] as Sums).add(loss);
    this.#total.add(loss);
  }

  get total(): LossFigures {
    return this.#total.figures();
  }

  /** Buckets that hold a token, ascending. */
  positions(): PositionFigures[] {
    return this.#buckets.flatMap((sums, i) => (sums.tokens > 0 ? [{ ...this.#bounds(i), ...sums.figures() }] : []));
  }
}
