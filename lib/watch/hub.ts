// All runs that are watched, looked at again and again while somebody listens, and told as numbered events.

import { randomBytes } from "node:crypto";
import { findRuns } from "./find_runs.js";
import type { WatchEvents } from "./protocol.js";
import { inodeOf, lockedInodes } from "./run_lock.js";
import { stepColumns, toWire } from "./series.js";
import { WatchedRun } from "./watched_run.js";

/** Between looks at the runs' files, and at what runs there are. Milliseconds. */
const LOOK_INTERVAL = 250;
const FIND_INTERVAL = 2000;

/** More new rows than this are sent as the whole run: its points are fewer. */
const MOST_ROWS = 1000;

/** What is kept of events for listeners that come back. */
const KEPT_EVENTS = 4000;
const KEPT_BYTES = 8 << 20;

/** An event as it goes over the wire. */
export interface Message {
  id: string;
  event: keyof WatchEvents;
  /** JSON, one line. */
  data: string;
}

interface Watched {
  id: number;
  name: string;
  run: WatchedRun;
  /** The state and read share last told. */
  told: string;
  /** A long file is gone through: its rows are told together at the end. */
  behind: boolean;
  /** Why its file cannot be read. */
  problem: string | null;
}

export class Hub {
  readonly folders: readonly string[];
  readonly #session = randomBytes(6).toString("hex");
  readonly #listeners = new Set<(message: Message) => void>();
  readonly #runs = new Map<string, Watched>();
  readonly #kept: Message[] = [];
  #keptBytes = 0;
  #next = 1;
  #ids = 0;
  #notes: string[] = [];
  #timer: NodeJS.Timeout | null = null;
  #found = Number.NEGATIVE_INFINITY;
  #looking: Promise<void> | null = null;
  #closed = false;

  /** folders: absolute paths. */
  constructor(folders: readonly string[]) {
    this.folders = folders;
  }

  get runs(): number {
    return this.#runs.size;
  }

  /** What is to be said of the folders, such as that one holds no run yet. */
  get notes(): readonly string[] {
    return this.#notes;
  }

