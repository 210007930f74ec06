// The paper's ablation with several ranks: what each part adds to the longest sequence, and what it costs. A table and a picture.
//
//   npx tsx bench/ablation_ranks.ts [--gib 1] [--ranks 8] [--real 2] [--tokens 8192] [--write docs/ablation_ranks]
//
// Lengths by `longseq plan`, for --ranks ranks of --gib GiB each. Times of --real ranks of one thread at --tokens, the second
// step of a run, whose peak has to be the planned one to the byte.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { bars } from "./bars.js";
import { type JobSpec, longestOf, planOf, train } from "./jobs.js";
import { llama56M, markdown, publish } from "./steps.js";

const { values } = parseArgs({
  options: {
    gib: { type: "string", default: "1" },
    ranks: { type: "string", default: "8" },
    real: { type: "string", default: "2" },
    tokens: { type: "string", default: "8192" },
    write: { type: "string" },
  },
});
const [many, few, tokens] = [Number(values.ranks), Number(values.real), Number(values.tokens)];
const whole = (value: number) => value.toLocaleString("en-US");

/** Of a sharing of the sequence or not, and the memory settings that each adds to the one before. */
const plain = { every: 1, keep_attention: false, offload: "none" };
const added: [name: string, shared: boolean, more: Record<string, unknown>][] = [
  [
    "baseline: ZeRO 3, checkpoints",
    false,
    { tile_mlp: "off", tile_loss: "off", head_chunks: 1, checkpoint: plain, host_limit: "64GiB" },
  ],
  ["+ tiled loss", false, { tile_loss: 512 }],
  ["+ Ulysses", true, {}],
  ["+ tiled MLP", true, { tile_mlp: 1024 }],
  ["+ checkpoints on the host", true, { checkpoint: { ...plain, offload: "host", device_bytes: 0 } }],
  ["+ optimizer on the host", true, { offload: { optimizer: "host" } }],
  ["+ attention kept", true, { checkpoint: { ...plain, keep_attention: true, offload: "host", device_bytes: 0 } }],
];

let memory: Record<string, unknown> = {};
const rows = [];
for (const [name, shared, more] of added) {
  memory = { ...memory, ...more };
  const of = (ranks: number, length: number, limits: Record<string, unknown>): JobSpec => ({
    ...{ init: llama56M, tokens: length, ranks, memory: { ...memory, ...limits } },
    parallel: shared ? { zero: 3 } : { data: ranks, sequence: 1, zero: 3 },
  });
  const longest = await longestOf(of(many, 1024, { device_limit: `${values.gib}GiB` }));
  if (longest === null) throw new Error(`${name}: ${values.gib} GiB are too few for any sequence`);
  const real = of(few, tokens, { device_limit: "16GiB" });
  const planned = await planOf(real);
  const ran = train(real);
  if (planned?.plan.device_peak_bytes !== ran.device)
    throw new Error(`${name}: ${ran.device} bytes at most, planned were ${planned?.plan.device_peak_bytes}`);
  // The baseline's ranks have a sequence each.
  const done = shared ? tokens : few * tokens;
  rows.push({ name, longest: longest.tokens, ran, rate: done / ran.seconds });
  console.error(`${name}: ${longest.tokens} tokens, ${ran.seconds} s`);
}
const [first] = rows as [(typeof rows)[number]];
const text = [
  `# The ablation with ${many} ranks`,
  "",
  `The 56M Llama, float32. The longest sequence of ${many} ranks with ${values.gib} GiB of device memory each, by \`longseq plan\`; steps of ${few} ` +
    `ranks of one thread at ${whole(tokens)} tokens a sequence, whose peaks are the planned ones to the byte. Each setting adds to the one ` +
    "before. Until ranks share the sequence each has one of its own. Made by `npx tsx bench/ablation_ranks.ts --write docs/ablation_ranks`.",
  "",
  markdown(
    [
      "setting",
      "longest, tokens",
      "to the baseline",
      `a step of ${few} ranks, s`,
      "tokens/s",
      "device of a rank, MiB",
      "host, MiB",
    ],
    rows.map(({ name, longest, ran, rate }) => [
      ...[name, whole(longest), `${(longest / first.longest).toFixed(1)} x`, ran.seconds.toFixed(2)],
      ...[whole(Math.round(rate)), (ran.device / 2 ** 20).toFixed(0), (ran.host / 2 ** 20).toFixed(0)],
    ]),
  ),
  "",
  "![the longest sequence by setting](ablation_ranks.svg)",
].join("\n");
publish(text, values.write && `${values.write}.md`);
if (values.write)
  writeFileSync(
    `${values.write}.svg`,
    bars({
      title: `The longest sequence of ${many} ranks with ${values.gib} GiB each (56M Llama), tokens`,
      names: ["tokens"],
      groups: rows.map(({ name, longest }) => ({ label: name, values: [longest] })),
      format: whole,
    }),
  );
