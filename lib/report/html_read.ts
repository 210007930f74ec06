// What a report is made of: a run folder's metrics.jsonl, its recorded traces and its model's config.json, checked.

import { readdirSync, readFileSync, statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { ConfigError, FormatError, IoError } from "../errors.js";
import { type EvalResults, readResults } from "./eval_results.js";
import { parseTrace, type RankStep, rankStep, type Trace } from "./html_trace.js";

/** One step's line of metrics.jsonl, as far as a report shows it. */
export interface StepLine {
  step: number;
  loss: number | null;
  gradNorm: number | null;
  learningRate: number | null;
  tokens: number;
  seconds: number;
  tokensPerSecond: number;
  devicePeakBytes: number;
  deviceLiveBytes: number;
  hostPeakBytes: number;
  rssPeakBytes: number;
  modelTflops: number | null;
  hardwareTflops: number | null;
  mfu: number | null;
  skipped: boolean;
}

export interface EvalLine {
  step: number;
  loss: number | null;
}

/** Everything that a report shows. */
export interface RunData {
  /** The run folder's own name. */
  name: string;
  steps: StepLine[];
  evals: EvalLine[];
  warnings: string[];
  /** The last plan line: the run's number of steps, device, dtype, parameters, chosen tiles. */
  plan: Record<string, unknown>;
  /** Whether the run has written its `done` line. */
  done: boolean;
  /** config.json of DIR/model, or of the newest checkpoint; null where nothing was saved yet. */
  model: Record<string, unknown> | null;
  /** By step, ascending; at most `MOST_TRACES`. */
  traces: Trace[];
  /** The same steps of the other ranks, by step. */
  otherRanks: Map<number, RankStep[]>;
  /** What longseq eval found of it. */
  evaluated: EvalResults;
  /** Steps whose traces were left out. */
  omittedTraces: number[];
  /** Remarks for the user, such as a last line torn by a crash. */
  remarks: string[];
}

/** A report grows by up to about a megabyte a trace. */
const MOST_TRACES = 6;

const errno = (error: unknown) => (error as NodeJS.ErrnoException).code ?? String(error);

function unreadable(file: string, error: unknown): IoError {
  const code = errno(error);
  return new IoError(`${file}: cannot be read (${code})`, { file, errno: code }, { cause: error });
}

/** A field of a metrics line: a finite number, or null where `orNull`. Older lines may lack optional fields. */
function numberOf(record: Record<string, unknown>, key: string, where: string): number {
  const value = record[key];
  if (typeof value === "number" && Number.isFinite(value)) return value;
  throw new FormatError(
    `${where}: ${key} is ${value === undefined ? "missing" : JSON.stringify(value)}; expected a number`,
    { key },
  );
}

function numberOrNull(record: Record<string, unknown>, key: string, where: string): number | null {
  return record[key] === null || record[key] === undefined ? null : numberOf(record, key, where);
}

/** The figures of a step's line, checked. `where`: file and line, for messages. Throws FormatError. */
export function stepLine(record: Record<string, unknown>, where: string): StepLine {
  const number = (key: string) => numberOf(record, key, where);
  const orNull = (key: string) => numberOrNull(record, key, where);
  const step = number("step");
  if (!Number.isSafeInteger(step) || step < 1)
    throw new FormatError(`${where}: step is ${step}; expected a whole number from 1`, { key: "step" });
  return {
    step,
    loss: orNull("loss"),
    gradNorm: orNull("grad_norm"),
    learningRate: orNull("learning_rate"),
    tokens: number("tokens"),
    seconds: number("seconds"),
    tokensPerSecond: number("tokens_per_second"),
    devicePeakBytes: number("device_peak_bytes"),
    deviceLiveBytes: number("device_live_bytes"),
    hostPeakBytes: orNull("host_peak_bytes") ?? 0,
    rssPeakBytes: orNull("rss_peak_bytes") ?? 0,
    modelTflops: orNull("model_tflops"),
    hardwareTflops: orNull("hardware_tflops"),
    mfu: orNull("mfu"),
    skipped: record.skipped === true || (typeof record.skipped === "number" && record.skipped > 0),
  };
}

/** The same of an evaluation's line. */
export const evalLine = (record: Record<string, unknown>, where: string): EvalLine => ({
  step: numberOf(record, "step", where),
  loss: numberOrNull(record, "loss", where),
});

type Metrics = Pick<RunData, "steps" | "evals" | "warnings" | "plan" | "done" | "remarks">;

/** Reads metrics.jsonl. Throws FormatError with file and line, or where there is no finished step. */
function readMetrics(file: string): Metrics {
  let bytes: Buffer;
  try {
    bytes = readFileSync(file);
  } catch (error) {
    if (errno(error) === "ENOENT")
      throw new ConfigError(
        `${file}: there is no such file, so this is no run folder; give the output.dir of a run (longseq train writes it)`,
        { file },
      );
    throw unreadable(file, error);
  }
  const metrics: Metrics = { steps: [], evals: [], warnings: [], plan: {}, done: false, remarks: [] };
  let line = 0;
  for (let from = 0; from < bytes.length; ) {
    line++;
    const end = bytes.indexOf(10, from);
    const whole = end >= 0;
    const text = bytes.toString("utf8", from, whole ? end : bytes.length).trim();
    from = whole ? end + 1 : bytes.length;
    if (text === "") continue;
    const where = `${file}:${line}`;
    let record: unknown;
    try {
      record = JSON.parse(text);
    } catch (error) {
      // Lines are written whole, so only a crash leaves one without its end; the next start cuts it off.
      if (!whole) {
        metrics.remarks.push(`${where}: the last line was torn by a crash and is left out`);
        break;
      }
      throw new FormatError(`${where}: not valid JSON (${(error as Error).message}); repair or remove this line`, {
        file,
        line,
      });
    }
    if (typeof record !== "object" || record === null || Array.isArray(record))
      throw new FormatError(`${where}: expected an object, got ${text.slice(0, 40)}; repair or remove this line`, {
        file,
        line,
      });
    readLine(record as Record<string, unknown>, where, metrics);
  }
  if (metrics.steps.length === 0)
    throw new FormatError(`${file}: no finished step yet; run longseq report again after the first`, { file });
  return metrics;
}

function readLine(record: Record<string, unknown>, where: string, metrics: Metrics): void {
  if (record.event === undefined) {
    const step = stepLine(record, where);
    const before = metrics.steps.at(-1);
    if (before !== undefined && step.step <= before.step)
      throw new FormatError(`${where}: step ${step.step} comes after step ${before.step}; steps must ascend`, {
        key: "step",
      });
    metrics.steps.push(step);
    metrics.done = false;
  } else if (record.event === "eval") {
    metrics.evals.push(evalLine(record, where));
  } else if (record.event === "plan") metrics.plan = record;
  else if (record.event === "warning") metrics.warnings.push(String(record.message ?? ""));
  else if (record.event === "done") metrics.done = record.stopped !== true;
}

/** Folders or files of a folder that match, by their number; none where the folder is missing. */
function numbered(folder: string, pattern: RegExp): { number: number; path: string }[] {
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch (error) {
    if (errno(error) === "ENOENT") return [];
    throw unreadable(folder, error);
  }
  return names
    .flatMap((name) => {
      const match = pattern.exec(name);
      return match ? [{ number: Number(match[1]), path: join(folder, name) }] : [];
    })
    .sort((a, b) => a.number - b.number);
}

/** The saved config.json; a model that was not saved yet is no error, a broken one is. */
function readModel(folder: string): Record<string, unknown> | null {
  const checkpoints = numbered(join(folder, "checkpoints"), /^step-(\d+)$/).reverse();
  for (const place of [join(folder, "model"), ...checkpoints.map(({ path }) => path)]) {
    const file = join(place, "config.json");
    let text: string;
    try {
      text = readFileSync(file, "utf8");
    } catch (error) {
      if (["ENOENT", "ENOTDIR"].includes(errno(error))) continue;
      throw unreadable(file, error);
    }
    try {
      const value: unknown = JSON.parse(text);
      if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
      throw new Error("expected an object");
    } catch (error) {
      throw new FormatError(`${file}: not a valid config.json: ${(error as Error).message}`, { file });
    }
  }
  return null;
}

function readTrace(step: number, file: string): Trace {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    if (errno(error) === "ERR_STRING_TOO_LONG")
      throw new FormatError(`${file}: over 512 MiB, too large for a report; move it away, or trace a smaller step`, {
        file,
      });
    throw unreadable(file, error);
  }
  return parseTrace(step, text, file);
}

