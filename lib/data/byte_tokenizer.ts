// The built-in byte tokenizer, and the same as files that transformers reads.

import fs from "node:fs";
import path from "node:path";
import { IoError } from "../errors.js";
import type { ChatTemplates } from "./chat_templates.js";
import type { Span, TextTokenizer } from "./tokenizer.js";
import { BYTE_CHARACTERS } from "./tokenizers/byte_level.js";

export const BYTE_BOS = 256;
export const BYTE_EOS = 257;
export const BYTE_PAD = 258;
export const BYTE_VOCAB_SIZE = 259;
const BYTE_SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>"] as const;

/** The built-in tokenizer: a text's UTF-8 bytes are its ids; BOS 256 before a text, EOS 257, PAD 258. */
export class ByteTokenizer implements TextTokenizer {
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
  readonly chatTemplates: ChatTemplates = new Map();

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

  decode(ids: Iterable<number>, skipSpecial: boolean): string {
    const parts = Array.from(ids, (id) =>
      id < BYTE_BOS ? Buffer.of(id) : Buffer.from(skipSpecial ? "" : (BYTE_SPECIALS[id - BYTE_BOS] ?? "")),
    );
    return Buffer.concat(parts).toString("utf8");
  }

  piece(id: number): string {
    if (id >= BYTE_BOS) return BYTE_SPECIALS[id - BYTE_BOS] ?? `<${id}>`;
    return id >= 0x20 && id < 0x7f ? String.fromCharCode(id) : `<0x${id.toString(16).toUpperCase().padStart(2, "0")}>`;
  }
}

/**
 * Writes the byte tokenizer as tokenizer.json and tokenizer_config.json into `directory`, for the exported model.
 * Loaded by transformers it gives the same ids for every text, also one that spells a special token: such text is
 * bytes (split_special_tokens).
 * @param template a chat template to go with it, if any.
 */
export function writeBytesTokenizer(directory: string, template?: string): void {
  const vocab: Record<string, number> = {};
  BYTE_CHARACTERS.forEach((c, byte) => {
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
