// Generation: tokens behind prompts, one by one, with the keys and values of all before kept.

import { ArgumentError } from "../errors.js";
import { argmax } from "../ops/index.js";
import type { KeyValueCache } from "../sequence/key_value_cache.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Integers } from "./batch.js";
import type { CausalLM } from "./decoder.js";
import { Sampler, type SamplingOptions } from "./sampler.js";

export interface GenerateOptions extends SamplingOptions {
  /** Most tokens that follow each prompt. Default 256. */
  readonly maxNewTokens?: number;
  /** Tokens that end a sequence. Default: none. */
  readonly stopIds?: Iterable<number>;
  /** Whether each token's log-probability is told; it costs a reading of all logits. Default false. */
  readonly logProbabilities?: boolean;
  /** Tokens of a prompt that are run at a time. Default 8192. */
  readonly promptTokens?: number;
  /** Ends it with its reason. */
  readonly signal?: AbortSignal;
  /** Called once, with what tells which sequences are to go no further. */
  readonly onStart?: (stop: (sequence: number) => void) => void;
}

/** A token that was chosen. */
export interface GeneratedToken {
  /** Which prompt it follows, from 0. */
  readonly sequence: number;
  readonly id: number;
  /** Natural log of its probability in the model's logits; null where it was not asked for. */
  readonly logProbability: number | null;
  /** Why it is its sequence's last: one of `stopIds` came, or `maxNewTokens` are there; null: others follow. */
  readonly finish: "stop" | "length" | null;
}

const isList = (value: unknown): boolean => Array.isArray(value) || ArrayBuffer.isView(value);

const isOne = (prompts: Integers | readonly Integers[]): prompts is Integers =>
  ArrayBuffer.isView(prompts) || (prompts.length > 0 && typeof prompts[0] !== "object");

/** A prompt's ids; whether the model has them is seen when it reads them. */
function idsOf(prompt: Integers, number: number): Int32Array {
  return Int32Array.from(prompt as Iterable<number | bigint>, (id, i) => {
    const value = typeof id === "number" || typeof id === "bigint" ? Number(id) : Number.NaN;
    if (Number.isInteger(value) && Math.abs(value) < 2 ** 31) return value;
    throw new ArgumentError(`generate: prompt ${number}, token ${i} is ${String(id)}, which is no token id`, {
      prompt: number,
      index: i,
      value: id,
    });
  });
}

/**
 * Tokens in the order in which they are chosen: of each sequence that goes on one, in their order. Breaking off gives
 * all memory back. Throws ArgumentError for options and prompts that make no sense, OutOfMemoryError, before the first
 * token, where the keys and values of all tokens do not fit.
 */
