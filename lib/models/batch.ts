// What models take: token ids, labels, positions and document bounds as JavaScript has them, checked on the host.

import { ArgumentError } from "../errors.js";
import type { SequenceGroup } from "../parallel/mesh.js";

/** The label that counts for nothing. */
const IGNORE = -100;

/** Whole numbers: a typed array or a plain one. */
export type Integers = Int32Array | BigInt64Array | readonly number[] | readonly bigint[];

/** T tokens laid end to end. */
export interface ModelInput {
  /** Token ids; nested: each row a document of its own (the rows may differ in length). */
  readonly inputIds: Integers | readonly Integers[];
  /** [T]; default: restarting at each document. */
  readonly positions?: Integers | undefined;
  /** [documents + 1], ascending from 0 to T; default: the rows, or one document. */
  readonly cuSeqlens?: Integers | undefined;
  /** The ranks that hold the sequence; inputIds (and targets) are then this one's part, all parts of one length, and
   * positions and cuSeqlens those of the whole. */
  readonly group?: SequenceGroup | undefined;
  /** Of this rank's tokens the first so many are no padding; default: all. */
  readonly counted?: number | undefined;
  /** The number of the first token in its step, by which dropout knows it. Default 0. */
  readonly firstToken?: number | undefined;
  /** Of a part of a sequence: from entry `at` on its tokens are those of the sequence from `begin` on. */
  readonly pieces?: readonly Piece[] | undefined;
}

/** Tokens that follow each other in a sequence and in a part of it. */
export interface Piece {
  readonly at: number;
  readonly begin: number;
}

/** A loader's batch (targets shifted already), or ids with labels aligned to them as in Hugging Face. */
export interface LossInput extends ModelInput {
  /** [T] the label of the next token; -100: none. */
  readonly targets?: Int32Array | undefined;
  /** Aligned with inputIds; default: inputIds. Shifted here; the last token of each document has no target. */
  readonly labels?: Integers | readonly Integers[] | undefined;
  /** Of `targets`, if known. */
  readonly validTokens?: number | undefined;
}

const isArray = (value: unknown): boolean => Array.isArray(value) || ArrayBuffer.isView(value);

const isNested = (value: LossInput["inputIds"]): value is readonly Integers[] =>
  Array.isArray(value) && value.length > 0 && isArray(value[0]);

/** Whether all lie in [0, below), or are the label that counts for nothing where that may be. */
function allWithin(values: Int32Array, below: number, ignore: boolean): boolean {
  const also = ignore ? IGNORE : 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    if ((value < 0 || value >= below) && value !== also) return false;
  }
  return true;
}

interface Range {
  /** Values lie in [0, below). */
  below: number;
  /** Whether IGNORE may stand there too. */
  ignore: boolean;
  /** What is wrong with a value, if anything. */
  check: (value: number) => string | undefined;
}

/** All values as int32, checked; an Int32Array without fault is given back as it is. */
function flatten(
  name: string,
  value: LossInput["inputIds"],
  { below, ignore, check }: Range,
): { flat: Int32Array; lengths: number[] } {
  if (value instanceof Int32Array && allWithin(value, below, ignore)) return { flat: value, lengths: [value.length] };
  if (!isArray(value))
    throw new ArgumentError(`${name} is ${value === null ? "null" : typeof value}, expected an array of whole numbers`);
  const rows = isNested(value) ? value : [value as Integers];
  const lengths = rows.map((row, i) => {
    if (!isArray(row)) throw new ArgumentError(`${name}[${i}] is ${typeof row}, expected an array of whole numbers`);
    return row.length;
  });
  const flat = new Int32Array(lengths.reduce((sum, length) => sum + length, 0));
  let at = 0;
  for (const [r, row] of rows.entries()) {
    for (let i = 0; i < row.length; i++) {
      const item = row[i] as number | bigint;
      const number = typeof item === "bigint" ? Number(item) : item;
      const wrong = Number.isSafeInteger(number) ? check(number) : "is not a whole number";
      if (wrong !== undefined) {
        const where = rows === (value as unknown) ? `${name}[${r}][${i}]` : `${name}[${i}]`;
        throw new ArgumentError(`${where} is ${String(item)}, which ${wrong}`, { index: i, row: r, value: item });
      }
      flat[at++] = number;
    }
  }
  return { flat, lengths };
}

/** As int64. */
function toInt64(name: string, values: Integers): BigInt64Array {
  if (values instanceof BigInt64Array) return values;
  if (!isArray(values)) throw new ArgumentError(`${name} is ${typeof values}, expected an array of whole numbers`);
  const result = new BigInt64Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number | bigint;
    if (typeof value !== "bigint" && !Number.isSafeInteger(value))
      throw new ArgumentError(`${name}[${i}] is ${String(value)}, which is not a whole number`, { index: i, value });
    result[i] = BigInt(value);
  }
  return result;
}

function requireBatch(batch: unknown): void {
  if (typeof batch !== "object" || batch === null)
    throw new ArgumentError(`expected a batch of {inputIds, ...}, got ${batch === null ? "null" : typeof batch}`);
}

export interface PreparedInput {
  /** [T] */
  ids: Int32Array;
  /** [T] */
  positions: BigInt64Array;
  /** [documents + 1] */
  cuSeqlens: BigInt64Array;
  group: SequenceGroup | null;
}

const idCheck = (vocabSize: number): Range => ({
  below: vocabSize,
  ignore: false,
  check: (id) => (id >= 0 && id < vocabSize ? undefined : `is no token of this model (0 to ${vocabSize - 1})`),
});

