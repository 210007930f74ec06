// Pretokenised rows: input_ids and the fields beside them, each honoured as the tools that write it mean it, or refused.

import type { DataError } from "../errors.js";
import { IGNORE_INDEX } from "./batch.js";

/** The tokens of a row as they are trained on: without padding, labels with every mask applied. */
export interface TokenRow {
  inputIds: Int32Array;
  /** Aligned with the ids; -100 where ignored; null where all equal the ids. */
  labels: Int32Array | null;
  /** Lengths of the row's documents in order, which attend apart; null: it is one. */
  parts: Int32Array | null;
}

/** 0 keeps a token out of the loss; of several all must say 1. */
const MASKS = ["completion_mask", "assistant_masks", "loss_mask"] as const;

/** The lengths of a packed row's documents: TRL's name and ArcticTraining's. */
const LENGTHS = ["seq_lengths", "packed_sample_seqlens"] as const;

/** Fields that have a meaning beside input_ids alone. */
export const TOKEN_FIELDS = ["labels", "attention_mask", "position_ids", "token_type_ids", ...LENGTHS, ...MASKS];

/** Makes the error of a fault in the row. */
type Fail = (message: string) => DataError;

/** A value as messages show it. */
export function describe(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "an object";
  const shown = typeof value === "bigint" ? String(value) : (JSON.stringify(value) ?? String(value));
  return shown.length > 40 ? `${shown.slice(0, 37)}...` : shown;
}

const FLAT = " (one row is one flat list)";

function list(fail: Fail, key: string, value: unknown, of: string): unknown[] {
  if (!Array.isArray(value)) throw fail(`"${key}" must be a list of ${of}, not ${describe(value)}`);
  return value;
}

/** A list of integers that `allowed` takes where they stand; `rule` says which these are. */
function integers(
  fail: Fail,
  key: string,
  value: unknown,
  allowed: (value: number, i: number) => boolean,
  rule: string,
): Int32Array {
  const values = list(fail, key, value, "integers");
  const result = new Int32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const found = values[i];
    if (typeof found === "number" && Number.isInteger(found)) {
      if (!allowed(found, i)) throw fail(`"${key}"[${i}] is ${describe(found)}; ${rule}`);
      result[i] = found;
    } else {
      throw fail(`"${key}"[${i}] is ${describe(found)}, not an integer${Array.isArray(found) ? FLAT : ""}`);
    }
  }
  return result;
}

/** A list of 0 and 1, or of false and true. */
function flags(fail: Fail, key: string, value: unknown): Uint8Array {
  const values = list(fail, key, value, "0 and 1");
  const result = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const found = values[i];
    if (found === 1 || found === true) result[i] = 1;
    else if (found !== 0 && found !== false) {
      const hint = Array.isArray(found)
        ? FLAT
        : key === "attention_mask" && typeof found === "number"
          ? "; documents that share a row are told by position_ids or seq_lengths"
          : "";
      throw fail(`"${key}"[${i}] is ${describe(found)}, not 0 or 1${hint}`);
    }
  }
  return result;
}

/** Where the tokens lie that are not padding: from begin to end - 1. */
function unpadded(fail: Fail, attention: Uint8Array): { begin: number; end: number } {
  const begin = attention.indexOf(1);
  if (begin < 0) throw fail('"attention_mask" is all 0: the row has no token');
  const end = attention.lastIndexOf(1) + 1;
  const hole = attention.subarray(begin, end).indexOf(0);
  if (hole >= 0) {
    throw fail(
      `"attention_mask"[${begin + hole}] is 0 between tokens that count; padding stands at the row's ends only ` +
        "(loss_mask keeps a token out of the loss alone)",
    );
  }
  return { begin, end };
}

/**
 * Lengths of the documents that positions tell: each counts 0, 1, 2, ... Where padding on the left was counted too
 * (`begin` tokens of it), so is the first one's start: attention sees differences of positions alone.
 */
function partsOfPositions(fail: Fail, positions: Int32Array, begin: number, end: number): Int32Array {
  const first = positions[begin];
  if (first !== 0 && first !== begin) {
    throw fail(`"position_ids"[${begin}] is ${first}; a row's first token has position 0`);
  }
  const lengths: number[] = [];
  let start = begin;
  for (let i = begin + 1; i < end; i++) {
    const position = positions[i] as number;
    if (position === 0) {
      lengths.push(i - start);
      start = i;
    } else if (position !== (positions[i - 1] as number) + 1) {
      throw fail(
        `"position_ids"[${i}] is ${position} after ${positions[i - 1]}; positions count up by one, and begin at 0 again where a document begins`,
      );
    }
  }
  lengths.push(end - start);
  return Int32Array.from(lengths);
}

