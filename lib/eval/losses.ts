// Loss and perplexity of documents, by file and by position: each document alone, with all that came before in it.

import { type Batch, collate, type Dataset, IGNORE_INDEX } from "../data/index.js";
import type { CausalLM } from "../models/index.js";
import type { FileFigures, LossResults } from "../report/eval_results.js";
import { PositionLosses } from "./positions.js";

/** Short documents go through the model together, up to so many tokens; they never see each other. */
const TOGETHER = 4096;

export interface LossOptions {
  /** What the results name. */
  readonly folder: string;
  /** Pieces that longer documents were cut into; null: they were not. */
  readonly sequenceLength: number | null;
  /** Tokens of a bucket of positions; null: buckets that double. */
  readonly bucket?: number | null;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((done: { sequences: number; of: number; loss: number | null }) => void) | undefined;
}

interface Member {
  readonly file: string;
  readonly batch: Batch;
}

/** The losses of all sequences of a dataset that was opened without packing and shuffling. */
export async function evaluateLosses(model: CausalLM, dataset: Dataset, options: LossOptions): Promise<LossResults> {
  const { bucket = null, signal } = options;
  const plan = dataset.plan(0);
  const files = new Map<string, { documents: Set<number>; losses: PositionLosses }>(
    dataset.files.map((file) => [file, { documents: new Set(), losses: new PositionLosses(bucket) }]),
  );
  const all = new PositionLosses(bucket);
  let waiting: Member[] = [];
  let tokens = 0;
  // Where frequencies hang on the longest document of a batch, a document would read others in company.
  const most = model.positionsDependOnLength ? 0 : TOGETHER;

  const flush = async (): Promise<void> => {
    const members = waiting;
    waiting = [];
    tokens = 0;
    if (members.length === 0) return;
    using losses = model.tokenLosses(collate(members.map(({ batch }) => batch)));
    const values = (await losses.data()) as Float64Array;
    let at = 0;
    for (const { file, batch } of members) {
      const of = (files.get(file) as { losses: PositionLosses }).losses;
      for (let i = 0; i < batch.tokens; i++, at++) {
        if (batch.targets[i] === IGNORE_INDEX) continue;
        // The token that follows number i has one more before it.
        const position = Number(batch.positions[i]) + 1;
        for (const sums of [of, all]) sums.add(position, values[at] as number);
      }
    }
  };

  for (let i = 0; i < plan.sequences; i++) {
    signal?.throwIfAborted();
    const sequence = await dataset.sequence(0, i);
    const { document } = plan.segments(i)[0] as { document: number };
    const { file } = dataset.documentInfo(document);
    files.get(file)?.documents.add(document);
    if (waiting.length > 0 && tokens + sequence.tokens > most) await flush();
    waiting.push({ file, batch: { ...sequence, sequences: 1 } });
    tokens += sequence.tokens;
    if (tokens >= most) await flush();
    options.onProgress?.({ sequences: i + 1, of: plan.sequences, loss: all.total.loss });
  }
  await flush();
  const figures = [...files].map(([file, { documents, losses }]): FileFigures => {
    return { file, documents: documents.size, ...losses.total, positions: losses.positions() };
  });
  return {
    version: 1,
    model: options.folder,
    sequenceLength: options.sequenceLength,
    files: figures,
    positions: all.positions(),
    total: { documents: figures.reduce((sum, { documents }) => sum + documents, 0), ...all.total },
  };
}
