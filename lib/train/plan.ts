// What is chosen before the first step: row tiles, checkpoints and where they wait, head chunks; by a ladder ordered by
// added work, of which the first rung is taken that a step on `meta` says fits.

import { join } from "node:path";
import { availability } from "../config/available.js";
import type { Config } from "../config/index.js";
import { ConfigError } from "../errors.js";
import type { ModelConfig } from "../models/config.js";
import { nearestDivisor } from "../models/decoder.js";
import { formatBytes } from "../report/format.js";
import type { DType } from "../tensor/dtype.js";
import type { Limits, Peaks } from "./limits.js";
import { type Measurement, measure, rehearse, type Subject, type Workload } from "./measure.js";
import { type Rates, smallestTile } from "./rates.js";

/** Chosen once, stored in the checkpoint and used again on resume: tiles decide the order of sums, so the bits. */
export interface MemoryPlan {
  /** Rows of an MLP tile; 0 for one tile of all rows. */
  tileMlp: number;
  /** Rows of a tile of logits; 0 for one tile of all rows. */
  tileLoss: number;
  /** Layers in a checkpoint; 0 for none. */
  checkpointEvery: number;
  /** Whether checkpoints of one layer keep attention's results. */
  keepAttention: boolean;
  /** Where checkpoints beyond deviceBytes wait. */
  offload: "none" | "host" | "disk";
  /** Bytes of checkpoints that stay on the device when others go out. */
  deviceBytes: number;
  /** How checkpoints that went out are stored. */
  format: "native" | "int8" | "float8";
  /** Folder of the disk tier. */
  directory: string | null;
  /** Whether a checkpoint is fetched while the layer behind it is still in its backward. */
  prefetch: boolean;
  /** Chunks of query heads, a divisor of their number. */
  headChunks: number;
  /** What of the states lives on the host. */
  states: { optimizer: "none" | "host"; params: "none" | "host"; gradients: "none" | "host" };
}

/** A tile of float32 logits holds at most this much. */
const LOGITS_TILE_BYTES = { cpu: 64 * 2 ** 20, gpu: 2 ** 30 };
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

/** Where checkpoints wait, and what is run again: what the ladder moves. */
export type Setting = Pick<
  MemoryPlan,
  "checkpointEvery" | "keepAttention" | "offload" | "deviceBytes" | "prefetch" | "headChunks"
>;

/** A place on the ladder. */
export interface Rung extends Setting {
  name: string;
}

/** Keys of the ladder that the configuration fixes. */
type Fixed = Partial<Setting>;

const isAvailable = (key: string, value: string | number): boolean =>
  availability.find((row) => row.key === key)?.values.includes(value) ?? true;

/** Throws ConfigError for keys of `memory` that contradict each other. */
function checkKeys({ checkpoint, offload: states }: Config["memory"]): void {
  const { every, keepAttention, offload, deviceBytes, format, directory } = checkpoint;
  const refuse = (key: string, value: string, other: string, remedy: string): never => {
    throw new ConfigError(`memory.checkpoint.${key}: ${value}, but memory.checkpoint.${other}; ${remedy}`);
  };
  const away = offload === "host" || offload === "disk";
  if (every === 0) {
    const remedy = "set every to 1 or more, or leave this key out";
    if (away) refuse("offload", offload, "every is 0, so there is nothing to move", remedy);
    if (keepAttention === true) refuse("keep_attention", "true", "every is 0, so there are no checkpoints", remedy);
    if (Number(deviceBytes) > 0)
      refuse("device_bytes", formatBytes(Number(deviceBytes)), "every is 0, so there are no checkpoints", remedy);
    if (format !== "native") refuse("format", format, "every is 0, so there are no checkpoints", remedy);
    if (states.params === "host")
      throw new ConfigError(
        "memory.offload.params: host, but memory.checkpoint.every is 0, so that a backward would hold every layer's " +
          "parameters on the device; set every to 1 or more, or leave one of the keys out",
      );
  }
  if (directory !== null && (offload === "none" || offload === "host"))
    refuse("directory", directory, `offload is ${offload}`, "set offload to disk, or leave this key out");
}

function fixedKeys({ checkpoint, headChunks }: Config["memory"], heads: number): Fixed {
  const { every, keepAttention, offload, deviceBytes } = checkpoint;
  return {
    ...(every !== "auto" && { checkpointEvery: every }),
    ...(keepAttention !== "auto" && { keepAttention }),
    ...(offload !== "auto" && { offload }),
    ...(deviceBytes !== "auto" && { deviceBytes }),
    ...(headChunks !== "auto" && { headChunks: nearestDivisor(heads, headChunks) }),
  };
}

