// Text as its tokens come, one by one: what can no longer change, and the end of it at a stop string.

import type { TextTokenizer } from "../data/tokenizer.js";

/** A character whose bytes are not all there yet. */
const INCOMPLETE = "\ufffd";

/** The text of the tokens of one sequence. */
export class TextStream {
  readonly #tokenizer: Pick<TextTokenizer, "decode">;
  readonly #stops: readonly string[];
  readonly #ids: number[] = [];
  /** Tokens from `#read` on were not told yet; those from `#begin` on are decoded with them, since a decoder may look back. */
  #begin = 0;
  #read = 0;
  /** Text that may be the beginning of a stop string. */
  #held = "";
  #stopped = false;

  /** stops: the text ends before the first of them. */
  constructor(tokenizer: Pick<TextTokenizer, "decode">, stops: readonly string[] = []) {
    this.#tokenizer = tokenizer;
    this.#stops = stops.filter((stop) => stop !== "");
  }

  /** Whether a stop string came. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /**
   * The text of all tokens by now, up to a stop string. What was told is the same, but for bytes of no character: of a
   * run of them a decoder may take back what it made of the first ones.
   */
  get text(): string {
    const text = this.#decode(0);
    const found = this.#stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
    return this.#stopped ? text.slice(0, Math.min(text.length, ...found)) : text;
  }

  #decode(begin: number, end = this.#ids.length): string {
    return this.#tokenizer.decode(this.#ids.slice(begin, end), true);
  }

  /** Takes a token; what text is certain with it, which may be none. */
  push(id: number): string {
    if (this.#stopped) return "";
    this.#ids.push(id);
    const before = this.#decode(this.#begin, this.#read);
    const all = this.#decode(this.#begin);
    if (all.length <= before.length || all.endsWith(INCOMPLETE)) return "";
    this.#begin = this.#read;
    this.#read = this.#ids.length;
    return this.#tell(all.slice(before.length));
  }

  /** What is left when no token follows. */
  finish(): string {
    if (this.#stopped) return "";
    const rest = this.#decode(this.#begin).slice(this.#decode(this.#begin, this.#read).length);
    this.#begin = this.#read = this.#ids.length;
    const told = this.#tell(rest) + (this.#stopped ? "" : this.#held);
    this.#held = "";
    return told;
  }

  #tell(text: string): string {
    this.#held += text;
    const found = this.#stops.map((stop) => this.#held.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.#stopped = true;
      return this.#take(Math.min(...found));
    }
    // The longest end that a stop string begins with stays back.
    const most = Math.max(0, ...this.#stops.map((stop) => stop.length - 1));
    for (let length = Math.min(most, this.#held.length); length > 0; length--) {
      const end = this.#held.slice(this.#held.length - length);
      if (this.#stops.some((stop) => stop.startsWith(end))) return this.#take(this.#held.length - length);
    }
    return this.#take(this.#held.length);
  }

  #take(length: number): string {
    const told = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    return told;
  }
}
