// What check:gpu and bench:gpu share: command-line options, child processes with a time limit each and one for all of
// them, results that are on disk at every moment.
import { spawn } from "node:child_process";
import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus, totalmem } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { cudaLibrary } from "../../lib/binding.js";

/** The folder that holds test/ and bench/: the clone, or dist/ of a bundle. */
export const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
/** Sources run through tsx; a bundle is plain JavaScript. */
const typescript = import.meta.url.endsWith(".ts");

/** A program of test/ or bench/ in a process of its own: what crashes there is one failure. */
export interface Job {
  name: string;
  /** Below root, without its extension. */
  file: string;
  args?: readonly string[];
  env?: Record<string, string>;
  /** Its time limit. */
  seconds: number;
  /** A command that runs it, such as compute-sanitizer with its flags. */
  wrap?: readonly string[];
  /** Why it cannot be run here. */
  cannot?: string;
  /** What is run after it where it crashed or hung: what it had no time to say. */
  otherwise?: Job;
}

export interface Ended {
  /** null: ended by a signal. */
  code: number | null;
  signal: string | null;
  timedOut: boolean;
  /** Its start and end where it is very long. */
  stdout: string;
  /** stdout and stderr as they came, likewise. */
  text: string;
  seconds: number;
}

export interface Options {
  /** cuda; others are for trying the suite itself. */
  device: string;
  /** Of a backend that is not longseq's own. */
  library: string | null;
  small: boolean;
  /** Numbers or names; empty: all. */
  parts: string[];
  /** Only the parts of one of the two calls that a short loan of a GPU has time for. */
  call: "first" | "second" | null;
  /** Folder of results. */
  out: string;
  /** Multiplies every time limit. */
  patience: number;
  seed: number;
  /** Seconds for all of it: what has not begun by then is not run. */
  budget: number;
  /** Programs at a time, where several may run. */
  workers: number;
  /** What would be run is printed as JSON, and nothing run. */
  list: boolean;
}

/** --part 1,3 --out FOLDER --seed N --budget SECONDS ..., and for trials --device NAME --library PATH --small. */
export function options(args: readonly string[], what: string): Options {
  const found: Options = {
    device: "cuda",
    library: null,
    small: false,
    parts: [],
    call: null,
    out: process.env.LONGSEQ_GPU_OUT ?? join(root, "build/gpu"),
    patience: 1,
    seed: 1 + Math.floor(Math.random() * 1_000_000),
    budget: Number.POSITIVE_INFINITY,
    workers: Math.max(1, Math.min(8, availableParallelism() >> 1)),
    list: false,
  };
  for (let i = 0; i < args.length; i++) {
    const value = () => {
      const next = args[++i];
      if (next === undefined) throw new Error(`${what}: ${args[i - 1]} needs a value`);
      return next;
    };
    const number = () => {
      const text = value();
      if (!(Number(text) > 0)) throw new Error(`${what}: ${args[i - 1]} is ${text}, expected a number above 0`);
      return Number(text);
    };
    if (args[i] === "--small") found.small = true;
    else if (args[i] === "--list") found.list = true;
    else if (args[i] === "--budget") found.budget = number();
    else if (args[i] === "--workers") found.workers = Math.ceil(number());
    else if (args[i] === "--device") found.device = value();
    else if (args[i] === "--library") found.library = resolve(value());
    else if (args[i] === "--call") {
      const call = value();
      if (call !== "first" && call !== "second")
        throw new Error(`${what}: --call is ${call}, expected first or second`);
      found.call = call;
    } else if (args[i] === "--part") found.parts.push(...value().split(","));
    else if (args[i] === "--out") found.out = resolve(value());
    else if (args[i] === "--seed") found.seed = number();
    else if (args[i] === "--patience") found.patience = number();
    else
      throw new Error(
        `${what}: ${args[i]} is not known; there are --part N[,N], --call first|second, --out FOLDER, --seed N, --budget SECONDS, ` +
          "--patience FACTOR, --workers N, --list, --small, --device NAME, --library PATH",
      );
  }
  return found;
}