/** Whether what the configuration fixes asks for checkpoints. */
const needsCheckpoints = (memory: Config["memory"], fixed: Fixed): boolean =>
  (fixed.offload ?? "none") !== "none" ||
  fixed.keepAttention === true ||
  (fixed.deviceBytes ?? 0) > 0 ||
  memory.checkpoint.format !== "native" ||
  memory.checkpoint.directory !== null ||
  memory.offload.params === "host";

/** Segment lengths worth trying: each saves checkpoints over the one before. */
function everyChoices(layers: number): number[] {
  const choices: number[] = [];
  for (let k = 2; k < layers; k += k < 4 ? 1 : k < 8 ? 2 : k < 16 ? 4 : k < 32 ? 8 : 16) choices.push(k);
  return layers > 1 ? [...choices, layers] : choices;
}

const divisors = (number: number): number[] =>
  Array.from({ length: number }, (_, i) => i + 1).filter((divisor) => number % divisor === 0);

/** The ladder, in the order of added work; keys that are fixed keep their value on every rung. */
export function ladder(memory: Config["memory"], model: Pick<ModelConfig, "numHeads" | "numLayers">): Rung[] {
  const fixed = fixedKeys(memory, model.numHeads);
  const start: Setting = {
    checkpointEvery: 0,
    keepAttention: true,
    offload: "none",
    deviceBytes: 0,
    prefetch: true,
    headChunks: 1,
  };
  const rungs: Rung[] = [];
  const seen = new Set<string>();
  let last = start;
  const step = (name: string, change: Partial<Setting>) => {
    last = { ...last, ...change };
    const setting = { ...last, ...fixed };
    if (setting.checkpointEvery === 0) {
      if (fixed.checkpointEvery === undefined && needsCheckpoints(memory, fixed)) return;
      Object.assign(setting, { keepAttention: false, offload: "none", deviceBytes: 0, prefetch: true });
    }
    // Only a checkpoint of one layer has a choice.
    if (setting.checkpointEvery > 1 && fixed.keepAttention === undefined) setting.keepAttention = false;
    if (setting.offload === "none") setting.prefetch = true;
    const key = JSON.stringify(setting);
    if (seen.has(key)) return;
    seen.add(key);
    rungs.push({ name, ...setting });
  };
  step("tiles", {});
  step("checkpoint", { checkpointEvery: 1 });
  step("offload", { offload: "host" });
  for (const headChunks of divisors(model.numHeads))
    if (headChunks > 1 && isAvailable("memory.head_chunks", headChunks)) step("head chunks", { headChunks });
  step("no prefetch", { prefetch: false });
  step("no kept attention", { keepAttention: false });
  for (const checkpointEvery of everyChoices(model.numLayers)) step("every", { checkpointEvery });
  if (isAvailable("memory.checkpoint.offload", "disk")) {
    step("disk", { offload: "disk", checkpointEvery: 1 });
    for (const checkpointEvery of everyChoices(model.numLayers)) step("disk", { checkpointEvery });
  }
  return rungs;
}

/** What a choice is made for. */
export interface PlanFacts {
  model: ModelConfig;
  dtype: DType;
  work: Workload;
  /** Of the largest micro-batch there could be: tiles decide the bits, so they do not follow the data. */
  tokens: number;
  limits: Limits;
  rates: Rates;
  /** The device that `meta` stands for; absent: the CPU. */
  on?: Subject["on"];
}

export interface Choice {
  plan: MemoryPlan;
  /** Of the rung that was taken; "as before" for a plan that is used again. */
  rung: string;
  measured: Measurement;
  /** Steps on `meta` that it took. */
  runs: number;
  warnings: string[];
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
  const logits = LOGITS_TILE_BYTES[rates.device.startsWith("cpu") ? "cpu" : "gpu"];
  return {
    tileMlp: rows(tileMlp, before?.tileMlp, efficient),
    tileLoss: rows(tileLoss, before?.tileLoss, Math.min(efficient, Math.floor(logits / (4 * model.vocabSize)))),
    format: checkpoint.format,
    directory: checkpoint.directory ?? join(config.output.dir, "offload"),
    states,
  };
}

function complete(base: Omit<MemoryPlan, keyof Setting>, setting: Setting): MemoryPlan {
  const { checkpointEvery, keepAttention, offload, deviceBytes, prefetch, headChunks } = setting;
  return {
    ...base,
    checkpointEvery,
    keepAttention,
    offload,
    deviceBytes,
    prefetch,
    headChunks,
    directory: offload === "disk" ? base.directory : null,
  };
}

