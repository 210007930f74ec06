// The plan of a job that need not be here: what a step of it takes, whether it fits, how long sequences can be and how few
// GPUs do.

import { availableParallelism } from "node:os";
import type { Config } from "../config/index.js";
import { ConfigError } from "../errors.js";
import type { ModelConfig } from "../models/config.js";
import { shapeOf } from "../models/load.js";
import { modelFlops } from "../report/model_flops.js";
import { type Longest, longestSequence } from "./longest.js";
import { fullWorkload, MOST_ATTENDED, type Workload } from "./measure.js";
import { type Choice, canFit, chooseMemory } from "./plan.js";
import { type Rates, ratesOf, readRates, type SecondsByPart, secondsByPart, timingOf, totalSeconds } from "./rates.js";
import { type PlanTarget, planTarget, runDtype, standIn } from "./target.js";
import { nominalTokens, type PlanFacts } from "./trials.js";
import { type RanksOf, ranksOf, wantedRanks } from "./world.js";

/** What is planned. */
export interface Job {
  config: Config;
  model: ModelConfig;
  /** What a step is made of. Default: full sequences. */
  work?: Workload;
  /** Of the longest row, where the data were looked at. */
  longestRow?: number | undefined;
  /** Ranks of a machine; default: all of them. */
  perNode?: number | undefined;
  /** A file with the device's rates. */
  rates?: string | undefined;
  onTry?: PlanFacts["onTry"];
  warn: (message: string) => void;
}

/** What is known of a job before anything is tried. */
export interface JobFacts {
  facts: PlanFacts;
  target: PlanTarget;
  world: number;
  ranks: RanksOf;
  rates: Rates;
  threads: number;
}

export interface JobPlan extends JobFacts {
  choice: Choice;
  seconds: SecondsByPart;
  /** Of a step of all ranks: for the model, and with what is run again. */
  modelFlops: number;
  hardwareFlops: number;
  /** Bytes of a rank: copied between tiers, and exchanged. */
  copiedBytes: number;
  exchangedBytes: number;
}

/** Throws ConfigError where the ranks cannot share the job, and of sequences that no plan can hold. */
export function factsOf(job: Job): JobFacts {
  const { config, model, work = fullWorkload(config), longestRow, onTry, warn } = job;
  const tokens = nominalTokens(config, longestRow);
  const world = wantedRanks(config) ?? config.parallel.data;
  const ranks = ranksOf(config, world, model, tokens);
  const most = MOST_ATTENDED * ranks.ring;
  if (work.micro.tokens > most)
    throw new ConfigError(
      `data.sequence_length: a micro-batch of ${work.micro.tokens} tokens is longer than what is planned for ` +
        `${ranks.ring === 1 ? "ranks without a ring" : `a ring of ${ranks.ring}`}, which is at most ${most} tokens; use ` +
        "shorter sequences, or a longer parallel.ring",
      { tokens: work.micro.tokens, most },
    );
  const target = planTarget(config, world, warn);
  const kind = target.profile ? "cuda" : "cpu";
  const own = ratesOf(kind);
  // Tiles are the device's own: they decide the bits.
  const rates = job.rates === undefined ? own : { ...readRates(job.rates, kind), tiles: own.tiles };
  // The rates of a GPU are those of all of it.
  const share = Math.max(1, Math.floor(availableParallelism() / world));
  const threads = target.profile ? 1 : config.threads === "auto" ? share : config.threads;
  const dtype = runDtype(config, model, target.name);
  const facts: PlanFacts = {
    model,
    dtype,
    work,
    tokens: Math.ceil(tokens / (ranks.ring * ranks.ulysses)),
    limits: target.limits,
    ...(world > 1 && { ranks }),
    rates,
    timing: timingOf(rates, dtype, threads, job.perNode),
    on: standIn(config, target.profile),
    ...(onTry && { onTry }),
  };
  return { facts, target, world, ranks, rates, threads };
}

const COLLECTIVES = ["all_to_all", "all_gather", "reduce_scatter", "all_reduce", "send_receive"];

/** Throws ConfigError where no choice of what is left open fits. */
export function planJob(job: Job, known: JobFacts = factsOf(job)): JobPlan {
  const { config, model } = job;
  const { facts, world, ranks } = known;
  const choice = chooseMemory(config, facts);
  const { ops, elapsed } = choice.measured;
  const { micro, accumulation } = facts.work;
  const each = Math.floor(micro.tokens / micro.documents);
  const documents = Array.from({ length: micro.documents }, (_, i) =>
    i > 0 ? each : micro.tokens - each * (micro.documents - 1),
  );
  return {
    ...known,
    choice,
    seconds: secondsByPart(ops, elapsed, facts.timing?.call ?? 0),
    modelFlops: ranks.data * accumulation * modelFlops(shapeOf(model), documents),
    hardwareFlops: world * Object.values(ops).reduce((sum, op) => sum + op.flops, 0),
    // A copy reads and writes.
    copiedBytes: (ops.copy?.bytes ?? 0) / 2,
    exchangedBytes: COLLECTIVES.reduce((sum, op) => sum + (ops[op]?.bytes ?? 0), 0) / 2,
  };
}

