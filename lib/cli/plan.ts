// `longseq plan`: what training as configured, or of a model on machines that are elsewhere, would take, by steps on the
// `meta` device; nothing is loaded or computed.

import { basename } from "node:path";
import { type Config, loadConfig, parseConfig, yamlOf } from "../config/index.js";
import { toSnake } from "../config/values.js";
import { type Dataset, openData } from "../data/index.js";
import { ConfigError } from "../errors.js";
import type { ModelConfig } from "../models/config.js";
import { formatBytes, formatDuration, formatSi } from "../report/format.js";
import { dataOptions } from "../train/data_options.js";
import {
  allPlacings,
  factsOf,
  fewestGpus,
  type Job,
  type JobPlan,
  longestAnyStates,
  longestOf,
  planAnyStates,
  planJob,
  plansOfSplits,
} from "../train/job_plan.js";
import { workloadOf } from "../train/measure.js";
import { describeSetting } from "../train/memory_plan.js";
import { resolveModel } from "../train/model.js";
import { totalSeconds } from "../train/rates.js";
import { LIBRARY_BYTES, usableBytes } from "../train/target.js";
import type { PlanFacts } from "../train/trials.js";
import { describeRanks, wantedRanks } from "../train/world.js";
import { exitCode, type Output, UsageError } from "./output.js";

export interface PlanOptions {
  /** Open the data, instead of taking every sequence to be full. */
  data: boolean;
  /** A folder with a config.json, instead of what the configuration names, or of a configuration. */
  model?: string;
  /** Tokens. */
  sequence?: number;
  gpus?: number;
  gpusPerNode: number;
  /** Bytes: of a GPU, and of a machine. */
  deviceMemory?: number;
  hostMemory?: number;
  solve?: "sequence" | "gpus" | "split";
  /** A file of `longseq bench --calibrate`. */
  rates?: string;
  compare: boolean;
}

const grouped = (value: number) => value.toLocaleString("en-US");

/** "a 1.00 GiB, b 2.00 MiB", the largest first. */
function categories(bytes: Record<string, number>): string {
  return Object.entries(bytes)
    .filter(([, value]) => value > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([name, value]) => `${name} ${formatBytes(value)}`)
    .join(", ");
}

/** Milliseconds before a plan says what it is at. */
const SILENT = 1000;

/** Says on a terminal what is tried, where it takes longer than one would wait without a word. */
function sayWhatIsTried(output: Output): NonNullable<PlanFacts["onTry"]> {
  const begin = performance.now();
  return (plan, { micro }) => {
    if (performance.now() - begin >= SILENT)
      output.status(`trying ${grouped(micro.tokens)} tokens: ${describeSetting(plan)}`);
  };
}

/** The configuration that a file and options describe together, on so many GPUs. */
function configOf(file: string | undefined, overrides: readonly string[], options: PlanOptions, gpus?: number): Config {
  const { model, sequence, gpusPerNode, deviceMemory, hostMemory } = options;
  const read = (more: readonly string[]): Config => {
    const all = [...more, ...overrides];
    if (file !== undefined) return loadConfig(file, all);
    // What a plan needs nothing of.
    const text = "{data: {train: [data.jsonl]}, train: {epochs: 1}, device: cuda, output: {dir: run}}";
    return parseConfig(text, "--model", all);
  };
  const own: string[] = [];
  if (model !== undefined) own.push(`model.path=${JSON.stringify(model)}`, "model.init=null");
  if (sequence !== undefined) own.push(`data.sequence_length=${sequence}`);
  if (gpus === undefined && deviceMemory === undefined && hostMemory === undefined) return read(own);
  own.push("device=cuda");
  const { data } = read(own).parallel;
  const world = gpus ?? data;
  if (deviceMemory !== undefined && deviceMemory <= LIBRARY_BYTES)
    throw new UsageError(
      `--device-memory is ${formatBytes(deviceMemory)}, of which CUDA's libraries take ${formatBytes(LIBRARY_BYTES)}; give ` +
        "the memory of a GPU, such as 80GiB",
    );
  if (world % data !== 0)
    throw new UsageError(
      `--gpus is ${world}, which parallel.data (${data}) does not divide; give a multiple of ${data}`,
    );
  own.push(`parallel.sequence=${world / data}`);
  if (deviceMemory !== undefined) own.push(`memory.device_limit=${usableBytes(deviceMemory, world)}`);
  if (hostMemory !== undefined)
    own.push(`memory.host_limit=${Math.max(1, Math.floor(hostMemory / Math.min(world, gpusPerNode)))}`);
  return read(own);
}

