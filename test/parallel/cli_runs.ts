// Runs of the command line with several ranks: a small model and its data in a folder of their own, and what a run left.
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";

export const bin = join(import.meta.dirname, "../../bin/longseq.mjs");
export const folder = mkdtempSync(join(tmpdir(), "longseq-ranks-"));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

// Documents of many lengths, one of a single byte; rows of labels that leave whole ranks without any.
const words = "the quick brown fox jumps over the lazy dog while nobody looks ".repeat(40);
const texts = Array.from({ length: 40 }, (_, i) => ({ text: words.slice(i, i + 1 + ((i * 37) % 211)) }));
const rows = Array.from({ length: 8 }, (_, i) => {
  const inputIds = Array.from({ length: 61 + i }, (_, j) => (j * 7 + i) % 250);
  return { input_ids: inputIds, labels: inputIds.map((id, j) => (i === 5 || j > 20 ? -100 : id)) };
});
const lines = (values: object[]): string => `${values.map((value) => JSON.stringify(value)).join("\n")}\n`;
writeFileSync(join(folder, "texts.jsonl"), lines(texts));
writeFileSync(join(folder, "eval.jsonl"), lines(texts.slice(0, 7)));
writeFileSync(join(folder, "rows.jsonl"), lines(rows));
// Seven rows: with two a step, the last step leaves one of two groups of ranks without any.
writeFileSync(join(folder, "seven.jsonl"), lines(rows.slice(0, 7)));

const config = {
  model: {
    init: {
      model_type: "llama",
      vocab_size: 259,
      hidden_size: 32,
      intermediate_size: 80,
      num_hidden_layers: 2,
      num_attention_heads: 8,
      num_key_value_heads: 2,
      head_dim: 6,
      max_position_embeddings: 4096,
      tie_word_embeddings: true,
      initializer_range: 0.06,
    },
  },
  data: {
    train: [join(folder, "texts.jsonl")],
    eval: [join(folder, "eval.jsonl")],
    tokenizer: "bytes",
    sequence_length: 127,
    overlong: "split",
  },
  train: {
    steps: 5,
    schedule: "constant",
    learning_rate: 0.01,
    weight_decay: 0.1,
    batch_size: 4,
    micro_batch_size: 2,
    eval_every: 2,
  },
  output: { save_every: 2, keep: 9 },
};
export const file = join(folder, "config.yaml");
writeFileSync(file, JSON.stringify(config));

export interface Ended {
  code: number;
  stderr: string;
  dir: string;
}

/** Runs to the end. A first argument that is no text: more environment. */
export const run = (
  name: string,
  ...[first, ...rest]: [({ env: Record<string, string> } | string)?, ...string[]]
): Promise<Ended> =>
  new Promise((resolve) => {
    const dir = join(folder, name);
    const [env, args] =
      typeof first === "object" ? [first.env, rest] : [{}, first === undefined ? [] : [first, ...rest]];
    execFile(
      process.execPath,
      [bin, "train", file, `output.dir=${dir}`, ...args],
      { timeout: 300_000, env: { ...process.env, ...env } },
      (error, _, stderr) => resolve({ code: error === null ? 0 : Number(error.code), stderr, dir }),
    );
  });

export type Line = Record<string, number | string | null>;
export const metrics = (dir: string): Line[] =>
  readFileSync(join(dir, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
export const steps = (dir: string): Line[] => metrics(dir).filter((line) => line.event === undefined);

/** The float32 tensors of the exported model, by name. */
export function weights(dir: string): Map<string, Float32Array> {
  const bytes = readFileSync(join(dir, "model", "model.safetensors"));
  const begin = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, begin)) as Record<string, { data_offsets: [number, number] }>;
  const found = new Map<string, Float32Array>();
  for (const [name, { data_offsets: at }] of Object.entries(header))
    if (name !== "__metadata__") {
      const own = Uint8Array.from(bytes.subarray(begin + at[0], begin + at[1]));
      found.set(name, new Float32Array(own.buffer));
    }
  return found;
}

const close = (a: unknown, b: unknown, tolerance = 1e-5): boolean =>
  a === b || Math.abs(Number(a) - Number(b)) <= tolerance * Math.abs(Number(a));

/** tolerance: of the weights, which Adam moves by whole steps where a gradient is hardly more than its rounding. */
export function sameRun(t: Test, one: string, other: string, what: string, tolerance = 1e-5): void {
  const [a, b] = [metrics(one), metrics(other)];
  for (const event of [undefined, "eval"]) {
    const [left, right] = [a, b].map((all) => all.filter((line) => line.event === event)) as [Line[], Line[]];
    t.equal(right.length, left.length, `${what}: as many lines`);
    left.forEach((line, i) => {
      for (const key of ["step", "loss", "grad_norm", "tokens", "valid_tokens", "learning_rate", "skipped"])
        t.ok(close(line[key], right[i]?.[key]), `${what}: step ${line.step}, ${key}: ${line[key]}, ${right[i]?.[key]}`);
    });
  }
  const [p, q] = [weights(one), weights(other)];
  t.same([...q.keys()], [...p.keys()]);
  for (const [name, values] of p) {
    const others = q.get(name) as Float32Array;
    let [difference, norm] = [0, 0];
    values.forEach((value, i) => {
      difference += (value - (others[i] as number)) ** 2;
      norm += value ** 2;
    });
    t.ok(
      Math.sqrt(difference) <= tolerance * Math.sqrt(norm),
      `${what}: ${name} differs by ${Math.sqrt(difference / norm)}`,
    );
  }
}
