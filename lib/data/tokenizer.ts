// Tokenizers: a Hugging Face tokenizer.json with the files beside it, and the built-in byte tokenizer.

import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { ConfigError, DataError, FormatError, IoError } from "../errors.js";

/** Which tokenizer, in a form that crosses to worker threads. */
export type TokenizerSpec = { kind: "bytes" } | { kind: "json"; file: string };

/** A half-open stretch of a text, in UTF-16 code units. */
export type Span = [begin: number, end: number];

/** Text in, token ids out. */
export interface TextTokenizer {
  readonly kind: "bytes" | "json";
  /** One more than the largest id it can give. */
  readonly vocabSize: number;
  /** Strings of the special tokens, as a chat template sees them; null where there is none. */
  readonly bosToken: string | null;
  readonly eosToken: string | null;
  readonly padToken: string | null;
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  /** Strings that end a turn: eos_token, every eos_token_id of generation_config.json and config.json, and special
   * tokens whose name says so (<|im_end|>, <|eot_id|>, <end_of_turn>). */
  readonly endStrings: readonly string[];
  /** Special tokens that the tokenizer itself puts before and after a text. */
  readonly prefixIds: readonly number[];
  readonly suffixIds: readonly number[];
  /** The strings of all its special tokens. */
  readonly specialStrings: readonly string[];
  /** Every special token by name (bos_token, eos_token, ...), for chat templates. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /** The chat template that came with it; null where none did. */
  readonly chatTemplate: string | null;
  /** Whether this id is a special token (one that a decoder may skip). */
  isSpecial(id: number): boolean;
  /** The ids of a text alone: no special tokens are added. */
  encode(text: string): Int32Array;
  /** As `encode`, and which tokens hold at least one character of one of the spans (ascending, not overlapping). */
  encodeSpans(text: string, spans: readonly Span[]): { ids: Int32Array; inside: Uint8Array };
  /** A readable form of one token. */
  piece(id: number): string;
}

export const BYTE_BOS = 256;
export const BYTE_EOS = 257;
export const BYTE_PAD = 258;
export const BYTE_VOCAB_SIZE = 259;
const BYTE_SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>"] as const;

/** The built-in tokenizer: a text's UTF-8 bytes are its ids; BOS 256 before a text, EOS 257, PAD 258. */
class ByteTokenizer implements TextTokenizer {
  readonly kind = "bytes";
  readonly vocabSize = BYTE_VOCAB_SIZE;
  readonly bosToken = BYTE_SPECIALS[0];
  readonly eosToken = BYTE_SPECIALS[1];
  readonly padToken = BYTE_SPECIALS[2];
  readonly bosId = BYTE_BOS;
  readonly eosId = BYTE_EOS;
  readonly padId = BYTE_PAD;
  readonly endStrings = [BYTE_SPECIALS[1]];
  readonly prefixIds = [BYTE_BOS];
  readonly suffixIds = [];
  readonly specialTokens = { bos_token: BYTE_SPECIALS[0], eos_token: BYTE_SPECIALS[1], pad_token: BYTE_SPECIALS[2] };
  readonly specialStrings = BYTE_SPECIALS;
  readonly chatTemplate = null;

  isSpecial(id: number): boolean {
    return id >= BYTE_BOS;
  }

  encode(text: string): Int32Array {
    return new Int32Array(Buffer.from(text, "utf8"));
  }

  encodeSpans(text: string, spans: readonly Span[]): { ids: Int32Array; inside: Uint8Array } {
    const ids = this.encode(text);
    const inside = new Uint8Array(ids.length);
    let at = 0;
    let done = 0;
    for (const [begin, end] of spans) {
      at += Buffer.byteLength(text.slice(done, begin), "utf8");
      const length = Buffer.byteLength(text.slice(begin, end), "utf8");
      inside.fill(1, at, at + length);
      at += length;
      done = end;
    }
    return { ids, inside };
  }