/** Options that say the same as a key of the configuration. */
const SAME: readonly [option: keyof PlanOptions, flag: string, key: string][] = [
  ["model", "--model", "model.path"],
  ["model", "--model", "model.init"],
  ["sequence", "--sequence", "data.sequence_length"],
  ["gpus", "--gpus", "parallel.sequence"],
  ["gpus", "--gpus", "device"],
  ["deviceMemory", "--device-memory", "memory.device_limit"],
  ["deviceMemory", "--device-memory", "device"],
  ["hostMemory", "--host-memory", "memory.host_limit"],
  ["hostMemory", "--host-memory", "device"],
];

/** Throws UsageError where an option and an override say the same thing twice. */
function refuseTwice(overrides: readonly string[], options: PlanOptions): void {
  const refuse = (flag: string, word: string) => {
    throw new UsageError(`${flag} together with ${word}; give only one of them`);
  };
  const { solve } = options;
  const given: [flag: string, key: string][] = SAME.filter(([option]) => options[option] !== undefined).map(
    ([, flag, key]) => [flag, key],
  );
  if (solve === "sequence") given.push(["--solve sequence", "data.sequence_length"]);
  if (solve === "gpus") given.push(["--solve gpus", "parallel.sequence"]);
  for (const [flag, key] of given) {
    const word = overrides.find((one) => says(one, key));
    if (word === undefined || (key === "device" && /^device=cuda/.test(word))) continue;
    refuse(flag, word);
  }
}

/** Whether an override gives a key, by itself or within its section. */
function says(override: string, key: string): boolean {
  const at = override.indexOf("=");
  const [given, value] = [toSnake(override.slice(0, at)), override.slice(at + 1)];
  const [section, last] = key.split(".") as [string, string | undefined];
  return (
    given === key || (given === section && last !== undefined && new RegExp(`\\b${last}\\s*:`).test(toSnake(value)))
  );
}

/** A job that was asked for, and its name in a comparison. */
interface Asked {
  name: string;
  /** Which configuration or model that is. */
  path: string;
  config: Config;
  /** What its file says, without options; null: there is none. */
  written: Config | null;
  /** Whether the place of the states is left open: of a job without a configuration. */
  open: boolean;
  jobOn: (config: Config) => Job;
  /** The same on so many GPUs. */
  onGpus: (gpus: number) => Config;
}

/** Without options. */
const NOTHING: PlanOptions = { data: false, gpusPerNode: 8, compare: false };

/** A line for programs, which names what it is about. */
const record = ({ path }: Asked, output: Output, { event, ...more }: { event: string; [key: string]: unknown }): void =>
  output.record({ event, configuration: path, ...more });

/** Prints the plans; returns the exit code. Throws ConfigError where no choice fits the limits. */
export async function plan(
  files: readonly string[],
  overrides: readonly string[],
  options: PlanOptions,
  output: Output,
): Promise<number> {
  if (files.length === 0 && options.model === undefined)
    throw new UsageError("missing what to plan; usage: longseq plan CONFIG [key.sub=value ...], or --model FOLDER");
  if (files.length > 1 && !options.compare)
    throw new UsageError(`got ${files.map((file) => JSON.stringify(file)).join(" and ")}; give --compare for several`);
  if (options.solve === "gpus" && options.gpus !== undefined)
    throw new UsageError("--gpus together with --solve gpus; give only one of them");
  if (options.solve === "sequence" && options.sequence !== undefined)
    throw new UsageError("--sequence together with --solve sequence; give only one of them");
  refuseTwice(overrides, options);
  const solved: { name: string; config: Config; plan: JobPlan; longest: number | null }[] = [];
  for (const file of files.length === 0 ? [undefined] : files) {
    const asked = await open(file, overrides, options, output);
    const { config, plan: own } = solve(asked, options, output);
    show(asked, config, own, options, output);
    const longest = options.solve === "sequence" ? config.data.sequenceLength : showLongest(asked, config, own, output);
    if (JSON.stringify(config) !== JSON.stringify(asked.written)) {
      const yaml = yamlOf(config);
      record(asked, output, { event: "configuration", yaml });
      if (!output.json) output.line(`as a configuration:\n\n${yaml}`);
    }
    if (options.compare && !output.json) output.line("");
    solved.push({ name: asked.name, config, plan: own, longest });
  }
  if (options.compare && !output.json) compare(solved, output);
  return exitCode.done;
}

