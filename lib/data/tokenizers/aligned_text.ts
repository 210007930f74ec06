// Text on its way through a tokenizer: every UTF-16 unit knows which stretch of the original text it stands for.

/** A piece of text and, per unit, the half-open stretch of the original it came from. */
export class AlignedText {
  /**
   * @param base where the piece begins in the original; without `starts` and `ends` it is the original's own text.
   */
  constructor(
    readonly text: string,
    readonly base: number,
    readonly starts: Int32Array | null = null,
    readonly ends: Int32Array | null = null,
  ) {}

  slice(begin: number, end: number): AlignedText {
    if (begin === 0 && end === this.text.length) return this;
    const text = this.text.slice(begin, end);
    if (this.starts === null || this.ends === null) return new AlignedText(text, this.base + begin);
    return new AlignedText(text, this.base, this.starts.subarray(begin, end), this.ends.subarray(begin, end));
  }

  startOf(unit: number): number {
    return this.starts === null ? this.base + unit : (this.starts[unit] as number);
  }

  endOf(unit: number): number {
    return this.ends === null ? this.base + unit + 1 : (this.ends[unit] as number);
  }

  /** The same places under another text of the same length. */
  withText(text: string): AlignedText {
    return new AlignedText(text, this.base, this.starts, this.ends);
  }
}

/** Writes an AlignedText from pieces of another. */
export class TextBuilder {
  #text = "";
  #starts: Int32Array;
  #ends: Int32Array;
  #length = 0;

  constructor(readonly from: AlignedText) {
    this.#starts = new Int32Array(from.text.length + 16);
    this.#ends = new Int32Array(from.text.length + 16);
  }

  #room(count: number): void {
    if (this.#length + count <= this.#starts.length) return;
    const grow = (old: Int32Array) => {
      const larger = new Int32Array(2 * (this.#length + count));
      larger.set(old);
      return larger;
    };
    this.#starts = grow(this.#starts);
    this.#ends = grow(this.#ends);
  }

  /** Units begin..end-1 of the source as they are. */
  keep(begin: number, end: number): void {
    this.#room(end - begin);
    for (let i = begin; i < end; i++) {
      this.#starts[this.#length] = this.from.startOf(i);
      this.#ends[this.#length++] = this.from.endOf(i);
    }
    this.#text += this.from.text.slice(begin, end);
  }

  /** Text that stands for units begin..end-1 of the source. */
  put(text: string, begin: number, end: number): void {
    this.#room(text.length);
    const start = this.from.startOf(begin);
    const stop = this.from.endOf(end - 1);
    this.#starts.fill(start, this.#length, this.#length + text.length);
    this.#ends.fill(stop, this.#length, this.#length + text.length);
    this.#length += text.length;
    this.#text += text;
  }

  done(): AlignedText {
    const { base } = this.from;
    return new AlignedText(
      this.#text,
      base,
      this.#starts.subarray(0, this.#length),
      this.#ends.subarray(0, this.#length),
    );
  }
}

/** The first unit of the character that ends before `end`. */
export function characterBefore(text: string, end: number): number {
  const low = text.charCodeAt(end - 1);
  const high = text.charCodeAt(end - 2);
  return low >= 0xdc00 && low <= 0xdfff && high >= 0xd800 && high <= 0xdbff ? end - 2 : end - 1;
}

/** Replaces characters one by one; `change` gives undefined for one that stays. */
export function mapCharacters(source: AlignedText, change: (character: string) => string | undefined): AlignedText {
  const { text } = source;
  let builder: TextBuilder | null = null;
  let kept = 0;
  let at = 0;
  for (const character of text) {
    const end = at + character.length;
    const other = change(character);
    if (other !== undefined && other !== character) {
      builder ??= new TextBuilder(source);
      builder.keep(kept, at);
      builder.put(other, at, end);
      kept = end;
    }
    at = end;
  }
  if (builder === null) return source;
  builder.keep(kept, text.length);
  return builder.done();
}
