// The clock of a plan: planned seconds of a step beside measured ones, for settings of many kinds on this CPU. Rates are
// measured first, in the same run.
//
//   npx tsx bench/plan_clock.ts [--steps 5] [--rounds 2] [--rates FILE] [--only NAME,NAME]
//
// Within 15% for 18 of the 20 was asked. Machines are shared, and one that is disturbed may be half as fast for half a
// minute: the fastest step counts on both sides.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { stringify } from "yaml";

const { values } = parseArgs({
  options: {
    steps: { type: "string", default: "5" },
    rounds: { type: "string", default: "2" },
    rates: { type: "string" },
    only: { type: "string" },
  },
});
const [steps, rounds] = [Number(values.steps), Number(values.rounds)];
const bin = join(import.meta.dirname, "../bin/longseq.mjs");
const folder = mkdtempSync(join(tmpdir(), "longseq-clock-"));

interface Case {
  name: string;
  tokens?: number;
  model?: Record<string, unknown>;
  train?: Record<string, unknown>;
  memory?: Record<string, unknown>;
  parallel?: Record<string, unknown>;
  /** Beside `init`. */
  keys?: Record<string, unknown>;
  adapter?: Record<string, unknown>;
  ranks?: number;
}

const checkpoint = (more: object = {}) => ({
  checkpoint: { every: 1, keep_attention: true, offload: "none", ...more },
});
const plain = { tile_mlp: "off", tile_loss: "off", checkpoint: { every: 0, offload: "none" } };
const tiled = { tile_mlp: 1024, tile_loss: 1024 };
const cases: Case[] = [
  { name: "plain" },
  { name: "bfloat16", keys: { dtype: "bfloat16" } },
  { name: "twice as long", tokens: 4096 },
  { name: "checkpoints, long", tokens: 8192, memory: { ...tiled, ...checkpoint() } },
  { name: "attention run again", memory: { ...tiled, ...checkpoint({ keep_attention: false }) } },
  { name: "checkpoints of two layers", memory: { ...tiled, ...checkpoint({ every: 2, keep_attention: false }) } },
  { name: "checkpoints on the host", memory: { ...tiled, ...checkpoint({ offload: "host" }) } },
  { name: "optimizer on the host", memory: { ...plain, offload: { optimizer: "host" } } },
  {
    name: "all states on the host",
    memory: { ...tiled, ...checkpoint(), offload: { optimizer: "host", params: "host", gradients: "host" } },
  },
  { name: "three micro-batches", tokens: 1024, train: { batch_size: 3 } },
  { name: "wide", model: { hidden_size: 512, intermediate_size: 1408, num_hidden_layers: 2 } },
  { name: "head chunks", tokens: 4096, memory: { ...tiled, ...checkpoint(), head_chunks: 4 } },
  { name: "large vocabulary", tokens: 1024, model: { vocab_size: 32000 }, memory: { ...tiled, tile_loss: 256 } },
  { name: "small tiles", memory: { tile_mlp: 128, tile_loss: 128, ...checkpoint() } },
  { name: "window", tokens: 4096, model: { model_type: "mistral", sliding_window: 512 } },
  { name: "qwen2", model: { model_type: "qwen2", num_key_value_heads: 4, tie_word_embeddings: true } },
  {
    name: "experts",
    model: {
      model_type: "qwen3_moe",
      head_dim: 64,
      num_experts: 8,
      num_experts_per_tok: 2,
      moe_intermediate_size: 256,
    },
  },
  { name: "adapter", adapter: { r: 8 } },
  { name: "two ranks, Ulysses", tokens: 4096, ranks: 2, parallel: { sequence: 2, zero: 0 } },
  { name: "two ranks, ring, ZeRO 3", tokens: 4096, ranks: 2, parallel: { sequence: 2, ring: 2, zero: 3 } },
];

function run(args: string[]): string {
  const ended = spawnSync(process.execPath, [bin, ...args], { encoding: "utf8", maxBuffer: 2 ** 28 });
  if (ended.status !== 0) throw new Error(`longseq ${args.join(" ")}: ${ended.stderr}`);
  return ended.stdout;
}
const lines = (text: string) =>
  text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

function fileOf({ name, tokens = 2048, model, train, memory = plain, parallel, keys, adapter }: Case): string {
  const vocabulary = Number(model?.vocab_size ?? 8192);
  const data = join(folder, `${tokens}-${vocabulary}.jsonl`);
  const row = (i: number) =>
    JSON.stringify({ input_ids: Array.from({ length: tokens }, (_, j) => (j * 7919 + i) % vocabulary) });
  writeFileSync(data, Array.from({ length: 8 }, (_, i) => `${row(i)}\n`).join(""));
  const init = {
    ...{ model_type: "llama", vocab_size: 8192, hidden_size: 256, intermediate_size: 704, num_hidden_layers: 4 },
    ...{ num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 16384 },
    ...model,
  };
  const path = join(folder, `${name.replaceAll(/\W+/g, "-")}.yaml`);
  const text = stringify({
    model: { init, ...keys },
    data: { train: [data], sequence_length: tokens },
    train: { steps, micro_batch_size: 1, ...train },
    memory,
    ...(parallel && { parallel }),
    output: { dir: join(folder, "run"), save_every: 0 },
    ...(adapter && { adapter }),
  });
  writeFileSync(path, text);
  return path;
}

const median = (numbers: number[]): number => numbers.toSorted((a, b) => a - b)[numbers.length >> 1] as number;

try {
  const rates = values.rates ?? join(folder, "rates.json");
  if (values.rates === undefined) process.stderr.write(run(["bench", "--calibrate", rates]));
  console.log(`rates of ${(JSON.parse(readFileSync(rates, "utf8")) as { measured: string }).measured}\n`);
  const chosen = cases.filter(({ name }) => !values.only || values.only.split(",").includes(name));
  const measured = new Map<string, number[]>(chosen.map(({ name }) => [name, []]));
  for (let round = 0; round < rounds; round++)
    for (const one of chosen) {
      rmSync(join(folder, "run"), { recursive: true, force: true });
      run(["train", fileOf(one), "--quiet", ...(one.ranks ? ["--nproc", String(one.ranks)] : [])]);
      const metrics = lines(readFileSync(join(folder, "run/metrics.jsonl"), "utf8"));
      const done = metrics.filter(({ event, step }) => event === undefined && step !== 1);
      measured.get(one.name)?.push(...done.map(({ seconds }) => Number(seconds)));
    }
  let near = 0;
  for (const one of chosen) {
    const [plan] = lines(run(["plan", fileOf(one), "--rates", rates, "--json"])).filter(
      ({ event }) => event === "plan",
    );
    const planned = Number(plan?.estimated_seconds);
    const seconds = measured.get(one.name) as number[];
    const best = Math.min(...seconds);
    if (Math.abs(planned / best - 1) <= 0.15) near++;
    const parts = Object.entries(plan?.seconds_by_part as Record<string, number>)
      .filter(([, time]) => time >= 0.0005)
      .map(([part, time]) => `${part} ${time.toFixed(3)}`);
    console.log(
      `${one.name.padEnd(26)} planned ${planned.toFixed(3)} s  measured ${best.toFixed(3)} s (median ${median(seconds).toFixed(3)})  ` +
        `${(planned / best).toFixed(2)}  (${parts.join(", ")})`,
    );
  }
  console.log(`\n${near} of ${chosen.length} within 15%`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
