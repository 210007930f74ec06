// What the server tells the page: the events of one stream, each with the JSON that it carries.

import type { RankSpread } from "../report/events.js";
import type { Row, SeriesSnapshot } from "./series.js";

/** What is known of whether a run goes on. */
export type RunState =
  /** A process trains into the folder, or its file grew a moment ago. */
  | "running"
  /** Nothing was written for longer than its steps take, and whether a process is at work cannot be seen from here. */
  | "quiet"
  /** No process trains into the folder any more, and the run is not finished. */
  | "stopped"
  | "finished";

/** A figure over ranks; `each`: of every rank, where the run tells it. */
export type RankFigure = Omit<RankSpread, "each"> & { each: number[] | null };

export interface RanksInfo {
  step: number;
  seconds: RankFigure;
  devicePeakBytes: RankFigure;
  hostPeakBytes: RankFigure;
}

/** Where a running step is. */
export interface StepProgress {
  step: number;
  /** Of the step's work, 0 to 1. */
  fraction: number;
  phase: string;
  /** From 1; null between layers. */
  layer: number | null;
  layers: number | null;
}

/** All that a card of the page shows. Texts come from the run's files as they are: never to be taken for HTML. */
export interface RunInfo {
  name: string;
  path: string;
  state: RunState;
  /** Seconds since the file last changed, when this was sent. */
  age: number;
  /** The last finished step, 0 before the first; of the whole run, null while unknown. */
  step: number;
  steps: number | null;
  /** Shown once each, such as the device and the number of parameters. */
  facts: [name: string, value: string][];
  deviceLimitBytes: number | null;
  progress: StepProgress | null;
  secondsLeft: number | null;
  /** Steps without an update, since loss or gradient was not finite. */
  skipped: number;
  /** The newest few, oldest first, and how many there were. */
  warnings: string[];
  warningCount: number;
  /** What was wrong with the files. */
  remarks: string[];
  remarkCount: number;
  /** The newest checkpoint or model. */
  saved: { step: number; path: string } | null;
  ranks: RanksInfo | null;
  /** The share of the file that was read, 0 to 1, while a long one is gone through. */
  read: number;
}

/** By event name, what `data` holds. */
export interface WatchEvents {
  /** All of a run: it is new, or its file was cut or replaced. Takes the place of what was known. */
  run: { run: number; info: RunInfo; series: SeriesSnapshot; evals: SeriesSnapshot };
  /** Steps and evaluations that were added, and how the run stands then. */
  rows: { run: number; info: RunInfo; rows: Row[]; evals: Row[] };
  info: { run: number; info: RunInfo };
  /** The folder no longer holds a run. */
  gone: { run: number };
  /** The folders looked through, and what is to be said of them; sent at the start and when it changes. */
  places: { folders: string[]; notes: string[] };
  /** Everything that is known follows: the page begins anew. */
  begin: { session: string };
}
