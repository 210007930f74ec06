// What the page knows of the runs: the server's events, put together. Bounded, since each run's series is.

import type { RunInfo, WatchEvents } from "../protocol.js";
import { evalColumns, MOST_EVALS, MOST_POINTS, Series, stepColumns } from "../series.js";

export interface PageRun {
  id: number;
  info: RunInfo;
  /** performance.now() when `info` came, from which its ages count. */
  heard: number;
  series: Series;
  evals: Series;
  /** Whether it is drawn. */
  shown: boolean;
}

/** So many runs are drawn at first, the newest; others are ticked by hand. */
const SHOWN_AT_FIRST = 6;

/** `link`: whether the server answers. */
export type Link = "connecting" | "live" | "lost";

export class Store {
  readonly runs = new Map<number, PageRun>();
  notes: string[] = [];
  folders: string[] = [];
  link: Link = "connecting";
  /** The id of the newest event, for tests and for looking into things. */
  lastId = "";
  readonly #changed: (curves: boolean) => void;

  /** changed: called after each event; `curves`: whether points have changed. */
  constructor(changed: (curves: boolean) => void) {
    this.#changed = changed;
  }

  /** Follows the server's events; the browser connects again by itself and names the last one it had. */
  connect(address: string): EventSource {
    const source = new EventSource(address);
    source.addEventListener("open", () => this.#setLink("live"));
    source.addEventListener("error", () => this.#setLink("lost"));
    const on = <Name extends keyof WatchEvents>(name: Name, take: (data: WatchEvents[Name]) => boolean) =>
      source.addEventListener(name, (message) => {
        this.lastId = message.lastEventId;
        this.#changed(take(JSON.parse(message.data) as WatchEvents[Name]));
      });
    on("begin", () => {
      this.#before = new Map([...this.runs.values()].map(({ info, shown }) => [info.path, shown]));
      this.runs.clear();
      return true;
    });
    on("places", ({ folders, notes }) => {
      this.folders = folders;
      this.notes = notes;
      return false;
    });
    on("run", ({ run, info, series, evals }) => {
      const before = this.runs.get(run)?.shown ?? this.#before.get(info.path);
      this.runs.set(run, {
        id: run,
        info,
        heard: performance.now(),
        series: Series.restore(stepColumns, MOST_POINTS, series),
        evals: Series.restore(evalColumns, MOST_EVALS, evals),
        shown: before ?? this.runs.size < SHOWN_AT_FIRST,
      });
      return true;
    });
    on("rows", ({ run, info, rows, evals }) => {
      const known = this.runs.get(run);
      if (known === undefined) return false;
      this.#hear(known, info);
      for (const row of rows) known.series.push(row);
      for (const row of evals) known.evals.push(row);
      return true;
    });
    on("info", ({ run, info }) => {
      const known = this.runs.get(run);
      if (known !== undefined) this.#hear(known, info);
      return false;
    });
    on("gone", ({ run }) => this.runs.delete(run));
    return source;
  }

  /** Whether runs were drawn, by path, when the server began anew. */
  #before = new Map<string, boolean>();

  #hear(run: PageRun, info: RunInfo): void {
    run.info = info;
    run.heard = performance.now();
  }

  #setLink(link: Link): void {
    this.link = link;
    this.#changed(false);
  }
}
