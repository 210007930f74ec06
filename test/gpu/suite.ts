// What check:gpu and bench:gpu share: command-line options, child processes with a time limit, results as JSON lines.
import { spawn } from "node:child_process";
import { appendFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
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
}

export interface Ended {
  /** null: ended by a signal. */
  code: number | null;
  signal: string | null;
  timedOut: boolean;
  stdout: string;
  /** stdout and stderr as they came. */
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
  /** Folder of results. */
  out: string;
  /** Multiplies every time limit. */
  patience: number;
  seed: number;
}

/** --part 1,3 --out FOLDER --seed N --patience X, and for trials --device NAME --library PATH --small. */
export function options(args: readonly string[], what: string): Options {
  const found: Options = {
    device: "cuda",
    library: null,
    small: false,
    parts: [],
    out: process.env.LONGSEQ_GPU_OUT ?? join(root, "build/gpu"),
    patience: 1,
    seed: 1 + Math.floor(Math.random() * 1_000_000),
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
    else if (args[i] === "--device") found.device = value();
    else if (args[i] === "--library") found.library = resolve(value());
    else if (args[i] === "--part") found.parts.push(...value().split(","));
    else if (args[i] === "--out") found.out = resolve(value());
    else if (args[i] === "--seed") found.seed = number();
    else if (args[i] === "--patience") found.patience = number();
    else
      throw new Error(
        `${what}: ${args[i]} is not known; there are --part N[,N], --out FOLDER, --seed N, --patience FACTOR, --small, ` +
          "--device NAME, --library PATH",
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

/** Starts a command, stops it and its children when its time is over, and gives what it printed. */
export async function runCommand(
  command: readonly string[],
  env: Record<string, string>,
  seconds: number,
): Promise<Ended> {
  const began = performance.now();
  const ended: Ended = { code: null, signal: null, timedOut: false, stdout: "", text: "", seconds: 0 };
  const [program, ...args] = command as [string, ...string[]];
  await new Promise<void>((done) => {
    const child = spawn(program, args, {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    const timer = setTimeout(() => {
      ended.timedOut = true;
      // The group of the child: a wrapper's program too.
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    }, seconds * 1000);
    child.stdout.on("data", (chunk: Buffer) => {
      ended.stdout += chunk;
      ended.text += chunk;
    });
    child.stderr.on("data", (chunk: Buffer) => {
      ended.text += chunk;
    });
    child.on("error", (error) => {
      ended.text += `${program} could not be started: ${error.message}\n`;
      clearTimeout(timer);
      done();
    });
    child.on("close", (code, signal) => {
      ended.code = code;
      ended.signal = signal;
      clearTimeout(timer);
      done();
    });
  });
  ended.seconds = (performance.now() - began) / 1000;
  return ended;
}

export function runJob(job: Job, options: Options): Promise<Ended> {
  const program = typescript
    ? [process.execPath, "--import=tsx", join(root, `${job.file}.ts`)]
    : [process.execPath, join(root, `${job.file}.js`)];
  return runCommand(
    [...(job.wrap ?? []), ...program, ...(job.args ?? [])],
    { ...environment(options), ...job.env },
    job.seconds * options.patience,
  );
}

/** How a process ended, where that was not well. */
export const ending = ({ code, signal, timedOut, seconds }: Ended): string =>
  timedOut
    ? `stopped after ${seconds.toFixed(0)} s, its time limit`
    : signal
      ? `ended by ${signal}`
      : `exit code ${code}`;

/** A file of JSON lines and one of all that was printed, both begun anew. */
export class Results {
  readonly lines: string;
  readonly log: string;
  constructor(folder: string, name: string) {
    mkdirSync(folder, { recursive: true });
    this.lines = join(folder, `${name}.jsonl`);
    this.log = join(folder, `${name}.log`);
    for (const file of [this.lines, this.log]) writeFileSync(file, "");
  }
  add(line: Record<string, unknown>): void {
    appendFileSync(this.lines, `${JSON.stringify(line)}\n`);
  }
  note(title: string, text: string): void {
    appendFileSync(this.log, `===== ${title}\n${text}\n`);
  }
}

export interface Probe {
  name: string;
  backend: string;
  memoryBytes: number;
  memoryFreeBytes: number;
  pageBytes: number;
  peakBf16Flops: number;
  hostBytes: number;
}

/** Opens the device in a child: what it is; or prints in one line why there is none and ends this process with 2. */
export async function probe(options: Options, what: string): Promise<Probe> {
  if (options.device.startsWith("cuda") && options.library === null && !existsSync(cudaLibrary)) {
    console.error(`${what}: no GPU was used: ${cudaLibrary} is missing; run node scripts/setup.mjs --cuda`);
    process.exit(2);
  }
  const ended = await runJob({ name: "probe", file: "test/gpu/probe", seconds: 90 }, options);
  const line = ended.stdout.trim().split("\n").pop() ?? "";
  if (ended.code === 0 && line.startsWith("{")) return JSON.parse(line) as Probe;
  const why = line || ended.text.trim().split("\n").pop() || ending(ended);
  console.error(`${what}: no GPU was used: ${why}`);
  process.exit(2);
}
