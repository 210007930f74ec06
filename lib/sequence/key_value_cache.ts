// Keys and values of the tokens of some sequences, layer by layer, so that tokens behind them attend to them without
// making them again: what generation adds to a forward.

import { ArgumentError } from "../errors.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { Tensor } from "../tensor/tensor.js";

export interface CacheSizes {
  /** Layers of the model. */
  readonly layers: number;
  /** K */
  readonly kvHeads: number;
  /** D */
  readonly headDim: number;
  readonly sequences: number;
  /** The most tokens of a sequence. */
  readonly capacity: number;
  readonly device: Device;
  readonly dtype: DType;
}

/** New tokens of one sequence among the rows of a forward. */
export interface CacheSpan {
  readonly sequence: number;
  /** The first of its rows, and how many there are. */
  readonly row: number;
  readonly rows: number;
  /** How many tokens the sequence had. */
  readonly begin: number;
}

/** What attention of one layer reads and adds to. */
export interface LayerCache {
  /** [sequences * capacity, K D], each sequence's tokens from sequence * capacity on. */
  readonly k: Tensor;
  readonly v: Tensor;
  readonly capacity: number;
  readonly spans: readonly CacheSpan[];
}

/** A forward's view of the cache. */
export interface CachedTokens {
  readonly spans: readonly CacheSpan[];
  layer(layer: number): LayerCache;
}

/** Each costs some bytes of this process. */
const MOST_SEQUENCES = 1_000_000;

export class KeyValueCache {
  readonly capacity: number;
  readonly #layers: { k: Tensor; v: Tensor }[] = [];
  readonly #lengths: number[];
  readonly #sizes: string;
  #disposed = false;

  /** All its memory is taken here. OutOfMemoryError where there is too little. */
  constructor({ layers, kvHeads, headDim, sequences, capacity, device, dtype }: CacheSizes) {
    for (const [name, value] of Object.entries({ sequences, capacity }))
      if (!Number.isSafeInteger(value) || value < 1)
        throw new ArgumentError(`KeyValueCache: ${name} is ${value}, expected a whole number, 1 or more`);
    if (sequences > MOST_SEQUENCES)
      throw new ArgumentError(`KeyValueCache: sequences is ${sequences}, expected at most ${MOST_SEQUENCES}`);
    this.capacity = capacity;
    this.#sizes = `${layers} layers of ${kvHeads} x ${headDim} values in ${dtype} on ${device.name}`;
    this.#lengths = new Array(sequences).fill(0);
    const make = (): Tensor => Tensor.empty([sequences * capacity, kvHeads * headDim], { device, dtype }).keep();
    try {
      for (let i = 0; i < layers; i++) {
        const layer = { k: make(), v: undefined as unknown as Tensor };
        this.#layers.push(layer);
        layer.v = make();
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Throws ArgumentError for a cache that was made for another model, or given back. */
  require(sizes: Pick<CacheSizes, "layers" | "kvHeads" | "headDim" | "dtype" | "device">): void {
    if (this.#disposed) throw new ArgumentError("extend: the key/value cache was disposed of");
    const { layers, kvHeads, headDim, dtype, device } = sizes;
    const wanted = `${layers} layers of ${kvHeads} x ${headDim} values in ${dtype} on ${device.name}`;
    if (wanted !== this.#sizes)
      throw new ArgumentError(
        `extend: the cache is for ${this.#sizes}, the model has ${wanted}; use its keyValueCache()`,
      );
  }

  /** Tokens that a sequence has. */
  length(sequence: number): number {
    return this.#lengths[sequence] ?? 0;
  }

  /** Forgets a sequence's tokens from number `length` on. */
  truncate(sequence: number, length: number): void {
    if (!Number.isSafeInteger(length) || length < 0 || this.#lengths[sequence] === undefined)
      throw new ArgumentError(
        `truncate: expected a sequence from 0 to ${this.#lengths.length - 1} and a length, 0 or more; got ${sequence}, ${length}`,
      );
    this.#lengths[sequence] = Math.min(length, this.length(sequence));
  }

  /** Runs `fn`, which adds `rows[i]` tokens to sequence `sequences[i]`; they count when it returns. */
  extend<T>(sequences: readonly number[], rows: readonly number[], fn: (tokens: CachedTokens) => T): T {
    let row = 0;
    const spans = sequences.map((sequence, i) => {
      const begin = this.#lengths[sequence];
      const count = rows[i] as number;
      if (begin === undefined || sequences.indexOf(sequence) !== i)
        throw new ArgumentError(
          `the cache has sequences 0 to ${this.#lengths.length - 1}, each at most once a call; got ${sequences.join(", ")}`,
        );
      if (begin + count > this.capacity)
        throw new ArgumentError(
          `sequence ${sequence} has ${begin} tokens; ${count} more exceed the ${this.capacity} that the cache was made for`,
        );
      const span = { sequence, row, rows: count, begin };
      row += count;
      return span;
    });
    const { capacity } = this;
    const layer = (i: number): LayerCache => ({ ...(this.#layers[i] as { k: Tensor; v: Tensor }), capacity, spans });
    const result = fn({ spans, layer });
    for (const { sequence, begin, rows: count } of spans) this.#lengths[sequence] = begin + count;
    return result;
  }

  dispose(): void {
    this.#disposed = true;
    for (const { k, v } of this.#layers) {
      k.dispose();
      v?.dispose();
    }
    this.#layers.length = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