/** Reads the configuration, the model and, where asked, the data. */
async function open(
  file: string | undefined,
  overrides: readonly string[],
  options: PlanOptions,
  output: Output,
): Promise<Asked> {
  const first = options.solve === "gpus" ? 1 : options.gpus;
  const path = file ?? (options.model as string);
  // What is solved for is left open: any length that all ranks can share.
  const length = options.sequence ?? (file === undefined ? 2 ** 20 : undefined);
  const given = { ...options, ...(length !== undefined && { sequence: length }) };
  const config = configOf(file, overrides, given, first);
  const model: ModelConfig = await resolveModel(config);
  const told = new Set<string>();
  const warn = (message: string) => {
    // The same of each number of GPUs that is tried.
    if (told.has(message)) return;
    told.add(message);
    output.note(`warning: ${message}`);
    output.record({ event: "warning", configuration: path, message });
  };
  const rows = options.data ? await look(config) : {};
  const onTry = sayWhatIsTried(output);
  return {
    name: basename(path),
    path,
    written: file === undefined ? null : configOf(file, overrides, NOTHING),
    config,
    open: file === undefined && !overrides.some((word) => word.startsWith("memory.offload")),
    jobOn: (on) => ({ config: on, model, ...rows, perNode: options.gpusPerNode, rates: options.rates, onTry, warn }),
    onGpus: (gpus) => configOf(file, overrides, given, gpus),
  };
}

/** What steps are made of, from the data. */
async function look(config: Config): Promise<Pick<Job, "work" | "longestRow">> {
  const opened: Dataset[] = [];
  try {
    for (const evaluation of config.data.eval.length > 0 ? [false, true] : [false])
      opened.push(await openData(dataOptions(config, evaluation)));
    const [data, evaluation] = opened as [Dataset, Dataset | undefined];
    const { steps, epochs, batchSize } = config.train;
    const work = workloadOf(config, data, evaluation, steps ?? data.totalSteps(epochs as number, batchSize));
    return { work, longestRow: data.longest };
  } finally {
    for (const dataset of opened) await dataset.close();
  }
}

/** The job with what was left to us, and its plan. */
function solve(asked: Asked, options: PlanOptions, output: Output) {
  const { config, open, jobOn, onGpus } = asked;
  let found = config;
  if (options.solve === "gpus") {
    const jobs = (gpus: number): Job[] => {
      const job = jobOn(onGpus(gpus));
      return open ? allPlacings(job) : [job];
    };
    const gpus = fewestGpus(jobs, options.gpusPerNode);
    if (gpus === null)
      throw new ConfigError(
        `--solve gpus: ${grouped(config.data.sequenceLength)} tokens fit on no number of GPUs up to 4,096; give more ` +
          "--device-memory or --host-memory, or a shorter --sequence",
      );
    found = onGpus(gpus);
    record(asked, output, { event: "solved", gpus });
    if (!output.json) output.line(`fewest: ${gpus} ${gpus === 1 ? "GPU" : "GPUs"}`);
  }
  const job = jobOn(found);
  if (options.solve === "sequence") {
    const own = open ? null : longestOf(job, factsOf(job));
    const longest = open
      ? longestAnyStates(job)
      : own && { ...own, config: { ...found, data: { ...found.data, sequenceLength: own.tokens } } };
    if (longest === null)
      throw new ConfigError(
        "--solve sequence: not even one token fits; give more --device-memory or --host-memory, more GPUs, or a smaller " +
          "model",
      );
    const { tokens, open: isOpen } = longest;
    record(asked, output, { event: "solved", tokens, ...(isOpen && { more: true }) });
    if (!output.json)
      output.line(`longest: ${grouped(tokens)} tokens${isOpen ? ", and longer ones: no more are tried" : ""}`);
    return { config: longest.config, plan: planJob(jobOn(longest.config)) };
  }
  if (options.solve === "split" && wantedRanks(found) === undefined)
    throw new UsageError("--solve split: among how many ranks? give --gpus, or parallel.sequence");
  if (options.solve === "split") return fastest(asked, plansOfSplits(job, open), found, output);
  return open ? planAnyStates(job) : { config: found, plan: planJob(job) };
}

