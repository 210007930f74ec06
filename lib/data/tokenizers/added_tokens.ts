// Tokens added to a vocabulary: found in the text before and after it is normalised, as Rust's tokenizers finds them.

import type { AlignedText } from "./aligned_text.js";
import type { Normalizer } from "./normalizers.js";
import { patternText, RUST_WORD, SPACE } from "./patterns.js";

export interface AddedToken {
  content: string;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
  special: boolean;
}

/** A stretch of text: an added token, or what the rest of the tokenizer has to read. */
export interface Stretch {
  text: AlignedText;
  id: number | null;
}

interface Node {
  next: Map<number, Node> | null;
  id: number;
}

/** Finds the leftmost of some strings, of those that begin there the longest; of equal ones, where Rust takes either, the last. */
class Finder {
  readonly #first: (Node | undefined)[] = [];
  isEmpty = true;

  add(content: string, id: number): void {
    if (content === "") return;
    this.isEmpty = false;
    this.#first[content.charCodeAt(0)] ??= { next: null, id: -1 };
    let node = this.#first[content.charCodeAt(0)] as Node;
    for (let i = 1; i < content.length; i++) {
      node.next ??= new Map();
      let child = node.next.get(content.charCodeAt(i));
      if (child === undefined) {
        child = { next: null, id: -1 };
        node.next.set(content.charCodeAt(i), child);
      }
      node = child;
    }
    node.id = id;
  }

  *find(text: string): Generator<[begin: number, end: number, id: number]> {
    for (let at = 0; at < text.length; at++) {
      let node = this.#first[text.charCodeAt(at)];
      let id = -1;
      let end = at;
      for (let i = at + 1; node !== undefined; i++) {
        if (node.id !== -1) {
          id = node.id;
          end = i;
        }
        node = node.next?.get(text.charCodeAt(i));
      }
      if (id === -1) continue;
      yield [at, end, id];
      at = end - 1;
    }
  }
}

const startsWithWord = new RegExp(`^[${RUST_WORD}]`, "u");
const endsWithWord = new RegExp(`[${RUST_WORD}]$`, "u");
const space = new RegExp(SPACE, "u");

/** Whether the characters beside a match are no part of a word. */
function standsAlone(text: string, begin: number, end: number): boolean {
  const before = patternText(text.slice(Math.max(0, begin - 2), begin));
  return !endsWithWord.test(before) && !startsWithWord.test(patternText(text.slice(end, end + 2)));
}

export class AddedTokens {
  /** Ids by content, and the newest description of each id. */
  readonly ids = new Map<string, number>();
  readonly byId = new Map<number, AddedToken>();
  readonly #special = new Map<string, AddedToken>();
  readonly #plain: AddedToken[] = [];
  readonly #raw = new Finder();
  readonly #normal = new Finder();
  #split = false;

  /** @param vocab ids of the model's own tokens. */
  constructor(readonly vocab: ReadonlyMap<string, number>) {}

  /** Adds one, under the id it has or, if it has none, `id`. */
  add(token: AddedToken, id: number): void {
    if (token.content === "") return;
    if (token.special && !this.#special.has(token.content)) this.#special.set(token.content, token);
    const known = this.ids.get(token.content) ?? this.vocab.get(token.content) ?? id;
    this.ids.set(token.content, known);
    this.byId.set(known, token);
    if (!this.#special.has(token.content)) this.#plain.push(token);
  }

  isSpecial(content: string): boolean {
    return this.#special.has(content);
  }

  get specials(): string[] {
    return [...this.#special.keys()];
  }

  /**
   * Makes ready to search.
   * @param split whether special tokens in a text are plain text (split_special_tokens).
   */
  finish(normalizer: (content: string) => string, split: boolean): void {
    this.#split = split;
    for (const token of [...this.#special.values(), ...this.#plain]) {
      const id = this.ids.get(token.content) as number;
      if (token.normalized) this.#normal.add(normalizer(token.content), id);
      else this.#raw.add(token.content, id);
    }
  }

  *#cut(source: AlignedText, finder: Finder): Generator<Stretch> {
    const { text } = source;
    if (finder.isEmpty) {
      yield { text: source, id: null };
      return;
    }
    let done = 0;
    for (const [from, to, id] of finder.find(text)) {
      const token = this.byId.get(id) as AddedToken;
      let begin = from;
      let end = to;
      if (this.#split && this.#special.has(token.content)) continue;
      if (token.single_word && !standsAlone(text, begin, end)) continue;
      if (token.lstrip) {
        while (begin > 0 && space.test(text[begin - 1] as string)) begin--;
        begin = Math.max(begin, done);
      }
      if (token.rstrip) while (end < text.length && space.test(text[end] as string)) end++;
      // The white space of the token before reached over this one: Rust has nothing left of it, or panics.
      if (begin >= end) continue;
      if (done < begin) yield { text: source.slice(done, begin), id: null };
      yield { text: source.slice(begin, end), id };
      done = end;
    }
    if (done < text.length) yield { text: source.slice(done, text.length), id: null };
  }

  /** The text in stretches: tokens that are matched as they stand first, the others in what is left, normalised. */
  *split(source: AlignedText, normalize: Normalizer): Generator<Stretch> {
    for (const stretch of this.#cut(source, this.#raw)) {
      if (stretch.id !== null) yield stretch;
      else yield* this.#cut(normalize(stretch.text), this.#normal);
    }
  }
}
