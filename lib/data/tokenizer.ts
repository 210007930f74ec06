// Tokenizers as the loader sees them: a Hugging Face tokenizer.json with the files beside it, or bytes.

import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { ConfigError, DataError, FormatError, IoError } from "../errors.js";
import { ByteTokenizer } from "./byte_tokenizer.js";
import {
  CHAT_TEMPLATE_FILES,
  type ChatTemplates,
  findChatTemplates,
  givenTemplate,
  type NamedTemplate,
  namedTemplateFiles,
} from "./chat_templates.js";
import type { AddedToken } from "./tokenizers/added_tokens.js";
import { BYTE_CHARACTERS } from "./tokenizers/byte_level.js";
import { UnknownPieceError } from "./tokenizers/models.js";
import { addedToken, type Encoding, Pipeline } from "./tokenizers/pipeline.js";

export * from "./byte_tokenizer.js";

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
  /** The chat templates that came with it. */
  readonly chatTemplates: ChatTemplates;
  /** Whether this id is a special token (one that a decoder may skip). */
  isSpecial(id: number): boolean;
  /** The ids of a text alone: no special tokens are added. */
  encode(text: string): Int32Array;
  /** As `encode`, and which tokens hold at least one character of one of the spans (ascending, not overlapping). */
  encodeSpans(text: string, spans: readonly Span[]): { ids: Int32Array; inside: Uint8Array };
  /** A readable form of one token. */
  piece(id: number): string;
  /** The text that ids stand for. skipSpecial: without special tokens. */
  decode(ids: Iterable<number>, skipSpecial: boolean): string;
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

/** Names that special tokens at the end of a turn go by. */
const END_NAME =
  /^(<\/s>|<\|?(im_end|eot|eot_id|eom_id|end|end_of_turn|end_of_text|endoftext|turn_end|return|eos)\|?>)$/i;

const SIDE_FILES = [
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "config.json",
  ...CHAT_TEMPLATE_FILES,
];

