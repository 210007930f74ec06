// `longseq plan`: what training as configured would take, by steps on the `meta` device; nothing is loaded or computed.

import { availableParallelism } from "node:os";
import { loadConfig } from "../config/index.js";
import { type Dataset, openData } from "../data/index.js";
import { shapeOf } from "../models/load.js";
import { formatBytes, formatDuration, formatSi } from "../report/format.js";
import { modelFlops } from "../report/model_flops.js";
import { dataOptions } from "../train/data_options.js";
import { longestSequence } from "../train/longest.js";
import { fullWorkload, type Workload, workloadOf } from "../train/measure.js";
import { describeSetting } from "../train/memory_plan.js";
import { resolveModel } from "../train/model.js";
import { chooseMemory } from "../train/plan.js";
import { estimatedSeconds, ratesOf } from "../train/rates.js";
import { planTarget, runDtype, standIn } from "../train/target.js";
import { nominalTokens, type PlanFacts } from "../train/trials.js";
import { describeRanks, ranksOf, wantedRanks } from "../train/world.js";
import { exitCode, type Output } from "./output.js";

export interface PlanOptions {
  /** Open the data, instead of taking every sequence to be full. */
  data: boolean;
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

/** Prints the plan; returns the exit code. Throws ConfigError where no choice fits the limits. */
export async function plan(
  file: string,
  overrides: readonly string[],
  options: PlanOptions,
  output: Output,
): Promise<number> {
  const config = loadConfig(file, overrides);
  const model = await resolveModel(config);
  const opened: Dataset[] = [];
  let work: Workload = fullWorkload(config);
  let tokens = nominalTokens(config);
  try {
    if (options.data) {
      const open = async (evaluation: boolean) => {
        const dataset = await openData(dataOptions(config, evaluation));
        opened.push(dataset);
        return dataset;
      };
      const data = await open(false);
      const evaluation = config.data.eval.length > 0 ? await open(true) : undefined;
      const { steps, epochs, batchSize } = config.train;
      work = workloadOf(config, data, evaluation, steps ?? data.totalSteps(epochs as number, batchSize));
      tokens = nominalTokens(config, data.longest);
    }
  } finally {
    for (const dataset of opened) await dataset.close();
  }
  const warn = (warning: string) => {
    output.note(`warning: ${warning}`);
    output.record({ event: "warning", message: warning });
  };
  const world = wantedRanks(config) ?? config.parallel.data;
  const ranks = ranksOf(config, world, model, tokens);
  const { name, profile, limits, assumed } = planTarget(config, world, warn);
  if (assumed !== null) warn(assumed);
  const dtype = runDtype(config, model, name);
  const rates = ratesOf(profile ? "cuda" : "cpu");
  const facts: PlanFacts = {
    model,
    dtype,
    work,
    tokens: Math.ceil(tokens / (ranks.ring * ranks.ulysses)),
    limits,
    ...(world > 1 && { ranks }),
    rates,
    on: standIn(config, profile),
    onTry: sayWhatIsTried(output),
  };
  const choice = chooseMemory(config, facts);
  choice.warnings.forEach(warn);
  const { peaks, needs, categories: by, ops } = choice.measured;
  const shares = limits.shares(needs);
  // The rates of a GPU are those of all of it.
  const threads = profile
    ? 1
    : config.threads === "auto"
      ? Math.max(1, Math.floor(availableParallelism() / world))
      : config.threads;
  const seconds = estimatedSeconds(rates, dtype, ops, threads);
  const flops = world * Object.values(ops).reduce((sum, op) => sum + op.flops, 0);
  const { micro, accumulation } = work;
  const each = Math.floor(micro.tokens / micro.documents);
  const documents = Array.from({ length: micro.documents }, (_, i) =>
    i > 0 ? each : micro.tokens - each * (micro.documents - 1),
  );
  const needed = ranks.data * accumulation * modelFlops(shapeOf(model), documents);
  // A copy reads and writes.
  const copied = (ops.copy?.bytes ?? 0) / 2;
  const collectives = ["all_to_all", "all_gather", "reduce_scatter", "all_reduce", "send_receive"];
  const exchanged = collectives.reduce((sum, op) => sum + (ops[op]?.bytes ?? 0), 0) / 2;
  const { states, ...setting } = choice.plan;
  output.record({
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
    modelFlops: needed,
    hardwareFlops: flops,
    copiedBytes: copied,
    ...(world > 1 && { ranks, exchangedBytes: exchanged }),
    estimatedSeconds: seconds,
    threads,
  });
  if (!output.json) {
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
    output.line(
      `work:   ${formatSi(needed)}FLOP a step for the model, ${formatSi(flops)}FLOP with what is run again; ` +
        `${formatBytes(copied)} copied${world > 1 ? `, ${formatBytes(exchanged)} exchanged` : ""}`,
    );
    output.line(
      `time:   ${formatDuration(seconds)} a step, an estimate ` +
        `${profile ? "" : `for ${threads} ${threads === 1 ? "thread" : "threads"} `}` +
        `by rates of ${rates.measured}`,
    );
  }
  const longest = longestSequence(config, facts, (length) => fullWorkload(config, length));
  output.status(null);
  if (longest !== null) {
    output.record({ event: "longest", tokens: longest.tokens, rung: longest.rung.name });
    if (!output.json)
      output.line(
        `length: ${grouped(longest.tokens)} tokens a sequence would fit these limits, with "${longest.rung.name}"`,
      );
  }
  return exitCode.done;
}
