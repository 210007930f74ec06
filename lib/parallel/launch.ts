// Starting the ranks of a job on this machine, and ending them together.

import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createWriteStream, readFileSync, statSync } from "node:fs";
import { constants } from "node:os";
import { ConfigError } from "../errors.js";
import { timeoutOf } from "./job.js";
import { openRankLog } from "./rank_log.js";
import { RendezvousServer } from "./rendezvous.js";

/** After one rank failed, the others have so long to end by themselves, then so long after SIGTERM. Milliseconds. */
const PATIENCE = 4000;

export interface LaunchOptions {
  /** Ranks on this machine. */
  readonly nproc: number;
  /** Machines of the job, which of them this is, and where the ranks meet: at a port of the first. Default: this one. */
  readonly nodes?: { count: number; rank: number; host: string; port: number } | undefined;
  /** What every rank runs, by Node. */
  readonly argv: readonly string[];
  /** Where ranks/N.log lie. */
  readonly folder: string;
  /** How long ranks wait for each other at the start. Milliseconds; default as `timeoutOf` says. */
  readonly timeout?: number | undefined;
  /** How often a job that failed is started again: it goes on from its newest checkpoint. Default 0. */
  readonly restarts?: number | undefined;
  /** Messages for people. */
  readonly note: (text: string) => void;
  readonly env?: NodeJS.ProcessEnv;
}

interface Ended {
  rank: number;
  code: number;
  signal: NodeJS.Signals | null;
  /** Whether the launcher had begun to end those that did not end by themselves. */
  forced: boolean;
}

const asksToStop = (code: number): boolean =>
  [constants.signals.SIGINT, constants.signals.SIGTERM].some((number) => code === 128 + number);

/** Whether a rank ended by itself because of a signal, its state saved. */
const hasStopped = ({ code, signal }: Ended): boolean => signal === null && asksToStop(code);

/** Whether it was a signal of somebody else's that ended a rank: at once, as in its first second, or in good order. */
const wasStopped = ({ code, forced }: Ended): boolean => !forced && asksToStop(code);

/**
 * Runs `nproc` ranks to their end, again where they failed and `restarts` are left, and returns the exit code: rank 0's,
 * or that of the first that failed. Rank 0 has the terminal; the others write to DIR/ranks/N.log. SIGINT and SIGTERM
 * are passed on once.
 */
export async function launch(options: LaunchOptions): Promise<number> {
  const { restarts = 0, note } = options;
  for (let left = restarts; ; left--) {
    const code = await launchOnce(options);
    // Neither a mistake in the configuration nor a signal is mended by another try.
    if (code !== 1 || left === 0) return code;
    note(`the job failed; it is started again (${restarts - left + 1} of ${restarts} times)`);
  }
}

