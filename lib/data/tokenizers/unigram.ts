// The unigram model: the cut of a text whose tokens' scores add up to the most.

import { byteTokens } from "./bpe.js";
import { type Model, type ModelConfig, type Pieces, UnknownPieceError } from "./models.js";

/** How much worse than the worst token an unknown character scores. */
const UNKNOWN_PENALTY = 10;

export function createUnigram(config: ModelConfig): Model {
  const list = config.vocab as [string, number][];
  if (!Array.isArray(list)) throw new Error(`the model's "vocab" must be a list of tokens and scores`);
  const vocab = new Map<string, number>();
  const scores = new Float64Array(list.length);
  let least = Number.POSITIVE_INFINITY;
  list.forEach(([token, score], id) => {
    vocab.set(token, id);
    scores[id] = score;
    if (score < least) least = score;
  });
  const unknown = typeof config.unk_id === "number" ? config.unk_id : null;
  const unknownScore = least - UNKNOWN_PENALTY;
  // Tokens in the order of their units; those with a common beginning are neighbours, found by halving.
  const sorted = [...vocab.keys()].filter((token) => token !== "").sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  const sortedIds = Int32Array.from(sorted, (token) => vocab.get(token) as number);
  const groups = new Map<number, [number, number]>();
  sorted.forEach((token, i) => {
    const group = groups.get(token.charCodeAt(0));
    if (group === undefined) groups.set(token.charCodeAt(0), [i, i + 1]);
    else group[1] = i + 1;
  });
  /** The first of the tokens low..high-1 whose unit at `depth` is at least `unit`. */
  const bound = (low: number, high: number, depth: number, unit: number) => {
    let from = low;
    let to = high;
    while (from < to) {
      const middle = (from + to) >> 1;
      // Past the end of a token charCodeAt is NaN, which sorts first.
      if ((sorted[middle] as string).charCodeAt(depth) >= unit) to = middle;
      else from = middle + 1;
    }
    return from;
  };

  function encode(text: string): Pieces {
    const size = text.length;
    const best = new Float64Array(size + 1);
    const from = new Int32Array(size + 1).fill(-1);
    const chosen = new Int32Array(size + 1);
    const offer = (begin: number, end: number, id: number, score: number) => {
      const sum = score + (best[begin] as number);
      if (from[end] !== -1 && !(sum > (best[end] as number))) return;
      best[end] = sum;
      from[end] = begin;
      chosen[end] = id;
    };
    for (let begin = 0; begin < size; ) {
      const width = (text.codePointAt(begin) as number) > 0xffff ? 2 : 1;
      let hasSingle = false;
      let [low, high] = groups.get(text.charCodeAt(begin)) ?? [0, 0];
      for (let length = 1; low < high; length++) {
        if ((sorted[low] as string).length === length) {
          const id = sortedIds[low] as number;
          offer(begin, begin + length, id, scores[id] as number);
          if (length === width) hasSingle = true;
          low++;
        }
        if (begin + length >= size) break;
        const unit = text.charCodeAt(begin + length);
        low = bound(low, high, length, unit);
        high = bound(low, high, length, unit + 1);
      }
      if (!hasSingle) {
        if (unknown === null) throw new UnknownPieceError(text.slice(begin, begin + width));
        offer(begin, begin + width, unknown, unknownScore);
      }
      begin += width;
    }
    const places: [number, number][] = [];
    let fused = false;
    for (let end = size; end > 0; ) {
      const begin = from[end] as number;
      const isUnknown = chosen[end] === unknown;
      if (isUnknown && fused) (places[places.length - 1] as [number, number])[0] = begin;
      else places.push([begin, end]);
      fused = isUnknown;
      end = begin;
    }
    const out: Pieces = { ids: [], begins: [], ends: [] };
    for (const [begin, end] of places.reverse()) {
      const token = text.slice(begin, end);
      const id = vocab.get(token);
      const bytes = id === undefined && config.byte_fallback === true ? byteTokens(vocab, token) : null;
      for (const one of bytes ?? [id ?? unknown]) {
        if (one === null) throw new UnknownPieceError(token);
        out.ids.push(one);
        out.begins.push(begin);
        out.ends.push(end);
      }
    }
    return out;
  }
  return { vocab, encode };
}
