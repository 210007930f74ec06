// Byte-pair encoding: characters merged by rank, the lowest first and of equal ones the leftmost.

import { type Model, type ModelConfig, type Pieces, UnknownPieceError, vocabOf } from "./models.js";

/** Words up to this many units are remembered, this many of them. */
const CACHED_UNITS = 48;
const CACHED_WORDS = 200_000;

const byteToken = (byte: number) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;

/** The tokens of a text's bytes; null where one of them has none. */
export function byteTokens(vocab: ReadonlyMap<string, number>, text: string): number[] | null {
  const ids: number[] = [];
  for (const byte of Buffer.from(text, "utf8")) {
    const id = vocab.get(byteToken(byte));
    if (id === undefined) return null;
    ids.push(id);
  }
  return ids;
}

/** A heap of numbers, the least on top. */
class Heap {
  readonly #items: number[] = [];

  push(item: number): void {
    const items = this.#items;
    let at = items.length;
    items.push(item);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if ((items[parent] as number) <= item) break;
      items[at] = items[parent] as number;
      at = parent;
    }
    items[at] = item;
  }

  pop(): number | undefined {
    const items = this.#items;
    const top = items[0];
    const last = items.pop();
    if (last === undefined || items.length === 0) return top;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && (items[child + 1] as number) < (items[child] as number)) child++;
      if ((items[child] as number) >= last) break;
      items[at] = items[child] as number;
      at = child;
    }
    items[at] = last;
    return top;
  }
}

const PAIR = 2 ** 26;
const PLACE = 2 ** 31;

export function createBpe(config: ModelConfig): Model {
  const vocab = vocabOf(config);
  if (typeof config.dropout === "number" && config.dropout > 0) {
    throw new Error(`the model's dropout ${config.dropout} makes ids random; set it to null`);
  }
  const prefix = String(config.continuing_subword_prefix ?? "");
  const suffix = String(config.end_of_word_suffix ?? "");
  const unknownToken = config.unk_token;
  const unknown = typeof unknownToken === "string" ? vocab.get(unknownToken) : undefined;
  const fuse = config.fuse_unk === true;
  const fallback = config.byte_fallback === true;
  const ignoreMerges = config.ignore_merges === true;

  /** Rank of a pair of ids, and what each rank makes. */
  const ranks = new Map<number, number>();
  const list = (config.merges ?? []) as (string | [string, string])[];
  const made = new Int32Array(list.length);
  list.forEach((entry, rank) => {
    const [a = "", b = ""] = typeof entry === "string" ? entry.split(" ") : entry;
    const left = vocab.get(a);
    const right = vocab.get(b);
    const both = vocab.get(a + b.slice(prefix.length));
    if (left === undefined || right === undefined || both === undefined) {
      throw new Error(`merge ${rank}, ${JSON.stringify(entry)}, uses a token that the vocabulary does not have`);
    }
    ranks.set(left * PAIR + right, rank);
    made[rank] = both;
  });

  /** The symbols a word begins with. */
  function symbols(word: string): Pieces {
    const out: Pieces = { ids: [], begins: [], ends: [] };
    const add = (id: number, begin: number, end: number) => {
      out.ids.push(id);
      out.begins.push(begin);
      out.ends.push(end);
    };
    // An unknown stretch is written when a known symbol follows; byte tokens, as in Rust, do not end it.
    let waiting: [number, number] | null = null;
    let at = 0;
    for (const character of word) {
      const end = at + character.length;
      let symbol = character;
      if (at > 0) symbol = prefix + symbol;
      if (end === word.length) symbol += suffix;
      const id = vocab.get(symbol);
      const bytes = id === undefined && fallback ? byteTokens(vocab, symbol) : null;
      if (id !== undefined) {
        if (waiting !== null) add(unknown as number, waiting[0], waiting[1]);
        waiting = null;
        add(id, at, end);
      } else if (bytes !== null) {
        for (const byte of bytes) add(byte, at, end);
      } else if (unknown === undefined) {
        throw new UnknownPieceError(character);
      } else if (waiting !== null && fuse) {
        waiting[1] = end;
      } else {
        if (waiting !== null) add(unknown, waiting[0], waiting[1]);
        waiting = [at, end];
      }
      at = end;
    }
    if (waiting !== null) add(unknown as number, waiting[0], waiting[1]);
    return out;
  }

  function merge({ ids, begins, ends }: Pieces): Pieces {
    const count = ids.length;
    const heap = new Heap();
    const next = new Int32Array(count);
    const previous = new Int32Array(count);
    const offer = (left: number, right: number) => {
      const rank = ranks.get((ids[left] as number) * PAIR + (ids[right] as number));
      if (rank !== undefined) heap.push(rank * PLACE + left);
    };
    for (let i = 0; i < count; i++) {
      next[i] = i + 1 < count ? i + 1 : -1;
      previous[i] = i - 1;
      if (i + 1 < count) offer(i, i + 1);
    }
    for (let top = heap.pop(); top !== undefined; top = heap.pop()) {
      const left = top % PLACE;
      const right = next[left] as number;
      if (ids[left] === -1 || right === -1) continue;
      // The pair may have changed since; it still counts if it makes the same token.
      const target = made[Math.floor(top / PLACE)] as number;
      const rank = ranks.get((ids[left] as number) * PAIR + (ids[right] as number));
      if (rank === undefined || made[rank] !== target) continue;
      ids[left] = target;
      ends[left] = ends[right] as number;
      ids[right] = -1;
      const after = next[right] as number;
      next[left] = after;
      if (after !== -1) previous[after] = left;
      const before = previous[left] as number;
      if (before !== -1) offer(before, left);
      if (after !== -1) offer(left, after);
    }
    const out: Pieces = { ids: [], begins: [], ends: [] };
    for (let i = 0; i < count; i++) {
      if (ids[i] === -1) continue;
      out.ids.push(ids[i] as number);
      out.begins.push(begins[i] as number);
      out.ends.push(ends[i] as number);
    }
    return out;
  }

  function encode(word: string): Pieces {
    const whole = ignoreMerges ? vocab.get(word) : undefined;
    if (whole !== undefined) return { ids: [whole], begins: [0], ends: [word.length] };
    const first = symbols(word);
    return first.ids.length < 2 ? first : merge(first);
  }

  const cache = new Map<string, Pieces>();
  return {
    vocab,
    encode(word) {
      if (word.length > CACHED_UNITS) return encode(word);
      let pieces = cache.get(word);
      if (pieces === undefined) {
        pieces = encode(word);
        if (cache.size >= CACHED_WORDS) cache.clear();
        cache.set(word, pieces);
      }
      return pieces;
    },
  };
}
