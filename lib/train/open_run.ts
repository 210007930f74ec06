// Opening a run: its data, its device, what `memory` leaves open, the model and the optimizer.

import { join } from "node:path";
import { binding } from "../binding.js";
import { allDifferences } from "../config/compare.js";
import type { Config } from "../config/index.js";
import { yamlOf } from "../config/write.js";
import { openData } from "../data/index.js";
import { ArgumentError, ConfigError, DataError } from "../errors.js";
import type { CausalLM } from "../models/index.js";
import type { Job } from "../parallel/job.js";
import { pinNear } from "../parallel/pin.js";
import { CommandTracker } from "../report/command_tracker.js";
import { MetricsWriter } from "../report/metrics.js";
import { TensorBoardTracker } from "../report/tensorboard.js";
import { Device } from "../tensor/device.js";
import type { Parameter } from "../tensor/tensor.js";
import { packageVersion } from "../version.js";
import { dataOptions } from "./data_options.js";
import type { Peaks } from "./limits.js";
import { workloadOf } from "./measure.js";
import { openModel, resolveModel } from "./model.js";
import { type Choice, chooseMemory, describeChoice } from "./plan.js";
import { ratesOf, secondsByPart, timingOf, totalSeconds } from "./rates.js";
import { refuseLongDocuments, remarkOnDropout, remarkOnPositions, remarkOnSchedule } from "./remarks.js";
import type { Resumed } from "./run_folder.js";
import { openSamples } from "./sample.js";
import type { Session, Training } from "./session.js";
import { configRecord, type TrainerState } from "./state.js";
import { makeOptimizer } from "./step.js";
import { readTensors } from "./stored_tensors.js";
import { deviceName, deviceOptions, limitsOn, runDtype, standIn } from "./target.js";
import { nominalTokens, type PlanFacts } from "./trials.js";
import { checkRanks, ranksOf } from "./world.js";

/** A rank that is behind by so many steps, as they are planned, is taken for lost. */
const STEPS_OF_PATIENCE = 10;

/** Devices of runs that ended, by settings: opening one starts threads. A run has its device for itself. */
const idle = new Map<string, Device[]>();

const deviceKey = (name: string, config: Config): string => `${name} ${JSON.stringify(deviceOptions(config))}`;

const takeDevice = (name: string, config: Config): Device =>
  idle.get(deviceKey(name, config))?.pop() ?? new Device(name, deviceOptions(config));

/** Each rank of a machine takes the GPU of its number. One that sees a single GPU was given it by its launcher. */
function takeOwn(config: Config, { localRank }: Job): Device {
  try {
    return takeDevice(`cuda:${localRank}`, config);
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    try {
      takeDevice("cuda:1", config);
    } catch {
      return takeDevice("cuda:0", config);
    }
    throw error;
  }
}

/** Keeps a device for the next run of the same settings. */
export function giveBack(device: Device, config: Config): void {
  const key = deviceKey(device.name, config);
  idle.set(key, [...(idle.get(key) ?? []), device]);
}

/** Throws ConfigError where the configuration is not for the ranks that are there, or not the same on all of them. */
export async function checkJob({ config, job }: Session): Promise<void> {
  checkRanks(config, job.world);
  await job.agree("version of longseq", `${packageVersion()}, native ${binding.apiVersion}`);
  await job.agree("configuration", { ...config, threads: "auto" as const }, (other, first) =>
    allDifferences(other, first)
      .map(({ key, a, b }) => `${key} is ${JSON.stringify(a)} against ${JSON.stringify(b)}`)
      .join("; "),
  );
}

export function openDevice(session: Session): Device {
  const { job } = session;
  const shared = job.world > 1 && session.config.threads === "auto";
  const config: Config = shared ? { ...session.config, threads: job.threads } : session.config;
  if (session.device === undefined) {
    const name = deviceName(config, (message) => session.warn(message));
    session.device = job.world > 1 && name === "cuda" ? takeOwn(config, job) : takeDevice(name, config);
    // A process that has the machine to itself may use all of it.
    if (job.localWorld > 1) pinNear(session.device.info.pciAddress);
  }
  return session.device;
}

/** Opens the data, and with them the number of steps is known. */
export async function openRunData(session: Session, resumed: Resumed | undefined): Promise<void> {
  const { config, signal } = session;
  const settings = { signal, onWarning: (message: string) => session.warn(message), told: new Set<string>() };
  const open = (evaluation: boolean) =>
    session.abortable(openData({ ...dataOptions(config, evaluation), ...settings }));
  // One rank makes the tokens, the others read what it left in the cache.
  const { job } = session;
  if (!job.leads) await job.swap("data");
  const data = await open(false);
  if (job.leads) await job.swap("data");
  await job.agree("training data", data.fingerprint);
  session.data = data;
  if (resumed !== undefined && resumed.state.fingerprint !== data.fingerprint)
    throw new ConfigError(
      `${resumed.path} was made with other training data: files, their rows or the tokenizer have changed since; ` +
        "put them back to go on with it, or give another output.dir to start afresh",
      { path: resumed.path },
    );
  const { documents, unlabelled } = data;
  if (unlabelled === documents)
    throw new DataError(
      `data.train: no usable rows: none of the ${documents} documents has a label that counts; longseq data shows them`,
      { documents },
    );
  if (config.data.eval.length > 0) session.evalData = await open(true);
  const { train } = config;
  session.steps = train.steps ?? data.totalSteps(train.epochs as number, train.batchSize);
}