/** Lengths of documents as a field tells them; they must add up to the row. */
function partsOfLengths(fail: Fail, key: string, value: unknown, tokens: number): Int32Array {
  const rule = `a document has 1 to ${tokens} of the row's ${tokens} tokens`;
  const lengths = integers(fail, key, value, (length) => length >= 1 && length <= tokens, rule);
  const sum = lengths.reduce((total, length) => total + length, 0);
  if (sum !== tokens) {
    throw fail(`"${key}" add up to ${sum}, but the row has ${tokens} tokens (padding is not counted)`);
  }
  return lengths;
}

/**
 * Checks a row's fields and applies them; absent and null are the same.
 * - attention_mask: 0 is padding, at the row's ends alone; it leaves the row. A row padded or not gives the same.
 * - position_ids: a 0 begins a document. seq_lengths or packed_sample_seqlens: the documents' lengths. What is given
 *   must agree.
 * - labels, completion_mask, assistant_masks, loss_mask: a token counts where all of them say so.
 * - token_type_ids: all 0.
 * @param vocabSize V; null checks only that ids are not negative.
 */
export function parseTokens(row: Readonly<Record<string, unknown>>, vocabSize: number | null, fail: Fail): TokenRow {
  const given = list(fail, "input_ids", row.input_ids, "integers");
  if (given.length === 0) throw fail('"input_ids" is empty');
  const aligned = <T extends { length: number }>(key: string, parse: (value: unknown) => T): T | null => {
    const value = row[key];
    if (value === undefined || value === null) return null;
    const values = parse(value);
    if (values.length === given.length) return values;
    throw fail(`"${key}" has ${values.length} values but "input_ids" has ${given.length}; they must align one to one`);
  };
  const parseFlags = (key: string) => aligned(key, (value) => flags(fail, key, value));
  const attention = parseFlags("attention_mask");
  const { begin, end } = attention === null ? { begin: 0, end: given.length } : unpadded(fail, attention);

  // What stands at padding may be anything: a padding token need not be one of the model's.
  const limit = vocabSize ?? 0x7fffffff;
  const isId = (id: number, i: number) => (id >= 0 && id < limit) || i < begin || i >= end;
  const isLabel = (label: number, i: number) => label === IGNORE_INDEX || isId(label, i);
  const rule = vocabSize === null ? "0 or more" : `0 to ${vocabSize - 1} (the vocabulary has ${vocabSize} tokens)`;
  let inputIds = integers(fail, "input_ids", given, isId, `a token id is ${rule}`);
  let labels = aligned("labels", (value) => integers(fail, "labels", value, isLabel, `a label is -100 or ${rule}`));
  const positions = aligned("position_ids", (value) =>
    integers(fail, "position_ids", value, (p) => Math.abs(p) <= 0x7fffffff, "a position lies below 2^31"),
  );
  for (const key of MASKS) {
    const counts = parseFlags(key);
    if (counts === null || !counts.includes(0)) continue;
    labels ??= inputIds.slice();
    for (let i = 0; i < counts.length; i++) if (counts[i] === 0) labels[i] = IGNORE_INDEX;
  }
  const type = parseFlags("token_type_ids")?.indexOf(1) ?? -1;
  if (type >= 0) throw fail(`"token_type_ids"[${type}] is 1; the models here know one type of token, 0`);

  let parts = positions === null ? null : partsOfPositions(fail, positions, begin, end);
  let toldBy = "position_ids";
  for (const key of LENGTHS) {
    if (row[key] === undefined || row[key] === null) continue;
    const told = partsOfLengths(fail, key, row[key], end - begin);
    const other = parts === null ? -1 : told.findIndex((length, i) => length !== parts?.[i]);
    if (other >= 0) {
      throw fail(
        `"${key}"[${other}] is ${told[other]}, but by "${toldBy}" that document has ${parts?.[other]} tokens; keep the right one of the two`,
      );
    }
    parts = told;
    toldBy = key;
  }
  if (end - begin < inputIds.length) {
    inputIds = inputIds.slice(begin, end);
    labels = labels?.slice(begin, end) ?? null;
  }
  return { inputIds, labels, parts: parts === null || parts.length === 1 ? null : parts };
}