export async function* generate(
  model: CausalLM,
  given: Integers | readonly Integers[],
  options: GenerateOptions = {},
): AsyncGenerator<GeneratedToken, void, undefined> {
  if (typeof options !== "object" || options === null)
    throw new ArgumentError("generate: expected options of {maxNewTokens, ...}");
  if (!isList(given) || (!isOne(given) && !given.every(isList)))
    throw new ArgumentError("generate: expected the ids of a prompt, or a list of prompts");
  const { maxNewTokens = 256, promptTokens = 8192, logProbabilities = false, signal } = options;
  for (const [name, value] of Object.entries({ maxNewTokens, promptTokens }))
    if (!Number.isSafeInteger(value) || value < 1)
      throw new ArgumentError(`generate: ${name} is ${String(value)}, expected a whole number, 1 or more`);
  const prompts = (isOne(given) ? [given] : given).map(idsOf);
  if (prompts.length === 0) throw new ArgumentError("generate: there are no prompts");
  const empty = prompts.findIndex((prompt) => prompt.length === 0);
  if (empty >= 0) throw new ArgumentError(`generate: prompt ${empty} is empty; expected at least one token`);
  const longest = Math.max(...prompts.map((prompt) => prompt.length));
  const { learnedPositions, maxPositionEmbeddings, file } = model.config;
  const most = learnedPositions ? maxPositionEmbeddings : Number.POSITIVE_INFINITY;
  if (longest > most)
    throw new ArgumentError(`generate: a prompt has ${longest} tokens; ${file} has learned positions for ${most}`);
  const { stopIds: ends = [] } = options;
  if (typeof ends !== "object" || ends === null || !(Symbol.iterator in ends))
    throw new ArgumentError(`generate: stopIds is ${String(ends)}, expected a list of ids`);
  if (signal !== undefined && !(signal instanceof AbortSignal))
    throw new ArgumentError("generate: signal is no AbortSignal");
  const stopIds = new Set(ends);
  const samplers = prompts.map((prompt, i) => {
    const sampler = new Sampler(options, i);
    sampler.see(prompt);
    return sampler;
  });
  const plain = samplers[0]?.isPlain === true && !logProbabilities;

  const stopped = new Set<number>();
  options.onStart?.((sequence) => stopped.add(sequence));
  const capacity = Math.min(longest + maxNewTokens - 1, most);
  using cache = model.keyValueCache({ sequences: prompts.length, capacity });
  const run = new Run(model, cache, prompts);

  /** The next token of each of these sequences. */
  const choose = async (sequences: number[]): Promise<GeneratedToken[]> => {
    signal?.throwIfAborted();
    using logits = run.extend(sequences, promptTokens);
    const ids = plain ? await indicesOfLargest(logits) : null;
    const values = plain ? null : ((await logits.data()) as Float32Array);
    const columns = logits.shape[1] as number;
    return sequences.map((sequence, i) => {
      const { id, logProbability } = values
        ? (samplers[sequence] as Sampler).choose(values.slice(i * columns, (i + 1) * columns))
        : { id: ids?.[i] as number, logProbability: null };
      const { made, all } = run.add(sequence, id);
      const finish = stopIds.has(id) ? "stop" : made === maxNewTokens || all > most ? "length" : null;
      return { sequence, id, logProbability: logProbabilities ? logProbability : null, finish };
    });
  };

  // Prompts one by one, since each is read in pieces, and what follows them together.
  let going = prompts.map((_, sequence) => sequence);
  let groups = going.map((sequence) => [sequence]);
  while (groups.length > 0) {
    const next: number[] = [];
    for (const group of groups)
      for (const token of await choose(group)) {
        yield token;
        if (token.finish === null) next.push(token.sequence);
      }
    going = next.filter((sequence) => !stopped.has(sequence));
    const together = !model.positionsDependOnLength;
    groups = together && going.length > 0 ? [going] : going.map((sequence) => [sequence]);
  }
}

/** Of each row the index of its largest. */
async function indicesOfLargest(logits: Tensor): Promise<Int32Array> {
  using indices = argmax(logits);
  return (await indices.data()) as Int32Array;
}

/** The model, its cache, and all tokens so far. */
class Run {
  readonly #model: CausalLM;
  readonly #cache: KeyValueCache;
  readonly #prompts: readonly Int32Array[];
  readonly #made: number[][];

  constructor(model: CausalLM, cache: KeyValueCache, prompts: readonly Int32Array[]) {
    this.#model = model;
    this.#cache = cache;
    this.#prompts = prompts;
    this.#made = prompts.map(() => []);
  }

  /** Takes down a token: how many followed the prompt by now, and how many there are with it. */
  add(sequence: number, id: number): { made: number; all: number } {
    const made = (this.#made[sequence] as number[]).push(id);
    return { made, all: made + (this.#prompts[sequence] as Int32Array).length };
  }

  /** Tokens of a sequence from number `begin` on. */
  #from(sequence: number, begin: number): Int32Array {
    const [prompt, made] = [this.#prompts[sequence] as Int32Array, this.#made[sequence] as number[]];
    if (begin >= prompt.length) return Int32Array.from(made.slice(begin - prompt.length));
    const rest = prompt.subarray(begin);
    const all = new Int32Array(rest.length + made.length);
    all.set(rest);
    all.set(made, rest.length);
    return all;
  }

  /** Logits [sequences, V] behind all tokens; of those that are not in the cache so many are run at a time. */
  extend(sequences: number[], most: number): Tensor {
    const [first] = sequences as [number];
    const cache = this.#cache;
    if (this.#model.positionsDependOnLength) {
      // Where this length has other frequencies than the one before, all is made again, as a forward of it does.
      const before = cache.length(first);
      const { length } = this.#from(first, before);
      if (!this.#model.turnsAlike(before, before + length)) cache.truncate(first, 0);
      return this.#model.extend([this.#from(first, cache.length(first))], cache, sequences);
    }
    const rows = sequences.map((sequence) => this.#from(sequence, cache.length(sequence)));
    const [row] = rows as [Int32Array];
    const begin = rows.length > 1 ? 0 : Math.floor((row.length - 1) / most) * most;
    for (let at = 0; at < begin; at += most)
      this.#model.extend([row.subarray(at, at + most)], cache, sequences).dispose();
    return this.#model.extend(begin > 0 ? [row.subarray(begin)] : rows, cache, sequences);
  }
}
