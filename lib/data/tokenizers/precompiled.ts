// SentencePiece's precompiled character map: a double array of prefixes and the texts that replace them.

import { type AlignedText, TextBuilder } from "./aligned_text.js";

/** Looks up the shortest prefix of a piece that has a replacement, as Rust does; undefined where none has. */
function reader(base64: string): (piece: string) => string | undefined {
  const blob = Buffer.from(base64, "base64");
  if (blob.length < 4 || blob.readUInt32LE(0) > blob.length - 4) throw new Error("precompiled_charsmap is cut off");
  const size = blob.readUInt32LE(0);
  const units = new Uint32Array(size >>> 2);
  for (let i = 0; i < units.length; i++) units[i] = blob.readUInt32LE(4 + 4 * i);
  const texts = blob.subarray(4 + size);
  const offset = (unit: number) => (unit >>> 10) << ((unit & 0x200) >>> 6);
  return (piece) => {
    let node = offset(units[0] ?? 0);
    for (const byte of Buffer.from(piece, "utf8")) {
      if (byte === 0) return undefined;
      node ^= byte;
      const unit = units[node] ?? 0;
      if ((unit & 0x800000ff) >>> 0 !== byte) return undefined;
      node ^= offset(unit);
      if ((unit >>> 8) & 1) {
        const begin = (units[node] ?? 0) & 0x7fffffff;
        const end = texts.indexOf(0, begin);
        return texts.subarray(begin, end < 0 ? texts.length : end).toString("utf8");
      }
    }
    return undefined;
  };
}

const segmenter = new Intl.Segmenter("und", { granularity: "grapheme" });

/** Where the grapheme that begins at `at` ends, for a text whose stretches beyond ASCII are segmented on demand. */
function* graphemes(text: string): Generator<string> {
  const ascii = (i: number) => text.charCodeAt(i) < 0x80;
  let at = 0;
  while (at < text.length) {
    let end = at + 1;
    if (!ascii(at) || (end < text.length && (!ascii(end) || text[at] === "\r"))) {
      while (end < text.length && !(ascii(end - 1) && ascii(end) && text[end - 1] !== "\r")) end++;
      for (const { segment } of segmenter.segment(text.slice(at, end))) yield segment;
    } else {
      yield text[at] as string;
    }
    at = end;
  }
}

export function precompiled(base64: string): (source: AlignedText) => AlignedText {
  const lookUp = reader(base64);
  const known = new Map<string, string | undefined>();
  const replacement = (piece: string) => {
    if (!known.has(piece)) {
      if (known.size > 100_000) known.clear();
      known.set(piece, lookUp(piece));
    }
    return known.get(piece);
  };
  return (source) => {
    const { text } = source;
    let builder: TextBuilder | null = null;
    let kept = 0;
    let at = 0;
    const change = (piece: string, from: number, to: string) => {
      if (to === piece) return;
      builder ??= new TextBuilder(source);
      builder.keep(kept, from);
      // Character by character; what is more stands at the last.
      const old = Array.from(piece);
      let place = from;
      Array.from(to).forEach((c, i) => {
        const width = (old[Math.min(i, old.length - 1)] as string).length;
        if (i > 0 && i < old.length) place += (old[i - 1] as string).length;
        builder?.put(c, place, place + width);
      });
      kept = from + piece.length;
    };
    for (const grapheme of graphemes(text)) {
      const whole = Buffer.byteLength(grapheme, "utf8") < 6 ? replacement(grapheme) : undefined;
      if (whole !== undefined) {
        change(grapheme, at, whole);
      } else {
        let place = at;
        for (const c of grapheme) {
          const one = replacement(c);
          if (one !== undefined) change(c, place, one);
          place += c.length;
        }
      }
      at += grapheme.length;
    }
    if (builder === null) return source;
    const written = builder as TextBuilder;
    written.keep(kept, text.length);
    return written.done();
  };
}
