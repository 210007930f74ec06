// A rank's part of a sequence: which tokens it holds, and what it still has to know of the others.

import type { Batch } from "../data/batch.js";
import { IGNORE_INDEX } from "../data/batch.js";
import type { Communicator } from "../parallel/communicator.js";

/** A batch of which this rank has S = T / P tokens, those from rank * S on. */
export interface ShardedBatch extends Batch {
  /** The ranks that hold the sequence. positions and cuSeqlens are those of all T tokens. */
  group: Communicator;
}

/** Where a rank's part begins and how long it is; all parts are of one length, the last tokens may be padding. */
export function partOf(tokens: number, { rank, size }: Pick<Communicator, "rank" | "size">) {
  const length = Math.ceil(tokens / size);
  return { start: rank * length, length, total: length * size };
}

/**
 * This rank's part of a batch. Where the tokens do not divide, documents of one padding token each (id 0, no label) are
 * laid behind them, which nothing attends and which add nothing to a loss or a gradient.
 */
export function shardBatch(batch: Batch, group: Communicator | null): Batch | ShardedBatch {
  if (group === null) return batch;
  const { start, length, total } = partOf(batch.tokens, group);
  const part = (from: Int32Array, fill: number): Int32Array => {
    const out = new Int32Array(length).fill(fill);
    out.set(from.subarray(start, Math.min(start + length, from.length)));
    return out;
  };
  const targets = part(batch.targets, IGNORE_INDEX);
  const padding = total - batch.tokens;
  const positions = new BigInt64Array(total);
  positions.set(batch.positions);
  const cuSeqlens = new BigInt64Array(batch.cuSeqlens.length + padding);
  cuSeqlens.set(batch.cuSeqlens);
  for (let i = 0; i < padding; i++) cuSeqlens[batch.cuSeqlens.length + i] = BigInt(batch.tokens + i + 1);
  return {
    ...batch,
    inputIds: part(batch.inputIds, 0),
    targets,
    positions,
    cuSeqlens,
    tokens: length,
    validTokens: targets.reduce((count, target) => count + (target === IGNORE_INDEX ? 0 : 1), 0),
    group,
  };
}