  piece(id: number): string {
    if (id >= BYTE_BOS) return BYTE_SPECIALS[id - BYTE_BOS] ?? `<${id}>`;
    return id >= 0x20 && id < 0x7f ? String.fromCharCode(id) : `<0x${id.toString(16).toUpperCase().padStart(2, "0")}>`;
  }
}

/** GPT-2's printable stand-ins for the 256 bytes: index is the byte, value the character. */
function byteCharacters(): string[] {
  const characters: string[] = new Array(256);
  let extra = 0;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    characters[byte] = String.fromCharCode(printable ? byte : 256 + extra++);
  }
  return characters;
}

/** Reads a JSON object; null where the file does not exist. FormatError where it is not JSON. */
function readJson(file: string): Record<string, unknown> | null {
  let text: string;
  try {
    text = fs.readFileSync(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw new IoError(`cannot read ${file}: ${(error as Error).message}`, { file }, { cause: error });
  }
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  } catch (error) {
    throw new FormatError(`${file} is not valid JSON: ${(error as Error).message}`, { file }, { cause: error });
  }
  throw new FormatError(`${file} must hold one JSON object`, { file });
}

/** A special token as files spell it: a string, or an object with `content`. */
function tokenString(value: unknown): string | null {
  if (typeof value === "string") return value;
  if (typeof value === "object" && value !== null) {
    const { content } = value as Record<string, unknown>;
    if (typeof content === "string") return content;
  }
  return null;
}

function idList(value: unknown): number[] {
  return (Array.isArray(value) ? value : [value]).filter((id): id is number => Number.isInteger(id));
}

const readText = (file: string) => (fs.existsSync(file) ? fs.readFileSync(file, "utf8") : null);

/** A template as tokenizer_config.json may hold it: a string, or a list of {name, template} with a "default". */
function templateOf(value: unknown): string | null {
  if (typeof value === "string") return value;
  if (!Array.isArray(value)) return null;
  const named = value as { name?: unknown; template?: unknown }[];
  const chosen = named.find(({ name }) => name === "default") ?? (named.length === 1 ? named[0] : undefined);
  return typeof chosen?.template === "string" ? chosen.template : null;
}

/** Names that special tokens at the end of a turn go by. */
const END_NAME =
  /^(<\/s>|<\|?(im_end|eot|eot_id|eom_id|end|end_of_turn|end_of_text|endoftext|turn_end|return|eos)\|?>)$/i;

const SIDE_FILES = [
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "config.json",
  "chat_template.jinja",
  "chat_template.json",
];

/** A tokenizer.json, run by @huggingface/tokenizers. */
class JsonTokenizer implements TextTokenizer {
  readonly kind = "json";
  readonly vocabSize: number;
  readonly bosToken: string | null;
  readonly eosToken: string | null;
  readonly padToken: string | null;
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  readonly endStrings: readonly string[];
  readonly prefixIds: readonly number[];
  readonly suffixIds: readonly number[];
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly specialStrings: readonly string[];
  readonly chatTemplate: string | null;
  readonly #file: string;
  readonly #inner: HuggingFaceTokenizer;
  readonly #addedLengths = new Map<string, number>();
  readonly #special = new Set<number>();
  /** Byte of each stand-in character, where the tokenizer is byte-level; else null. */
  readonly #byteOf: Map<string, number> | null;
  /** Whether surface lengths are the UTF-8 lengths of the normalised text: spans then need one encoding only. */
  readonly #exactSurface: boolean;

