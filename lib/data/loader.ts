// The loader: the epochs' sequences in order from an exact cursor, read a little ahead, as batches or steps.

import { ArgumentError } from "../errors.js";
import { type Batch, collate, makeSequence, type Sequence } from "./batch.js";
import type { Dataset } from "./dataset.js";

/** The next sequence to be taken: plain JSON, exact, good for a dataset of the same fingerprint. */
export interface Cursor {
  epoch: number;
  sequence: number;
}

export interface LoaderOptions {
  /** Sequences a batch (or a step). */
  batchSize: number;
  /** Where to begin; the start where absent. */
  cursor?: Cursor | undefined;
  /** Epochs after which the loader ends, counted from epoch 0; Infinity for no end. A fraction ends inside an epoch. Default 1. */
  epochs?: number | undefined;
  /** Batches read ahead. Default 2. */
  prefetch?: number | undefined;
}

/** Which groups of a step's sequences are taken: those numbered index, index + count, ... */
export interface Share {
  index: number;
  count: number;
}

/** A batch that adds nothing, for ranks that have none while others do: one token without a label. */
export const nothing = (): Batch => ({
  ...collate([makeSequence([{ inputIds: new Int32Array(1), labels: null }])]),
  counted: 0,
});

/** One optimizer step's data. */
export interface Step {
  /**
   * The step's sequences in order, in groups of the micro-batch size; the last group may be smaller. Of a share its
   * groups, as many for every share: what lacks is a token without a label.
   */
  micro: Batch[];
  /** What follows counts all shares. */
  sequences: number;
  tokens: number;
  /** Lengths of the documents. */
  documents: number[];
  /** Targets that count, over all micro-batches: the denominator of the step's loss. */
  validTokens: number;
  /** The cursor behind this step. */
  cursor: Cursor;
  /** How far the data has come behind this step, in epochs. */
  epoch: number;
}

/**
 * Gives the sequences of a dataset, `batchSize` at a time, epoch after epoch: the last ones of an epoch share a batch
 * with the first ones of the next. What comes depends on the dataset and the cursor alone.
 *
 * `for await (const batch of loader)` takes batches; `nextStep` takes the same sequences in micro-batches.
 */
export class DataLoader implements AsyncIterable<Batch> {
  readonly dataset: Dataset;
  readonly batchSize: number;
  readonly #epochs: number;
  readonly #prefetch: number;
  #taken: Cursor;
  #asked: Cursor;
  readonly #ahead: Promise<Sequence>[] = [];

  constructor(dataset: Dataset, options: LoaderOptions) {
    if (typeof options !== "object" || options === null)
      throw new ArgumentError("DataLoader: expected options of {batchSize, ...}");
    const { batchSize, epochs = 1, prefetch = 2 } = options;
    if (!Number.isSafeInteger(batchSize) || batchSize < 1) {
      throw new ArgumentError(`batchSize must be an integer from 1, not ${batchSize}`);
    }
    if (!(epochs > 0)) throw new ArgumentError(`epochs must be above 0, not ${epochs}`);
    this.dataset = dataset;
    this.batchSize = batchSize;
    this.#epochs = epochs;
    this.#prefetch = prefetch;
    this.#taken = this.#normal(options.cursor ?? { epoch: 0, sequence: 0 });
    this.#asked = this.#taken;
  }

  /** The cursor of the next sequence that will be given. */
  get cursor(): Cursor {
    return { ...this.#taken };
  }

  /** A cursor behind an epoch's last sequence is the next epoch's start. */
  #normal({ epoch, sequence }: Cursor): Cursor {
    if (!Number.isSafeInteger(epoch) || epoch < 0 || !Number.isSafeInteger(sequence) || sequence < 0) {
      throw new ArgumentError(
        `a cursor is {epoch, sequence} with integers from 0, not ${JSON.stringify({ epoch, sequence })}`,
      );
    }
    const { sequences } = this.dataset.plan(epoch);
    if (sequence > sequences) {
      throw new ArgumentError(
        `the cursor's sequence ${sequence} is beyond epoch ${epoch}, which has ${sequences}; is it another dataset's?`,
      );
    }
    return sequence === sequences ? { epoch: epoch + 1, sequence: 0 } : { epoch, sequence };
  }