/** What a job's process is told, besides its own. */
export function environment(options: Options): Record<string, string> {
  const library = options.library ?? (options.device.startsWith("cuda") ? cudaLibrary : null);
  return {
    LONGSEQ_TEST_DEVICE: options.device,
    LONGSEQ_TEST_SEED: String(options.seed),
    ...(library !== null && { LONGSEQ_TEST_BACKEND: library }),
    ...(options.small && { LONGSEQ_GPU_SMALL: "1" }),
    TAP: "1",
    TAP_TIMEOUT: "0",
  };
}

/** Text of any length of which the first and the last megabyte stay. */
class Kept {
  #head = "";
  #tail = "";
  #dropped = 0;
  add(chunk: string): void {
    const most = 1 << 20;
    const room = most - this.#head.length;
    this.#head += chunk.slice(0, room);
    this.#tail += chunk.slice(room);
    if (this.#tail.length > 2 * most) {
      this.#dropped += this.#tail.length - most;
      this.#tail = this.#tail.slice(-most);
    }
  }
  get text(): string {
    return this.#dropped === 0
      ? this.#head + this.#tail
      : `${this.#head}\n... ${this.#dropped} characters ...\n${this.#tail}`;
  }
}

/** Ends the programs that run, and says why from then on: a signal came. */
let interrupted: string | null = null;
const running = new Set<() => void>();
/** SIGTERM and SIGINT end what runs; the caller still writes its summary. */
export function endOnSignals(): void {
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const)
    process.on(signal, () => {
      interrupted = `${signal} came`;
      for (const end of running) end();
    });
}