  constructor(file: string) {
    this.#file = file;
    const directory = path.dirname(file);
    const json = readJson(file);
    if (json === null) throw new ConfigError(`there is no tokenizer file ${file}`, { file });
    const config = readJson(path.join(directory, "tokenizer_config.json")) ?? {};
    const map = readJson(path.join(directory, "special_tokens_map.json")) ?? {};
    const generation = readJson(path.join(directory, "generation_config.json")) ?? {};
    const model = readJson(path.join(directory, "config.json")) ?? {};
    if (typeof json.model !== "object" || json.model === null) {
      throw new FormatError(`${file} is no tokenizer.json: it has no "model"`, { file });
    }
    for (const key of ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"]) {
      json[key] ??= key === "added_tokens" ? [] : null;
    }
    const added = json.added_tokens as { id: number; content: string; special?: boolean }[];
    // As in transformers: a text that spells a special token is then plain text.
    if (config.split_special_tokens === true) json.added_tokens = added.filter(({ special }) => special !== true);
    const { unk_token: unknown } = json.model as { unk_token?: unknown };
    try {
      json.pre_tokenizer = exactPreTokenizer(json.pre_tokenizer);
      this.#inner = new HuggingFaceTokenizer(json, { ...config, unk_token: tokenString(config.unk_token) ?? unknown });
    } catch (error) {
      throw new FormatError(`cannot use ${file}: ${(error as Error).message}`, { file }, { cause: error });
    }
    const inner = this.#inner;
    if ((json.model as { type?: unknown }).type === "Unigram") {
      // Its own encode spreads all pieces of a text into one call, which overflows the stack on long ones.
      const unigram = inner.model as unknown as Record<"encode", unknown> & { tokenize(text: string): string[] };
      unigram.encode = (texts: string[]) => texts.flatMap((text) => unigram.tokenize(text));
    }
    let largest = -1;
    for (const { id, content, special } of added) {
      const model = inner.model as unknown as { tokens_to_ids: Map<string, number>; vocab: string[] };
      model.tokens_to_ids.set(content, id);
      model.vocab[id] = content;
      this.#addedLengths.set(content, Buffer.byteLength(content, "utf8"));
      if (special) this.#special.add(id);
      largest = Math.max(largest, id);
    }
    for (const id of inner.get_vocab(false).values()) largest = Math.max(largest, id);
    this.vocabSize = largest + 1;

    const specialTokens: Record<string, string> = {};
    for (const source of [map, config]) {
      for (const [key, value] of Object.entries(source)) {
        const token = key.endsWith("_token") ? tokenString(value) : null;
        if (token !== null) specialTokens[key] = token;
      }
    }
    const idOf = (token: string | null | undefined) =>
      token === null || token === undefined ? null : (inner.token_to_id(token) ?? null);
    const resolve = (name: string): { token: string | null; id: number | null } => {
      const token = specialTokens[`${name}_token`] ?? null;
      const id = idOf(token);
      if (token !== null && id === null) {
        throw new FormatError(
          `${path.join(directory, "tokenizer_config.json")} names ${name}_token ${JSON.stringify(token)}, which ${file} does not have`,
          { file },
        );
      }
      if (id !== null) return { token, id };
      const fallback = [...idList(generation[`${name}_token_id`]), ...idList(model[`${name}_token_id`])][0] ?? null;
      const found = fallback === null ? undefined : inner.id_to_token(fallback);
      if (found === undefined) return { token: null, id: null };
      specialTokens[`${name}_token`] = found;
      return { token: found, id: fallback };
    };
    ({ token: this.bosToken, id: this.bosId } = resolve("bos"));
    ({ token: this.eosToken, id: this.eosId } = resolve("eos"));
    ({ token: this.padToken, id: this.padId } = resolve("pad"));
    const endIds = new Set([...idList(generation.eos_token_id), ...idList(model.eos_token_id)]);
    this.specialTokens = specialTokens;
    this.specialStrings = [
      ...new Set([
        ...added.filter(({ special }) => special).map(({ content }) => content),
        ...Object.values(specialTokens),
      ]),
    ];
    const ends = [...endIds].map((id) => inner.id_to_token(id)).filter((token) => token !== undefined);
    if (this.eosToken !== null) ends.push(this.eosToken);
    this.endStrings = [...new Set([...ends, ...this.specialStrings.filter((token) => END_NAME.test(token))])];
    this.chatTemplate =
      readText(path.join(directory, "chat_template.jinja")) ??
      templateOf(config.chat_template) ??
      templateOf(readJson(path.join(directory, "chat_template.json"))?.chat_template);

    this.#byteOf = usesByteLevel(json) ? new Map(byteCharacters().map((c, byte) => [c, byte])) : null;
    this.#exactSurface =
      this.#byteOf !== null && !/"add_prefix_space":true|"[lr]strip":true/.test(JSON.stringify(json));

    // What the tokenizer adds by itself shows on any text; add_bos_token and add_eos_token, where the configuration
    // gives them, replace the post-processor, as in transformers.
    const bare = Array.from(this.encode("a"));
    const whole: number[] = inner.encode("a", { add_special_tokens: true }).ids;
    const at = whole.findIndex((_, i) => bare.every((id, k) => whole[i + k] === id));
    let prefix = at < 0 ? [] : whole.slice(0, at);
    let suffix = at < 0 ? [] : whole.slice(at + bare.length);
    const addBos = config.add_bos_token;
    const addEos = config.add_eos_token;
    if (typeof addBos === "boolean" || typeof addEos === "boolean") {
      prefix = addBos === true && this.bosId !== null ? [this.bosId] : [];
      suffix = addEos === true && this.eosId !== null ? [this.eosId] : [];
    }
    this.prefixIds = prefix;
    this.suffixIds = suffix;
  }