/** A tokenizer.json with what the files beside it say. */
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
  readonly chatTemplates: ChatTemplates;
  readonly #file: string;
  readonly #pipeline: Pipeline;
  /** Byte of each stand-in character, where the tokenizer is byte-level; else null. */
  readonly #byteOf: Map<string, number> | null;
  /** clean_up_tokenization_spaces of tokenizer_config.json, which transformers 5 passes over for BPE. */
  readonly #cleansUp: boolean;

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
    const specialTokens: Record<string, string> = {};
    // As in transformers: special_tokens_map.json counts where tokenizer_config.json does not describe added tokens.
    const spelled = typeof config.added_tokens_decoder === "object" ? [map, config] : [config, map];
    for (const [key, value] of spelled.flatMap((source) => Object.entries(source))) {
      const token = key.endsWith("_token") ? tokenString(value) : null;
      if (token !== null) specialTokens[key] = token;
    }
    try {
      const more = describedTokens(config, spelled, specialTokens);
      this.#pipeline = new Pipeline(json, more, config.split_special_tokens === true);
    } catch (error) {
      throw new FormatError(`cannot use ${file}: ${(error as Error).message}`, { file }, { cause: error });
    }
    const pipeline = this.#pipeline;
    this.vocabSize = pipeline.size;
    // add_bos_token and add_eos_token of tokenizer_config.json have no effect beside a tokenizer.json, as in
    // transformers 5: what its post-processor adds is added, no more.
    this.prefixIds = pipeline.prefix;
    this.suffixIds = pipeline.suffix;

    const idOf = (token: string | null | undefined) =>
      token === null || token === undefined ? null : pipeline.tokenToId(token);
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
      const found = fallback === null ? null : pipeline.idToToken(fallback);
      if (found === null) return { token: null, id: null };
      specialTokens[`${name}_token`] = found;
      return { token: found, id: fallback };
    };
    ({ token: this.bosToken, id: this.bosId } = resolve("bos"));
    ({ token: this.eosToken, id: this.eosId } = resolve("eos"));
    ({ token: this.padToken, id: this.padId } = resolve("pad"));
    const endIds = new Set([...idList(generation.eos_token_id), ...idList(model.eos_token_id)]);
    this.specialTokens = specialTokens;
    this.specialStrings = [...new Set([...pipeline.added.specials, ...Object.values(specialTokens)])];
    const ends = [...endIds].map((id) => pipeline.idToToken(id)).filter((token) => token !== null);
    if (this.eosToken !== null) ends.push(this.eosToken);
    this.endStrings = [...new Set([...ends, ...this.specialStrings.filter((token) => END_NAME.test(token))])];
    this.chatTemplates = findChatTemplates(directory, config, readJson);

    const cleansBpe = config.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output === true;
    const isBpe = (json.model as Record<string, unknown>).type === "BPE";
    this.#cleansUp = config.clean_up_tokenization_spaces === true && (!isBpe || cleansBpe);
    this.#byteOf = usesByteLevel(json) ? new Map(BYTE_CHARACTERS.map((c, byte) => [c, byte])) : null;
  }

  isSpecial(id: number): boolean {
    const added = this.#pipeline.added.byId.get(id);
    const isSpecial = added !== undefined && this.#pipeline.added.isSpecial(added.content);
    return isSpecial || id === this.bosId || id === this.eosId || id === this.padId;
  }

  #encode(text: string): Encoding {
    try {
      return this.#pipeline.encode(text);
    } catch (error) {
      if (!(error instanceof UnknownPieceError)) throw error;
      throw new DataError(
        `the tokenizer ${this.#file} has no token for ${JSON.stringify(error.piece)} and no unknown token`,
        { file: this.#file },
        { cause: error },
      );
    }
  }

  encode(text: string): Int32Array {
    return this.#encode(text).ids;
  }

  encodeSpans(text: string, spans: readonly Span[]): { ids: Int32Array; inside: Uint8Array } {
    const { ids, begins, ends } = this.#encode(text);
    const inside = new Uint8Array(ids.length);
    // Tokens stand in the order of their text, but those of one character may share it.
    let first = 0;
    for (let i = 0; i < ids.length; i++) {
      while (first < spans.length && (spans[first] as Span)[1] <= (begins[i] as number)) first++;
      for (let k = first; k < spans.length && (spans[k] as Span)[0] < (ends[i] as number); k++) {
        const [begin, end] = spans[k] as Span;
        if (end > begin && end > (begins[i] as number)) inside[i] = 1;
      }
    }
    return { ids, inside };
  }

  decode(ids: Iterable<number>, skipSpecial: boolean): string {
    const text = this.#pipeline.decode(ids, skipSpecial);
    return this.#cleansUp ? withoutSpaces(text) : text;
  }

  piece(id: number): string {
    const token = this.#pipeline.idToToken(id);
    if (token === null) return `<${id}>`;
    if (this.#byteOf === null || this.#pipeline.added.byId.has(id)) return token;
    const bytes = Buffer.from(Array.from(token, (c) => this.#byteOf?.get(c) ?? 63));
    const text = bytes.toString("utf8");
    return text.includes("\ufffd")
      ? Array.from(bytes, (b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`).join("")
      : text;
  }
}

/**
 * Tokens as tokenizer_config.json describes them, which transformers adds over those of tokenizer.json: first
 * added_tokens_decoder, then special tokens and extra ones that are not among the added ones yet.
 */
function describedTokens(
  config: Record<string, unknown>,
  sources: readonly Record<string, unknown>[],
  named: Readonly<Record<string, string>>,
): { described: AddedToken[]; special: AddedToken[] } {
  const described: AddedToken[] = [];
  const decoder = (config.added_tokens_decoder ?? {}) as Record<string, Record<string, unknown>>;
  for (const id of Object.keys(decoder).sort((a, b) => Number(a) - Number(b))) {
    const entry = decoder[id];
    const content = tokenString(entry);
    if (entry !== undefined && content !== null) described.push(addedToken(content, entry));
  }
  const extra = config.extra_special_tokens ?? config.additional_special_tokens ?? [];
  const values = [
    ...Object.keys(named).map((key) => sources.findLast((source) => tokenString(source[key]) !== null)?.[key]),
    ...(Array.isArray(extra) ? extra : Object.values(extra as object)),
  ];
  const special = values.flatMap((value) => {
    const content = tokenString(value);
    if (content === null) return [];
    const flags = typeof value === "object" ? (value as Record<string, unknown>) : {};
    return [addedToken(content, { ...flags, special: true })];
  });
  return { described, special };
}

/** A text without the spaces that transformers takes out of English where a tokenizer asks for it. */
function withoutSpaces(text: string): string {
  const joined = [" .", " ?", " !", " ,"].reduce((made, pair) => made.replaceAll(pair, pair.slice(1)), text);
  return joined.replaceAll(" ' ", "'").replaceAll(/ (n't|'m|'s|'ve|'re)/g, "$1");
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

/** The chat template that a configuration names: see `givenTemplate`. */
export function namedTemplate(name: string, spec: TokenizerSpec | null): NamedTemplate {
  if (spec?.kind !== "json") return givenTemplate(name, new Map());
  const folder = path.dirname(spec.file);
  const config = readJson(path.join(folder, "tokenizer_config.json")) ?? {};
  return givenTemplate(name, findChatTemplates(folder, config, readJson));
}

/** A hash of everything that decides what the tokenizer gives. */
export function tokenizerHash(spec: TokenizerSpec | null): string {
  if (spec === null) return "none";
  if (spec.kind === "bytes") return "bytes";
  const hash = createHash("sha256");
  const directory = path.dirname(spec.file);
  for (const file of [
    spec.file,
    ...SIDE_FILES.map((name) => path.join(directory, name)),
    ...namedTemplateFiles(directory),
  ]) {
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