/** Of their traces only figures are kept: they are as large as rank 0's. */
const readOtherRanks = (folder: string, step: number): RankStep[] =>
  numbered(folder, new RegExp(`^step-${step}\\.rank-(\\d+)\\.json$`)).map(({ number, path }) =>
    rankStep(number, readTrace(step, path)),
  );

/**
 * Reads what a report of this run folder shows. Throws ConfigError where it is no run folder, FormatError for a broken
 * line or trace (with file and line), IoError where the system refuses.
 */
export function readRun(folder: string): RunData {
  let isFolder: boolean;
  try {
    isFolder = statSync(folder).isDirectory();
  } catch (error) {
    if (errno(error) !== "ENOENT") throw unreadable(folder, error);
    throw new ConfigError(`${folder}: there is no such folder; give the output.dir of a run`, { folder });
  }
  if (!isFolder) throw new ConfigError(`${folder}: not a folder; give the output.dir of a run`, { folder });
  const metrics = readMetrics(join(folder, "metrics.jsonl"));
  const files = numbered(join(folder, "trace"), /^step-(\d+)\.json$/);
  const shown = files.slice(0, MOST_TRACES);
  return {
    ...metrics,
    name: basename(resolve(folder)),
    model: readModel(folder),
    evaluated: readResults(folder),
    traces: shown.map(({ number, path }) => readTrace(number, path)),
    otherRanks: new Map(shown.map(({ number }) => [number, readOtherRanks(join(folder, "trace"), number)])),
    omittedTraces: files.slice(MOST_TRACES).map(({ number }) => number),
  };
}
