// The longest sequences that plans promise beside those that others publish: writes docs/plan_targets.md.
//
//   npx tsx bench/plan_targets.ts [ROW ...]
//
// A plan is the program's own step on `meta`, without a GPU; memory is exact, time an estimate.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../lib/binding.js";
import { formatBytes, formatDuration } from "../lib/report/format.js";
import { llama8B, modelFolder, type Plan, planWith } from "./jobs.js";

const models: Record<string, Record<string, unknown>> = {
  "Llama-8B": llama8B,
  "Llama-70B": {
    ...llama8B,
    hidden_size: 8192,
    intermediate_size: 28672,
    num_hidden_layers: 80,
    num_attention_heads: 64,
    num_key_value_heads: 8,
  },
  "Qwen3-32B": {
    model_type: "qwen3",
    torch_dtype: "bfloat16",
    vocab_size: 151936,
    hidden_size: 5120,
    intermediate_size: 25600,
    num_hidden_layers: 64,
    num_attention_heads: 64,
    num_key_value_heads: 8,
    head_dim: 128,
    max_position_embeddings: 40960,
    rope_theta: 1000000,
  },
};

interface Row {
  model: string;
  gpus: number;
  memory: string;
  card: string;
  /** Tokens that others publish for these GPUs, and who. */
  published: number;
  by: string;
  /** Of a step, where they say. */
  seconds?: number;
  /** Groups in the ring; default: the fewest, as a run takes them. */
  ring?: number;
}

const [H100, H200] = [
  { card: "H100", memory: "79GiB" },
  { card: "H200", memory: "139GiB" },
];
const alst = "ALST (arXiv 2506.13996)";
const rows: Row[] = [
  { model: "Llama-8B", gpus: 1, ...H100, published: 0.5e6, by: alst, seconds: 0.5e6 / 495 },
  { model: "Llama-8B", gpus: 1, ...H200, published: 1.2e6, by: "published recipes" },
  { model: "Llama-8B", gpus: 8, ...H100, published: 3.7e6, by: alst, seconds: 107 * 60 },
  { model: "Llama-8B", gpus: 8, ...H100, published: 3.7e6, by: alst, seconds: 107 * 60, ring: 8 },
  { model: "Llama-8B", gpus: 32, ...H100, published: 15e6, by: alst },
  { model: "Llama-8B", gpus: 32, ...H100, published: 15e6, by: alst, ring: 8 },
  { model: "Qwen3-32B", gpus: 1, ...H100, published: 0.23e6, by: "published recipes" },
  { model: "Qwen3-32B", gpus: 8, ...H100, published: 1.55e6, by: "published recipes" },
  { model: "Qwen3-32B", gpus: 32, ...H100, published: 7e6, by: "published recipes" },
  { model: "Qwen3-32B", gpus: 32, ...H100, published: 7e6, by: "published recipes", ring: 8 },
  { model: "Qwen3-32B", gpus: 64, ...H100, published: 15e6, by: "published recipes" },
  { model: "Qwen3-32B", gpus: 64, ...H100, published: 15e6, by: "published recipes", ring: 8 },
  { model: "Llama-70B", gpus: 16, ...H100, published: 1.2e6, by: "published recipes" },
  { model: "Llama-70B", gpus: 32, ...H100, published: 4e6, by: "published recipes" },
  { model: "Llama-70B", gpus: 64, ...H100, published: 10e6, by: "published recipes" },
  { model: "Llama-70B", gpus: 64, ...H100, published: 10e6, by: "published recipes", ring: 8 },
];

const HOST = "1900GB";

/** What a step takes, and how much of that are copies and exchanges that nothing hides. */
const timeOf = ({ estimated_seconds: seconds, seconds_by_part: { copies, exchanges } }: Plan): string =>
  `${formatDuration(seconds)} (${((100 * (copies + exchanges)) / seconds).toFixed(1)}%)`;

async function plan({ model, gpus, memory }: Row, words: readonly string[]): Promise<Plan | null> {
  const fixed = ["--gpus", String(gpus), "--device-memory", memory, "--host-memory", HOST];
  const found = await planWith(["--model", modelFolder(model, models[model] as object), ...fixed, ...words]);
  return found?.plan ?? null;
}

const millions = (tokens: number) => `${(tokens / 1e6).toFixed(2)}M`;

function settings(plan: Plan): string {
  const states = Object.entries(plan.states).filter(([, tier]) => tier === "host");
  const words = [`every ${plan.checkpoint_every}`];
  if (plan.ranks) words.unshift(`ring ${plan.ranks.ring} x ulysses ${plan.ranks.ulysses}`);
  if (plan.head_chunks > 1) words.push(`${plan.head_chunks} head chunks`);
  if (!plan.prefetch) words.push("no prefetch");
  if (states.length > 0) words.push(`${states.map(([what]) => what).join(", ")} on the host`);
  return words.join("; ");
}

const lines = [
  "# What plans promise",
  "",
  "Longest sequences that fit, by `longseq plan --solve sequence` (exact in memory, on an assumed GPU of compute capability 9.0 with",
  `${H100.memory} or ${H200.memory}, of which libraries and NCCL get their part; nodes of 8 with ${HOST} of host memory; checkpoints`,
  "on the host, no disk). They have not been run on GPUs. Time is an estimate by the rates of native/runtime/rates/cuda.json, in",
  "brackets how much of it are copies and exchanges that nothing hides. A run takes the shortest ring that the heads allow; a longer one",
  "leaves each rank more heads to go through in chunks, so that it holds less, for more exchanges. Made by `npx tsx bench/plan_targets.ts`.",
  "",
  "| model | GPUs | published | by plan | ratio | a step | at the published length | published | device | host, of a rank | binds | settings | planned in |",
  "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
];
const wanted = process.argv.slice(2).map(Number);
for (const [i, row] of rows.entries()) {
  if (wanted.length > 0 && !wanted.includes(i)) continue;
  const begin = performance.now();
  const words = ["memory.checkpoint.offload=host", ...(row.ring ? [`parallel.ring=${row.ring}`] : [])];
  const found = await plan(row, ["--solve", "sequence", ...words]);
  const seconds = (performance.now() - begin) / 1000;
  const same = await plan(row, ["--sequence", String(row.published), ...words]);
  const where = `${row.gpus} x ${row.card}`;
  const cells = found
    ? [
        millions(found.tokens),
        (found.tokens / row.published).toFixed(2),
        timeOf(found),
        same ? timeOf(same) : "does not fit",
        row.seconds ? formatDuration(row.seconds) : "",
        formatBytes(found.device_peak_bytes),
        formatBytes(found.host_peak_bytes),
        found.binds,
        settings(found),
      ]
    : ["does not fit", "", "", "", "", "", "", "", ""];
  const line = [row.model, where, `${millions(row.published)}, ${row.by}`, ...cells, `${seconds.toFixed(0)} s`];
  lines.push(`| ${line.join(" | ")} |`);
  console.log(lines.at(-1));
}
if (wanted.length === 0) writeFileSync(join(packageRoot, "docs/plan_targets.md"), `${lines.join("\n")}\n`);
