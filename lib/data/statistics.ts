// What a dataset holds, in numbers: rows and tokens by source, lengths, what is cut or dropped, how full sequences are.

import type { Dataset, Overlong } from "./dataset.js";

export interface SourceStatistics {
  file: string;
  rows: number;
  tokens: number;
  /** Tokens that the loss counts. */
  trainedTokens: number;
  longest: number;
}

/** Rows of from to to tokens. */
export interface LengthBucket {
  from: number;
  to: number;
  rows: number;
  tokens: number;
}

export interface DataStatistics {
  rows: number;
  tokens: number;
  /** Tokens that the loss counts. */
  trainedTokens: number;
  /** Rows in which nothing counts. */
  unlabelledRows: number;
  sources: SourceStatistics[];
  /** Powers of two, from the shortest row's to the longest's. */
  lengths: LengthBucket[];
  median: number;
  longest: number;
  /** Rows of more than sequence_length tokens. */
  overlongRows: number;
  /** Tokens of them that no sequence holds: what `truncate` cuts off, or all that `drop` leaves out. */
  lostTokens: number;
  /** The first epoch: its sequences, their tokens, and these as a part of what full sequences would hold. */
  sequences: number;
  sequenceTokens: number;
  filled: number;
  /** Passes over each entry's rows that an epoch makes; null: one over each. */
  passes: number[] | null;
  /** Optimizer steps of an epoch. */
  stepsPerEpoch: number;
}

/** Looks through the lengths of all rows and the plan of the first epoch; reads no tokens. */
export function statisticsOf(data: Dataset, overlong: Overlong, batchSize: number): DataStatistics {
  const { sequenceLength } = data;
  const buckets = new Map<number, LengthBucket>();
  const lengths = new Float64Array(data.documents);
  let overlongRows = 0;
  let lostTokens = 0;
  const sources = data.sources.map(({ file, begin, end }): SourceStatistics => {
    const found: SourceStatistics = { file, rows: end - begin, tokens: 0, trainedTokens: 0, longest: 0 };
    for (let document = begin; document < end; document++) {
      const { tokens, validTokens } = data.documentInfo(document);
      lengths[document] = tokens;
      found.tokens += tokens;
      found.trainedTokens += validTokens;
      found.longest = Math.max(found.longest, tokens);
      const power = Math.floor(Math.log2(tokens));
      const bucket = buckets.get(power) ?? { from: 2 ** power, to: 2 ** (power + 1) - 1, rows: 0, tokens: 0 };
      bucket.rows++;
      bucket.tokens += tokens;
      buckets.set(power, bucket);
      if (tokens > sequenceLength) {
        overlongRows++;
        lostTokens += overlong === "drop" ? tokens : overlong === "truncate" ? tokens - sequenceLength : 0;
      }
    }
    return found;
  });
  const sum = (of: (source: SourceStatistics) => number) => sources.reduce((total, source) => total + of(source), 0);
  const powers = [...buckets.keys()].sort((a, b) => a - b);
  const [least = 0, most = 0] = [powers[0], powers.at(-1)];
  const plan = data.plan(0);
  let sequenceTokens = 0;
  for (let i = 0; i < plan.sequences; i++) sequenceTokens += plan.tokens(i);
  return {
    rows: data.documents,
    tokens: sum(({ tokens }) => tokens),
    trainedTokens: sum(({ trainedTokens }) => trainedTokens),
    unlabelledRows: data.unlabelled,
    sources,
    lengths: Array.from({ length: most - least + 1 }, (_, i) => {
      const from = 2 ** (least + i);
      return buckets.get(least + i) ?? { from, to: 2 * from - 1, rows: 0, tokens: 0 };
    }),
    median: lengths.sort()[(data.documents - 1) >> 1] as number,
    longest: data.longest,
    overlongRows,
    lostTokens,
    sequences: plan.sequences,
    sequenceTokens,
    filled: sequenceTokens / (plan.sequences * sequenceLength),
    passes: data.mixture?.passes ?? null,
    stepsPerEpoch: data.totalSteps(1, batchSize),
  };
}
