// The paper's main comparison, the baseline against everything on: the longest sequence on one rank and on several, and what a
// step takes. A table and a picture.
//
//   npx tsx bench/longest.ts [--gib 1] [--ranks 1,2,4,8] [--measured 1,2] [--gpus 1,8,32] [--write docs/longest]
//
// On the CPU: the 56M Llama, each rank with so many GiB of device memory; lengths by `longseq plan`, whose peaks are those of
// the run to the byte; steps of `longseq train` at the baseline's longest length, and four times that. Llama-8B on H100s by
// plan alone. The baseline is what the paper compares with: each rank has sequences of its own (ZeRO 3), checkpoints of every
// layer, fast attention, nothing in tiles and nothing in host memory.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { formatBytes, formatDuration } from "../lib/report/format.js";
import { baseline, type JobSpec, llama8B, longestOf, modelFolder, type Plan, planWith, train } from "./jobs.js";
import { picture } from "./picture.js";
import { llama56M, markdown, publish } from "./steps.js";

const { values } = parseArgs({
  options: {
    gib: { type: "string", default: "1" },
    ranks: { type: "string", default: "1,2,4,8" },
    measured: { type: "string", default: "1,2" },
    gpus: { type: "string", default: "1,8,32" },
    write: { type: "string" },
  },
});
const numbers = (text: string) => text.split(",").filter(Boolean).map(Number);
const whole = (value: number) => value.toLocaleString("en-US");
const limits = { device_limit: `${values.gib}GiB`, host_limit: "64GiB" };

/** Everything on, as `auto` chooses it, with the optimizer's states in host memory. */
const everything = { ...limits, checkpoint: { offload: "host" }, offload: { optimizer: "host" } };
const job = (ranks: number, tokens: number, all: boolean): JobSpec => ({
  ...{ init: llama56M, tokens, ranks, threads: ranks > 1 ? 1 : 2 },
  ...(all ? { memory: everything } : baseline(ranks, limits)),
});

interface Row {
  ranks: number;
  plain: Plan;
  all: Plan;
}
const rows: Row[] = [];
for (const ranks of numbers(values.ranks)) {
  const [plain, all] = [await longestOf(job(ranks, 1024, false)), await longestOf(job(ranks, 1024, true))];
  if (plain === null || all === null) throw new Error(`${ranks} ranks: ${values.gib} GiB are too few for any sequence`);
  rows.push({ ranks, plain, all });
  console.error(`${ranks} ranks: ${plain.tokens} and ${all.tokens} tokens`);
}
const measured = rows
  .filter(({ ranks }) => numbers(values.measured).includes(ranks))
  .map(({ ranks, plain }) => {
    const { tokens } = plain;
    const [base, same, longer] = [
      train(job(ranks, tokens, false)),
      train(job(ranks, tokens, true)),
      train(job(ranks, 4 * tokens, true)),
    ];
    console.error(`${ranks} ranks: ${base.seconds} s, ${same.seconds} s, four times as long ${longer.seconds} s`);
    return { ranks, tokens, base, same, longer };
  });

const model = modelFolder("llama-8b", llama8B);
const plainWords = [
  ...["memory.tile_mlp=off", "memory.tile_loss=off", "memory.head_chunks=1", "memory.checkpoint.every=1"],
  ...["memory.checkpoint.keep_attention=false", "memory.checkpoint.offload=none"],
];
const gpuRows: { gpus: number; plain: Plan | null; all: Plan | null }[] = [];
for (const gpus of numbers(values.gpus)) {
  const words = ["--model", model, "--device-memory", "79GiB", "--host-memory", "1900GB", "--solve", "sequence"];
  words.push("--gpus", String(gpus));
  // A sequence for each GPU: the states are spread over all, and go to the host where that alone makes them fit.
  const apart = [`parallel.data=${gpus}`, `train.batch_size=${gpus}`, "parallel.zero=3"];
  const plain = await planWith([...words, ...plainWords, ...(gpus > 1 ? apart : [])]);
  const all = await planWith([...words, "memory.checkpoint.offload=host"]);
  gpuRows.push({ gpus, plain: plain?.plan ?? null, all: all?.plan ?? null });
  console.error(`${gpus} GPUs: ${plain?.plan.tokens} and ${all?.plan.tokens} tokens`);
}

