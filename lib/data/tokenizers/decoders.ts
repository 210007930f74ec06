// Decoders: from tokens back to text, as Rust's tokenizers does it.

import { BYTE_CHARACTERS } from "./byte_level.js";
import { patternOf } from "./normalizers.js";

type Config = Record<string, unknown>;

/** Tokens to pieces of text, which are to be joined. */
type Step = (tokens: string[]) => string[];

/** Tokens to text. */
export type Decoder = (tokens: readonly string[]) => string;

const REPLACEMENT = "\ufffd";
const BYTE_OF = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

/** The bytes that a token of stand-in characters means; one with any other character means its own. */
function bytesOf(token: string): number[] | Buffer {
  const bytes = Array.from(token, (character) => BYTE_OF.get(character));
  return bytes.includes(undefined) ? Buffer.from(token, "utf8") : (bytes as number[]);
}

const byteLevel: Step = (tokens) => [Buffer.from(tokens.flatMap((token) => [...bytesOf(token)])).toString("utf8")];

/** Tokens such as <0xE5> as the bytes they name: runs of them are text where they are UTF-8. */
const byteFallback: Step = (tokens) => {
  const result: string[] = [];
  let bytes: number[] = [];
  const flush = (): void => {
    if (bytes.length === 0) return;
    try {
      result.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes)));
    } catch {
      for (const _ of bytes) result.push(REPLACEMENT);
    }
    bytes = [];
  };
  for (const token of tokens) {
    const [, hex] = /^<0x([0-9a-fA-F]{2})>$/.exec(token) ?? [];
    if (hex !== undefined) {
      bytes.push(Number.parseInt(hex, 16));
      continue;
    }
    flush();
    result.push(token);
  }
  flush();
  return result;
};

/** Spaces for the stand-in; of the first token they go, where one was put before the text. */
function metaspace({ replacement = "\u2581", prepend_scheme, add_prefix_space }: Config): Step {
  const scheme = prepend_scheme ?? (add_prefix_space === false ? "never" : "always");
  return (tokens) =>
    tokens.map((token, i) => token.replaceAll(replacement as string, i === 0 && scheme !== "never" ? "" : " "));
}

function strip({ content, start, stop }: Config): Step {
  return (tokens) =>
    tokens.map((token) => {
      const characters = Array.from(token);
      let begin = 0;
      let end = characters.length;
      while (begin < Math.min(start as number, characters.length) && characters[begin] === content) begin++;
      for (let i = 0; i < (stop as number) && end > begin && characters[end - 1] === content; i++) end--;
      return characters.slice(begin, end).join("");
    });
}

function replace({ pattern, content }: Config): Step {
  const { regex } = patternOf(pattern);
  return (tokens) => tokens.map((token) => token.replace(regex, () => content as string));
}

/** Spaces that English does not have before its punctuation. */
const cleanedUp = (text: string): string =>
  [".", "?", "!", ","]
    .reduce((cleaned, mark) => cleaned.replaceAll(` ${mark}`, mark), text)
    .replaceAll(" ' ", "'")
    .replaceAll(" n't", "n't")
    .replaceAll(" 'm", "'m")
    .replaceAll(" do not", " don't")
    .replaceAll(" 's", "'s")
    .replaceAll(" 've", "'ve")
    .replaceAll(" 're", "'re");

function wordPiece({ prefix = "##", cleanup = true }: Config): Step {
  const start = prefix as string;
  return (tokens) =>
    tokens.map((token, i) => {
      const text = i === 0 ? token : token.startsWith(start) ? token.slice(start.length) : ` ${token}`;
      return cleanup === true ? cleanedUp(text) : text;
    });
}

function bpe({ suffix = "</w>" }: Config): Step {
  return (tokens) => tokens.map((token, i) => token.replaceAll(suffix as string, i === tokens.length - 1 ? "" : " "));
}

function step(config: Config): Step {
  switch (config.type) {
    case "ByteLevel":
      return byteLevel;
    case "ByteFallback":
      return byteFallback;
    case "Metaspace":
      return metaspace(config);
    case "Fuse":
      return (tokens) => [tokens.join("")];
    case "Strip":
      return strip(config);
    case "Replace":
      return replace(config);
    case "WordPiece":
      return wordPiece(config);
    case "BPEDecoder":
      return bpe(config);
    case "Sequence": {
      const steps = (config.decoders as Config[]).map(step);
      return (tokens) => steps.reduce((made, one) => one(made), tokens);
    }
    default:
      throw new Error(`the decoder ${JSON.stringify(config.type)} is not known`);
  }
}

/** The decoder of a tokenizer.json; without one tokens are words. Throws for one that is not known. */
export function createDecoder(config: unknown): Decoder {
  if (config === null || config === undefined) return (tokens) => tokens.join(" ");
  const run = step(config as Config);
  return (tokens) => run([...tokens]).join("");
}
