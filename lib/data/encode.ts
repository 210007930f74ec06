// From a checked row to token ids and labels, and from a piece of a source to the records that the token cache stores.

import zlib from "node:zlib";
import { DataError, LongseqError } from "../errors.js";
import { IGNORE_INDEX } from "./batch.js";
import { ChatTemplate, type RenderedChat } from "./chat.js";
import { chooseTemplate } from "./chat_templates.js";
import type { Source } from "./formats.js";
import type { JsonValue } from "./json.js";
import { type MessagesRow, type Row, rowError, TRAIN_ELSEWHERE } from "./rows.js";
import { forEachRow, type WorkItem } from "./sources.js";
import type { TokenRow } from "./token_fields.js";
import { loadTokenizer, type Span, type TextTokenizer, type TokenizerSpec } from "./tokenizer.js";

/** Raised whenever the same row could give other tokens, or the records another layout. */
export const ENCODING_VERSION = 2;

/** What turning rows into tokens depends on. It crosses to worker threads and, hashed, keys the cache. */
export interface EncodeOptions {
  tokenizer: TokenizerSpec | null;
  /** V of the model; ids must lie below it. Null checks only that they are not negative. */
  vocabSize: number | null;
  /** A Jinja chat template that replaces the tokenizer's own. */
  chatTemplate: string | null;
  /** Roles of a conversation that are trained on; all: all of it, and of prompts. */
  trainOn: "assistant" | "all" | readonly string[];
  /** What to say where a row needs a tokenizer and there is none. */
  noTokenizerHint: string;
}

/** Integers a row has in the index: length, line, label words, valid targets, checksum, documents in it. */
export const INDEX_COLUMNS = 6;

/** The rows of a piece of a source, as the cache file stores them. */
export interface EncodedRange {
  /** Per row its ids, then its label words. */
  data: Int32Array;
  /** INDEX_COLUMNS integers a row. */
  index: Int32Array;
  /** Lengths of the documents of each row that holds several. */
  parts: Int32Array;
  /** What rows hold that has no effect (see `ParsedRow`), with the first line that holds it. */
  unused: [what: string, line: number][];
}

/** Turns rows into tokens; opens the tokenizer and the template when the first row needs them. */
export class RowEncoder {
  readonly #options: EncodeOptions;
  #tokenizer: TextTokenizer | null = null;
  /** Compiled templates, by where they stand. */
  readonly #templates = new Map<string, ChatTemplate>();

  constructor(options: EncodeOptions) {
    this.#options = options;
  }

