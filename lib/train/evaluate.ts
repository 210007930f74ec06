// Evaluation in the middle of a run and at its end.

import { type Batch, DataLoader, type Dataset } from "../data/index.js";
import { nothing } from "../data/loader.js";
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
  const { job } = session;
  const { mesh } = job;
  if (!evaluationDue(training, state.step)) return;
  const loader = new DataLoader(session.evalData as Dataset, { batchSize: session.config.train.microBatchSize });
  const pending: { loss: Tensor; read: Promise<number> }[] = [];
  let total = 0;
  let tokens = 0;
  let validTokens = 0;
  try {
    for (
      let round = await nextRound(loader, mesh.sizes.data);
      round.length > 0;
      round = await nextRound(loader, mesh.sizes.data)
    ) {
      session.checkAborted();
      for (const batch of round) {
        tokens += batch.tokens;
        validTokens += batch.validTokens;
      }
      // All ranks do as many, since they exchange what they hold.
      model.device.step = `the evaluation after step ${state.step}`;
      const loss = evaluationLoss(model, round[mesh.dataIndex] ?? nothing(), mesh.sequence);
      model.device.step = "";
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
  // Ranks of one sequence have its loss already.
  const totals = (await job.swap(total)).filter((_, rank) => rank % mesh.sequenceSize === 0);
  total = totals.reduce((sum, one) => sum + one, 0);
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

/** A batch for each group of ranks that takes its own; fewer at the end. */
async function nextRound(loader: DataLoader, groups: number): Promise<Batch[]> {
  const round: Batch[] = [];
  while (round.length < groups) {
    const batch = await loader.nextBatch();
    if (batch === null) break;
    round.push(batch);
  }
  return round;
}

async function takeFirst(pending: { loss: Tensor; read: Promise<number> }[]): Promise<number> {
  const first = pending[0] as (typeof pending)[number];
  const value = await first.read;
  pending.shift();
  first.loss.dispose();
  return value;
}
