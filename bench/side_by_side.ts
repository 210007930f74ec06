// Runs our command line and the PyTorch scripts as separate processes, with their wall time and peak resident memory.
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
export const root = resolve(here, "..");
export const python = process.env.LONGSEQ_BENCH_PYTHON ?? "python3";

/** Folder of the checkpoint and the rows, kept between runs: LONGSEQ_BENCH_DIR or one in the system's temporary folder. */
export const workFolder = process.env.LONGSEQ_BENCH_DIR ?? join(tmpdir(), "longseq-bench");

export interface Measured {
  stdout: string;
  wallSeconds: number;
  rssPeakBytes: number;
}

/** Runs a command to its end; throws with the end of its output if it fails. Memory is that of its largest process. */
export async function measure(command: string[], env: Record<string, string> = {}): Promise<Measured> {
  const folder = mkdtempSync(join(tmpdir(), "longseq-measure-"));
  const report = join(folder, "report.json");
  try {
    const child = spawn(python, [join(here, "pytorch/measure.py"), report, ...command], {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, ...env },
    });
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
    child.stderr.on("data", (chunk: Buffer) => stderr.push(chunk));
    const code = await new Promise<number | null>((done, fail) => {
      child.on("error", fail);
      child.on("close", done);
    });
    if (code !== 0) {
      const tail = `${Buffer.concat(stdout)}${Buffer.concat(stderr)}`.slice(-2000);
      throw new Error(`${command.join(" ")} ended with ${code}:\n${tail}`);
    }
    const numbers = JSON.parse(readFileSync(report, "utf8"));
    return {
      stdout: Buffer.concat(stdout).toString(),
      wallSeconds: numbers.wall_seconds,
      rssPeakBytes: numbers.rss_peak_bytes,
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A checkpoint (pytorch/make_checkpoint.py) and `rows` rows of `tokens` random ids. */
export async function checkpoint(
  tokens: number,
  rows: number,
  family: "llama" | "mixtral" = "llama",
): Promise<{ model: string; rows: string }> {
  mkdirSync(workFolder, { recursive: true });
  const made = await measure([
    python,
    join(here, "pytorch/make_checkpoint.py"),
    workFolder,
    String(tokens),
    String(rows),
    family,
  ]);
  return JSON.parse(made.stdout.trim().split("\n").pop() ?? "");
}

export interface Side {
  name: string;
  seconds: number[];
  loss: number[];
  gradNorm: number[];
  rssPeakBytes: number;
  wallSeconds: number;
  /** On the device between steps, of our side. */
  liveBytes?: number;
}

export interface StepOptions {
  model: string;
  rows: string;
  tokens: number;
  steps: number;
  /** Of each rank. */
  threads: number;
  /** One process without it. */
  ranks?: number;
  /** More keys of the configuration, e.g. {memory: {...}}; none for the comparison. */
  extra?: Record<string, unknown>;
}

/** `steps` AdamW steps by `node bin/longseq.mjs train`, load and save included in the memory. */
export async function ours(options: StepOptions): Promise<Side> {
  const folder = join(workFolder, "longseq");
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const config = {
    model: { path: options.model, dtype: "float32" },
    data: { train: [options.rows], sequence_length: options.tokens, packing: false, shuffle: false },
    train: { steps: options.steps, batch_size: 1, learning_rate: 1e-3, clip_grad_norm: 1.0 },
    device: "cpu",
    threads: options.threads,
    output: { dir: join(folder, "run") },
    ...options.extra,
  };
  const path = join(folder, "config.yaml");
  writeFileSync(path, JSON.stringify(config, null, 2));
  const ranks = options.ranks === undefined ? [] : ["--nproc", String(options.ranks)];
  const run = await measure([process.execPath, join(root, "bin/longseq.mjs"), "train", path, ...ranks]);
  const metrics = readFileSync(join(folder, "run/metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .filter((line) => line.event === undefined);
  const weights = options.extra?.adapter === undefined ? "model.safetensors" : "adapter_model.safetensors";
  if (metrics.length !== options.steps || !existsSync(join(folder, "run/model", weights))) {
    throw new Error(`expected ${options.steps} steps and a saved model in ${folder}/run, got ${metrics.length} steps`);
  }
  return {
    name: "longseq",
    seconds: metrics.map((m) => m.seconds),
    loss: metrics.map((m) => m.loss),
    gradNorm: metrics.map((m) => m.grad_norm),
    rssPeakBytes: run.rssPeakBytes,
    wallSeconds: run.wallSeconds,
    liveBytes: Math.max(...metrics.map((m) => m.device_live_bytes)),
  };
}

/** The same with transformers and PyTorch. */
export async function pytorch(options: StepOptions, gradientCheckpointing = false, adapter = 0): Promise<Side> {
  const out = join(workFolder, "pytorch");
  rmSync(out, { recursive: true, force: true });
  const command = [python, join(here, "pytorch/train_step.py"), options.model, options.rows, out];
  command.push("--steps", String(options.steps), "--threads", String(options.threads));
  if (gradientCheckpointing) command.push("--gradient-checkpointing");
  if (adapter > 0) command.push("--adapter", String(adapter));
  const run = await measure(command);
  const line = JSON.parse(run.stdout.trim().split("\n").pop() ?? "");
  return {
    name: `${adapter > 0 ? "PEFT" : "pytorch"}${gradientCheckpointing ? ", checkpointing" : ""}`,
    seconds: line.seconds,
    loss: line.loss,
    gradNorm: line.grad_norm,
    rssPeakBytes: run.rssPeakBytes,
    wallSeconds: run.wallSeconds,
  };
}

/** The same on several ranks over Gloo, of one thread each: pytorch/ranks_step.py says what `split` means. */
export async function pytorchRanks(
  options: StepOptions & { ranks: number },
  split: "ulysses" | "halves",
  gradientCheckpointing = false,
): Promise<Side> {
  const command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", String(options.ranks)];
  command.push(join(here, "pytorch/ranks_step.py"), options.model, options.rows);
  command.push("--split", split, "--steps", String(options.steps));
  if (gradientCheckpointing) command.push("--gradient-checkpointing");
  const run = await measure(command, { OMP_NUM_THREADS: "1" });
  const line = JSON.parse(run.stdout.trim().split("\n").pop() ?? "");
  return {
    name: `pytorch, ${split}${gradientCheckpointing ? ", checkpointing" : ""}`,
    seconds: line.seconds,
    loss: line.loss,
    gradNorm: line.grad_norm,
    rssPeakBytes: run.rssPeakBytes,
    wallSeconds: run.wallSeconds,
  };
}

/** Numbers given as `--name value` or `--name=value`; `--name` alone is 1. */
export function flags<K extends string>(defaults: Record<K, number>): Record<K, number> {
  const values: Record<string, number> = { ...defaults };
  const words = process.argv.slice(2);
  for (let i = 0; i < words.length; i++) {
    const match = /^--([a-z-]+)(?:=(.*))?$/.exec(words[i] ?? "");
    if (!match || !((match[1] as string) in values)) {
      throw new Error(
        `unknown argument ${words[i]}; known: ${Object.keys(values)
          .map((k) => `--${k}`)
          .join(" ")}`,
      );
    }
    const next = words[i + 1];
    const text = match[2] ?? (next !== undefined && !next.startsWith("--") ? words[++i] : "1");
    values[match[1] as string] = Number(text);
  }
  return values as Record<K, number>;
}

export const threadsHere = availableParallelism();
export const GB = 1e9;

/** A plain table with right-aligned columns. */
export function table(head: string[], rows: string[][]): string {
  const widths = head.map((h, i) => Math.max(h.length, ...rows.map((r) => (r[i] ?? "").length)));
  const line = (cells: string[]) =>
    cells.map((c, i) => (i === 0 ? c.padEnd(widths[i] ?? 0) : c.padStart(widths[i] ?? 0))).join("  ");
  return [line(head), line(widths.map((w) => "-".repeat(w))), ...rows.map(line)].join("\n");
}
