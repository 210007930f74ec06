// One run that is watched: its metrics.jsonl, line by line, as the curves and the figures that the page shows.

import { basename, join } from "node:path";
import { formatBytes, formatSi } from "../report/format.js";
import { evalLine, stepLine } from "../report/html_read.js";
import { TimeLeft } from "../report/progress.js";
import { FollowedFile, type Look } from "./follow_file.js";
import type { RanksInfo, RunInfo, RunState, StepProgress } from "./protocol.js";
import { readRanks } from "./ranks.js";
import { evalColumns, MOST_EVALS, MOST_POINTS, type Row, Series, stepColumns } from "./series.js";

/** Texts that a card shows: of more the newest, of longer ones the beginning. */
const MOST_TEXTS = 20;
const LONGEST_TEXT = 1000;

/** Without news for so long, or for some of its steps, a run is said to be quiet. Seconds. */
const QUIET_AFTER = 60;
const QUIET_STEPS = 5;

type Line = Record<string, unknown>;

const clip = (value: unknown): string => {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  return text.length > LONGEST_TEXT ? `${text.slice(0, LONGEST_TEXT)}…` : text;
};

const finite = (value: unknown): number | null => (typeof value === "number" && Number.isFinite(value) ? value : null);

/** The newest few of many texts. */
class Texts {
  readonly newest: string[] = [];
  count = 0;

  add(text: string): void {
    this.count++;
    this.newest.push(text);
    if (this.newest.length > MOST_TEXTS) this.newest.shift();
  }
}

/** What the lines so far say. */
class Known {
  readonly series = new Series(stepColumns, MOST_POINTS);
  readonly evals = new Series(evalColumns, MOST_EVALS);
  readonly warnings = new Texts();
  readonly remarks = new Texts();
  step = 0;
  lastEval = 0;
  tokens = 0;
  seconds = 0;
  /** Of the longest step. */
  longest = 0;
  steps: number | null = null;
  facts: [string, string][] = [];
  deviceLimitBytes: number | null = null;
  progress: StepProgress | null = null;
  skipped = 0;
  saved: { step: number; path: string } | null = null;
  ranks: RanksInfo | null = null;
  done = false;
}

/** What a look has brought; `all`: what was told before is void. */
export interface Change {
  all: boolean;
  rows: Row[];
  evals: Row[];
}

/** Reads a run folder's metrics.jsonl as it grows. Nothing in the folder is written or locked. */
export class WatchedRun {
  readonly folder: string;
  readonly #file: FollowedFile;
  #known = new Known();
  #time: TimeLeft;
  /** Rows since the last look. */
  #rows: Row[] = [];
  #evals: Row[] = [];
  #restarted = false;
  /** When the file last changed: of lines that were there before, that is when they are said to have come. Seconds. */
  #changed = 0;
  #size = 0;
  #lockSeen = false;
  #locked = false;

