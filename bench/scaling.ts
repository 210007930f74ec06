// How a step scales with the length of the sequence and with ranks: tokens per second and memory. A table and a picture.
//
//   npx tsx bench/scaling.ts [--lengths 1024,2048,4096,8192,16384] [--ranks 1,2,4] [--gpus 1,8,32,64] [--write docs/scaling]
//
// The 56M Llama on the CPU with everything on, the second step of a run: one rank of all threads, and as many ranks of one
// thread. Beside it what its clock says of Llama-8B on H100s: plans, which no GPU has run.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { formatBytes, formatDuration } from "../lib/report/format.js";
import { type JobSpec, llama8B, modelFolder, type Plan, planOf, planWith, type Trained, train } from "./jobs.js";
import { picture } from "./picture.js";
import { threadsHere } from "./side_by_side.js";
import { llama56M, markdown, publish } from "./steps.js";

const { values } = parseArgs({
  options: {
    lengths: { type: "string", default: "1024,2048,4096,8192,16384" },
    ranks: { type: "string", default: "1,2,4" },
    gpus: { type: "string", default: "1,8,32,64" },
    "gpu-lengths": { type: "string", default: "125000,250000,500000,1000000,2000000,4000000,8000000,16000000" },
    write: { type: "string" },
  },
});
const numbers = (text: string) => text.split(",").filter(Boolean).map(Number);
const whole = (value: number) => Math.round(value).toLocaleString("en-US");
const short = (value: number) =>
  value >= 1e6 ? `${value / 1e6}M` : value >= 1e3 ? `${+(value / 1e3).toFixed(1)}K` : String(value);

const memory = {
  ...{ device_limit: "8GiB", host_limit: "8GiB", tile_mlp: 1024, tile_loss: 512, head_chunks: 1 },
  checkpoint: { every: 1, keep_attention: true, offload: "host", device_bytes: 0 },
  offload: { optimizer: "host" },
};
const job = (ranks: number, tokens: number): JobSpec => ({
  ...{ init: llama56M, tokens, ranks, memory, threads: ranks > 1 ? 1 : threadsHere },
  ...(ranks > 1 && { parallel: { zero: 3 } }),
});

interface Row {
  ranks: number;
  tokens: number;
  ran: Trained;
}
const rows: Row[] = [];
for (const ranks of numbers(values.ranks))
  for (const tokens of numbers(values.lengths)) {
    const planned = await planOf(job(ranks, tokens));
    const ran = train(job(ranks, tokens));
    if (planned?.plan.device_peak_bytes !== ran.device)
      throw new Error(`${ranks} ranks, ${tokens} tokens: ${ran.device} bytes at most, not those planned`);
    rows.push({ ranks, tokens, ran });
    console.error(`${ranks} ranks, ${tokens} tokens: ${ran.seconds} s`);
  }

const model = modelFolder("llama-8b", llama8B);
const plans: { gpus: number; tokens: number; plan: Plan }[] = [];
for (const gpus of numbers(values.gpus))
  for (const tokens of numbers(values["gpu-lengths"])) {
    const limits = ["--device-memory", "79GiB", "--host-memory", "1900GB", "memory.checkpoint.offload=host"];
    const found = await planWith(["--model", model, "--gpus", String(gpus), "--sequence", String(tokens), ...limits]);
    if (found !== null) plans.push({ gpus, tokens, plan: found.plan });
    console.error(`${gpus} GPUs, ${tokens} tokens: ${found?.plan.estimated_seconds ?? "too long"}`);
  }

const alone = (tokens: number) => rows.find((row) => row.ranks === 1 && row.tokens === tokens)?.ran;
const text = [
  "# Scaling with length and ranks",
  "",
  "Made by `npx tsx bench/scaling.ts --write docs/scaling`.",
  "",
  "## The 56M Llama, float32, on two cores",
  "",
  `Everything on: tiled MLP and loss, checkpoints and the optimizer's states in host memory, Ulysses and ZeRO 3 where there are ranks. One rank ` +
    `of ${threadsHere} threads, several of one thread each (four share the two cores, so no more work is done in a second). The peak of each is ` +
    "the planned one, to the byte.",
  "",
  markdown(
    ["ranks", "tokens", "seconds", "tokens/s", "to one rank", "device of a rank", "to one rank", "host of a rank"],
    rows.map(({ ranks, tokens, ran }) => [
      ...[String(ranks), whole(tokens), ran.seconds.toFixed(2), whole(tokens / ran.seconds)],
      ...[(ran.seconds / (alone(tokens)?.seconds ?? Number.NaN)).toFixed(2), formatBytes(ran.device)],
      ...[(ran.device / (alone(tokens)?.device ?? Number.NaN)).toFixed(2), formatBytes(ran.host)],
    ]),
  ),
  "",
  "## Llama-8B, bfloat16, H100s with 79 GiB, by plan",
  "",
  "Nodes of 8 with 1,900 GB of host memory; no disk. No GPU has run these; time by the rates of native/runtime/rates/cuda.json.",
  "",
  markdown(
    ["GPUs", "tokens", "a step", "tokens/s", "tokens/s of a GPU", "device", "host of a rank", "rung"],
    plans.map(({ gpus, tokens, plan }) => [
      ...[String(gpus), short(tokens), formatDuration(plan.estimated_seconds), whole(plan.tokens_per_second)],
      ...[
        whole(plan.tokens_per_second / gpus),
        formatBytes(plan.device_peak_bytes),
        formatBytes(plan.host_peak_bytes),
        plan.rung,
      ],
    ]),
  ),
  "",
  "![tokens per second by length](scaling.svg)",
].join("\n");
publish(text, values.write && `${values.write}.md`);
const each = <T>(all: readonly T[], key: (one: T) => number) => [...new Set(all.map(key))];
if (values.write)
  writeFileSync(
    `${values.write}.svg`,
    picture({
      title: "Tokens per second by the length of the sequence",
      x: "tokens of a sequence",
      formatX: short,
      formatY: short,
      log: { x: true, y: true },
      apart: true,
      panels: [
        {
          title: "56M Llama, float32, on two cores",
          lines: each(rows, ({ ranks }) => ranks).map((ranks) => ({
            name: `${ranks} ${ranks === 1 ? "rank" : "ranks"} on the CPU`,
            points: rows
              .filter((row) => row.ranks === ranks)
              .map(({ tokens, ran }) => [tokens, tokens / ran.seconds] as const),
          })),
        },
        {
          title: "Llama-8B, bfloat16, H100s (plans)",
          lines: each(plans, ({ gpus }) => gpus).map((gpus) => ({
            name: `${gpus} ${gpus === 1 ? "GPU" : "GPUs"}`,
            points: plans
              .filter((one) => one.gpus === gpus)
              .map(({ tokens, plan }) => [tokens, plan.tokens_per_second] as const),
          })),
        },
      ],
    }),
  );