  #tokenizerFor(what: string): TextTokenizer {
    if (this.#tokenizer === null) {
      const spec = this.#options.tokenizer;
      if (spec === null) throw new DataError(`${what} needs a tokenizer, but ${this.#options.noTokenizerHint}`);
      this.#tokenizer = loadTokenizer(spec);
    }
    return this.#tokenizer;
  }

  #templateFor(tokenizer: TextTokenizer, { tools }: MessagesRow): ChatTemplate {
    const given = this.#options.chatTemplate;
    const { source, where } =
      given === null
        ? chooseTemplate(tokenizer.chatTemplates, tools !== null)
        : { source: given, where: "data.chat_template" };
    let found = this.#templates.get(where);
    if (found === undefined) {
      found = new ChatTemplate(source, where);
      this.#templates.set(where, found);
    }
    return found;
  }

  /**
   * The tokens of one row.
   * - text: the tokenizer's own special tokens around it, each once also where the text spells them; then EOS unless it
   *   is there. Every token is a label.
   * - messages: the rendered template as it is; the labels are the assistant's parts with their end-of-turn tokens, but
   *   for turns whose message says `weight: 0` or `train: false`. Other roles, or all of it, where `trainOn` says so.
   * - prompt, completion: the prompt as it would be tokenised alone, after the tokenizer's leading special tokens; then
   *   what prompt + completion adds to these ids, or, where a token would straddle the boundary, the completion
   *   tokenised by itself; then EOS unless it is there. The prompt is masked.
   * - input_ids: as they are, with the fields beside them applied.
   * DataError without a place where something is missing or the template refuses the messages.
   */
  encode(row: Row): TokenRow {
    switch (row.kind) {
      case "tokens":
        return { inputIds: row.inputIds, labels: row.labels, parts: row.parts };
      case "text": {
        const tokenizer = this.#tokenizerFor("a text row");
        return { inputIds: withSpecials(tokenizer, tokenizer.encode(row.text)), labels: null, parts: null };
      }
      case "prompt": {
        const tokenizer = this.#tokenizerFor("a prompt row");
        const prompt = tokenizer.encode(row.prompt);
        const joint = tokenizer.encode(row.prompt + row.completion);
        const straddles = joint.length <= prompt.length || !startsWith(joint, prompt);
        const ids = straddles ? concatenate([prompt, tokenizer.encode(row.completion)]) : joint;
        const inputIds = withSpecials(tokenizer, ids);
        const leading = startsWith(ids, tokenizer.prefixIds) ? 0 : tokenizer.prefixIds.length;
        const labels = inputIds.slice();
        if (this.#options.trainOn !== "all") labels.fill(IGNORE_INDEX, 0, leading + prompt.length);
        return { inputIds, labels, parts: null };
      }
      case "messages": {
        const tokenizer = this.#tokenizerFor("a messages row");
        const variables = new Map<string, JsonValue>([...Object.entries(tokenizer.specialTokens), ...row.variables]);
        const template = this.#templateFor(tokenizer, row);
        const { trainOn } = this.#options;
        const isAll = trainOn === "all";
        const roles: readonly string[] = trainOn === "assistant" ? ["assistant"] : isAll ? [] : trainOn;
        // Of a conversation that is trained on whole the parts are sought that are not.
        const wanted = (i: number) =>
          isAll ? row.untrained.includes(i) : roles.includes(row.messages[i]?.get("role") as string);
        const rendered = template.render(row.messages, { tools: row.tools, variables }, wanted);
        const { text } = rendered;
        if (text === "") throw new DataError("the chat template renders these messages as nothing");
        const spans = isAll ? rendered.spans : trainedSpans(row, rendered, wanted);
        const { ids, inside } = tokenizer.encodeSpans(text, withEndOfTurn(text, spans, tokenizer));
        const counts = isAll ? 0 : 1;
        return { inputIds: ids, labels: ids.map((id, i) => (inside[i] === counts ? id : IGNORE_INDEX)), parts: null };
      }
    }
  }

  /**
   * Reads, checks and encodes the rows of a piece of a source, in order. Every fault is a DataError that begins with
   * FILE:LINE, the first in the file's order.
   */
  encodeItem(source: Source, item: WorkItem): EncodedRange {
    const records: Int32Array[] = [];
    const index: number[] = [];
    const parts: Int32Array[] = [];
    const unused = new Map<string, number>();
    const { vocabSize } = this.#options;
    forEachRow(source, item, vocabSize, ({ row, unused: unusedHere, file, line, number }) => {
      let encoded: TokenRow;
      for (const what of unusedHere) {
        // It has an effect where others than the assistant are trained on.
        if (what === TRAIN_ELSEWHERE && this.#options.trainOn !== "assistant") continue;
        if (!unused.has(what)) unused.set(what, number);
      }
      try {
        encoded = this.encode(row);
      } catch (error) {
        // Faults of the tokenizer's or the template's own files are not this row's.
        if (error instanceof LongseqError && !(error instanceof DataError)) throw error;
        throw rowError(file, line, (error as Error).message, error);
      }
      const { inputIds, labels } = encoded;
      if (inputIds.length === 0) throw rowError(file, line, "the row gives no tokens");
      if (vocabSize !== null && row.kind !== "tokens") {
        const at = inputIds.findIndex((id) => id >= vocabSize);
        if (at >= 0) {
          throw rowError(
            file,
            line,
            `the tokenizer gives token id ${inputIds[at]}, but the model's vocabulary has ${vocabSize} tokens; is it another model's tokenizer?`,
          );
        }
      }
      const labelWords = packLabels(inputIds, labels);
      let checksum = crc(inputIds, 0);
      if (labelWords !== null) checksum = crc(labelWords.words, checksum);
      const count = labelWords === null ? 0 : labelWords.raw ? -labelWords.words.length : labelWords.words.length;
      const valid = validTargets(inputIds, labels, encoded.parts);
      index.push(inputIds.length, number, count, valid, checksum | 0, encoded.parts?.length ?? 1);
      if (encoded.parts !== null) parts.push(encoded.parts);
      records.push(inputIds);
      if (labelWords !== null) {
        records.push(labelWords.words);
      }
    });
    return {
      data: concatenate(records),
      index: Int32Array.from(index),
      parts: concatenate(parts),
      unused: [...unused],
    };
  }
}

/** CRC-32 of an array's bytes, continuing from `start`. */
export function crc(words: Int32Array, start: number): number {
  return zlib.crc32(new Uint8Array(words.buffer, words.byteOffset, words.byteLength), start);
}

/** Labels that count, those of the documents' first tokens apart (nothing predicts them). */
function validTargets(ids: Int32Array, labels: Int32Array | null, parts: Int32Array | null): number {
  let valid = 0;
  let begin = 0;
  for (const length of parts ?? [ids.length]) {
    if (labels === null) valid += length - 1;
    else for (let i = begin + 1; i < begin + length; i++) if (labels[i] !== IGNORE_INDEX) valid++;
    begin += length;
  }
  return valid;
}

/**
 * Labels in few words: null where they equal the ids; lengths of alternating runs (ignored first, then kept) where
 * every label is -100 or its id; else the labels themselves.
 */
export function packLabels(ids: Int32Array, labels: Int32Array | null): { words: Int32Array; raw: boolean } | null {
  if (labels === null) return null;
  const runs: number[] = [];
  let kept = false;
  let length = 0;
  for (let i = 0; i < labels.length; i++) {
    const label = labels[i];
    if (label !== IGNORE_INDEX && label !== ids[i]) return { words: labels, raw: true };
    if ((label !== IGNORE_INDEX) !== kept) {
      runs.push(length);
      length = 0;
      kept = !kept;
    }
    length++;
  }
  runs.push(length);
  if (runs.length === 2 && runs[0] === 0) return null;
  return runs.length < labels.length ? { words: Int32Array.from(runs), raw: false } : { words: labels, raw: true };
}

/** The labels begin..end-1 that `packLabels` packed; `ids` are the document's ids begin..end-1. */
export function unpackLabels(words: Int32Array, raw: boolean, ids: Int32Array, begin: number): Int32Array {
  const end = begin + ids.length;
  if (raw) return words.slice(begin, end);
  const labels = new Int32Array(ids.length).fill(IGNORE_INDEX);
  let at = 0;
  for (let run = 0; run < words.length && at < end; run++) {
    const next = at + (words[run] as number);
    if (run % 2 === 1) {
      const from = Math.max(at, begin) - begin;
      const to = Math.min(next, end) - begin;
      if (to > from) labels.set(ids.subarray(from, to), from);
    }
    at = next;
  }
  return labels;
}

function startsWith(ids: Int32Array, prefix: ArrayLike<number>): boolean {
  if (prefix.length > ids.length) return false;
  for (let i = 0; i < prefix.length; i++) if (ids[i] !== prefix[i]) return false;
  return true;
}

/** Arrays laid end to end. */
export function concatenate(parts: readonly ArrayLike<number>[]): Int32Array {
  const ids = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    ids.set(part, at);
    at += part.length;
  }
  return ids;
}

