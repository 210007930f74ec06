// The counter-based generator behind every random choice about data: Philox4x32-10, and a permutation made from it.

import { ArgumentError } from "../errors.js";

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** The high 32 bits of the 64-bit product of two unsigned 32-bit integers. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const low = aLow * bLow;
  const middle = aHigh * bLow + (low >>> 16);
  const cross = aLow * bHigh + (middle % 0x10000);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(cross / 0x10000)) >>> 0;
}

/**
 * Philox4x32 with ten rounds (Salmon et al., SC'11). `counter` holds four and `key` two unsigned 32-bit words;
 * `out` receives four.
 */
export function philox4x32(counter: Uint32Array, key: Uint32Array, out: Uint32Array): void {
  let c0 = counter[0] as number;
  let c1 = counter[1] as number;
  let c2 = counter[2] as number;
  let c3 = counter[3] as number;
  let k0 = key[0] as number;
  let k1 = key[1] as number;
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(M0, c0);
    const low0 = Math.imul(M0, c0) >>> 0;
    const high1 = multiplyHigh(M1, c2);
    const low1 = Math.imul(M1, c2) >>> 0;
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/** A stream of unsigned 32-bit words that depends on (seed, stream) alone. */
export class CounterRandom {
  readonly #counter: Uint32Array;
  readonly #key: Uint32Array;
  readonly #words = new Uint32Array(4);
  #next = 4;

  /** `seed` and `stream` are safe integers from 0; others are an ArgumentError. */
  constructor(seed: number, stream: number) {
    for (const [name, value] of [
      ["seed", seed],
      ["stream", stream],
    ] as const) {
      if (!Number.isSafeInteger(value) || value < 0) {
        throw new ArgumentError(`${name} must be an integer from 0 to 2^53 - 1, not ${value}`);
      }
    }
    const high = (value: number) => Math.floor(value / 0x100000000);
    this.#key = Uint32Array.of(seed >>> 0, high(seed));
    this.#counter = Uint32Array.of(0, 0, stream >>> 0, high(stream));
  }

  /** The next word, uniform over 0..2^32-1. */
  word(): number {
    if (this.#next === 4) {
      philox4x32(this.#counter, this.#key, this.#words);
      this.#counter[0] = ((this.#counter[0] as number) + 1) >>> 0;
      if (this.#counter[0] === 0) this.#counter[1] = ((this.#counter[1] as number) + 1) >>> 0;
      this.#next = 0;
    }
    return this.#words[this.#next++] as number;
  }

  /** An integer uniform over 0..bound-1 without bias (Lemire's rejection); `bound` from 1 to 2^32 - 1. */
  below(bound: number): number {
    const threshold = (0x100000000 - bound) % bound;
    for (;;) {
      const word = this.word();
      if (Math.imul(word, bound) >>> 0 >= threshold) return multiplyHigh(word, bound);
    }
  }
}

/** A permutation of 0..count-1 (Fisher-Yates), a pure function of its arguments. */
export function permutation(count: number, seed: number, stream: number): Uint32Array {
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[i] = i;
  const random = new CounterRandom(seed, stream);
  for (let i = count - 1; i > 0; i--) {
    const j = random.below(i + 1);
    const kept = order[i] as number;
    order[i] = order[j] as number;
    order[j] = kept;
  }
  return order;
}
