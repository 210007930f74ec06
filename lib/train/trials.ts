// Steps on `meta` with settings of one run, each measured once and counted.

import { join } from "node:path";
import type { Config } from "../config/index.js";
import type { ModelConfig } from "../models/config.js";
import type { DType } from "../tensor/dtype.js";
import { atLeast, moreOnDevice, sameOnHost } from "./bounds.js";
import type { Limits, Peaks } from "./limits.js";
import { type Measurement, measure, rehearse, type Subject, type Workload } from "./measure.js";
import { complete, type MemoryPlan, type Setting } from "./memory_plan.js";
import { type Rates, smallestTile } from "./rates.js";

/** A tile of float32 logits holds at most this much. */
const LOGITS_TILE_BYTES = { cpu: 64 * 2 ** 20, cuda: 2 ** 30 };
/** Steps on `meta` that one choice may take. */
export const MOST_RUNS = 64;

/** Tiles of at most `most` rows, made equal, so that the last one is not a sliver. */
export function evenRows(tokens: number, most: number): number {
  const rows = Math.max(1, most);
  return Math.ceil(tokens / Math.ceil(tokens / rows));
}

/** Tokens of the largest micro-batch there could be; `longest`: of the rows, where known. */
export function nominalTokens({ data, train }: Config, longest = data.sequenceLength): number {
  return (data.packing ? data.sequenceLength : Math.min(data.sequenceLength, longest)) * train.microBatchSize;
}

/** What a choice is made for. */
export interface PlanFacts {
  model: ModelConfig;
  dtype: DType;
  work: Workload;
  /** Of the largest micro-batch there could be: tiles decide the bits, so they do not follow the data. */
  tokens: number;
  limits: Limits;
  /** The ranks and what they share; absent: one that has all. */
  ranks?: Subject["ranks"];
  rates: Rates;
  /** For estimates of time; absent: there are none. */
  timing?: Subject["timing"];
  /** The device that `meta` stands for; absent: the CPU. */
  on?: Subject["on"];
  /** Told of each setting before it is tried. */
  onTry?: (plan: MemoryPlan, work: Workload) => void;
}

/** Tiles, states and what else does not move on the ladder. */
function basePlan(config: Config, facts: PlanFacts, before: MemoryPlan | undefined): Omit<MemoryPlan, keyof Setting> {
  const { tileMlp, tileLoss, checkpoint, offload: states } = config.memory;
  const { model, tokens, rates } = facts;
  const rows = (setting: "auto" | "off" | number, chosen: number | undefined, most: number) => {
    if (setting !== "auto") return setting === "off" ? 0 : setting;
    return chosen ?? evenRows(tokens, most);
  };
  const efficient = smallestTile(rates, facts.dtype);
  const logits = LOGITS_TILE_BYTES[rates.device];
  return {
    tileMlp: rows(tileMlp, before?.tileMlp, efficient),
    tileLoss: rows(tileLoss, before?.tileLoss, Math.min(efficient, Math.floor(logits / (4 * model.vocabSize)))),
    format: checkpoint.format,
    directory: checkpoint.directory ?? join(config.output.dir, "offload"),
    states,
  };
}

/** Measures settings of one run, each once, and counts. */
export class Trials {
  runs = 0;
  readonly #known = new Map<string, Measurement>();
  readonly #measured: [Setting, Measurement][] = [];
  /** Bytes that are there in any setting, once one was measured. */
  #statesOnHost = 0;
  readonly #rehearsed = new Map<string, Measurement>();
  readonly #config: Config;
  readonly #facts: PlanFacts;
  readonly base: Omit<MemoryPlan, keyof Setting>;

  constructor(config: Config, facts: PlanFacts, before: MemoryPlan | undefined) {
    this.#config = config;
    this.#facts = facts;
    this.base = basePlan(config, facts, before);
  }

  plan(setting: Setting): MemoryPlan {
    return complete(this.base, setting);
  }

  get #subject(): Subject {
    const { model, dtype, ranks, on, timing } = this.#facts;
    return { model, dtype, train: this.#config.train, ...(ranks !== undefined && { ranks }), on, timing };
  }

  /** The plan of a setting, which keeps no more on the device than the largest batch fills. */
  taken(setting: Setting): MemoryPlan {
    const plan = this.plan(setting);
    // Others would fill their share better, and take more than it did.
    const all = plan.deviceBytes >= Number.MAX_SAFE_INTEGER;
    return all ? plan : { ...plan, deviceBytes: Math.min(plan.deviceBytes, this.of(setting).resident) };
  }