/** Starts a command, stops it and its children when its time is over, and gives what it printed. */
export async function runCommand(
  command: readonly string[],
  env: Record<string, string>,
  seconds: number,
): Promise<Ended> {
  const began = performance.now();
  const ended: Ended = { code: null, signal: null, timedOut: false, stdout: "", text: "", seconds: 0 };
  const [program, ...args] = command as [string, ...string[]];
  const [stdout, text] = [new Kept(), new Kept()];
  await new Promise<void>((resolve) => {
    const child = spawn(program, args, {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    const end = () => {
      try {
        // The group of the child: a wrapper's program too.
        if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
      } catch {
        // It is gone already.
      }
      // A process that the driver does not let go of is not waited for.
      setTimeout(done, 20_000).unref();
    };
    const timer = setTimeout(() => {
      ended.timedOut = true;
      end();
    }, seconds * 1000);
    const done = () => {
      clearTimeout(timer);
      running.delete(end);
      for (const stream of [child.stdout, child.stderr]) stream.destroy();
      resolve();
    };
    running.add(end);
    for (const [stream, ...to] of [
      [child.stdout, stdout, text],
      [child.stderr, text],
    ] as const) {
      stream.setEncoding("utf8");
      stream.on("data", (chunk: string) => {
        for (const one of to) one.add(chunk);
      });
    }
    child.on("error", (error) => {
      text.add(`${program} could not be started: ${error.message}\n`);
      done();
    });
    child.on("close", (code, signal) => {
      ended.code = code;
      ended.signal = signal;
      done();
    });
  });
  ended.stdout = stdout.text;
  ended.text = text.text;
  ended.seconds = (performance.now() - began) / 1000;
  return ended;
}

/** Less than this is too little to begin a program with. */
const LEAST_SECONDS = 10;

/** The time that all programs together may take. */
export class Budget {
  readonly #end: number;
  readonly #began = performance.now();
  constructor(readonly options: Options) {
    this.#end = this.#began + 1000 * options.budget;
  }
  /** The limit of a program that would like so many seconds, or why it is not begun. */
  limit(seconds: number): number | string {
    if (interrupted !== null) return interrupted;
    const left = (this.#end - performance.now()) / 1000;
    return left < LEAST_SECONDS
      ? `the ${this.options.budget} s of --budget are over`
      : Math.min(seconds * this.options.patience, left);
  }
  get seconds(): number {
    return (performance.now() - this.#began) / 1000;
  }
}

/** In at most `seconds`. */
export function runJob(job: Job, options: Options, seconds: number): Promise<Ended> {
  const program = typescript
    ? [process.execPath, "--import=tsx", join(root, `${job.file}.ts`)]
    : [process.execPath, join(root, `${job.file}.js`)];
  return runCommand(
    [...(job.wrap ?? []), ...program, ...(job.args ?? [])],
    // Its time limit, for what chooses its sizes by it.
    { ...environment(options), LONGSEQ_GPU_SECONDS: String(seconds), ...job.env },
    seconds,
  );
}

/** How a process ended, where that was not well. */
export const ending = ({ code, signal, timedOut, seconds }: Ended): string =>
  timedOut
    ? `stopped after ${seconds.toFixed(0)} s, its time limit`
    : signal
      ? `ended by ${signal}`
      : `exit code ${code}`;

/** Most bytes of the log: what it is copied through may not take larger files. */
const MOST_LOG_BYTES = 12 << 20;

/** NAME.json with all results so far, written anew with each, and NAME.log with what the programs printed. */
export class Results {
  readonly json: string;
  readonly log: string;
  #logged = 0;
  /** What NAME.json holds; `complete` only when the run came to its end. */
  readonly found: Record<string, unknown> & { results: Record<string, unknown>[] };
  constructor(options: Options, name: string) {
    mkdirSync(options.out, { recursive: true });
    this.json = join(options.out, `${name}.json`);
    this.log = join(options.out, `${name}.log`);
    writeFileSync(this.log, "");
    const { device, small, seed, budget, parts } = options;
    const asked = { device, parts, small, seed, budget: Number.isFinite(budget) ? budget : null };
    this.found = { what: name, machine: null, date: new Date().toISOString(), complete: false, asked, results: [] };
    this.write();
  }
  write(more: Record<string, unknown> = {}): void {
    Object.assign(this.found, more);
    writeFileSync(`${this.json}.tmp`, `${JSON.stringify(this.found, null, 1)}\n`);
    renameSync(`${this.json}.tmp`, this.json);
  }
  add(result: Record<string, unknown>): void {
    this.found.results.push(result);
    this.write();
  }
  note(title: string, text: string): void {
    const all = `===== ${title}\n${text}\n`;
    const room = MOST_LOG_BYTES - this.#logged;
    const kept = all.length <= room ? all : `===== ${title}: ${all.length} characters are left out\n`;
    this.#logged += Buffer.byteLength(kept);
    appendFileSync(this.log, kept);
  }
}

/** What test/gpu/probe.ts prints. */
export interface Probe {
  name: string;
  backend: string;
  memoryBytes: number;
  memoryFreeBytes: number;
  pageBytes: number;
  peakBf16Flops: number;
  /** Whether attention runs on cuDNN, or why not. */
  cudnn: string;
}

/** The machine around the device. */
function host(): Record<string, unknown> {
  let driver: string | null = null;
  try {
    driver = /^NVRM version:\s*(.*)$/m.exec(readFileSync("/proc/driver/nvidia/version", "utf8"))?.[1] ?? null;
  } catch {
    // No driver of NVIDIA's.
  }
  return { driver, processor: cpus()[0]?.model.trim() ?? null, cores: availableParallelism(), hostBytes: totalmem() };
}

/**
 * Opens the device in a child: what it is, noted in the results; or says in one line there and on stderr why there is
 * none, and ends this process with 2.
 */
export async function probe(options: Options, what: string, results: Results): Promise<Probe> {
  const none = (why: string): never => {
    results.write({ machine: { name: null, ...host() }, failure: why });
    console.error(`${what}: no GPU was used: ${why}`);
    process.exit(2);
  };
  if (options.device.startsWith("cuda") && options.library === null && !existsSync(cudaLibrary))
    none(`${cudaLibrary} is missing; run node scripts/setup.mjs --cuda`);
  const ended = await runJob({ name: "probe", file: "test/gpu/probe", seconds: 90 }, options, 90 * options.patience);
  results.note("probe", ended.text);
  const line = ended.stdout.trim().split("\n").pop() ?? "";
  if (ended.code !== 0 || !line.startsWith("{"))
    return none(line || ended.text.trim().split("\n").pop() || ending(ended));
  const found = JSON.parse(line) as Probe;
  results.write({ machine: { ...found, ...host() } });
  return found;
}