/** Checks ids, fills in positions and document bounds. Throws ArgumentError with index and value. */
export function prepareInput(input: ModelInput, vocabSize: number): PreparedInput {
  requireBatch(input);
  const { flat: ids, lengths } = flatten("inputIds", input.inputIds, idCheck(vocabSize));
  if (ids.length === 0) throw new ArgumentError("inputIds is empty; expected at least one token");
  const group = input.group ?? null;
  if (group !== null && (input.positions === undefined || input.cuSeqlens === undefined))
    throw new ArgumentError("a part of a sequence needs the positions and cuSeqlens of the whole");
  const tokens = ids.length * (group?.size ?? 1);
  const cuSeqlens = documentBounds(input, tokens, lengths);
  if (input.positions !== undefined) {
    const positions = toInt64("positions", input.positions);
    const seen = ids.length * (group?.ulysses?.size ?? 1);
    if (positions.length !== seen)
      throw new ArgumentError(`positions has ${positions.length} entries for ${seen} tokens`);
    return { ids, positions, cuSeqlens, group };
  }
  const positions = new BigInt64Array(ids.length);
  for (let d = 0; d + 1 < cuSeqlens.length; d++) {
    const begin = Number(cuSeqlens[d]);
    const end = Number(cuSeqlens[d + 1]);
    for (let i = begin; i < end; i++) positions[i] = BigInt(i - begin);
  }
  return { ids, positions, cuSeqlens, group };
}

/** [T] the numbers of this input's tokens in their step. */
export function tokenNumbers(
  { firstToken = 0, pieces = [{ at: 0, begin: 0 }] }: ModelInput,
  tokens: number,
): BigInt64Array {
  const numbers = new BigInt64Array(tokens);
  for (const [i, { at, begin }] of pieces.entries())
    for (let t = at; t < (pieces[i + 1]?.at ?? tokens); t++) numbers[t] = BigInt(firstToken + begin + t - at);
  return numbers;
}

/** The documents of the input: `cuSeqlens` if given (checked), otherwise its rows. */
function documentBounds(input: ModelInput, tokens: number, lengths: readonly number[]): BigInt64Array {
  if (input.cuSeqlens === undefined) {
    const bounds = new BigInt64Array(lengths.length + 1);
    let end = 0;
    for (const [i, length] of lengths.entries()) {
      end += length;
      bounds[i + 1] = BigInt(end);
    }
    return bounds;
  }
  const bounds = toInt64("cuSeqlens", input.cuSeqlens);
  if (bounds.length < 2 || bounds[0] !== 0n || bounds[bounds.length - 1] !== BigInt(tokens))
    throw new ArgumentError(
      `cuSeqlens is [${preview(bounds)}]; expected bounds from 0 to ${tokens}, the number of tokens`,
    );
  for (let i = 1; i < bounds.length; i++) {
    if ((bounds[i] as bigint) < (bounds[i - 1] as bigint))
      throw new ArgumentError(`cuSeqlens[${i}] is ${bounds[i]}, below the one before, ${bounds[i - 1]}`, { index: i });
  }
  return bounds;
}

const preview = (bounds: BigInt64Array): string =>
  bounds.length <= 6 ? bounds.join(", ") : `${bounds.subarray(0, 3).join(", ")}, ..., ${bounds[bounds.length - 1]}`;

/** The shifted targets and how many count. Throws ArgumentError with index and value. */
export function prepareTargets(batch: LossInput, vocabSize: number): { targets: Int32Array; validTokens: number } {
  requireBatch(batch);
  const check: Range = {
    below: vocabSize,
    ignore: true,
    check: (label) =>
      label === IGNORE || (label >= 0 && label < vocabSize)
        ? undefined
        : `is neither a token of this model (0 to ${vocabSize - 1}) nor ${IGNORE}`,
  };
  const length = (values: Integers | readonly Integers[]): number =>
    isNested(values) ? values.reduce((sum, row) => sum + row.length, 0) : values.length;
  if (batch.targets !== undefined) {
    if (batch.labels !== undefined) throw new ArgumentError("loss: got both targets and labels; give one of them");
    const { flat: targets } = flatten("targets", batch.targets, check);
    const tokens = length(batch.inputIds);
    if (targets.length !== tokens)
      throw new ArgumentError(`targets has ${targets.length} entries for ${tokens} tokens`);
    return { targets, validTokens: batch.validTokens ?? countValid(targets) };
  }
  const given = batch.labels !== undefined;
  const { flat: ids, lengths } = flatten("inputIds", batch.inputIds, idCheck(vocabSize));
  const labels = given ? flatten("labels", batch.labels as LossInput["inputIds"], check) : { flat: ids, lengths };
  if (labels.flat.length !== ids.length || labels.lengths.some((n, i) => n !== lengths[i]))
    throw new ArgumentError(
      `labels and inputIds differ in length: ${labels.lengths.join(", ")} against ${lengths.join(", ")}`,
    );
  const bounds = documentBounds(batch, ids.length, lengths);
  const targets = new Int32Array(ids.length).fill(IGNORE);
  targets.set(labels.flat.subarray(1));
  for (let d = 1; d < bounds.length; d++) {
    // The last token of a document must not learn the first of the next one.
    const end = Number(bounds[d]);
    if (end > 0) targets[end - 1] = IGNORE;
  }
  return { targets, validTokens: countValid(targets) };
}

function countValid(targets: Int32Array): number {
  let valid = 0;
  for (const target of targets) if (target !== IGNORE) valid++;
  return valid;
}