/** The fastest of plans, after showing all of them. */
function fastest(asked: Asked, plans: { config: Config; plan: JobPlan }[], { parallel }: Config, output: Output) {
  const [best] = plans;
  if (best === undefined)
    throw new ConfigError(
      `--solve split: no way to share the work among ${Number(parallel.sequence) * parallel.data} ranks serves the model's ` +
        "heads and fits the limits; give more memory, other ranks, or a shorter sequence",
    );
  output.status(null);
  for (const { plan } of plans) {
    const { ranks, choice } = plan;
    const { device, host } = choice.measured.peaks;
    record(asked, output, {
      event: "split",
      ranks,
      estimatedSeconds: total(plan),
      devicePeakBytes: device,
      hostPeakBytes: host,
    });
    if (!output.json)
      output.line(
        `${plan === best.plan ? "fastest" : "       "}: ${describeRanks(ranks)}: ${formatDuration(total(plan))}, ` +
          `device ${formatBytes(device)}, host ${formatBytes(host)}; ${choice.rung}`,
      );
  }
  return best;
}

/** The tier that leaves less of its limit. */
function binding({ choice, facts }: JobPlan): { tier: "device" | "host"; used: number } {
  const shares = facts.limits.shares(choice.measured.needs);
  const { device, host } = choice.measured.needs;
  const used = { device: device / shares.device, host: host / shares.host };
  return used.host > used.device ? { tier: "host", used: used.host } : { tier: "device", used: used.device };
}

const total = ({ seconds }: JobPlan): number => totalSeconds(seconds);

const words: Record<string, string> = {
  copies: "copies that nothing hides",
  exchanges: "exchanges that nothing hides",
};