  /** now: a clock in seconds since 1970. */
  constructor(
    folder: string,
    readonly now: () => number = () => Date.now() / 1000,
  ) {
    this.folder = folder;
    this.#time = this.#newTime();
    this.#file = new FollowedFile(join(folder, "metrics.jsonl"), {
      line: (bytes, number) => this.#line(bytes, number),
      tooLong: (number) => this.#known.remarks.add(`metrics.jsonl:${number}: longer than 1 MiB, left out`),
      restart: () => this.#restart(),
    });
  }

  // While lines of the past are read, the clock stands where the file was last written.
  #newTime = (): TimeLeft => new TimeLeft(0, () => this.#changed);

  #restart(): void {
    this.#known = new Known();
    this.#time = this.#newTime();
    this.#rows = [];
    this.#evals = [];
    this.#restarted = true;
  }

  /** Reads on, a chunk. Null where nothing has changed. `locked`: whether a process trains into the folder. */
  async look(locked: boolean): Promise<{ look: Look; change: Change | null }> {
    this.#locked = locked;
    this.#lockSeen ||= locked;
    // Locked or not, lines of a file that is only now looked at may be old: its time is that of its last change.
    const look = await this.#file.look();
    if (!look.there) return { look, change: null };
    this.#changed = look.mtime / 1000;
    this.#size = look.size;
    if (!look.changed) return { look, change: null };
    const change = { all: this.#restarted, rows: this.#rows, evals: this.#evals };
    this.#rows = [];
    this.#evals = [];
    this.#restarted = false;
    return { look, change };
  }

  #line(bytes: Buffer, number: number): void {
    const text = bytes.toString("utf8").trim();
    if (text === "") return;
    const where = `metrics.jsonl:${number}`;
    let record: unknown;
    try {
      record = JSON.parse(text);
    } catch {
      record = undefined;
    }
    if (typeof record !== "object" || record === null || Array.isArray(record)) {
      this.#known.remarks.add(`${where}: no JSON object, left out: ${clip(text.slice(0, 80))}`);
      return;
    }
    try {
      this.#record(record as Line, where);
    } catch (error) {
      this.#known.remarks.add(clip(`${(error as Error).message}; the line is left out`));
    }
  }

  #record(line: Line, where: string): void {
    const known = this.#known;
    switch (line.event) {
      case undefined:
        this.#step(line, where);
        return;
      case "eval": {
        const { step, loss } = evalLine(line, where);
        if (step <= known.lastEval) return;
        known.lastEval = step;
        const row: Row = [step, known.tokens, known.seconds, loss];
        known.evals.push(row);
        this.#evals.push(row);
        return;
      }
      case "plan":
        this.#plan(line);
        return;
      case "progress": {
        const [step, fraction] = [finite(line.step), finite(line.fraction)];
        if (step === null || fraction === null || step <= known.step) return;
        const phase = typeof line.phase === "string" ? clip(line.phase) : "";
        known.progress = { step, fraction, phase, layer: finite(line.layer), layers: finite(line.layers) };
        this.#time.progress(step, fraction);
        return;
      }
      case "warning":
        known.warnings.add(clip(line.message ?? ""));
        return;
      case "save":
        known.saved = { step: finite(line.step) ?? known.step, path: clip(line.path ?? "") };
        return;
      case "done":
        known.done = line.stopped !== true;
        known.progress = null;
    }
  }

  #plan(line: Line): void {
    const known = this.#known;
    known.steps = finite(line.steps);
    known.done = false;
    known.deviceLimitBytes = finite(line.device_limit_bytes);
    this.#time.plan(known.steps ?? 0, finite(line.start_step) ?? known.step);
    const facts: [string, unknown][] = [
      ["device", line.device],
      ["dtype", line.dtype],
      ["parameters", typeof line.parameters === "number" ? formatSi(line.parameters) : undefined],
      ["trained", typeof line.trainable === "number" ? formatSi(line.trainable) : undefined],
      ["ranks", line.world ?? line.ranks],
      ["limit", known.deviceLimitBytes === null ? undefined : formatBytes(known.deviceLimitBytes)],
      ["memory", line.memory],
    ];
    known.facts = facts.flatMap(([name, value]) =>
      value === undefined || value === null ? [] : [[name, clip(value)] as [string, string]],
    );
  }

  #step(line: Line, where: string): void {
    const known = this.#known;
    const step = stepLine(line, where);
    if (step.step <= known.step) {
      known.remarks.add(`${where}: step ${step.step} behind step ${known.step}, left out`);
      return;
    }
    known.step = step.step;
    known.tokens += step.tokens;
    known.seconds += step.seconds;
    known.longest = Math.max(known.longest, step.seconds);
    known.done = false;
    if (step.skipped) known.skipped++;
    if (known.progress !== null && known.progress.step <= step.step) known.progress = null;
    this.#time.finish(step.step, step.seconds);
    known.ranks = readRanks(line.ranks, step.step);
    const totals = { totalTokens: known.tokens, totalSeconds: known.seconds };
    const row: Row = stepColumns.map((name) => ({ ...step, ...totals })[name]);
    known.series.push(row);
    this.#rows.push(row);
  }

  /** Whether the run goes on, as far as can be told from here. */
  get state(): RunState {
    const { done, longest } = this.#known;
    if (this.#locked && !done) return "running";
    if (done) return "finished";
    // Seen at work and gone: ended, or killed.
    if (this.#lockSeen) return "stopped";
    return this.age > Math.max(QUIET_AFTER, QUIET_STEPS * longest) ? "quiet" : "running";
  }

  /** Seconds since the file last changed. */
  get age(): number {
    return Math.max(0, this.now() - this.#changed);
  }

  get series(): Series {
    return this.#known.series;
  }

  get evals(): Series {
    return this.#known.evals;
  }

  info(name = basename(this.folder)): RunInfo {
    const known = this.#known;
    const { state, age } = this;
    // The estimate is as of the file's last change; a running step has gone on since.
    const left = this.#time.seconds;
    const running = state === "running";
    return {
      name: clip(name),
      path: clip(this.folder),
      state,
      age,
      step: known.step,
      steps: known.steps,
      facts: known.facts,
      deviceLimitBytes: known.deviceLimitBytes,
      progress: running ? known.progress : null,
      secondsLeft: running && Number.isFinite(left) ? Math.max(0, left - age) : null,
      skipped: known.skipped,
      warnings: known.warnings.newest,
      warningCount: known.warnings.count,
      remarks: known.remarks.newest,
      remarkCount: known.remarks.count,
      saved: known.saved,
      ranks: known.ranks,
      read: this.#size === 0 ? 1 : Math.min(1, this.#file.offset / this.#size),
    };
  }
}
