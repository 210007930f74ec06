// A tokenizer.json as a whole: added tokens, normalizer, pre-tokenizer, model, and what its post-processor adds.

import { type AddedToken, AddedTokens } from "./added_tokens.js";
import { AlignedText } from "./aligned_text.js";
import { createDecoder, type Decoder } from "./decoders.js";
import { createModel, type Model } from "./models.js";
import { createNormalizer, type Normalizer } from "./normalizers.js";
import { createPreTokenizer, type PreTokenizer } from "./pre_tokenizers.js";

type Config = Record<string, unknown>;

/** Ids of a text, and the half-open stretch of it, in UTF-16 units, that each stands for. */
export interface Encoding {
  ids: Int32Array;
  begins: Int32Array;
  ends: Int32Array;
}

/** Added tokens of tokenizer.json. Throws where an entry has no id or no content. */
function addedList(value: unknown): (AddedToken & { id: number })[] {
  return ((value ?? []) as Config[]).map((entry) => {
    const { id, content } = entry;
    if (typeof id !== "number" || typeof content !== "string") {
      throw new Error(`the added token ${JSON.stringify(entry)} needs a number "id" and a string "content"`);
    }
    return { ...addedToken(content, entry), id };
  });
}

/** An added token from its spelled-out form; what is left out is as Rust has it. */
export function addedToken(content: string, entry: Config): AddedToken {
  const special = entry.special === true;
  return {
    content,
    special,
    single_word: entry.single_word === true,
    lstrip: entry.lstrip === true,
    rstrip: entry.rstrip === true,
    normalized: typeof entry.normalized === "boolean" ? entry.normalized : !special,
  };
}

/** Ids that a post-processor puts before and after one text. Throws for one that is not known. */
function affixes(part: unknown): { prefix: number[]; suffix: number[] } {
  if (part === null || part === undefined) return { prefix: [], suffix: [] };
  const config = part as Config;
  switch (config.type) {
    case "ByteLevel":
      return { prefix: [], suffix: [] };
    case "BertProcessing":
    case "RobertaProcessing":
      return { prefix: [(config.cls as [string, number])[1]], suffix: [(config.sep as [string, number])[1]] };
    case "Sequence":
      return (config.processors as unknown[]).map(affixes).reduce((inner, outer) => ({
        prefix: [...outer.prefix, ...inner.prefix],
        suffix: [...inner.suffix, ...outer.suffix],
      }));
    case "TemplateProcessing": {
      const single = config.single as { SpecialToken?: { id: string }; Sequence?: unknown }[];
      const tokens = config.special_tokens as Record<string, { ids: number[] }>;
      const sides: number[][] = [[]];
      for (const { SpecialToken, Sequence } of single) {
        if (Sequence !== undefined) sides.push([]);
        else if (SpecialToken !== undefined) sides[sides.length - 1]?.push(...(tokens[SpecialToken.id]?.ids ?? []));
      }
      if (sides.length !== 2) throw new Error("the post-processor's template must hold the text exactly once");
      return { prefix: sides[0] ?? [], suffix: sides[1] ?? [] };
    }
    default:
      throw new Error(`the post-processor ${JSON.stringify(config.type)} is not known`);
  }
}

export class Pipeline {
  readonly added: AddedTokens;
  readonly prefix: readonly number[];
  readonly suffix: readonly number[];
  readonly #model: Model;
  readonly #normalize: Normalizer;
  readonly #preTokenize: PreTokenizer;
  readonly #tokens: string[] = [];
  readonly #decode: Decoder;

  /**
   * @param json the parsed tokenizer.json.
   * @param more tokens that tokenizer_config.json describes: over those of the file, and special ones that the
   *   vocabulary has but the file does not list.
   * @param split whether special tokens in a text are plain text.
   */
  constructor(
    json: Config,
    more: { described: readonly AddedToken[]; special: readonly AddedToken[] } = { described: [], special: [] },
    split = false,
  ) {
    this.#model = createModel(json.model as Config);
    this.#normalize = createNormalizer(json.normalizer);
    this.#preTokenize = createPreTokenizer(json.pre_tokenizer);
    this.#decode = createDecoder(json.decoder);
    ({ prefix: this.prefix, suffix: this.suffix } = affixes(json.post_processor));
    for (const [token, id] of this.#model.vocab) this.#tokens[id] = token;
    this.added = new AddedTokens(this.#model.vocab);
    // A token gets the id it has in the model or else the next free one, whatever its own entry says, as in Rust.
    for (const token of [...addedList(json.added_tokens), ...more.described]) {
      this.added.add(token, this.tokenToId(token.content) ?? this.#freeId());
    }
    for (const token of more.special) {
      const id = this.#model.vocab.get(token.content);
      if (id !== undefined && !this.added.ids.has(token.content)) this.added.add(token, id);
    }
    this.added.finish((content) => this.#normalize(new AlignedText(content, 0)).text, split);
    for (const [id, { content }] of this.added.byId) this.#tokens[id] = content;
  }

  /** The id that a token which has none gets. */
  #freeId(): number {
    return Math.max(this.#model.vocab.size, ...[...this.added.byId.keys()].map((id) => id + 1));
  }

  /** One more than the largest id. */
  get size(): number {
    return this.#tokens.length;
  }

  tokenToId(token: string): number | null {
    return this.added.ids.get(token) ?? this.#model.vocab.get(token) ?? null;
  }

  idToToken(id: number): string | null {
    return this.#tokens[id] ?? null;
  }

  /** The text that ids stand for; special tokens are left out where asked, ids that there are none of always. */
  decode(ids: Iterable<number>, skipSpecial: boolean): string {
    const tokens: string[] = [];
    for (const id of ids) {
      const token = this.#tokens[id];
      if (token !== undefined && !(skipSpecial && this.added.isSpecial(token))) tokens.push(token);
    }
    return this.#decode(tokens);
  }

  /** The ids of a text alone: nothing is put before or after it. Throws UnknownPieceError. */
  encode(text: string): Encoding {
    const ids: number[] = [];
    const begins: number[] = [];
    const ends: number[] = [];
    for (const stretch of this.added.split(new AlignedText(text, 0), this.#normalize)) {
      if (stretch.id !== null) {
        ids.push(stretch.id);
        begins.push(stretch.text.startOf(0));
        ends.push(stretch.text.endOf(stretch.text.text.length - 1));
        continue;
      }
      if (stretch.text.text === "") continue;
      for (const piece of this.#preTokenize(stretch.text)) {
        if (piece.text === "") continue;
        const tokens = this.#model.encode(piece.text);
        for (let i = 0; i < tokens.ids.length; i++) {
          ids.push(tokens.ids[i] as number);
          begins.push(piece.startOf(tokens.begins[i] as number));
          ends.push(piece.endOf((tokens.ends[i] as number) - 1));
        }
      }
    }
    return { ids: Int32Array.from(ids), begins: Int32Array.from(begins), ends: Int32Array.from(ends) };
  }
}