/** Opens the model and the optimizer on the device, in the state of the checkpoint. The data are open. */
export async function openTraining(session: Session, resumed: Resumed | undefined): Promise<Training> {
  const { config, signal, data } = session;
  if (data === undefined) throw new Error("openRunData comes first");
  const device = openDevice(session);
  const samples = openSamples(session);
  const architecture = await session.abortable(resolveModel(config));
  const dtype = runDtype(config, architecture, device.type);
  const { job } = session;
  const tokens = nominalTokens(config, data.longest);
  const ranks = ranksOf(config, job.world, architecture, tokens);
  await job.divide(ranks, device);
  const { mesh } = job;
  const zero = mesh.world === null ? null : { group: mesh.world, level: ranks.zero };
  const limits = limitsOn(config, device, { local: job.localWorld, world: job.world });
  const rates = ratesOf(device.isGpu ? "cuda" : "cpu");
  const timing = timingOf(rates, dtype, device.isGpu ? 1 : job.threads, job.localWorld);
  const facts: PlanFacts = {
    model: architecture,
    dtype,
    limits,
    work: workloadOf(config, data, session.evalData, session.steps),
    tokens: Math.ceil(tokens / mesh.sequenceSize),
    ...(mesh.world !== null && { ranks }),
    rates,
    timing,
    on: standIn(config, device.profile),
  };
  const longest = Math.max(data.longestDocument, session.evalData?.longestDocument ?? 0);
  refuseLongDocuments(architecture, longest);
  // By steps on `meta`, before anything large is opened.
  const choice = chooseMemory(config, facts, resumed?.state.plan);
  for (const warning of choice.warnings) session.warn(warning);
  // Of millions of tokens one layer's attention takes as long as others' steps.
  const { ops, elapsed } = choice.measured;
  const seconds = totalSeconds(secondsByPart(ops, elapsed, timing.call));
  mesh.setPatience(STEPS_OF_PATIENCE * seconds);
  for (const remark of [
    remarkOnDropout(architecture),
    remarkOnPositions(architecture, longest, config.model.path === null),
    resumed && remarkOnSchedule(resumed.state, config, data, session.steps),
  ])
    if (remark !== undefined) session.warn(remark);
  const { plan } = choice;
  signal.addEventListener("abort", session.abort, { once: true });
  session.checkAborted();
  device.resetPeaks();
  const shares = limits.shares(choice.measured.needs);
  device.setLimit(shares.device);
  device.setLimit(shares.host, "host");
  const model = await session.abortable(openModel(config, device, dtype, { memory: plan, zero, signal }));
  session.model = model;
  const owned = model.trained;
  const optimizer = makeOptimizer(owned, config.train, plan);
  session.optimizer = optimizer;
  const state: TrainerState = resumed?.state ?? {
    version: 1,
    step: 0,
    cursor: { epoch: 0, sequence: 0 },
    fingerprint: data.fingerprint,
    plan,
    skipped: 0,
    skippedInARow: 0,
    evaluated: 0,
    config: {},
  };
  state.config = configRecord(config);
  state.plan = plan;
  const startStep = state.step;
  optimizer.prepare();
  if (resumed !== undefined) {
    await readTensors(resumed.path, { owned, optimizer }, namesOf(model));
    model.states.finishUpdate();
  }
  // From here on a signal finds parameters and states complete.
  await device.synchronize();
  const finishedBefore = binding.stepsFinished(device.native);
  if (job.leads) {
    session.metrics = new MetricsWriter(join(session.folder, "metrics.jsonl"), startStep);
    openTrackers(session, startStep);
  }
  session.tell(
    {
      event: "plan",
      steps: session.steps,
      startStep,
      device: device.info.name,
      ...(job.world > 1 && { ranks: job.world, mesh: mesh.sizes, zero: ranks.zero }),
      dtype,
      parameters: model.parameters().reduce((total, { size }) => total + size, 0),
      ...(model.config.adapter && { trainable: trainedSize(model) }),
      sequences: data.plan(0).sequences,
      ...planDetails(choice, shares),
    },
    { first: true },
  );
  return { session, device, model, owned, optimizer, data, state, samples, startStep, finishedBefore };
}

/** What the configuration asks for beside metrics.jsonl. */
function openTrackers(session: Session, startStep: number): void {
  const { config, folder, trackers } = session;
  const { output } = config;
  const warn = (message: string) => session.warn(message);
  if (output.trackers.includes("tensorboard"))
    trackers.add("tensorboard", () => new TensorBoardTracker(folder, { startStep, config: yamlOf(config) }));
  const { command } = output;
  if (command !== null) trackers.add("output.command", () => new CommandTracker(command, { dir: folder, warn }));
}

const trainedSize = (model: CausalLM): number =>
  model.parameters().reduce((total, { requiresGrad, size }) => total + (requiresGrad ? size : 0), 0);

/** The first name of every parameter that is trained. */
function namesOf(model: CausalLM): string[] {
  const names = new Map<Parameter, string>();
  for (const [name, parameter] of model.namedParameters())
    if (parameter.requiresGrad && !names.has(parameter)) names.set(parameter, name);
  return [...names.values()];
}

/** What the plan event tells of the choice. */
function planDetails(choice: Choice, shares: Peaks): Record<string, unknown> {
  const { states, directory, ...plan } = choice.plan;
  const { peaks } = choice.measured;
  return {
    ...plan,
    ...(directory !== null && { directory }),
    ...(Object.values(states).includes("host") && { states }),
    rung: choice.rung,
    metaRuns: choice.runs,
    devicePeakBytes: peaks.device,
    hostPeakBytes: peaks.host,
    deviceLimitBytes: shares.device,
    hostLimitBytes: shares.host,
    memory: describeChoice(choice, shares),
  };
}
