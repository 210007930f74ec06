// A run from its folder to its exported model: the phases in their order, and the loop.

import { closeSync } from "node:fs";
import { join } from "node:path";
import { binding } from "../binding.js";
import { pruneCheckpoints, writeFileDurably } from "../checkpoint/atomic.js";
import { DataLoader } from "../data/index.js";
import { CancelledError, DeviceError, TrainingError } from "../errors.js";
import { makeFolders } from "../folders.js";
import { helpExport } from "../models/index.js";
import type { RunItem } from "../report/events.js";
import type { Device } from "../tensor/device.js";
import { evaluateIfDue, evaluationDue } from "./evaluate.js";
import { checkFinite, refuseBroken, refuseSkippedEnd } from "./finite.js";
import { exportModel } from "./model.js";
import { checkJob, giveBack, openDevice, openRunData, openTraining } from "./open_run.js";
import { exportedStep, markExported, openRunFolder } from "./run_folder.js";
import { sampleIfDue, samplesDue } from "./sample.js";
import type { Session, Training } from "./session.js";
import { saveCheckpoint } from "./state.js";
import { StepQueue } from "./step_queue.js";

/** Steps that may be queued on the device at once. */
const MOST_QUEUED = 2;

/** All that a run does; what it holds is closed at its end, however that comes. */
export async function* runToTheEnd(session: Session): AsyncGenerator<RunItem, void, void> {
  // Whether the device is somebody else's.
  const lent = session.device !== undefined;
  let queue: StepQueue | undefined;
  let training: Training | undefined;
  try {
    session.checkAborted();
    await checkJob(session);
    const resumed = await openRunFolder(session);
    const exported = resumed !== undefined && exportedStep(session.folder) === resumed.state.step;
    // A GPU that cannot be used is said before the data are made ready; a finished run needs none.
    if (!exported) openDevice(session);
    await openRunData(session, resumed);
    if (exported && resumed.state.step >= session.steps) {
      tellFinished(session, resumed.state.step);
      return yield* session.flush();
    }
    training = await openTraining(session, resumed);
    queue = new StepQueue(training);
    yield* session.flush();
    try {
      yield* train(training, queue);
      yield* finish(training);
    } catch (error) {
      // That a rank is gone says more than what an exchange failed for; what else failed is this rank's own.
      if (!(error instanceof CancelledError) && !session.signal.aborted)
        throw error instanceof DeviceError ? (session.job.lost ?? error) : error;
      yield* stop(training, queue, error);
    }
  } catch (error) {
    if (training === undefined && error instanceof CancelledError) await stopUnbegun(session);
    throw error;
  } finally {
    await close(session, queue, lent);
  }
}

/** The loop: a step is enqueued while the one before it runs; evaluations, saves and traces wait for all of them. */
async function* train(training: Training, queue: StepQueue): AsyncGenerator<RunItem, void, void> {
  const { session, data, state, startStep, device } = training;
  const { train, output } = session.config;
  const epochs = train.epochs ?? Number.POSITIVE_INFINITY;
  const loader = new DataLoader(data, { batchSize: train.batchSize, cursor: state.cursor, epochs });
  const { mesh } = session.job;
  const share = { index: mesh.dataIndex, count: mesh.sizes.data };
  // Of a run that was stopped between a step and its evaluation.
  if (state.step > 0) yield* evaluateIfDue(training);
  if (state.step < session.steps) yield { event: "progress", step: state.step + 1, fraction: 0, phase: "forward" };

  for (let step = state.step + 1; step <= session.steps; step++) {
    session.checkAborted();
    const next = await loader.nextStep(train.microBatchSize, share);
    session.checkAborted();
    if (next === null)
      throw new TrainingError(`the data ended at step ${step} of ${session.steps}; was it changed during the run?`);
    const trace = step - startStep <= output.traceSteps;
    if (trace) device.startTrace();
    queue.enqueue(step, next);
    const save = output.saveEvery > 0 && step % output.saveEvery === 0;
    const settle =
      trace || save || step === session.steps || evaluationDue(training, step) || samplesDue(training, step);
    while (queue.length > (settle ? 0 : MOST_QUEUED - 1)) {
      yield* queue.finishOldest();
      await checkFinite(training);
    }
    if (!settle) continue;
    if (trace) await writeTrace(session, device, step);
    yield* evaluateIfDue(training);
    yield* sampleIfDue(training);
    if (save && step < session.steps) {
      await refuseBroken(training);
      yield await saveRun(training);
    }
    queue.restartClock();
  }
}

