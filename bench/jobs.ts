// Jobs of one rank or several by the command line: what a plan says of them, and what they took.
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { main } from "../lib/cli/main.js";
import { root } from "./side_by_side.js";

export interface JobSpec {
  /** config.json's fields. */
  init: Record<string, unknown>;
  dtype?: "float32" | "bfloat16";
  tokens: number;
  /** Default 1. */
  ranks?: number;
  /** Of each rank. Default 1. */
  threads?: number;
  parallel?: Record<string, unknown>;
  memory?: Record<string, unknown>;
  /** Default: two steps of a sequence for each group of ranks. */
  train?: Record<string, unknown>;
  data?: Record<string, unknown>;
}

/** config.json of Llama-3's 8 billion parameters. */
export const llama8B = {
  ...{ model_type: "llama", torch_dtype: "bfloat16", max_position_embeddings: 131072, rope_theta: 500000 },
  ...{ vocab_size: 128256, hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32 },
  ...{ num_attention_heads: 32, num_key_value_heads: 8 },
};

/** What `longseq plan --json` says, of what is used here. */
export interface Plan {
  tokens: number;
  rung: string;
  estimated_seconds: number;
  tokens_per_second: number;
  device_peak_bytes: number;
  host_peak_bytes: number;
  seconds_by_part: { copies: number; exchanges: number };
  binds: string;
  checkpoint_every: number;
  head_chunks: number;
  prefetch: boolean;
  states: Record<string, string>;
  ranks?: { data: number; ring: number; ulysses: number; zero: number };
}

export interface Trained {
  /** Of the fastest step but the first. */
  seconds: number;
  losses: number[];
  norms: number[];
  /** Of rank 0, reserved at most. */
  device: number;
  host: number;
}

const folder = mkdtempSync(join(tmpdir(), "longseq-jobs-"));
process.once("exit", () => rmSync(folder, { recursive: true, force: true }));

/** A folder with this as its config.json, for `longseq plan --model`. */
export function modelFolder(name: string, config: object): string {
  const at = join(folder, name);
  mkdirSync(at, { recursive: true });
  writeFileSync(join(at, "config.json"), JSON.stringify(config));
  return at;
}

/** Two rows of so many ids, the same in every run. */
function rows(tokens: number, vocabulary: number): string {
  const file = join(folder, `${tokens}-${vocabulary}.jsonl`);
  const id = (row: number, i: number) => (Math.imul(i + 1 + row * 7919, 0x9e3779b1) >>> 8) % vocabulary;
  const line = (row: number) =>
    `${JSON.stringify({ input_ids: Array.from({ length: tokens }, (_, i) => id(row, i)) })}\n`;
  writeFileSync(file, line(0) + line(1));
  return file;
}

/** The configuration file of a job; real: with data that are there. */
export function fileOf(spec: JobSpec, real: boolean): string {
  const { init, dtype = "float32", tokens, ranks = 1, threads = 1, parallel, memory, train, data } = spec;
  const sharing = ranks > 1 ? { parallel: { sequence: ranks, ...parallel } } : {};
  const groups = Number(parallel?.data ?? 1);
  const file = join(folder, "config.yaml");
  const train_ = real && data === undefined ? [rows(tokens, Number(init.vocab_size))] : ["none"];
  const text = stringify({
    model: { init, dtype },
    data: { train: train_, sequence_length: tokens, packing: false, shuffle: false, ...data },
    train: { steps: 2, batch_size: groups, learning_rate: 1e-3, warmup_steps: 0, ...train },
    device: "cpu",
    threads,
    ...sharing,
    ...(memory && { memory }),
    output: { dir: join(folder, "run"), resume: "never" },
  });
  writeFileSync(file, text);
  return file;
}

/** `longseq plan` with these words; null: nothing fits. Throws what else it refuses. */
export async function planWith(words: readonly string[]): Promise<{ plan: Plan; longest: number } | null> {
  let [out, err] = ["", ""];
  const code = await main(["plan", ...words, "--json"], {
    stdout: { write: (text) => (out += text) },
    stderr: { write: (text) => (err += text) },
  });
  const events = out
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  if (code !== 0) {
    if (/needs at least|not even one token fits/.test(err)) return null;
    throw new Error(`longseq plan ${words.join(" ")}: ${err}`);
  }
  const of = (event: string) => events.find((one) => one.event === event);
  return {
    plan: of("plan") as unknown as Plan,
    longest: Number((of("longest") ?? of("solved"))?.tokens ?? 0),
  };
}

/** The plan of a job, and the longest sequence that it could have. */
export const planOf = (spec: JobSpec): ReturnType<typeof planWith> => planWith([fileOf(spec, false)]);

/** Tokens of the longest sequence that fits, and the plan of it; null: none does. */
export async function longestOf(spec: JobSpec): Promise<Plan | null> {
  const found = await planWith([fileOf(spec, false), "--solve", "sequence"]);
  return found?.plan ?? null;
}

/** Trains it. */
export function train(spec: JobSpec): Trained {
  const file = fileOf(spec, true);
  const dir = join(folder, "run");
  rmSync(dir, { recursive: true, force: true });
  const words = [join(root, "bin/longseq.mjs"), "train", file, "--quiet", "--nproc", String(spec.ranks ?? 1)];
  const ended = spawnSync(process.execPath, words, { encoding: "utf8" });
  if (ended.status !== 0) throw new Error(`longseq train: ${ended.stderr}`);
  const done = readFileSync(join(dir, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, number | string | undefined>)
    .filter(({ event }) => event === undefined);
  rmSync(dir, { recursive: true, force: true });
  const all = (key: string) => done.map((one) => Number(one[key]));
  const later = all("seconds").slice(done.length > 1 ? 1 : 0);
  return {
    seconds: Math.min(...later),
    losses: all("loss"),
    norms: all("grad_norm"),
    device: Math.max(...all("device_peak_bytes")),
    host: Math.max(...all("host_peak_bytes")),
  };
}

/** What the paper compares with: each rank has a sequence of its own; checkpoints of every layer, states spread. */
export const baseline = (
  ranks: number,
  memory: Record<string, unknown> = {},
): Pick<JobSpec, "parallel" | "memory"> => ({
  ...(ranks > 1 && { parallel: { data: ranks, sequence: 1, zero: 3 } }),
  memory: {
    tile_mlp: "off",
    tile_loss: "off",
    head_chunks: 1,
    checkpoint: { every: 1, keep_attention: false, offload: "none" },
    ...memory,
  },
});