/** Measures settings of one run, each once, and counts. */
class Bench {
  runs = 0;
  readonly #known = new Map<string, Measurement>();
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
    const { model, dtype, on } = this.#facts;
    return { model, dtype, train: this.#config.train, on };
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
      found = measure(this.#subject, plan, this.#facts.work);
      this.runs++;
      this.#known.set(key, found);
    }
    return found;
  }

  fits(setting: Setting): boolean {
    return this.#facts.limits.fits(this.of(setting).needs);
  }

  get exhausted(): boolean {
    return this.runs >= MOST_RUNS;
  }
}

/** The smallest index in [low, high] that `good` holds for, taking it for monotone; `good(high)` is known. */
function bisect(low: number, high: number, good: (index: number) => boolean): number {
  let [least, most] = [low, high];
  while (least < most) {
    const middle = Math.floor((least + most) / 2);
    if (good(middle)) most = middle;
    else least = middle + 1;
  }
  return most;
}

/** Resolution of the bytes that stay on the device: this part of the limit. */
const DEVICE_BYTES_PARTS = 256;

/** Takes back what was given up on the way to `rung` and is not needed, the most work first. */
function relax(rung: Rung, fixed: Fixed, model: ModelConfig, limits: Limits, bench: Bench): Rung {
  let best = rung;
  const attempt = (change: Partial<Setting>): boolean => {
    const next = { ...best, ...change };
    if (bench.exhausted || !bench.fits(next)) return false;
    best = next;
    return true;
  };
  if (best.checkpointEvery === 1 && !best.keepAttention && fixed.keepAttention === undefined)
    attempt({ keepAttention: true });
  if (!best.prefetch) attempt({ prefetch: true });
  if (best.headChunks > 1 && fixed.headChunks === undefined) {
    const choices = divisors(model.numHeads);
    const at = bisect(
      0,
      choices.indexOf(best.headChunks),
      (i) => !bench.exhausted && bench.fits({ ...best, headChunks: choices[i] as number }),
    );
    attempt({ headChunks: choices[at] as number });
  }
  if (best.offload !== "none" && fixed.offload === undefined && fixed.deviceBytes === undefined)
    attempt({ offload: "none", prefetch: true });
  if (best.offload !== "none" && fixed.deviceBytes === undefined) {
    // All of them, or as many as fit.
    if (attempt({ deviceBytes: Number.MAX_SAFE_INTEGER })) return best;
    const part = Math.max(1, Math.floor((limits.device ?? limits.total) / DEVICE_BYTES_PARTS));
    const given = (less: number) => part * (DEVICE_BYTES_PARTS - less);
    const fits = (less: number) => !bench.exhausted && bench.fits({ ...best, deviceBytes: given(less) });
    attempt({ deviceBytes: given(bisect(0, DEVICE_BYTES_PARTS, fits)) });
  }
  return best;
}

/** "1.50 GiB" with the exact bytes where rounding would hide them. */
const exactly = (bytes: number): string => `${formatBytes(bytes)} (${bytes})`;

function byCategory(categories: Record<string, number>): string {
  return Object.entries(categories)
    .filter(([, bytes]) => bytes > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([name, bytes]) => `${name} ${formatBytes(bytes)}`)
    .join(", ");
}

/** Says which limit is short, what the most saving rung needs, and what would do. */
function tooSmall(rungs: readonly Rung[], bench: Bench, facts: PlanFacts): ConfigError {
  const { limits } = facts;
  const tried = rungs.map((rung) => ({ rung, measured: bench.of(rung) }));
  const excess = ({ measured }: (typeof tried)[number]) => limits.excess(measured.needs);
  type Tier = "device" | "host";
  const least = (among: typeof tried, tier: Tier) =>
    among.reduce<(typeof tried)[number] | undefined>(
      (best, one) => (best && best.measured.needs[tier] <= one.measured.needs[tier] ? best : one),
      undefined,
    );
  // With the other limit as it is, if that can be.
  const forDevice = least(
    tried.filter((one) => excess(one).host === 0 || limits.host === undefined),
    "device",
  );
  const forHost = least(
    tried.filter((one) => excess(one).device === 0),
    "host",
  );
  const short: Tier = forHost ? "host" : "device";
  const found = forHost ?? forDevice ?? (least(tried, "device") as (typeof tried)[number]);
  const { needs, categories } = bench.exact(found.rung);
  const both = forHost === undefined && forDevice === undefined;
  const shown = (tier: Tier) => {
    const limit = limits[tier];
    if (limit !== undefined && limits.auto[tier])
      return `memory.${tier}_limit is auto, ${tier === "device" ? "the GPU's free" : "80% of the memory,"} ${exactly(limit)}`;
    return limit === undefined
      ? `memory.${tier}_limit is auto, with ${formatBytes(limits.total)} for device and host together`
      : `memory.${tier}_limit is ${exactly(limit)}`;
  };
  const needed = (tier: Tier) => `at least ${exactly(needs[tier])} of ${tier} memory (${byCategory(categories[tier])})`;
  const tiers: Tier[] = both ? ["device", "host"] : [short];
  const { tokens, documents } = facts.work.micro;
  return new ConfigError(
    `${tiers.map(shown).join(" and ")}; a step of ${tokens} tokens${documents > 1 ? ` in ${documents} documents` : ""} ` +
      `needs ${tiers.map(needed).join(" and ")}, with ${describeSetting(bench.plan(found.rung))}; ` +
      `raise ${tiers.map((tier) => `memory.${tier}_limit`).join(" and ")}, use a shorter data.sequence_length` +
      `${rungs.length < 3 ? ", leave more keys of memory to auto" : ""}, or a smaller model`,
    {
      short: tiers,
      deviceLimit: limits.device ?? limits.total,
      hostLimit: limits.host ?? limits.total,
      deviceBytes: needs.device,
      hostBytes: needs.host,
      categories: Object.fromEntries(tiers.map((tier) => [tier, categories[tier]])),
      runs: bench.runs,
    },
  );
}