  /** Whether the sequence at this cursor still belongs to the run. */
  #within({ epoch, sequence }: Cursor): boolean {
    const whole = Math.floor(this.#epochs);
    if (epoch < whole) return true;
    if (epoch > whole || epoch === this.#epochs) return false;
    return sequence < Math.ceil((this.#epochs - whole) * this.dataset.plan(epoch).sequences);
  }

  /** How many epochs a cursor stands for, with its fraction. */
  epochAt(cursor: Cursor): number {
    return cursor.epoch + cursor.sequence / this.dataset.plan(cursor.epoch).sequences;
  }

  /** Begins again at a cursor; what was read ahead is let go. */
  at(cursor: Cursor): this {
    this.#taken = this.#normal(cursor);
    this.#asked = this.#taken;
    this.#ahead.length = 0;
    return this;
  }

  async #take(count: number): Promise<Sequence[]> {
    const wanted = count + this.#prefetch * this.batchSize;
    while (this.#ahead.length < wanted && this.#within(this.#asked)) {
      const { epoch, sequence } = this.#asked;
      const promise = this.dataset.sequence(epoch, sequence);
      // A failure is reported when the sequence is taken.
      promise.catch(() => {});
      this.#ahead.push(promise);
      this.#asked = this.#normal({ epoch, sequence: sequence + 1 });
    }
    const sequences = await Promise.all(this.#ahead.slice(0, count));
    this.#ahead.splice(0, sequences.length);
    for (let i = 0; i < sequences.length; i++) {
      this.#taken = this.#normal({ epoch: this.#taken.epoch, sequence: this.#taken.sequence + 1 });
    }
    return sequences;
  }

  /** The next batch of up to batchSize sequences; null at the end. */
  async nextBatch(): Promise<Batch | null> {
    const sequences = await this.#take(this.batchSize);
    return sequences.length === 0 ? null : collate(sequences);
  }

  /** The next step's sequences in micro-batches of `microBatchSize`; null at the end. */
  async nextStep(microBatchSize = 1, share: Share = { index: 0, count: 1 }): Promise<Step | null> {
    if (!Number.isSafeInteger(microBatchSize) || microBatchSize < 1) {
      throw new ArgumentError(`microBatchSize must be an integer from 1, not ${microBatchSize}`);
    }
    const sequences = await this.#take(this.batchSize);
    if (sequences.length === 0) return null;
    const groups = Math.ceil(sequences.length / microBatchSize);
    const micro: Batch[] = [];
    const sumOf = (some: readonly Sequence[], of: (sequence: Sequence) => number) =>
      some.reduce((total, one) => total + of(one), 0);
    const sum = (of: (sequence: Sequence) => number) => sumOf(sequences, of);
    for (let group = share.index; micro.length < Math.ceil(groups / share.count); group += share.count) {
      const first = group * microBatchSize;
      const taken = sequences.slice(first, first + microBatchSize);
      const firstToken = sumOf(sequences.slice(0, first), ({ tokens }) => tokens);
      micro.push(taken.length > 0 ? { ...collate(taken), firstToken } : nothing());
    }
    return {
      micro,
      sequences: sequences.length,
      tokens: sum(({ tokens }) => tokens),
      documents: sequences.flatMap(({ cuSeqlens }) =>
        Array.from(cuSeqlens.subarray(1), (end, i) => Number(end - (cuSeqlens[i] as bigint))),
      ),
      validTokens: sum(({ validTokens }) => validTokens),
      cursor: this.cursor,
      epoch: this.epochAt(this.#taken),
    };
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Batch> {
    for (let batch = await this.nextBatch(); batch !== null; batch = await this.nextBatch()) yield batch;
  }
}