  /**
   * Tells `listener` what came after `lastId`, or all there is, and from then on what comes. Files are looked at only
   * while somebody listens. Returns how to end it.
   */
  listen(listener: (message: Message) => void, lastId?: string): () => void {
    const missed = this.#after(lastId);
    if (missed !== null) missed.forEach(listener);
    else this.#all().forEach(listener);
    this.#listeners.add(listener);
    this.#schedule(0);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  close(): void {
    this.#closed = true;
    this.#listeners.clear();
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  #schedule(delay: number): void {
    if (this.#closed || this.#timer !== null || this.#listeners.size === 0) return;
    this.#timer = setTimeout(async () => {
      await this.look();
      this.#timer = null;
      this.#schedule(LOOK_INTERVAL);
    }, delay);
  }

  /** Looks at all runs once; a look that is under way already is waited for. */
  look(): Promise<void> {
    this.#looking ??= this.#look().finally(() => {
      this.#looking = null;
    });
    return this.#looking;
  }

  async #look(): Promise<void> {
    if (performance.now() - this.#found >= FIND_INTERVAL) await this.find();
    const locked = this.#runs.size > 0 ? await lockedInodes() : null;
    for (const [folder, watched] of this.#runs) {
      const inode = locked === null ? null : await inodeOf(folder);
      await this.#lookAt(folder, watched, inode !== null && locked?.has(inode) === true);
      if (this.#closed) return;
    }
  }

  /** Looks for runs that are new or gone. */
  async find(): Promise<void> {
    const { runs, notes } = await findRuns(this.folders);
    this.#found = performance.now();
    for (const folder of [...this.#runs.keys()]) if (!runs.has(folder)) this.#drop(folder);
    for (const [folder, name] of runs) {
      const known = this.#runs.get(folder);
      if (known !== undefined) known.name = name;
      else {
        const run = new WatchedRun(folder);
        this.#runs.set(folder, { id: ++this.#ids, name, run, told: "", behind: true, problem: null });
      }
    }
    if (notes.join("\n") === this.#notes.join("\n")) return;
    this.#notes = notes;
    this.#tellPlaces();
  }

  #places(): WatchEvents["places"] {
    const problems = [...this.#runs].flatMap(([folder, { problem }]) =>
      problem === null ? [] : [`${folder}/metrics.jsonl ${problem}`],
    );
    return { folders: [...this.folders], notes: [...this.#notes, ...problems] };
  }

  #tellPlaces(): void {
    this.#tell("places", this.#places());
  }

  #drop(folder: string): void {
    const watched = this.#runs.get(folder);
    if (watched === undefined) return;
    this.#runs.delete(folder);
    this.#tell("gone", { run: watched.id });
  }

  async #lookAt(folder: string, watched: Watched, locked: boolean): Promise<void> {
    const { run } = watched;
    const start = performance.now();
    let { look, change } = await run.look(locked);
    // A long file is gone through in stretches: other runs and the server have their turns in between.
    while (look.there && look.more && performance.now() - start < LOOK_INTERVAL) {
      watched.behind = true;
      ({ look, change } = await run.look(locked));
    }
    if (!look.there) {
      // Found again by the next search, if it comes back.
      if (look.problem === null) this.#drop(folder);
      else if (watched.problem !== look.problem) {
        watched.problem = look.problem;
        this.#tellPlaces();
      }
      return;
    }
    if (watched.problem !== null) {
      watched.problem = null;
      this.#tellPlaces();
    }
    const info = run.info(watched.name);
    // State and place also change while nothing is written: a process is gone, a file is read on.
    const told = `${info.state} ${info.name} ${look.more ? info.read.toFixed(2) : 1}`;
    const news = change !== null && (change.all || change.rows.length > 0 || change.evals.length > 0);
    if (change !== null && (change.all || change.rows.length > MOST_ROWS || look.more)) watched.behind = true;
    if (watched.behind && !look.more) {
      watched.behind = false;
      this.#tell("run", { ...this.#whole(watched), info });
    } else if (watched.behind ? told !== watched.told : change !== null && !news) {
      this.#tell("info", { run: watched.id, info });
    } else if (!watched.behind && news && change !== null) {
      const rows = change.rows.map((row) => row.map((value, i) => wire(i, value)));
      this.#tell("rows", { run: watched.id, info, rows, evals: change.evals });
    } else if (told !== watched.told) this.#tell("info", { run: watched.id, info });
    watched.told = told;
  }

  #whole({ id, name, run }: Watched): WatchEvents["run"] {
    return { run: id, info: run.info(name), series: run.series.snapshot(), evals: run.evals.snapshot() };
  }

  #tell<Name extends keyof WatchEvents>(event: Name, data: WatchEvents[Name]): void {
    // Nobody has heard of what came before, and everybody begins with all of it.
    const message = this.#message(event, data, this.#next++);
    this.#kept.push(message);
    this.#keptBytes += message.data.length;
    while (this.#kept.length > KEPT_EVENTS || (this.#keptBytes > KEPT_BYTES && this.#kept.length > 1))
      this.#keptBytes -= (this.#kept.shift() as Message).data.length;
    for (const listener of [...this.#listeners]) listener(message);
  }

  #message<Name extends keyof WatchEvents>(event: Name, data: WatchEvents[Name], number: number): Message {
    return { id: `${this.#session}-${number}`, event, data: JSON.stringify(data) };
  }

  /** What came after an id of this session; null where that is not known (any more). */
  #after(lastId: string | undefined): Message[] | null {
    const [, session, digits] = /^([\da-f]{12})-(\d{1,15})$/.exec(lastId ?? "") ?? [];
    if (session !== this.#session) return null;
    const last = Number(digits);
    if (last >= this.#next) return null;
    const first = this.#next - this.#kept.length;
    if (last < first - 1) return null;
    return this.#kept.slice(last - first + 1);
  }

  /** All that is known, for somebody new; each with the number that has been reached. */
  #all(): Message[] {
    const number = this.#next - 1;
    return [
      this.#message("begin", { session: this.#session }, number),
      this.#message("places", this.#places(), number),
      ...[...this.#runs.values()].map((watched) => this.#message("run", this.#whole(watched), number)),
    ];
  }
}

/** Infinity and the like cannot be sent. */
function wire(column: number, value: number | null): number | null {
  const name = stepColumns[column];
  return value === null || name === undefined ? null : toWire(name, value);
}