/**
 * What `memory` says, `auto` resolved by the ladder: the first rung whose peaks on `meta` fit the limits. `before`: what
 * was chosen when the run began; keys left to us stay as they were. Throws ConfigError for keys that contradict each
 * other and for limits that no rung fits.
 */
export function chooseMemory(config: Config, facts: PlanFacts, before?: MemoryPlan): Choice {
  const { memory } = config;
  const { model, limits } = facts;
  checkKeys(memory);
  const warnings: string[] = [];
  const fixed = fixedKeys(memory, model.numHeads);
  if (memory.headChunks !== "auto" && fixed.headChunks !== memory.headChunks)
    warnings.push(
      `memory.head_chunks: ${memory.headChunks} does not divide the ${model.numHeads} heads; ${fixed.headChunks} are used`,
    );
  const bench = new Bench(config, facts, before);
  const chosen = (rung: string, setting: Setting): Choice => {
    if (memory.checkpoint.keepAttention === true && setting.checkpointEvery > 1)
      warnings.push(
        "memory.checkpoint.keep_attention: true changes nothing where a checkpoint spans several layers " +
          `(every is ${setting.checkpointEvery}): attention's results are kept within the layers that are run again`,
      );
    return { plan: bench.taken(setting), rung, measured: bench.exact(setting), runs: bench.runs, warnings };
  };
  const rungs = ladder(memory, model);
  if (before !== undefined) {
    const again: Setting = { ...settingOf(before), ...fixed };
    if (isRung(again, fixed, memory)) {
      if (bench.fits(again)) return chosen("as before", again);
      warnings.push(
        "the memory settings of the checkpoint do not fit the limits of this run; they are chosen anew, tiles apart",
      );
    }
  }
  for (const rung of rungs) if (bench.fits(rung)) return relaxed(rung);
  // What was to be spared may be what lacks.
  for (const rung of rungs) if (limits.fits(bench.exact(rung).needs)) return chosen(rung.name, rung);
  throw tooSmall(rungs, bench, facts);

  function relaxed(rung: Rung): Choice {
    return chosen(rung.name, relax(rung, fixed, model, limits, bench));
  }
}

const settingOf = (plan: MemoryPlan): Setting => ({
  checkpointEvery: plan.checkpointEvery,
  keepAttention: plan.keepAttention,
  offload: plan.offload,
  deviceBytes: plan.deviceBytes,
  prefetch: plan.prefetch ?? true,
  headChunks: plan.headChunks ?? 1,
});

/** Whether fixed keys and those chosen before still go together. */
const isRung = (setting: Setting, fixed: Fixed, memory: Config["memory"]): boolean =>
  setting.checkpointEvery > 0 || (setting.offload === "none" && !needsCheckpoints(memory, fixed));