function show(asked: Asked, config: Config, plan: JobPlan, options: PlanOptions, output: Output): void {
  const { choice, facts, target, world, ranks, rates, threads, seconds } = plan;
  const { name, profile, assumed } = target;
  const { warn } = asked.jobOn(config);
  if (assumed !== null) warn(assumed);
  choice.warnings.forEach(warn);
  const { dtype, limits, work } = facts;
  const { peaks, needs, categories: by } = choice.measured;
  const shares = limits.shares(needs);
  const { micro, accumulation } = work;
  const { states, ...setting } = choice.plan;
  const tokens = micro.tokens * accumulation * ranks.data;
  const binds = binding(plan);
  record(asked, output, {
    event: "plan",
    ...setting,
    states,
    rung: choice.rung,
    metaRuns: choice.runs,
    tokens: micro.tokens,
    documents: micro.documents,
    accumulation,
    assumed: options.data ? "the data" : "full sequences",
    device: name,
    assumedDevice: assumed,
    devicePeakBytes: peaks.device,
    hostPeakBytes: peaks.host,
    diskPeakBytes: peaks.disk,
    deviceCategories: by.device,
    hostCategories: by.host,
    deviceLimitBytes: shares.device,
    hostLimitBytes: shares.host,
    binds: binds.tier,
    modelFlops: plan.modelFlops,
    hardwareFlops: plan.hardwareFlops,
    copiedBytes: plan.copiedBytes,
    ...(world > 1 && { ranks, exchangedBytes: plan.exchangedBytes }),
    estimatedSeconds: total(plan),
    secondsByPart: seconds,
    tokensPerSecond: tokens / total(plan),
    threads,
  });
  if (output.json) return;
  const micros = accumulation > 1 ? `${accumulation} micro-batches of ` : "";
  output.line(
    `a step: ${micros}${grouped(micro.tokens)} tokens, ${dtype} on ${profile ? name : "the cpu"}` +
      (options.data ? "" : " (every sequence full and one document; --data looks)"),
  );
  if (world > 1) output.line(`ranks:  ${describeRanks(ranks)}; what follows is for each of them`);
  output.line(`choice: ${describeSetting(choice.plan)}`);
  output.line(`device: ${formatBytes(peaks.device)} of ${formatBytes(shares.device)} (${categories(by.device)})`);
  if (peaks.host > 0)
    output.line(`host:   ${formatBytes(peaks.host)} of ${formatBytes(shares.host)} (${categories(by.host)})`);
  if (peaks.disk > 0) output.line(`disk:   ${formatBytes(peaks.disk)}`);
  output.line(`binds:  ${binds.tier} memory, of whose limit ${(100 * binds.used).toFixed(0)}% are used`);
  output.line(
    `work:   ${formatSi(plan.modelFlops)}FLOP a step for the model, ${formatSi(plan.hardwareFlops)}FLOP with what is run again; ` +
      `${formatBytes(plan.copiedBytes)} copied${world > 1 ? `, ${formatBytes(plan.exchangedBytes)} exchanged` : ""}`,
  );
  const parts = Object.entries(seconds)
    .filter(([, time]) => time > 0)
    .map(([what, time]) => `${words[what] ?? what} ${formatDuration(time)}`);
  output.line(
    `time:   ${formatDuration(total(plan))} a step (${parts.join(", ")}), an estimate ` +
      `${profile ? "" : `for ${threads} ${threads === 1 ? "thread" : "threads"} `}` +
      `by rates of ${rates.measured}`,
  );
}

/** Says how long sequences could be; null: not even a token fits. */
function showLongest(asked: Asked, config: Config, plan: JobPlan, output: Output): number | null {
  const longest = longestOf(asked.jobOn(config), plan);
  output.status(null);
  if (longest === null) return null;
  const { tokens, rung, open } = longest;
  record(asked, output, { event: "longest", tokens, rung: rung.name, ...(open && { more: true }) });
  if (!output.json)
    output.line(
      `length: ${grouped(tokens)} tokens a sequence would fit these limits, with "${rung.name}"` +
        (open ? ", and longer ones: no more are tried" : ""),
    );
  return longest.tokens;
}

/** The plans in columns side by side. */
function compare(
  solved: readonly { name: string; config: Config; plan: JobPlan; longest: number | null }[],
  output: Output,
): void {
  const rows: [string, (one: (typeof solved)[number]) => string][] = [
    ["", ({ name }) => name],
    ["tokens a sequence", ({ plan }) => grouped(plan.facts.work.micro.tokens)],
    ["ranks", ({ plan }) => String(plan.world)],
    ["ring x ulysses", ({ plan }) => `${plan.ranks.ring} x ${plan.ranks.ulysses}`],
    ["ZeRO", ({ plan }) => String(plan.ranks.zero)],
    ["device memory", ({ plan }) => formatBytes(plan.choice.measured.peaks.device)],
    ["host memory", ({ plan }) => formatBytes(plan.choice.measured.peaks.host)],
    ["binds", ({ plan }) => binding(plan).tier],
    ["time a step", ({ plan }) => formatDuration(total(plan))],
    ["longest sequence", ({ longest }) => (longest === null ? "none" : grouped(longest))],
    ["rung", ({ plan }) => plan.choice.rung],
  ];
  const table = rows.map(([what, of]) => [what, ...solved.map(of)]);
  const widths = (table[0] as string[]).map((_, i) => Math.max(...table.map((row) => (row[i] as string).length)));
  for (const row of table)
    output.line(
      row
        .map((cell, i) => cell.padEnd(widths[i] as number))
        .join("  ")
        .trimEnd(),
    );
}
