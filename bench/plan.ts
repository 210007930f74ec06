// Seconds that choosing memory takes, for the 56M Llama of bench/train_step.ts at rising T under one device limit.
//
//   npx tsx bench/plan.ts [--from 8192] [--to 8388608] [--gib 2] [--json]
import { configSchema } from "../lib/config/schema.js";
import { LongseqError } from "../lib/errors.js";
import { parseModelConfig } from "../lib/models/registry.js";
import { Limits } from "../lib/train/limits.js";
import { fullWorkload } from "../lib/train/measure.js";
import { chooseMemory, describeChoice } from "../lib/train/plan.js";
import { ratesOf } from "../lib/train/rates.js";
import { flags, table } from "./side_by_side.js";

const { from, to, gib, json } = flags({ from: 8192, to: 2 ** 23, gib: 2, json: 0 });
export const llama56M = {
  model_type: "llama",
  vocab_size: 32000,
  hidden_size: 512,
  intermediate_size: 1408,
  num_hidden_layers: 8,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  max_position_embeddings: 131072,
};
const lines = [];
for (let tokens = from; tokens <= to; tokens *= 2) {
  const config = configSchema.parse({
    model: { init: llama56M },
    data: { train: ["none"], sequenceLength: tokens },
    train: { steps: 1 },
    memory: { deviceLimit: gib * 2 ** 30, hostLimit: 2 ** 42 },
    output: { dir: "none" },
  });
  const facts = {
    model: parseModelConfig(llama56M, { file: "bench" }),
    dtype: "float32" as const,
    work: fullWorkload(config),
    tokens,
    limits: new Limits(config.memory),
    rates: ratesOf("cpu"),
  };
  const start = performance.now();
  const processor = process.cpuUsage();
  let runs = 0;
  let what = "";
  try {
    const choice = chooseMemory(config, facts);
    runs = choice.runs;
    what = describeChoice(choice, facts.limits.shares(choice.measured.peaks));
  } catch (error) {
    if (!(error instanceof LongseqError)) throw error;
    runs = Number((error.details as Record<string, unknown>).runs);
    what = error.message;
  }
  const seconds = (performance.now() - start) / 1000;
  // What it takes where nothing else runs.
  const { user, system } = process.cpuUsage(processor);
  lines.push({ tokens, seconds, processorSeconds: (user + system) / 1e6, runs, what });
  console.error(`T = ${tokens}: ${lines.at(-1)?.seconds.toFixed(2)} s, ${runs} runs`);
}
if (json) console.log(JSON.stringify({ gib, lines }));
else
  console.log(
    table(
      ["T", "seconds", "CPU seconds", "runs", "what"],
      lines.map((l) => [String(l.tokens), l.seconds.toFixed(2), l.processorSeconds.toFixed(2), String(l.runs), l.what]),
    ),
  );
