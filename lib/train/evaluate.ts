// Evaluation in the middle of a run and at its end.

import { DataLoader, type Dataset } from "../data/index.js";
import type { EvalEvent, RunItem } from "../report/events.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Training } from "./session.js";
import { evaluationLoss } from "./step.js";

/** Batches that may be queued on the device at once: one runs, one waits. */
const MOST_QUEUED = 2;

/** Whether one belongs behind this step. */
export function evaluationDue({ session, state }: Training, step: number): boolean {
  if (session.evalData === undefined || state.evaluated >= step) return false;
  const { evalEvery } = session.config.train;
  return step === session.steps || (evalEvery > 0 && step % evalEvery === 0);
}

/** Mean loss over all valid labels of data.eval, with the parameters as they are. */
export async function* evaluateIfDue(training: Training): AsyncGenerator<RunItem, void, void> {
  const { session, model, state } = training;
  if (!evaluationDue(training, state.step)) return;
  const loader = new DataLoader(session.evalData as Dataset, { batchSize: session.config.train.microBatchSize });
  const pending: { loss: Tensor; read: Promise<number> }[] = [];
  let total = 0;
  let tokens = 0;
  let validTokens = 0;
  try {
    for (let batch = await loader.nextBatch(); batch !== null; batch = await loader.nextBatch()) {
      session.checkAborted();
      tokens += batch.tokens;
      validTokens += batch.validTokens;
      const loss = evaluationLoss(model, batch, session.job.group);
      const read = loss.item();
      read.catch(() => {});
      pending.push({ loss, read });
      // One runs, one waits.
      while (pending.length >= MOST_QUEUED) total += await takeFirst(pending);
    }
    while (pending.length > 0) total += await takeFirst(pending);
  } finally {
    for (const { loss } of pending) loss.dispose();
  }
  state.evaluated = state.step;
  const event: EvalEvent = {
    event: "eval",
    step: state.step,
    loss: validTokens > 0 ? total / validTokens : null,
    tokens,
    validTokens,
  };
  yield session.record(event);
}

async function takeFirst(pending: { loss: Tensor; read: Promise<number> }[]): Promise<number> {
  const first = pending[0] as (typeof pending)[number];
  const value = await first.read;
  pending.shift();
  first.loss.dispose();
  return value;
}