const ratio = (a: number, b: number) => `${(a / b).toFixed(1)} x`;
const text = [
  "# The longest sequence, and what a step takes",
  "",
  "The baseline: each rank has sequences of its own, states spread by ZeRO 3, a checkpoint of every layer, nothing in tiles, nothing of " +
    "a step in host memory. All of it: ranks share the sequence (Ulysses), tiled MLP and loss, checkpoints and the optimizer's states in " +
    "host memory, head chunks where `auto` takes them. Made by `npx tsx bench/longest.ts --write docs/longest`.",
  "",
  `## The 56M Llama, float32, ${values.gib} GiB of device memory a rank`,
  "",
  "Lengths by `longseq plan`, whose peaks are those of the run to the byte.",
  "",
  markdown(
    ["ranks", "baseline, tokens", "all of it, tokens", "", "device", "host", "choice"],
    rows.map(({ ranks, plain, all }) => [
      String(ranks),
      whole(plain.tokens),
      whole(all.tokens),
      ratio(all.tokens, plain.tokens),
      formatBytes(all.device_peak_bytes),
      formatBytes(all.host_peak_bytes),
      all.rung,
    ]),
  ),
  "",
  "## Steps of it on this machine's two cores",
  "",
  "The second step of a run. Tokens a second are those of all ranks; the baseline's have one sequence for each.",
  "",
  markdown(
    ["ranks", "", "tokens a sequence", "seconds", "tokens/s", "device, GiB", "host, GiB", "loss"],
    measured.flatMap(({ ranks, tokens, base, same, longer }) =>
      (
        [
          ["baseline", tokens, base, ranks],
          ["all of it", tokens, same, 1],
          ["all of it", 4 * tokens, longer, 1],
        ] as const
      ).map(([name, length, { seconds, device, host, losses }, sequences]) => [
        ...[String(ranks), name, whole(length), seconds.toFixed(2), whole(Math.round((length * sequences) / seconds))],
        ...[(device / 2 ** 30).toFixed(2), (host / 2 ** 30).toFixed(2), losses[0]?.toFixed(6) ?? ""],
      ]),
    ),
  ),
  "",
  "## Llama-8B, bfloat16, H100s with 79 GiB, nodes of 8 with 1,900 GB of host memory, by plan",
  "",
  "No GPU has run these. Where the states of the baseline do not fit the GPU they go to the host, as the paper's do. Time by the rates of " +
    "native/runtime/rates/cuda.json.",
  "",
  markdown(
    ["GPUs", "baseline, tokens", "a step", "all of it, tokens", "a step", ""],
    gpuRows.map(({ gpus, plain, all }) => [
      String(gpus),
      plain ? whole(plain.tokens) : "none",
      plain ? formatDuration(plain.estimated_seconds) : "",
      all ? whole(all.tokens) : "none",
      all ? formatDuration(all.estimated_seconds) : "",
      plain && all ? ratio(all.tokens, plain.tokens) : "",
    ]),
  ),
  "",
  "![the longest sequence by ranks](longest.svg)",
].join("\n");
publish(text, values.write && `${values.write}.md`);
if (values.write)
  writeFileSync(
    `${values.write}.svg`,
    picture({
      title: "The longest sequence of a rank's memory, tokens",
      x: "ranks",
      formatX: String,
      formatY: (value) => (value >= 1e6 ? `${value / 1e6}M` : value >= 1e3 ? `${value / 1e3}K` : String(value)),
      log: { x: true, y: true },
      apart: true,
      panels: [
        {
          title: `56M Llama, float32, ${values.gib} GiB a rank (CPU; exact)`,
          lines: [
            { name: "baseline", points: rows.map(({ ranks, plain }) => [ranks, plain.tokens] as const) },
            { name: "all of it", points: rows.map(({ ranks, all }) => [ranks, all.tokens] as const) },
          ],
        },
        {
          title: "Llama-8B, bfloat16, H100 with 79 GiB (plans)",
          lines: [
            {
              name: "baseline",
              points: gpuRows.flatMap(({ gpus, plain }) => (plain ? [[gpus, plain.tokens] as const] : [])),
            },
            {
              name: "all of it",
              points: gpuRows.flatMap(({ gpus, all }) => (all ? [[gpus, all.tokens] as const] : [])),
            },
          ],
        },
      ],
    }),
  );