/** What a plan does, in a few words. */
export function describeSetting(plan: MemoryPlan): string {
  const { tileMlp, tileLoss, checkpointEvery: every, offload, deviceBytes, headChunks, prefetch, states } = plan;
  const tile = (rows: number, what: string) => `${what} ${rows === 0 ? "whole" : `in tiles of ${rows}`}`;
  const parts = [`${tile(tileMlp, "MLP")}, ${tile(tileLoss, "loss")}`];
  if (every === 0) parts.push("no checkpoints");
  else {
    const where =
      offload === "none"
        ? "on the device"
        : deviceBytes >= Number.MAX_SAFE_INTEGER
          ? `all on the device (offload to the ${offload} is not needed)`
          : `on the ${offload}${deviceBytes > 0 ? ` but for ${formatBytes(deviceBytes)}` : ""}`;
    parts.push(
      `checkpoints every ${every === 1 ? "layer" : `${every} layers`} ${where}` +
        `${plan.keepAttention && every === 1 ? " with attention kept" : ""}` +
        `${plan.format === "native" || deviceBytes >= Number.MAX_SAFE_INTEGER ? "" : `, as ${plan.format}`}${prefetch ? "" : ", not prefetched"}`,
    );
  }
  if (headChunks > 1) parts.push(`${headChunks} head chunks`);
  const away = Object.entries(states).filter(([, where]) => where === "host");
  if (away.length > 0) parts.push(`${away.map(([what]) => what).join(", ")} on the host`);
  return parts.join("; ");
}

/** Of a choice, for the line that tells of it. */
export function describeChoice({ plan, measured }: Choice, { device, host }: Peaks): string {
  const { peaks } = measured;
  return (
    `${describeSetting(plan)}; device ${formatBytes(peaks.device)} of ${formatBytes(device)}` +
    (peaks.host > 0 ? `, host ${formatBytes(peaks.host)} of ${formatBytes(host)}` : "") +
    (peaks.disk > 0 ? `, disk ${formatBytes(peaks.disk)}` : "")
  );
}

/**
 * Lengths that are tried, about 1% apart and the same ones whatever length was asked for: 1, 2, ... 128, then so many to
 * an octave.
 */
const OCTAVE = 64;
const LENGTHS = 128 + OCTAVE * 33;
const lengthAt = (index: number): number => (index <= 128 ? index : Math.floor(128 * 2 ** ((index - 128) / OCTAVE)));

/** Two lengths beyond which a rung's needs are nearly linear in the length; steps of these take little time. */
const [NEAR, FAR] = [lengthAt(128 + 9 * OCTAVE), lengthAt(128 + 10 * OCTAVE)];
/** How far, in lengths that are tried, a rung may reach beyond what that line says: 3%. */
const MARGIN = 3;

/** The largest index that `fits`, which is taken for monotone and holds for `low`; quickest where that is near `guess`. */
function furthest(low: number, guess: number, fits: (index: number) => boolean): number {
  let [from, step] = [low, 1];
  let to = Math.max(guess, low + 1);
  if (fits(to)) {
    for (from = to; fits(from + step); step *= 2) from += step;
    to = from + step;
  } else {
    for (; to - step > low && !fits(to - step); step *= 2) to -= step;
    from = Math.max(low, to - step);
  }
  return bisect(from + 1, to, (index) => index === to || !fits(index)) - 1;
}

/**
 * Tokens of the longest sequence, to 1%, that fits the limits on some rung, and the first such rung; null where not even
 * a token does. `workAt`: the workload of sequences of so many tokens.
 */
export function longestSequence(
  config: Config,
  facts: PlanFacts,
  workAt: (tokens: number) => Workload,
): { tokens: number; rung: Rung } | null {
  const rungs = ladder(config.memory, facts.model);
  const benchAt = (tokens: number) => {
    const work = workAt(tokens);
    return new Bench(config, { ...facts, tokens: work.micro.tokens, work }, undefined);
  };
  const [near, far] = [benchAt(NEAR), benchAt(FAR)];
  const guesses = rungs.map((rung) => {
    const [a, b] = [near.of(rung).needs, far.of(rung).needs];
    const needs = (tier: keyof Peaks, tokens: number) =>
      a[tier] + ((b[tier] - a[tier]) / (FAR - NEAR)) * (tokens - NEAR);
    const fits = (index: number) =>
      facts.limits.fits({ device: needs("device", lengthAt(index)), host: needs("host", lengthAt(index)) });
    return { rung, guess: bisect(1, LENGTHS, (index) => index === LENGTHS || !fits(index)) - 1 };
  });
  let best = 0;
  const hopeless = (guess: number) => lengthAt(best) > FAR && guess + MARGIN < best;
  for (const { rung, guess } of guesses.toSorted((one, other) => other.guess - one.guess))
    if (!hopeless(guess))
      best = furthest(best, guess, (index) => index <= LENGTHS && benchAt(lengthAt(index)).fits(rung));
  const bench = benchAt(lengthAt(best));
  const found = best > 0 && guesses.find(({ rung, guess }) => !hopeless(guess) && bench.fits(rung));
  return found ? { tokens: lengthAt(best), rung: found.rung } : null;
}
