// The models of tokenizer.json: one piece of text into tokens.

import { createBpe } from "./bpe.js";
import { createUnigram } from "./unigram.js";

/** Tokens of one piece: ids, and the units of the piece that each stands for. */
export interface Pieces {
  ids: number[];
  begins: number[];
  ends: number[];
}

export interface Model {
  /** Throws UnknownPieceError where a character has no token and the model no unknown token. */
  encode(piece: string): Pieces;
  readonly vocab: ReadonlyMap<string, number>;
}

export type ModelConfig = Record<string, unknown>;

/** A text for which the model has neither a token nor an unknown token. */
export class UnknownPieceError extends Error {
  constructor(readonly piece: string) {
    super(`no token for ${JSON.stringify(piece)} and no unknown token`);
  }
}

/** The vocabulary of a model that holds it as an object. */
export function vocabOf(config: ModelConfig): Map<string, number> {
  const { vocab } = config;
  if (typeof vocab !== "object" || vocab === null || Array.isArray(vocab)) {
    throw new Error(`the model's "vocab" must be an object of ids by token`);
  }
  return new Map(Object.entries(vocab as Record<string, number>));
}

function createWordPiece(config: ModelConfig): Model {
  const vocab = vocabOf(config);
  const prefix = String(config.continuing_subword_prefix ?? "##");
  const longest = Number(config.max_input_chars_per_word ?? 100);
  const unknown = vocab.get(String(config.unk_token ?? "[UNK]"));
  return {
    vocab,
    encode(piece) {
      const characters = Array.from(piece);
      const found: Pieces = { ids: [], begins: [], ends: [] };
      let isBad = characters.length > longest;
      let begin = 0;
      for (let first = 0; !isBad && first < characters.length; ) {
        let last = characters.length;
        let end = piece.length;
        let id: number | undefined;
        while (last > first) {
          const part = piece.slice(begin, end);
          id = vocab.get(first > 0 ? prefix + part : part);
          if (id !== undefined) break;
          end -= (characters[--last] as string).length;
        }
        if (id === undefined) {
          isBad = true;
          break;
        }
        found.ids.push(id);
        found.begins.push(begin);
        found.ends.push(end);
        begin = end;
        first = last;
      }
      if (!isBad) return found;
      if (unknown === undefined) throw new UnknownPieceError(piece);
      return { ids: [unknown], begins: [0], ends: [piece.length] };
    },
  };
}

function createWordLevel(config: ModelConfig): Model {
  const vocab = vocabOf(config);
  const unknown = vocab.get(String(config.unk_token ?? "<unk>"));
  return {
    vocab,
    encode(piece) {
      const id = vocab.get(piece) ?? unknown;
      if (id === undefined) throw new UnknownPieceError(piece);
      return { ids: [id], begins: [0], ends: [piece.length] };
    },
  };
}

/** Builds a model. Files older than the key "type" are told apart by what else they have. */
export function createModel(config: ModelConfig): Model {
  const has = (key: string) => config[key] !== undefined;
  const guess = () => {
    if (has("merges")) return "BPE";
    if (Array.isArray(config.vocab)) return "Unigram";
    return has("continuing_subword_prefix") || has("max_input_chars_per_word") ? "WordPiece" : "WordLevel";
  };
  const type = config.type ?? guess();
  if (type === "BPE") return createBpe(config);
  if (type === "Unigram") return createUnigram(config);
  if (type === "WordPiece") return createWordPiece(config);
  if (type === "WordLevel") return createWordLevel(config);
  throw new Error(`the model ${JSON.stringify(type)} is not known`);
}
