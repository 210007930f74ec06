// The pre-tokenizers of tokenizer.json: a text cut into the pieces that the model sees.

import type { AlignedText } from "./aligned_text.js";
import { byteLevel } from "./byte_level.js";
import { patternOf, prepend } from "./normalizers.js";
import { classOf, escapeLiteral, patternText, RUST_WORD, SPACE, translatePattern } from "./patterns.js";
import { PUNCTUATION } from "./unicode_tables.js";

export type PreTokenizer = (text: AlignedText) => AlignedText[];
type Config = Record<string, unknown>;
/** Half-open units, and whether the pattern matched there. */
type Cut = [begin: number, end: number, isMatch: boolean];

const BEHAVIORS = ["isolated", "removed", "contiguous", "mergedwithprevious", "mergedwithnext"] as const;
type Behavior = (typeof BEHAVIORS)[number];

function cuts(text: string, regex: RegExp, invert: boolean): Cut[] {
  const list: Cut[] = [];
  let done = 0;
  for (const match of text.matchAll(regex)) {
    const end = match.index + match[0].length;
    if (match.index > done) list.push([done, match.index, invert]);
    list.push([match.index, end, !invert]);
    done = end;
  }
  if (done < text.length) list.push([done, text.length, invert]);
  return list;
}

function merged(list: Cut[], behavior: Behavior): Cut[] {
  if (behavior === "isolated") return list;
  if (behavior === "removed") return list.filter(([, , isMatch]) => !isMatch);
  const out: Cut[] = [];
  if (behavior === "mergedwithnext") {
    // From the end, as Rust goes: a match joins what stands behind it, unless that began with a match.
    let previous = false;
    for (const [begin, end, isMatch] of [...list].reverse()) {
      const last = out[out.length - 1];
      if (isMatch && !previous && last !== undefined) last[0] = begin;
      else out.push([begin, end, isMatch]);
      previous = isMatch;
    }
    return out.reverse();
  }
  let previous: boolean | null = behavior === "contiguous" ? null : false;
  for (const [begin, end, isMatch] of list) {
    const last = out[out.length - 1];
    const joins = behavior === "contiguous" ? isMatch === previous : isMatch && !previous;
    if (joins && last !== undefined) last[1] = end;
    else out.push([begin, end, isMatch]);
    previous = isMatch;
  }
  return out;
}

function split(regex: RegExp, behavior: Behavior, invert = false, isLiteral = false): PreTokenizer {
  return (source) => {
    const searched = isLiteral ? source.text : patternText(source.text);
    const pieces: AlignedText[] = [];
    for (const [begin, end] of merged(cuts(searched, regex, invert), behavior)) {
      if (end > begin) pieces.push(source.slice(begin, end));
    }
    return pieces;
  };
}

function behaviorOf(value: unknown): Behavior {
  const behavior = String(value ?? "isolated").toLowerCase() as Behavior;
  if (!BEHAVIORS.includes(behavior)) throw new Error(`the behavior ${JSON.stringify(value)} is not known`);
  return behavior;
}

const sequence =
  (...steps: PreTokenizer[]): PreTokenizer =>
  (text) =>
    steps.reduce(
      (pieces, step) => (pieces.length === 1 ? step(pieces[0] as AlignedText) : pieces.flatMap(step)),
      [text],
    );

const GPT2 = translatePattern(String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`);
const PUNCTUATION_CLASS = classOf(PUNCTUATION);

function metaspace(config: Config): PreTokenizer {
  const replacement = String(config.replacement ?? "▁");
  // Older files have add_prefix_space (and str_rep) in place of a scheme.
  const scheme = config.prepend_scheme ?? (config.add_prefix_space === false ? "never" : "always");
  if (scheme !== "always" && scheme !== "never" && scheme !== "first") {
    throw new Error(`Metaspace's prepend_scheme ${JSON.stringify(scheme)} is not known`);
  }
  const cut = split(new RegExp(escapeLiteral(replacement), "gv"), "mergedwithnext", false, true);
  return (source) => {
    let text = source.text.includes(" ") ? source.withText(source.text.replaceAll(" ", replacement)) : source;
    const wants = scheme === "always" || (scheme === "first" && source.text !== "" && source.startOf(0) === 0);
    if (wants && !text.text.startsWith(replacement)) text = prepend(text, replacement);
    return config.split === false ? [text] : cut(text);
  };
}

function fixedLength(length: number): PreTokenizer {
  return split(new RegExp(`[\\s\\S]{1,${length}}`, "gv"), "isolated", false, true);
}

/** Builds a pre-tokenizer. Throws an Error that names a type or option that is not known. */
export function createPreTokenizer(part: unknown): PreTokenizer {
  if (part === null || part === undefined) return (text) => [text];
  const config = part as Config;
  switch (config.type) {
    case "Sequence":
      return sequence(...(config.pretokenizers as unknown[]).map(createPreTokenizer));
    case "ByteLevel": {
      const cut = config.use_regex === false ? (text: AlignedText) => [text] : split(GPT2, "isolated");
      const prefix = config.add_prefix_space !== false;
      return (source) => {
        const text = prefix && !source.text.startsWith(" ") ? prepend(source, " ") : source;
        return cut(text).map(byteLevel);
      };
    }
    case "Whitespace":
      return split(new RegExp(`[${RUST_WORD}]+|[^${RUST_WORD}${SPACE}]+`, "gv"), "removed", true);
    case "WhitespaceSplit":
      return split(new RegExp(`[${SPACE}]`, "gv"), "removed");
    case "BertPreTokenizer":
      return sequence(
        split(new RegExp(`[${SPACE}]`, "gv"), "removed"),
        split(new RegExp(PUNCTUATION_CLASS, "gu"), "isolated", false, true),
      );
    case "Punctuation":
      return split(new RegExp(PUNCTUATION_CLASS, "gu"), behaviorOf(config.behavior), false, true);
    case "Digits":
      return split(/\p{N}/gu, config.individual_digits === true ? "isolated" : "contiguous");
    case "CharDelimiterSplit":
      return split(new RegExp(escapeLiteral(String(config.delimiter)), "gv"), "removed", false, true);
    case "Metaspace":
      return metaspace(config);
    case "FixedLength":
      return fixedLength(Number(config.length ?? 5));
    case "Split": {
      const { regex, isLiteral } = patternOf(config.pattern);
      return split(regex, behaviorOf(config.behavior), config.invert === true, isLiteral);
    }
    default:
      throw new Error(`the pre-tokenizer ${JSON.stringify(config.type)} is not known`);
  }
}
