// Sequences and batches as the models take them: token ids, shifted targets, positions and document bounds.

import { ArgumentError } from "../errors.js";

/** Where the low half of a 64-bit integer lies among its two 32-bit words. */
const LOW_WORD = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1 ? 0 : 1;

/** The label that contributes nothing to the loss. */
export const IGNORE_INDEX = -100;

/**
 * One or several documents laid end to end, without padding. T is the number of tokens.
 * A training sequence is one of these, and so is the concatenation of several that `collate` makes.
 */
export interface Sequence {
  /** [T] token ids. */
  inputIds: Int32Array;
  /** [T] already shifted: targets[i] is the label of token i + 1; -100 where ignored and at the last token of every
   * document. */
  targets: Int32Array;
  /** [T] int64; 0 at the first token of every document. */
  positions: BigInt64Array;
  /** [documents + 1] int64, ascending from 0 to T: where each document begins, and the end. */
  cuSeqlens: BigInt64Array;
  /** T. */
  tokens: number;
  /** How many targets are not -100: this part's share of the loss's denominator. */
  validTokens: number;
}

/** What one forward pass takes: the rows of `sequences` sequences, end to end. */
export interface Batch extends Sequence {
  sequences: number;
  /** The first so many tokens are those of the data, what follows is padding; default: all are. */
  counted?: number;
  /** The number of its first token among those of its step; default 0. */
  firstToken?: number;
}

/** A document's tokens and the labels aligned with them (Hugging Face's meaning); null labels mean labels = ids. */
export interface DocumentTokens {
  inputIds: Int32Array;
  labels: Int32Array | null;
}

/**
 * Lays documents end to end as one sequence: shifts labels inside each document, restarts positions at each.
 * Labels of another length than their ids are an ArgumentError.
 */
export function makeSequence(documents: readonly DocumentTokens[]): Sequence {
  let tokens = 0;
  for (const document of documents) tokens += document.inputIds.length;
  const inputIds = new Int32Array(tokens);
  const targets = new Int32Array(tokens);
  const positions = new BigInt64Array(tokens);
  // A document has fewer than 2^31 tokens; writing 32-bit halves spares a BigInt a token.
  const positionWords = new Int32Array(positions.buffer);
  const cuSeqlens = new BigInt64Array(documents.length + 1);
  let offset = 0;
  let validTokens = 0;
  for (let d = 0; d < documents.length; d++) {
    const { inputIds: ids, labels } = documents[d] as DocumentTokens;
    const length = ids.length;
    if (labels !== null && labels.length !== length) {
      throw new ArgumentError(`document ${d} has ${length} token ids but ${labels.length} labels`);
    }
    inputIds.set(ids, offset);
    if (length > 0) {
      targets.set((labels ?? ids).subarray(1), offset);
      targets[offset + length - 1] = IGNORE_INDEX;
    }
    for (let i = 0; i < length; i++) {
      positionWords[2 * (offset + i) + LOW_WORD] = i;
      if (targets[offset + i] !== IGNORE_INDEX) validTokens++;
    }
    offset += length;
    cuSeqlens[d + 1] = BigInt(offset);
  }
  return { inputIds, targets, positions, cuSeqlens, tokens, validTokens };
}

/**
 * Concatenates sequences into one batch; `cuSeqlens` covers all documents of all of them, and nothing is padded.
 * No sequence at all is an ArgumentError.
 */
export function collate(sequences: readonly Sequence[]): Batch {
  if (sequences.length === 0) throw new ArgumentError("collate needs at least one sequence");
  if (sequences.length === 1) return { ...(sequences[0] as Sequence), sequences: 1 };
  let tokens = 0;
  let documents = 0;
  for (const sequence of sequences) {
    tokens += sequence.tokens;
    documents += sequence.cuSeqlens.length - 1;
  }
  const inputIds = new Int32Array(tokens);
  const targets = new Int32Array(tokens);
  const positions = new BigInt64Array(tokens);
  const cuSeqlens = new BigInt64Array(documents + 1);
  let offset = 0;
  let document = 1;
  let validTokens = 0;
  for (const sequence of sequences) {
    inputIds.set(sequence.inputIds, offset);
    targets.set(sequence.targets, offset);
    positions.set(sequence.positions, offset);
    for (let d = 1; d < sequence.cuSeqlens.length; d++) {
      cuSeqlens[document++] = (sequence.cuSeqlens[d] as bigint) + BigInt(offset);
    }
    offset += sequence.tokens;
    validTokens += sequence.validTokens;
  }
  return { inputIds, targets, positions, cuSeqlens, tokens, validTokens, sequences: sequences.length };
}