async function launchOnce(options: LaunchOptions): Promise<number> {
  const { nproc, argv, folder, note, env = process.env } = options;
  const { timeout = timeoutOf(env) } = options;
  const { nodes = { count: 1, rank: 0, host: "127.0.0.1", port: 0 } } = options;
  const { LONGSEQ_SECRET: given } = env;
  if (nodes.count > 1 && (given === undefined || given === ""))
    throw new ConfigError(
      "LONGSEQ_SECRET is not set: on several machines set it to the same random text on all of them",
    );
  const secret = given || randomBytes(32).toString("hex");
  const world = nproc * nodes.count;
  const first = nproc * nodes.rank;
  /** Of ranks without a terminal, with what stood in them before. */
  const logs = new Map<number, { file: string; begin: number }>();
  for (let rank = first + 1; rank < first + nproc; rank++) {
    const file = openRankLog(folder, rank);
    logs.set(rank, { file, begin: statSync(file).size });
  }
  const server = nodes.rank === 0 ? await RendezvousServer.open(world, secret, nodes.host, nodes.port) : null;
  server?.expectAll(timeout);
  const port = server?.port ?? nodes.port;
  const children: ChildProcess[] = [];
  const running = new Set<ChildProcess>();
  const all = (signal: NodeJS.Signals) => {
    for (const child of running) child.kill(signal);
  };
  let stopping: NodeJS.Signals | undefined;
  const timers: NodeJS.Timeout[] = [];
  const pass = (signal: NodeJS.Signals) => {
    all(signal);
    stopping = signal;
  };
  process.on("SIGINT", pass).on("SIGTERM", pass);
  let failed: Ended | undefined;
  let forced = false;
  const force = (signal: NodeJS.Signals): void => {
    forced = true;
    all(signal);
  };
  try {
    const ends = Array.from({ length: nproc }, (_, local) => {
      const rank = first + local;
      const child = spawn(process.execPath, argv, {
        // A group of its own: the terminal's Ctrl-C reaches the launcher alone, which passes it on once.
        detached: true,
        stdio: local === 0 ? "inherit" : ["ignore", "pipe", "pipe"],
        env: {
          ...env,
          LONGSEQ_SECRET: secret,
          LONGSEQ_LAUNCHER_PID: String(process.pid),
          LONGSEQ_RANK: String(rank),
          LONGSEQ_WORLD_SIZE: String(world),
          LONGSEQ_LOCAL_RANK: String(local),
          LONGSEQ_LOCAL_WORLD_SIZE: String(nproc),
          LONGSEQ_RENDEZVOUS_TIMEOUT: String(timeout / 1000),
          LONGSEQ_RENDEZVOUS_HOST: nodes.host,
          LONGSEQ_RENDEZVOUS_PORT: String(port),
        },
      });
      children.push(child);
      running.add(child);
      const file = logs.get(rank)?.file;
      if (file !== undefined) {
        // Another job may be at work in the same folder, which this one will be told: its words stay.
        const log = createWriteStream(file, { flags: "a" });
        child.stdout?.pipe(log, { end: false });
        child.stderr?.pipe(log, { end: false });
        child.once("close", () => log.end());
      }
      return new Promise<Ended>((resolve) => {
        child.once("error", (error) => {
          note(`rank ${rank} could not be started: ${error.message}`);
          resolve({ rank, code: 1, signal: null, forced: false });
        });
        child.once("close", (code, signal) =>
          resolve({ rank, code: code ?? 128 + constants.signals[signal ?? "SIGKILL"], signal, forced }),
        );
      }).then((end) => {
        running.delete(child);
        // One that never came to the others is known to nobody else.
        server?.ended(rank);
        if (end.code !== 0 && failed === undefined) {
          failed = end;
          // The others learn of it by themselves; who does not is ended. Whoever stops saves first.
          const saving = stopping || hasStopped(end) ? 60_000 : 0;
          timers.push(
            setTimeout(force, PATIENCE + saving, "SIGTERM"),
            setTimeout(all, 2 * PATIENCE + saving, "SIGKILL"),
          );
        }
        return end;
      });
    });
    const ended = await Promise.all(ends);
    const leader = (ended[0] as Ended).code;
    if (stopping && (leader === 0 || leader >= 128)) return leader;
    // It may have come before ranks listened, or had met.
    if (stopping && ended.some(wasStopped)) return 128 + constants.signals[stopping];
    if (failed === undefined) return 0;
    // A signal reached some rank, and all stopped in good order.
    if (ended.every((end) => end.code === 0 || hasStopped(end))) return failed.code;
    // Others that lost a rank may be over before that one is.
    const lost = ended.find((end) => end.rank === server?.firstLost && !end.forced && end.code !== 0);
    const cause = lost ?? failed;
    const { rank, code, signal } = cause;
    if (wasStopped(cause)) {
      const what = signal === null ? "stopped by a signal" : `ended by ${signal}`;
      note(`rank ${rank} was ${what} before all ranks could stop together; the job is not started again`);
      return code;
    }
    // A mistake that rank 0 has told of, on the terminal, is everybody's.
    if (code === 2 && leader === 2 && nodes.rank === 0) return code;
    // Rank 0 said on the terminal why it ended, unless something else ended it.
    if (rank > first || signal !== null) {
      const how = signal === null ? `with exit code ${code}` : `killed by ${signal}`;
      const why = signal === "SIGKILL" ? " (as the system does where memory runs out: see dmesg)" : "";
      const log = logs.has(rank) ? `; its last words, from ${logs.get(rank)?.file}:` : "";
      note(`rank ${rank} ended first, ${how}${why}${log}`);
    }
    const log = logs.get(rank);
    if (log !== undefined) {
      const written = readFileSync(log.file).subarray(log.begin).toString("utf8");
      for (const line of lastWords(written)) note(`  ${line}`);
    }
    return code === 2 ? 2 : code >= 128 ? 1 : code;
  } finally {
    for (const timer of timers) clearTimeout(timer);
    process.off("SIGINT", pass).off("SIGTERM", pass);
    all("SIGKILL");
    server?.close();
  }
}

/** The end of a rank's log: from the last error that Node printed there with its stack, else the last lines. */
function lastWords(log: string): string[] {
  const lines = log.trimEnd().split("\n");
  const error = lines.findLastIndex((line) => /^(\w+: )*\w*Error\b.*: /.test(line));
  const stack = error >= 0 && lines.slice(error + 1, error + 9).some((line) => /^ {4}at /.test(line));
  if (!stack) return lines.slice(-8);
  const message = lines.slice(error).findIndex((line) => /^ {4}at /.test(line));
  return lines.slice(error, error + message);
}
