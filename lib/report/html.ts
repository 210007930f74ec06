// The report of a run: one HTML file that needs nothing else, from the run folder's metrics and recorded steps.

import { renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { IoError } from "../errors.js";
import type { EvalResults } from "./eval_results.js";
import { formatBytes, formatDuration, formatLoss, formatSi } from "./format.js";
import {
  colourOf,
  formatMicros,
  hillChart,
  kindColour,
  legend,
  lineChart,
  type Series,
  waterfall,
} from "./html_chart.js";
import { evalCards } from "./html_eval.js";
import { card, escapeHtml, numbers, page, whole } from "./html_parts.js";
import { type EvalLine, type RunData, readRun, type StepLine } from "./html_read.js";
import {
  exchangesOf,
  type Hill,
  hills,
  opKind,
  opKinds,
  opTotals,
  queueUse,
  type RankStep,
  rankStep,
  type Trace,
} from "./html_trace.js";

/** How a step is recorded, for a run that has none. */
export const recordAdvice =
  "no step was recorded: train with output.trace_steps=1 to see the step waterfall and memory by category";

const percent = (part: number, of: number) =>
  of > 0 ? `${((part / of) * 100).toFixed(part / of < 0.0995 ? 1 : 0)}%` : "";

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

/** Of numbers that may be too many for the arguments of Math.max. */
const largest = (values: readonly number[]) => values.reduce((most, value) => Math.max(most, value), 0);

/** "llama, 4 layers, hidden 160, 5/5 heads, vocabulary 259". */
function describeModel(config: Record<string, unknown> | null): string {
  if (config === null) return "not saved yet";
  const parts = [String(config.model_type ?? "unknown type")];
  const add = (key: string, text: (value: number) => string) => {
    const value = config[key];
    if (typeof value === "number") parts.push(text(value));
  };
  add("num_hidden_layers", (value) => `${value} ${value === 1 ? "layer" : "layers"}`);
  add("hidden_size", (value) => `hidden ${value}`);
  const keyHeads = config.num_key_value_heads;
  add("num_attention_heads", (value) => `${value}${typeof keyHeads === "number" ? `/${keyHeads}` : ""} heads`);
  add("vocab_size", (value) => `vocabulary ${whole(value)}`);
  return parts.join(", ");
}

type Row = [name: string, value: string];

function table(rows: readonly Row[]): string {
  return `<table>${rows
    .map(([name, value]) => `<tr><th>${escapeHtml(name)}</th><td>${escapeHtml(value)}</td></tr>`)
    .join("")}</table>`;
}

function summary(run: RunData): string {
  const { steps, evals, plan } = run;
  const last = steps.at(-1) as StepLine;
  const planned = typeof plan.steps === "number" ? plan.steps : last.step;
  const left: Row[] = [["Model", describeModel(run.model)]];
  if (typeof plan.parameters === "number")
    left.push([
      "Parameters",
      `${formatSi(plan.parameters)} (${whole(plan.parameters)})${typeof plan.dtype === "string" ? `, ${plan.dtype}` : ""}`,
    ]);
  if (typeof plan.trainable === "number" && typeof plan.parameters === "number")
    left.push([
      "Trained",
      `${formatSi(plan.trainable)} (${whole(plan.trainable)}), ${((100 * plan.trainable) / plan.parameters).toFixed(2)}%`,
    ]);
  if (typeof plan.device === "string") left.push(["Device", plan.device]);
  left.push(
    ["Steps", `${whole(last.step)} of ${whole(planned)}${run.done ? ", finished" : ", not finished"}`],
    ["Tokens", whole(steps.reduce((sum, { tokens }) => sum + tokens, 0))],
    ["Training time", formatDuration(steps.reduce((sum, { seconds }) => sum + seconds, 0))],
  );
  const skipped = steps.filter((step) => step.skipped).length;
  if (skipped > 0) left.push(["Skipped steps", `${whole(skipped)} (loss or gradient not finite)`]);

  const lastEval = evals.at(-1);
  const lowestEval = evals.reduce<EvalLine | undefined>(
    (best, each) => (each.loss !== null && (best === undefined || each.loss < (best.loss as number)) ? each : best),
    undefined,
  );
  const right: Row[] = [
    ["Final loss", `${formatLoss(last.loss)} (first ${formatLoss((steps[0] as StepLine).loss)})`],
    [
      "Evaluation loss",
      lastEval === undefined
        ? "none"
        : `${formatLoss(lastEval.loss)} after step ${lastEval.step}` +
          (lowestEval !== undefined && lowestEval.step !== lastEval.step
            ? `; lowest ${formatLoss(lowestEval.loss)} after step ${lowestEval.step}`
            : ""),
    ],
    ["Tokens/s, median", formatSi(median(steps.map(({ tokensPerSecond }) => tokensPerSecond)))],
  ];
  const tflops = steps.flatMap(({ modelTflops }) => (modelTflops === null ? [] : [modelTflops]));
  const mfu = steps.flatMap((step) => (step.mfu === null ? [] : [step.mfu]));
  if (tflops.length > 0)
    right.push([
      "Model TFLOP/s, median",
      `${median(tflops).toPrecision(3)}${mfu.length > 0 ? ` (${(median(mfu) * 100).toFixed(1)}% of the device)` : ""}`,
    ]);
  const limit =
    typeof plan.device_limit_bytes === "number" ? ` of ${formatBytes(plan.device_limit_bytes)} allowed` : "";
  right.push(["Peak device memory", `${formatBytes(largest(steps.map((step) => step.devicePeakBytes)))}${limit}`]);
  const host = largest(steps.map((step) => step.hostPeakBytes));
  if (host > 0) right.push(["Peak host memory", formatBytes(host)]);
  const resident = largest(steps.map((step) => step.rssPeakBytes));
  if (resident > 0) right.push(["Peak of the process", `${formatBytes(resident)} resident`]);
  return `<section class="card" id="summary"><h2>Summary</h2><div class="tables">${table(left)}${table(right)}</div></section>`;
}

/** From this many steps in a fiftieth of the run on, the loss also gets a smoothed line. */
const SMOOTH_FROM = 4;

/** Mean of the finite values among the `window` around each place; fewer at the ends. */
function runningMean(values: readonly (number | null)[], window: number): (number | null)[] {
  const sums = [0];
  const counts = [0];
  for (const [i, value] of values.entries()) {
    sums.push((sums[i] as number) + (value ?? 0));
    counts.push((counts[i] as number) + (value === null ? 0 : 1));
  }
  return values.map((_, i) => {
    const from = Math.max(0, i - (window >> 1));
    const to = Math.min(values.length, i + window - (window >> 1));
    const count = (counts[to] as number) - (counts[from] as number);
    return count > 0 ? ((sums[to] as number) - (sums[from] as number)) / count : null;
  });
}

function overSteps(run: RunData): string {
  const { steps, evals } = run;
  const at = steps.map(({ step }) => step);
  const evalAt = new Map(evals.map(({ step, loss }) => [step, loss]));
  const evalLoss = at.map((step) => evalAt.get(step) ?? null);
  const losses = steps.map((step) => step.loss);
  const window = Math.round(steps.length / 50);
  const lossSeries: Series[] = [
    ...(window < SMOOTH_FROM
      ? [{ name: "training", colour: "blue", values: losses }]
      : [
          { name: "training", colour: "blue", values: losses, faint: true },
          { name: `training, mean of ${window} steps`, colour: "blue", values: runningMean(losses, window) },
        ]),
    ...(evalLoss.some((loss) => loss !== null)
      ? [{ name: "evaluation", colour: "orange", values: evalLoss, dots: true }]
      : []),
  ];
  const loss = card(
    "loss",
    "Loss",
    "Mean over each step's labels, in nats, with the parameters that the step started from.",
    lineChart({
      label: "Loss over steps",
      steps: at,
      series: lossSeries,
      format: (value) => (Math.abs(value) >= 1e4 ? value.toExponential(1) : String(Number(value.toFixed(4)))),
      zero: false,
    }) + legend(lossSeries),
  );
  const rateSeries = [{ name: "tokens/s", colour: "aqua", values: steps.map((step) => step.tokensPerSecond) }];
  const rate = card(
    "rate",
    "Tokens per second",
    "Input tokens of a step over the time from the end of the step before to its own.",
    lineChart({ label: "Tokens per second over steps", steps: at, series: rateSeries, format: formatSi, zero: true }) +
      legend(rateSeries),
  );
  const memorySeries = [
    { name: "device: reserved at most", colour: "blue", values: steps.map((step) => step.devicePeakBytes) },
    { name: "device: live after the step", colour: "violet", values: steps.map((step) => step.deviceLiveBytes) },
    { name: "host: reserved at most", colour: "yellow", values: steps.map((step) => step.hostPeakBytes) },
    { name: "process: resident at most", colour: "grey", values: steps.map((step) => step.rssPeakBytes) },
  ].filter(({ values }) => values.some((value) => value > 0));
  const memory = card(
    "memory-over-steps",
    "Memory over the run",
    "Highest so far at each step, and what stays when a step is over. On the CPU the device is part of the process.",
    lineChart({
      label: "Memory over steps",
      steps: at,
      series: memorySeries,
      format: formatBytes,
      zero: true,
      bytes: true,
    }) + legend(memorySeries),
  );
  const normSeries = [{ name: "gradient norm", colour: "magenta", values: steps.map((step) => step.gradNorm) }];
  const norm = card(
    "norm",
    "Gradient norm",
    "Global L2 norm before clipping.",
    lineChart({
      label: "Gradient norm over steps",
      steps: at,
      series: normSeries,
      format: (value) => String(Number(value.toPrecision(4))),
      zero: true,
    }) + legend(normSeries),
  );
  return `<div class="pair">${loss}${rate}</div><div class="pair">${memory}${norm}</div>`;
}

const swatch = (colour: string) => `<i style="background:var(--${colour})"></i>`;

/** Rows of the table of ops; the rest is summed. */
const MOST_OPS = 12;

/** What ranks exchanged in a step, and one rank beside another; nothing for a run of one rank. */
function rankTables(trace: Trace, others: readonly RankStep[]): string {
  const exchanges = exchangesOf(trace).map(({ name, count, bytes, time, exposed }) => [
    escapeHtml(name),
    whole(count),
    formatBytes(bytes),
    formatMicros(time),
    formatMicros(exposed),
  ]);
  const ranks = [rankStep(0, trace), ...others].map(({ rank, span, compute, comm, exposed }) => [
    `rank ${rank}`,
    formatMicros(span),
    percent(compute, span),
    percent(comm, span),
    formatMicros(exposed),
  ]);
  const table = (title: string, head: string[], rows: string[][]) =>
    `<div><h3>${title}</h3>${numbers(head, rows)}</div>`;
  return (
    (exchanges.length > 0
      ? table("Exchanges between ranks", ["op", "count", "bytes", "time", "exposed"], exchanges)
      : "") + (others.length > 0 ? table("Ranks", ["", "step", "compute busy", "comm busy", "exposed"], ranks) : "")
  );
}

function waterfallCard(trace: Trace, others: readonly RankStep[]): string {
  if (trace.ops.length === 0)
    return card(`waterfall-${trace.step}`, "Step waterfall", `Step ${trace.step}: the trace holds no ops.`, "");
  const { queues, start, end } = queueUse(trace);
  const span = end - start;
  const kinds = opKinds.filter((kind) => trace.ops.some(({ name }) => opKind(name) === kind));
  const totals = opTotals(trace);
  const busy = totals.reduce((sum, { time }) => sum + time, 0);
  const rate = (flops: number, time: number) => (flops > 0 && time > 0 ? (flops / time / 1e3).toFixed(1) : "");
  const rows = totals
    .slice(0, MOST_OPS)
    .map(({ name, count, time, flops }) => [
      swatch(kindColour(opKind(name))) + escapeHtml(name),
      whole(count),
      formatMicros(time),
      percent(time, busy),
      rate(flops, time),
    ]);
  const rest = totals.slice(MOST_OPS);
  if (rest.length > 0) {
    const time = rest.reduce((sum, each) => sum + each.time, 0);
    const count = rest.reduce((sum, each) => sum + each.count, 0);
    rows.push([`${rest.length} other ops`, whole(count), formatMicros(time), percent(time, busy), ""]);
  }
  const byQueue = queues.map((use) => [
    escapeHtml(use.queue),
    whole(use.ops.length),
    formatMicros(use.busy),
    percent(use.busy, span),
    use.queue === "compute" ? "" : percent(use.besideCompute, use.busy),
    formatBytes(use.bytes),
  ]);
  return card(
    `waterfall-${trace.step}`,
    "Step waterfall",
    `Step ${trace.step} took ${formatMicros(span)} on the device: ${whole(trace.ops.length)} ops on ` +
      `${queues.length === 1 ? "one queue" : `${queues.length} queues, which run beside each other`}. ` +
      "Very short ops that lie together are drawn as one block. " +
      `Chrome's tracing page or Perfetto opens <code>trace/step-${trace.step}.json</code> for every single op.`,
    `<div class="bar zoom"></div>${waterfall(queues, start, end)}${legend(
      kinds.map((kind) => ({ name: kind, colour: kindColour(kind) })),
    )}<div class="tables"><div><h3>Time by op</h3>${numbers(
      ["op", "count", "time", "share", "GFLOP/s"],
      rows,
    )}</div><div><h3>Queues</h3>${numbers(
      ["queue", "ops", "busy", "of the step", "beside compute", "bytes moved"],
      byQueue,
    )}</div>${rankTables(trace, others)}</div>`,
  );
}

function atPeak(hill: Hill): string {
  const rows = hill.categories
    .map((category, c): [string, number] => [category, hill.live[c]?.[hill.peakAt] as number])
    .filter(([, bytes]) => bytes > 0)
    .sort((a, b) => b[1] - a[1])
    .map(([category, bytes]) => [
      swatch(colourOf(category)) + escapeHtml(category),
      formatBytes(bytes),
      percent(bytes, hill.peak),
    ]);
  return `<h3>At the peak</h3>${numbers([escapeHtml(hill.tier), formatBytes(hill.peak), "100%"], rows)}`;
}

function memoryCard(trace: Trace, step: StepLine | undefined): string {
  const found = hills(trace);
  const { start, end } = queueUse(trace);
  const id = `memory-${trace.step}`;
  if (found.length === 0)
    return card(id, "Memory through the step", `Step ${trace.step}: the trace holds no allocations.`, "");
  const charts = found.map((hill) => {
    const reserved =
      step === undefined
        ? 0
        : hill.tier === "device"
          ? step.devicePeakBytes
          : hill.tier === "host"
            ? step.hostPeakBytes
            : 0;
    const facts =
      `Live at most ${formatBytes(hill.peak)}` +
      (hill.before > 0 ? `, of which ${formatBytes(hill.before)} lay there before the step` : "") +
      (reserved > 0 ? `; up to the step's end the allocator had reserved at most ${formatBytes(reserved)}` : "");
    const title = `${hill.tier[0]?.toUpperCase()}${hill.tier.slice(1)}`;
    return (
      `<div class="tier" data-tier="${escapeHtml(hill.tier)}"><h3>${escapeHtml(title)}</h3>` +
      `<p class="about">${facts}.</p><div class="beside"><div>` +
      hillChart(hill, `${title} memory by category through step ${trace.step}`, start, end) +
      legend(hill.categories.map((category) => ({ name: category, colour: colourOf(category) }))) +
      `</div><div>${atPeak(hill)}</div></div></div>`
    );
  });
  return card(
    id,
    "Memory through the step",
    `Live bytes in step ${trace.step} by tier and category, and their peak as a flat line. Memory is taken and ` +
      "returned as the program enqueues work, ahead of the device; it is drawn when the ops that it was taken for run.",
    charts.join(""),
  );
}

function recorded(run: RunData): string {
  if (run.traces.length === 0)
    return `<section class="card" id="no-trace"><h2>Step waterfall and memory by category</h2><p class="none">No step was recorded. Train with <code>output.trace_steps=1</code> (the first steps that a start of the run does are recorded into <code>trace/step-N.json</code>), then make this report again.</p></section>`;
  const byStep = new Map(run.steps.map((step) => [step.step, step]));
  const omitted =
    run.omittedTraces.length > 0
      ? `<p class="note">Left out to keep this file small: the traces of ${run.omittedTraces.length} later steps.</p>`
      : "";
  return (
    `<div class="bar" id="steps" style="margin-top:22px"></div>${omitted}` +
    run.traces
      .map(
        (trace) =>
          `<section class="trace" data-step="${trace.step}">${waterfallCard(trace, run.otherRanks.get(trace.step) ?? [])}` +
          `${memoryCard(trace, byStep.get(trace.step))}</section>`,
      )
      .join("")
  );
}

/** The page of a run. The same run gives the same bytes. */
export function reportHtml(run: RunData): string {
  const last = run.steps.at(-1) as StepLine;
  const title = `${run.name}: longseq report`;
  const notes = [...run.remarks, ...new Set(run.warnings)];
  const main = `<header><h1>${escapeHtml(run.name)}</h1><p>longseq report after step ${last.step}: ${escapeHtml(
    `loss ${formatLoss(last.loss)}, ${whole(run.steps.reduce((sum, { tokens }) => sum + tokens, 0))} tokens`,
  )}</p></header>
${summary(run)}
${notes.length > 0 ? `<section class="card" id="notes"><h2>Warnings</h2>${notes.map((note) => `<p class="note">${escapeHtml(note)}</p>`).join("")}</section>` : ""}
${overSteps(run)}
${evalCards(run.evaluated)}
${recorded(run)}`;
  return page(
    title,
    main,
    `Made by longseq from metrics.jsonl${run.traces.length > 0 ? " and trace/" : ""} of this run.`,
  );
}

/** Writes a page in one piece: a reader never sees half of it. Returns its bytes. Throws IoError. */
function writePage(path: string, text: string): number {
  const html = Buffer.from(text, "utf8");
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    writeFileSync(temporary, html);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    const { code } = error as NodeJS.ErrnoException;
    throw new IoError(
      `${path}: cannot be written (${code ?? String(error)}); free some space or make the folder writable`,
      { file: path, errno: code },
      { cause: error },
    );
  }
  return html.length;
}

/** Writes FOLDER/eval.html, the drawings of an evaluation for a folder that is no run. Throws IoError. */
export function writeEvalPage(folder: string, model: string, results: EvalResults): string {
  const path = join(folder, "eval.html");
  const header = `<header><h1>${escapeHtml(model)}</h1><p>longseq eval</p></header>`;
  writePage(path, page(`${model}: longseq eval`, header + evalCards(results), "Made by longseq eval."));
  return path;
}

/** What `writeReport` did. */
export interface Report {
  path: string;
  bytes: number;
  run: RunData;
}

/**
 * Writes DIR/report.html in one piece: a reader never sees half of it. Throws as `readRun` does, and IoError where it
 * cannot be written.
 */
export function writeReport(folder: string): Report {
  const run = readRun(folder);
  const path = join(folder, "report.html");
  return { path, bytes: writePage(path, reportHtml(run)), run };
}