/** The tokenizer's own special tokens around the ids, not repeated where they are there, and EOS at the end. */
function withSpecials(tokenizer: TextTokenizer, ids: Int32Array): Int32Array {
  const { prefixIds, suffixIds, eosId } = tokenizer;
  const prefix = startsWith(ids, prefixIds) ? [] : prefixIds;
  const ended = suffixIds.length > 0 && suffixIds.every((id, i) => ids[ids.length - suffixIds.length + i] === id);
  const suffix = ended ? [] : suffixIds;
  const last = suffix.length > 0 ? suffix[suffix.length - 1] : ids[ids.length - 1];
  return concatenate([prefix, ids, suffix, eosId !== null && last !== eosId ? [eosId] : []]);
}

/** The spans of the turns that are trained on: those that were wanted, but for what says otherwise. */
function trainedSpans(
  { untrained, shown }: MessagesRow,
  { spans, turns }: RenderedChat,
  wanted: (i: number) => boolean,
): readonly Span[] {
  const left = untrained.filter(wanted);
  if (left.length === 0 && shown === 0) return spans;
  if (turns === null) {
    const which =
      left.length > 0
        ? `messages[${left[0]}] is not to be trained on (weight, train)`
        : "the messages of the prompt are not to be trained on";
    throw new DataError(
      `${which}, but the chat template's {% generation %} marks do not tell which part is of which message`,
    );
  }
  return spans.filter((_, i) => !left.includes(turns[i] as number) && (turns[i] as number) >= shown);
}

/**
 * Ends each span with its end-of-turn token: white space after a special token at its end is the template's, and an
 * end token right behind it is the assistant's.
 */
function withEndOfTurn(text: string, spans: readonly Span[], tokenizer: TextTokenizer): Span[] {
  return spans.map(([begin, end]) => {
    const trimmed = text.slice(begin, end).trimEnd();
    const endsWith = (token: string) => trimmed.endsWith(token);
    if (tokenizer.endStrings.some(endsWith)) return [begin, begin + trimmed.length];
    const following = tokenizer.endStrings.find((token) => text.startsWith(token, end));
    if (following !== undefined) return [begin, end + following.length];
    return [begin, tokenizer.specialStrings.some(endsWith) ? begin + trimmed.length : end];
  });
}
