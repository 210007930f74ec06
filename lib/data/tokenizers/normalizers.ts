// The normalizers of tokenizer.json, as Rust's tokenizers library computes them.

import { type AlignedText, characterBefore, mapCharacters, TextBuilder } from "./aligned_text.js";
import { byteLevel } from "./byte_level.js";
import { classOf, escapeLiteral, patternText, SPACE, translatePattern } from "./patterns.js";
import { precompiled } from "./precompiled.js";
import { BERT_CONTROLS, BERT_MARKS, DECOMPOSED, MARKS } from "./unicode_tables.js";

export type Normalizer = (text: AlignedText) => AlignedText;
type Config = Record<string, unknown>;

/** The pattern of a Replace or Split: a regular expression, or a literal. */
export function patternOf(value: unknown): { regex: RegExp; isLiteral: boolean } {
  const { String: literal, Regex: regex } = (value ?? {}) as { String?: unknown; Regex?: unknown };
  if (typeof regex === "string") return { regex: translatePattern(regex), isLiteral: false };
  if (typeof literal === "string") return { regex: new RegExp(escapeLiteral(literal), "gv"), isLiteral: true };
  if (typeof value === "string") return { regex: new RegExp(escapeLiteral(value), "gv"), isLiteral: true };
  throw new Error(`a pattern must hold String or Regex, not ${JSON.stringify(value)}`);
}

function replace(config: Config): Normalizer {
  const { regex, isLiteral } = patternOf(config.pattern);
  const content = String(config.content ?? "");
  return (source) => {
    const { text } = source;
    const searched = isLiteral ? text : patternText(text);
    let builder: TextBuilder | null = null;
    let kept = 0;
    for (const match of searched.matchAll(regex)) {
      const end = match.index + match[0].length;
      builder ??= new TextBuilder(source);
      builder.keep(kept, match.index);
      // What replaces several characters stands, in Rust, at the last of them.
      if (end > 0) builder.put(content, characterBefore(text, Math.max(end, 1)), Math.max(end, 1));
      kept = end;
    }
    if (builder === null) return source;
    builder.keep(kept, text.length);
    return builder.done();
  };
}

export function prepend(source: AlignedText, content: string): AlignedText {
  const { text } = source;
  if (text === "") return source;
  const builder = new TextBuilder(source);
  builder.put(content, 0, (text.codePointAt(0) as number) > 0xffff ? 2 : 1);
  builder.keep(0, text.length);
  return builder.done();
}

const setOf = (table: string) => new RegExp(`^${classOf(table)}$`, "u");
const mark = setOf(MARKS);
const decomposed = setOf(DECOMPOSED);
const bertMark = setOf(BERT_MARKS);
const bertControl = setOf(BERT_CONTROLS);
const space = new RegExp(`^${SPACE}$`, "u");

/** How a character takes part in normalisation: alone, together with what stands before it, or (newer than what Rust
 * knows) not at all. */
type Role = "begins" | "continues" | "frozen";
const roles = new Map<string, Role>();
function roleOf(c: string): Role {
  let role = roles.get(c);
  if (role === undefined) {
    const parts = c.normalize("NFKD");
    const isMark = /^\p{M}/u.test(parts);
    if (parts !== c && !decomposed.test(c)) role = "frozen";
    else if (/^\p{M}$/u.test(c) && !mark.test(c)) role = "frozen";
    // Vowels and final consonants of Hangul join the syllable before them.
    else role = isMark || /^[\u1160-\u11ff]/.test(parts) ? "continues" : "begins";
    roles.set(c, role);
  }
  return role;
}

function unicode(form: string): Normalizer {
  return (source) => {
    const { text } = source;
    if (text.normalize(form) === text) return source;
    const builder = new TextBuilder(source);
    let begin = 0;
    let at = 0;
    const flush = () => {
      if (at === begin) return;
      const cluster = text.slice(begin, at);
      const normal = cluster.normalize(form);
      if (normal === cluster) builder.keep(begin, at);
      else builder.put(normal, begin, at);
      begin = at;
    };
    let wasFrozen = false;
    for (const c of text) {
      const role = (c.codePointAt(0) as number) < 0x300 ? "begins" : roleOf(c);
      if (role !== "continues" || wasFrozen) flush();
      at += c.length;
      wasFrozen = role === "frozen";
      if (wasFrozen) {
        builder.keep(begin, at);
        begin = at;
      }
    }
    flush();
    return builder.done();
  };
}

const lowercase: Normalizer = (source) => mapCharacters(source, (c) => c.toLowerCase());

function strip(left: boolean, right: boolean): Normalizer {
  return (source) => {
    const { text } = source;
    let begin = 0;
    let end = text.length;
    while (left && begin < end && space.test(text[begin] as string)) begin++;
    while (right && end > begin && space.test(text[end - 1] as string)) end--;
    return source.slice(begin, end);
  };
}

const nmt: Normalizer = (source) =>
  mapCharacters(source, (c) => {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it is about
    if (/^[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]$/.test(c)) return "";
    return /^[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]$/.test(c) ? " " : undefined;
  });

const CHINESE =
  /^[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]$/u;

function bert(config: Config): Normalizer {
  const steps: Normalizer[] = [];
  const lower = config.lowercase !== false;
  if (config.clean_text !== false) {
    steps.push((source) =>
      mapCharacters(source, (c) => {
        if (c === "\0" || c === "\ufffd" || bertControl.test(c)) return "";
        return space.test(c) ? " " : undefined;
      }),
    );
  }
  if (config.handle_chinese_chars !== false) {
    steps.push((source) => mapCharacters(source, (c) => (CHINESE.test(c) ? ` ${c} ` : undefined)));
  }
  if (config.strip_accents ?? lower) {
    const nfd = unicode("NFD");
    steps.push((source) => mapCharacters(nfd(source), (c) => (isBertMark(c) ? "" : undefined)));
  }
  if (lower) steps.push(lowercase);
  return (source) => steps.reduce((text, step) => step(text), source);
}

/** Marks that have a decomposition are not in the table: each is a sequence of marks that are. */
function isBertMark(c: string): boolean {
  return (c.codePointAt(0) as number) >= 0x300 && bertMark.test(c);
}

/** Builds a normalizer. Throws an Error that names a type or option that is not known. */
export function createNormalizer(part: unknown): Normalizer {
  if (part === null || part === undefined) return (text) => text;
  const config = part as Config;
  switch (config.type) {
    case "Sequence": {
      const steps = (config.normalizers as unknown[]).map(createNormalizer);
      return (source) => steps.reduce((text, step) => step(text), source);
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD":
      return unicode(config.type);
    case "Lowercase":
      return lowercase;
    case "Strip":
      return strip(config.strip_left !== false, config.strip_right !== false);
    case "StripAccents":
      return (source) => mapCharacters(source, (c) => (c >= "\u0300" && mark.test(c) ? "" : undefined));
    case "Nmt":
      return nmt;
    case "BertNormalizer":
      return bert(config);
    case "Replace":
      return replace(config);
    case "Prepend":
      return (source) => prepend(source, String(config.prepend ?? ""));
    case "ByteLevel":
      return byteLevel;
    case "Precompiled":
      return precompiled(String(config.precompiled_charsmap ?? ""));
    default:
      throw new Error(`the normalizer ${JSON.stringify(config.type)} is not known`);
  }
}