  /** As `of`, but of the run's own steps where they are few. */
  exact(setting: Setting): Measurement {
    const plan = this.taken(setting);
    const key = JSON.stringify(plan);
    let found = this.#rehearsed.get(key);
    if (found === undefined) {
      found = { ...this.of(setting), ...rehearse(this.#subject, plan, this.#facts.work) };
      this.#rehearsed.set(key, found);
    }
    return found;
  }

  of(setting: Setting): Measurement {
    const plan = this.plan(setting);
    const key = JSON.stringify(plan);
    let found = this.#known.get(key);
    if (found === undefined) {
      this.#facts.onTry?.(plan, this.#facts.work);
      found = measure(this.#subject, plan, this.#facts.work);
      this.runs++;
      this.#measured.push([setting, found]);
      const { params, optimizer } = found.categories.host;
      this.#statesOnHost = (params ?? 0) + (optimizer ?? 0);
      this.#known.set(key, found);
    }
    return found;
  }

  fits(setting: Setting): boolean {
    return this.slack(setting) >= 0;
  }

  /** Bytes that a setting leaves, as Limits has them; NaN: it does not fit, by how much is not known. */
  slack(setting: Setting, tier?: keyof Peaks): number {
    return this.#hopeless(setting) ? Number.NaN : this.#facts.limits.slack(this.of(setting).needs, tier);
  }

  /** Whether it is known without a step that a setting does not fit. */
  #hopeless(setting: Setting): boolean {
    const { model, dtype, work, limits, ranks } = this.#facts;
    const tokens = work.micro.tokens / ((ranks?.ring ?? 1) * (ranks?.ulysses ?? 1));
    const { device, host: out } = atLeast(model, dtype, tokens, this.plan(setting));
    if (!limits.fits({ device, host: out + this.#statesOnHost })) return true;
    const { host, device: most } = limits;
    return this.#measured.some(([known, { needs }]) => {
      if (host !== undefined && needs.host > host && sameOnHost(known, setting)) return true;
      const more = moreOnDevice(model, dtype, tokens, known, setting);
      return most !== undefined && more !== undefined && needs.device + more > most;
    });
  }

  get exhausted(): boolean {
    return this.runs >= MOST_RUNS;
  }
}

/** The smallest index in [low, high] that `good` holds for, taking it for monotone; `good(high)` is known. */
export function bisect(low: number, high: number, good: (index: number) => boolean): number {
  let [least, most] = [low, high];
  while (least < most) {
    const middle = Math.floor((least + most) / 2);
    if (good(middle)) most = middle;
    else least = middle + 1;
  }
  return most;
}

/** Guesses from a line, before halves are tried. */
const MOST_GUESSES = 8;

/** Something that is left at an index. */
interface Slack {
  index: number;
  slack: number;
}

/**
 * The largest index above `low` and below `high` that leaves something (`slackAt` is 0 or more), else `low`. Slack falls
 * with the index, nearly in a line; NaN: none, nobody knows by how much. guess: the first index to be tried, where none is
 * `known`. at, indexOf: what the line is over, rising with the index, and the last index whose value is not above one.
 */
export function furthest(
  low: number,
  high: number,
  slackAt: (index: number) => number,
  {
    guess = low + 1,
    known = [],
    at = (i) => i,
    indexOf = Math.floor,
  }: {
    guess?: number;
    known?: readonly Slack[];
    at?: (index: number) => number;
    indexOf?: (x: number) => number;
  },
): number {
  let [least, most] = [low, high];
  let points = [...known];
  const take = ({ index, slack }: Slack): void => {
    if (slack >= 0) least = Math.max(least, index);
    else most = Math.min(most, index);
  };
  points.forEach(take);
  let wasOutside = false;
  points = points.filter(({ slack }) => !Number.isNaN(slack));
  for (let tries = 1; most - least > 1; tries++) {
    const [a, b] = points.sort((one, other) => Math.abs(one.slack) - Math.abs(other.slack));
    const slope = a && b ? (b.slack - a.slack) / (at(b.index) - at(a.index)) : 0;
    let next = tries === 1 ? guess : Math.floor((least + most) / 2);
    if (a !== undefined && slope < 0 && tries < MOST_GUESSES) {
      const onLine = indexOf(at(a.index) - a.slack / slope);
      const outside = onLine < least || onLine > most;
      // What is known of the side where it leads is asked for once; after that it is no line.
      if (!outside || !wasOutside) next = onLine;
      wasOutside = outside;
    }
    const index = Math.max(least + 1, Math.min(most - 1, next));
    const tried = { index, slack: slackAt(index) };
    take(tried);
    if (!Number.isNaN(tried.slack)) points.push(tried);
  }
  return least;
}