  isSpecial(id: number): boolean {
    return this.#special.has(id) || id === this.bosId || id === this.eosId || id === this.padId;
  }

  #encode(text: string): { ids: number[]; tokens: string[] } {
    if (text === "") return { ids: [], tokens: [] };
    const { ids, tokens }: { ids: number[]; tokens: string[] } = this.#inner.encode(text, {
      add_special_tokens: false,
    });
    const unknown = ids.indexOf(undefined as unknown as number);
    if (unknown >= 0) {
      throw new DataError(
        `the tokenizer ${this.#file} has no token for ${JSON.stringify(tokens[unknown])} and no unknown token`,
        { file: this.#file },
      );
    }
    return { ids, tokens };
  }

  encode(text: string): Int32Array {
    return Int32Array.from(this.#encode(text).ids);
  }

  /** How many bytes of text a token stands for; the same token always counts the same. */
  #surface(token: string): number {
    const added = this.#addedLengths.get(token);
    if (added !== undefined) return added;
    if (this.#byteOf !== null) return token.length;
    if (/^<0x[0-9A-F]{2}>$/.test(token)) return 1;
    return Buffer.byteLength(token, "utf8");
  }

  #surfaceOf(tokens: readonly string[]): number {
    let bytes = 0;
    for (const token of tokens) bytes += this.#surface(token);
    return bytes;
  }

  encodeSpans(text: string, spans: readonly Span[]): { ids: Int32Array; inside: Uint8Array } {
    const { ids, tokens } = this.#encode(text);
    const inside = new Uint8Array(ids.length);
    if (spans.length === 0) return { ids: Int32Array.from(ids), inside };
    // The library gives no offsets. A place in the text is therefore measured in bytes of token surface: what stands
    // before it is the surface of the tokens of the text before it. Byte-level tokenizers count every byte once, so
    // for them the text is measured directly.
    const normalize = this.#inner.normalizer as unknown as ((text: string) => string) | null;
    const bytesOf = (part: string) => Buffer.byteLength(normalize === null ? part : normalize(part), "utf8");
    const places = spans.flat();
    let measured: number[] = [];
    if (this.#exactSurface) {
      let at = 0;
      let done = 0;
      for (const place of places) {
        at += bytesOf(text.slice(done, place));
        done = place;
        measured.push(at);
      }
      // A normaliser that works across a boundary would shift what follows; then measure the slow way.
      if (at + bytesOf(text.slice(done)) !== this.#surfaceOf(tokens)) measured = [];
    }
    if (measured.length === 0) {
      measured = places.map((place) => this.#surfaceOf(this.#encode(text.slice(0, place)).tokens));
    }
    let k = 0;
    let bytes = 0;
    for (let i = 0; i < tokens.length; i++) {
      const end = bytes + this.#surface(tokens[i] as string);
      while (k < measured.length && (measured[k + 1] as number) <= bytes) k += 2;
      if (k >= measured.length) break;
      if (end > (measured[k] as number)) inside[i] = 1;
      bytes = end;
    }
    return { ids: Int32Array.from(ids), inside };
  }

  piece(id: number): string {
    const token: string | undefined = this.#inner.id_to_token(id);
    if (token === undefined) return `<${id}>`;
    if (this.#byteOf === null || this.#addedLengths.has(token)) return token;
    const bytes = Buffer.from(Array.from(token, (c) => this.#byteOf?.get(c) ?? 63));
    const text = bytes.toString("utf8");
    return text.includes("\ufffd")
      ? Array.from(bytes, (b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`).join("")
      : text;
  }
}

/** What Rust's regex crate takes for \\w, inside a class. */
const RUST_WORD = String.raw`\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d`;
const GPT2_PATTERN = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;

/**
 * Spells pre-tokenizers with patterns where @huggingface/tokenizers would take JavaScript's classes for white space,
 * words and digits, or pass over a Split's behaviour: as patterns they mean what they mean in Rust. Throws for a
 * combination that has no such spelling.
 */
function exactPreTokenizer(part: unknown): unknown {
  if (typeof part !== "object" || part === null) return part;
  const config = part as Record<string, unknown>;
  const split = (regex: string) => ({ type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false });
  const keep = (regex: string) => ({ type: "Split", pattern: { Regex: regex }, behavior: "Removed", invert: true });
  switch (config.type) {
    case "Sequence": {
      const list = config.pretokenizers;
      return Array.isArray(list) ? { ...config, pretokenizers: list.map(exactPreTokenizer) } : part;
    }
    case "ByteLevel":
      if (config.use_regex === false) return part;
      return {
        type: "Sequence",
        pretokenizers: [
          ...(config.add_prefix_space === true
            ? [{ type: "Replace", pattern: { Regex: String.raw`\A([^ ])` }, content: " $1" }]
            : []),
          split(GPT2_PATTERN),
          { ...config, use_regex: false, add_prefix_space: false },
        ],
      };
    case "Whitespace":
      return keep(`[${RUST_WORD}]+|[^${RUST_WORD}\\s]+`);
    case "WhitespaceSplit":
      return keep(String.raw`\S+`);
    case "Digits":
      return split(config.individual_digits === true ? String.raw`\p{N}` : String.raw`\p{N}+`);
    case "Punctuation":
    case "Split": {
      const { String: literal, Regex: regex } = (config.pattern ?? {}) as { String?: string; Regex?: string };
      const pattern =
        config.type === "Punctuation"
          ? String.raw`[\p{P}!-/:-@\[-\`{-~]`
          : (regex ?? (literal ?? "").replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
      const behavior = String(config.behavior ?? "Isolated").toLowerCase();
      const inverted = config.invert === true;
      const other = `(?:(?!${pattern})[\\s\\S])`;
      if (behavior === "isolated") return split(pattern);
      if (behavior === "removed") return keep(inverted ? pattern : `${other}+`);
      if (behavior === "contiguous" && !inverted) return split(`(?:${pattern})+`);
      if (behavior === "mergedwithprevious" && !inverted) return split(`${other}*(?:${pattern})|${other}+`);
      if (behavior === "mergedwithnext" && !inverted) return split(`(?:${pattern})${other}*|${other}+`);
      throw new Error(
        `${config.type} with behavior ${config.behavior}${inverted ? " and invert" : ""} is not supported`,
      );
    }
    default:
      return part;
  }
}

/** Whether a tokenizer.json maps text to GPT-2's byte characters before its model sees it. */
function usesByteLevel(json: Record<string, unknown>): boolean {
  const parts = (part: unknown): unknown[] => {
    if (typeof part !== "object" || part === null) return [];
    const { pretokenizers, normalizers } = part as Record<string, unknown>;
    return [part, ...[pretokenizers, normalizers].flatMap((list) => (Array.isArray(list) ? list.flatMap(parts) : []))];
  };
  return [...parts(json.pre_tokenizer), ...parts(json.normalizer)].some(
    (part) => (part as { type?: unknown }).type === "ByteLevel",
  );
}

/**
 * Which tokenizer `where` means: "bytes", a tokenizer.json, or a folder that holds one. Null where a folder has none
 * (rows of token ids need none). ConfigError where the path does not exist.
 */
export function resolveTokenizer(where: string): TokenizerSpec | null {
  if (where === "bytes") return { kind: "bytes" };
  const stat = fs.statSync(where, { throwIfNoEntry: false });
  if (stat === undefined) {
    throw new ConfigError(
      `data.tokenizer: there is no file ${JSON.stringify(where)}; give a tokenizer.json, a folder that holds one, or "bytes"`,
      { path: where },
    );
  }
  if (!stat.isDirectory()) return { kind: "json", file: where };
  const file = path.join(where, "tokenizer.json");
  return fs.existsSync(file) ? { kind: "json", file } : null;
}

/** A hash of everything that decides what the tokenizer gives. */
export function tokenizerHash(spec: TokenizerSpec | null): string {
  if (spec === null) return "none";
  if (spec.kind === "bytes") return "bytes";
  const hash = createHash("sha256");
  const directory = path.dirname(spec.file);
  for (const file of [spec.file, ...SIDE_FILES.map((name) => path.join(directory, name))]) {
    const bytes = fs.existsSync(file) ? fs.readFileSync(file) : null;
    hash.update(`${path.basename(file)} ${bytes === null ? "absent" : bytes.length}\n`);
    if (bytes !== null) hash.update(bytes);
  }
  return hash.digest("hex");
}

/** Opens a tokenizer. FormatError where its files cannot be used, IoError where they cannot be read. */
export function loadTokenizer(spec: TokenizerSpec): TextTokenizer {
  return spec.kind === "bytes" ? new ByteTokenizer() : new JsonTokenizer(spec.file);
}

/**
 * Writes the byte tokenizer as tokenizer.json and tokenizer_config.json into `directory`, for the exported model.
 * Loaded by transformers it gives the same ids for every text, also one that spells a special token: such text is
 * bytes (split_special_tokens).
 * @param template a chat template to go with it, if any.
 */
export function writeBytesTokenizer(directory: string, template?: string): void {
  const vocab: Record<string, number> = {};
  byteCharacters().forEach((c, byte) => {
    vocab[c] = byte;
  });
  const special = BYTE_SPECIALS.map((content, i) => ({
    id: BYTE_BOS + i,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false };
  const bos = { SpecialToken: { id: BYTE_SPECIALS[0], type_id: 0 } };
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special,
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: {
      type: "TemplateProcessing",
      single: [bos, { Sequence: { id: "A", type_id: 0 } }],
      pair: [bos, { Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 0 } }],
      special_tokens: { [BYTE_SPECIALS[0]]: { id: BYTE_SPECIALS[0], ids: [BYTE_BOS], tokens: [BYTE_SPECIALS[0]] } },
    },
    decoder: byteLevel,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges: [],
    },
  };
  const config: Record<string, unknown> = {
    added_tokens_decoder: Object.fromEntries(special.map(({ id, ...token }) => [String(id), token])),
    bos_token: BYTE_SPECIALS[0],
    eos_token: BYTE_SPECIALS[1],
    pad_token: BYTE_SPECIALS[2],
    clean_up_tokenization_spaces: false,
    model_max_length: 1e30,
    split_special_tokens: true,
    tokenizer_class: "PreTrainedTokenizerFast",
  };
  if (template !== undefined) config.chat_template = template;
  for (const [name, value] of [
    ["tokenizer.json", tokenizer],
    ["tokenizer_config.json", config],
  ] as const) {
    const file = path.join(directory, name);
    try {
      fs.writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);
    } catch (error) {
      throw new IoError(`cannot write ${file}: ${(error as Error).message}`, { file }, { cause: error });
    }
  }
}
