// What the tests of lib/train share: tiny configurations, running a trainer to its end, and comparing runs bit for bit.

import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import type { ConfigInput } from "../../lib/config/index.js";
import type { RunEvent, StepMetrics } from "../../lib/report/events.js";
import type { Device } from "../../lib/tensor/device.js";
import { Trainer } from "../../lib/train/trainer.js";

export const here = path.dirname(fileURLToPath(import.meta.url));
export const golden = path.join(here, "..", "golden");

/** Rows of pseudo-random ids, of 5 to 40 tokens. */
export function writeRows(file: string, rows: number, vocabulary = 64): string {
  let seed = 12345;
  const next = (below: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return (seed >>> 8) % below;
  };
  const lines = Array.from({ length: rows }, () => {
    const inputIds = Array.from({ length: 5 + next(36) }, () => next(vocabulary));
    return `${JSON.stringify({ input_ids: inputIds })}\n`;
  });
  writeFileSync(file, lines.join(""));
  return file;
}

export interface TinyOptions {
  dtype?: "float32" | "bfloat16";
  train?: Partial<ConfigInput["train"]>;
  data?: Partial<ConfigInput["data"]>;
  output?: Partial<ConfigInput["output"]>;
  memory?: ConfigInput["memory"];
  layers?: number;
  hidden?: number;
}

/** A run of a tiny Llama on the rows of a file. */
export function tiny(rows: string, dir: string, options: TinyOptions = {}): ConfigInput {
  const { hidden = 16, layers = 2 } = options;
  return {
    model: {
      init: {
        model_type: "llama",
        vocab_size: 64,
        hidden_size: hidden,
        intermediate_size: 2 * hidden,
        num_hidden_layers: layers,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 64,
      },
      dtype: options.dtype ?? "float32",
    },
    data: { train: [rows], sequenceLength: 48, ...options.data },
    train: {
      steps: 6,
      batchSize: 2,
      learningRate: 1e-2,
      schedule: "cosine",
      warmupSteps: 2,
      weightDecay: 0.1,
      ...options.train,
    },
    threads: 2,
    ...(options.memory ? { memory: options.memory } : {}),
    output: { dir, ...options.output },
  };
}

export interface Ran {
  steps: StepMetrics[];
  events: RunEvent[];
}

/** Runs to the end; `onItem` may abort. An error is thrown with what was seen so far as `ran`. */
export async function run(
  config: ConfigInput,
  options: { signal?: AbortSignal; onItem?: (item: StepMetrics | RunEvent) => void; device?: Device } = {},
): Promise<Ran> {
  const ran: Ran = { steps: [], events: [] };
  const trainer = new Trainer(config, options.device ? { device: options.device } : {});
  for await (const item of trainer.run(options.signal ? { signal: options.signal } : {})) {
    if (item.event === undefined) ran.steps.push(item);
    else if (item.event !== "progress") ran.events.push(item);
    options.onItem?.(item);
  }
  return ran;
}

/** Hashes of the tensor files of a checkpoint or model folder: equal for equal bits. */
export function bits(folder: string): Record<string, string> {
  const files = readdirSync(folder)
    .filter((name) => name.endsWith(".safetensors"))
    .sort();
  return Object.fromEntries(
    files.map((name) => [
      name,
      createHash("sha256")
        .update(readFileSync(path.join(folder, name)))
        .digest("hex"),
    ]),
  );
}

/** What a run computed, by step: figures that a resume must repeat bit for bit. */
export function figures(dir: string): unknown[] {
  return readFileSync(path.join(dir, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .filter((line) => line.event === undefined)
    .map(({ step, epoch, loss, grad_norm, learning_rate, tokens, valid_tokens, skipped }) => ({
      step,
      epoch,
      loss,
      grad_norm,
      learning_rate,
      tokens,
      valid_tokens,
      skipped,
    }));
}

/** The command line in a process of its own, under `ulimit -f` (blocks of 1,024 bytes) if given. */
export function startCli(args: string[], fileBlocks?: number): ChildProcess {
  const command = [process.execPath, "--import=tsx", path.join(here, "cli_child.ts"), ...args];
  const limit = fileBlocks === undefined ? "" : `ulimit -f ${fileBlocks}; `;
  // Without tap's hooks, which die of the SIGXFSZ that Node itself ignores; tap adds them to every child's environment.
  const script = `unset NODE_OPTIONS; ${limit}exec "$@"`;
  return spawn("bash", ["-c", script, "bash", ...command], { stdio: ["ignore", "pipe", "pipe"] });
}

/** Exit code (or the signal that killed it) and what it wrote. */
export async function ended(child: ChildProcess): Promise<{ code: number | string | null; out: string; err: string }> {
  let out = "";
  let err = "";
  child.stdout?.on("data", (chunk) => {
    out += chunk;
  });
  child.stderr?.on("data", (chunk) => {
    err += chunk;
  });
  const code = await new Promise<number | string | null>((resolve) =>
    child.on("close", (number, signal) => resolve(number ?? signal)),
  );
  return { code, out, err };
}