/** Saves and exports after the last step. */
async function* finish(training: Training): AsyncGenerator<RunItem, void, void> {
  const { session, device, model, state } = training;
  session.checkAborted();
  await refuseBroken(training);
  if (session.saved !== state.step) yield await saveRun(training);
  refuseSkippedEnd(training);
  const path = join(session.folder, "model");
  if (session.job.leads) {
    await exportModel(session.config, model, path);
    await markExported(session.folder, state.step);
  } else {
    helpExport(model);
    await device.synchronize();
  }
  yield session.record({ event: "save", step: state.step, path });
  yield session.record({ event: "done", step: state.step, path, skipped: state.skipped });
  await session.trackers.close();
  yield* session.flush();
}

function tellFinished(session: Session, step: number): void {
  const { folder, steps } = session;
  const path = join(folder, "model");
  session.tell({
    event: "done",
    step,
    path,
    message:
      `${folder} is finished: ${step} of ${Math.max(step, steps)} steps are done and the model is in ${path}; ` +
      "to go on raise the number of steps, to start afresh give another output.dir",
  });
}

/** Saves the state of the last finished step, then removes what `keep` does not keep. */
async function saveRun({ session, state, model, owned, optimizer }: Training): Promise<RunItem> {
  // Lines after the newest checkpoint are cut off by a resume, so those before it must be on the disk first.
  session.metrics?.sync();
  const path = await saveCheckpoint(
    session.checkpoints,
    state,
    { owned, optimizer, spread: model.isSpread },
    session.job,
  );
  // Not before: a stop in its middle saves again.
  session.saved = state.step;
  if (session.job.leads) await pruneCheckpoints(session.checkpoints, session.config.output.keep);
  return session.record({ event: "save", step: state.step, path });
}

/** Each rank's own; rank 0's has the plain name. */
async function writeTrace({ folder, job }: Session, device: Device, step: number): Promise<void> {
  await device.synchronize();
  const trace = device.stopTrace();
  makeFolders(join(folder, "trace"));
  await writeFileDurably(join(folder, "trace", `step-${step}${job.leads ? "" : `.rank-${job.rank}`}.json`), trace);
}

/** Tells the other ranks, which may have begun to train, that this one had not: none of them saves then. */
async function stopUnbegun({ job }: Session): Promise<void> {
  await job.enterEnd();
  // Why this rank ends is known already.
  await job.swap<number | null>(null).catch(() => {});
}

/** After an abort: gives up what is queued, goes back to the last finished step and saves that. */
async function* stop(training: Training, queue: StepQueue, cause: unknown): AsyncGenerator<RunItem, void, void> {
  const { session, device, optimizer, state, startStep, finishedBefore } = training;
  const { job } = session;
  session.signal.removeEventListener("abort", session.abort);
  session.broken = true;
  device.cancel();
  // An exchange that waits for a rank which has stopped is given up by the job.
  await job.enterEnd();
  await device.resume();
  if (binding.failure(device.native) !== null) throw job.lost ?? cause;
  yield* queue.drop(startStep + binding.stepsFinished(device.native) - finishedBefore);
  optimizer.zeroGrad();
  const steps = await job.swap<number | null>(state.step);
  if (steps.includes(null)) throw new CancelledError("stopped before all ranks had begun", {}, { cause });
  // Of shares only all together are a state. (All ranks wait for one another before an update, so that they agree.)
  const other = steps.findIndex((step) => step !== steps[0]);
  if (training.model.isSpread && other >= 0)
    throw new TrainingError(
      `stopped: rank 0 had finished step ${steps[0]}, rank ${other} step ${steps[other]}, so nothing is saved; ` +
        `the same configuration goes on from the newest checkpoint in ${session.checkpoints}`,
      { steps },
    );
  const due = session.saved !== state.step;
  if (training.model.isSpread ? await job.fromLeader(() => due) : due) yield await saveRun(training);
  await session.trackers.close();
  yield* session.flush();
  throw new CancelledError(
    `stopped after step ${state.step} of ${session.steps}; the state is saved in ${session.checkpoints}, ` +
      "and the same configuration goes on from there",
    { step: state.step },
    { cause },
  );
}

/** Frees what the run holds; whatever is still queued is given up. */
async function close(session: Session, queue: StepQueue | undefined, lent: boolean): Promise<void> {
  const { signal, device, config } = session;
  signal.removeEventListener("abort", session.abort);
  if (device !== undefined) {
    session.broken ||= (queue?.length ?? 0) > 0;
    device.cancel();
    if (session.broken) session.job.abort();
    await queue?.clear();
    session.optimizer?.zeroGrad();
    session.optimizer?.dispose();
    session.model?.dispose();
    await device.resume();
    device.setLimit(0);
    device.setLimit(0, "host");
    device.trim();
    // After a failure, or updates that were given up, its counts no longer fit: another run opens another one.
    if (!lent && !session.broken && binding.failure(device.native) === null) giveBack(device, config);
  }
  session.metrics?.close();
  await session.trackers.close();
  await session.data?.close();
  await session.evalData?.close();
  if (session.lock !== undefined) closeSync(session.lock);
  session.lock = undefined;
}