/** The longest sequence of a job's ranks and limits; null where none is longer than `above`. */
export const longestOf = ({ config }: Job, { facts }: JobFacts, above = 0): Longest | null =>
  longestSequence(config, facts, (length) => fullWorkload(config, length), above);

type States = Config["memory"]["offload"];

/** What may live on the host, the least first: each frees more of the device. */
const STATES: readonly States[] = [
  { optimizer: "none", gradients: "none", params: "none" },
  { optimizer: "host", gradients: "none", params: "none" },
  { optimizer: "host", gradients: "host", params: "none" },
  { optimizer: "host", gradients: "host", params: "host" },
];

export const withStates = (config: Config, offload: States): Config => ({
  ...config,
  memory: { ...config.memory, offload },
});

const withTokens = (config: Config, sequenceLength: number): Config => ({
  ...config,
  data: { ...config.data, sequenceLength },
});

/** The same job with each place that states may have. */
const placings = (job: Job): Job[] => STATES.map((states) => ({ ...job, config: withStates(job.config, states) }));

/** The plan of the first of these that its ranks can share and that fits; null: none. */
function firstThatFits(jobs: readonly Job[]): { config: Config; plan: JobPlan } | null {
  try {
    for (const job of jobs) {
      const known = factsOf(job);
      if (canFit(job.config, known.facts)) return { config: job.config, plan: planJob(job, known) };
    }
  } catch (error) {
    // No split serves the heads.
    if (!(error instanceof ConfigError)) throw error;
  }
  return null;
}

/** The plan with the fewest states on the host that fits. Throws ConfigError, of the one that saves most, where none does. */
export function planAnyStates(job: Job): { config: Config; plan: JobPlan } {
  const all = placings(job);
  const last = all.at(-1) as Job;
  return firstThatFits(all) ?? { config: last.config, plan: planJob(last) };
}

/** The longest sequence with any place of the states, and the configuration that has it; null: none at all fits. */
export function longestAnyStates(job: Job): { config: Config; tokens: number; open: boolean } | null {
  let best: { config: Config; tokens: number; open: boolean } | null = null;
  for (const one of allPlacings(job)) {
    const found = longestOf(one, factsOf(one), best?.tokens);
    if (found !== null) best = { ...found, config: withTokens(one.config, found.tokens) };
  }
  return best;
}

const divisors = (of: number): number[] => Array.from({ length: of }, (_, i) => i + 1).filter((i) => of % i === 0);

/**
 * The plans of every way to share a job's sequences and states among its ranks, the fastest first. Ways that serve no
 * heads, or whose steps fit no limits, are left out. open: whether the place of the states is left open.
 */
export function plansOfSplits(job: Job, open: boolean): { config: Config; plan: JobPlan }[] {
  const { config } = job;
  const { batchSize, microBatchSize } = config.train;
  const world = wantedRanks(config) ?? config.parallel.data;
  const found: { config: Config; plan: JobPlan }[] = [];
  for (const data of divisors(world).filter((data) => batchSize % (microBatchSize * data) === 0))
    for (const ring of divisors(world / data))
      for (const zero of world > 1 ? ([0, 1, 2, 3] as const) : ([0] as const)) {
        const parallel = { data, sequence: world / data, ring, zero };
        const split = { ...job, config: { ...config, parallel } };
        const one = firstThatFits(open ? placings(split) : [split]);
        if (one !== null) found.push(one);
      }
  return found.sort((a, b) => totalSeconds(a.plan.seconds) - totalSeconds(b.plan.seconds));
}

/** GPUs that are tried at most. */
const MOST_GPUS = 4096;

/**
 * The fewest GPUs, of those that nodes of `perNode` can have, that a job fits on; jobOn: the job on so many. null: more
 * than 4,096 would be needed.
 */
export function fewestGpus(jobOn: (gpus: number) => Job[], perNode: number): number | null {
  const sizes: number[] = [];
  for (let gpus = 1; gpus < perNode; gpus++) if (perNode % gpus === 0) sizes.push(gpus);
  for (let gpus = perNode; gpus <= MOST_GPUS; gpus += perNode) sizes.push(gpus);
  const fits = (gpus: number): boolean =>
    jobOn(gpus).some((job) => {
      try {
        return canFit(job.config, factsOf(job).facts);
      } catch (error) {
        // No split serves so many.
        if (error instanceof ConfigError) return false;
        throw error;
      }
    });
  // Doubling first: steps of many ranks take longer.
  let [low, high] = [-1, 0];
  while (high < sizes.length && !fits(sizes[high] as number)) [low, high] = [high, 2 * high + 1];
  if (high >= sizes.length) {
    high = sizes.length - 1;
    if (!fits(sizes[high] as number)) return null;
  }
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (fits(sizes[middle] as number)) high = middle;
    else low = middle;
  }
  return sizes[high] as number;
}

/** Every place of the states, the most saving first. */
export const allPlacings = (job: Job): Job[] => placings(job).reverse();
