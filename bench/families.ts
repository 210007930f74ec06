// What everything on does for each family of models: the same losses, the peak memory, and the longest sequence. A table and a
// picture.
//
//   npx tsx bench/families.ts [--tokens 2048] [--steps 6] [--mib 192] [--ranks 8] [--only NAME,NAME] [--write docs/families_memory]
//
// Small models of 4 layers in float32 on the CPU. Plain: one rank, no tiles, no checkpoints. All of it: two ranks (Ulysses, ZeRO
// 3), tiled MLP and loss, a checkpoint of every layer in host memory with attention kept, two head chunks, optimizer states in
// host memory. Lengths by `longseq plan`, whose peaks are those of a run to the byte.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { bars } from "./bars.js";
import { type JobSpec, longestOf, train } from "./jobs.js";
import { markdown, publish } from "./steps.js";

const { values } = parseArgs({
  options: {
    tokens: { type: "string", default: "2048" },
    steps: { type: "string", default: "6" },
    mib: { type: "string", default: "192" },
    ranks: { type: "string", default: "8" },
    only: { type: "string" },
    write: { type: "string" },
  },
});
const [tokens, steps, many] = [Number(values.tokens), Number(values.steps), Number(values.ranks)];
const whole = (value: number) => value.toLocaleString("en-US");

const experts = { num_experts_per_tok: 2, moe_intermediate_size: 256, intermediate_size: 256 };
const windows = { sliding_window: 512 };
const LEARNED = 8192;
/** Of families that know no others. */
const heads = { num_attention_heads: 16, num_key_value_heads: 16, head_dim: 16 };
const families: Record<string, Record<string, unknown>> = {
  llama: {},
  mistral: windows,
  ministral: {
    ...windows,
    layer_types: ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
  },
  qwen2: {},
  qwen3: {},
  mixtral: { num_local_experts: 4, num_experts_per_tok: 2, intermediate_size: 256 },
  qwen2_moe: { ...experts, num_experts: 4, shared_expert_intermediate_size: 256 },
  qwen3_moe: { ...experts, num_experts: 4 },
  // A row of weights for each position.
  gpt2: { ...heads, max_position_embeddings: LEARNED },
  gpt_neox: heads,
  phi3: { pad_token_id: 0 },
  olmo2: {},
  gemma2: { ...windows, query_pre_attn_scalar: 32 },
  gemma3_text: { ...windows, query_pre_attn_scalar: 32 },
};

const plain: Record<string, unknown> = {
  ...{ tile_mlp: "off", tile_loss: "off", head_chunks: 1, host_limit: "32GiB" },
  checkpoint: { every: 0, offload: "none" },
};
const everything: Record<string, unknown> = {
  ...{ tile_mlp: 512, tile_loss: 512, head_chunks: 2, host_limit: "32GiB" },
  checkpoint: { every: 1, keep_attention: true, offload: "host", device_bytes: 0 },
  offload: { optimizer: "host" },
};
const jobOf = (family: string, ranks: number, memory: Record<string, unknown>): JobSpec => ({
  init: {
    ...{ model_type: family, vocab_size: 2048, hidden_size: 256, intermediate_size: 704, num_hidden_layers: 4 },
    ...{ num_attention_heads: 16, num_key_value_heads: 8, head_dim: 32, max_position_embeddings: 1 << 22 },
    ...families[family],
  },
  ...{ tokens, ranks, memory, train: { steps } },
  threads: ranks > 1 ? 1 : 2,
  ...(ranks > 1 && { parallel: { ring: 1, zero: 3 } }),
});
const limited = (memory: Record<string, unknown>) => ({ ...memory, device_limit: `${values.mib}MiB` });
const free = (memory: Record<string, unknown>) => ({ ...memory, device_limit: "8GiB" });
const furthest = (one: readonly number[], other: readonly number[]): number =>
  Math.max(...one.map((value, i) => Math.abs(value / (other[i] as number) - 1)));

const rows = [];
for (const family of Object.keys(families)) {
  if (values.only && !values.only.split(",").includes(family)) continue;
  const base = train(jobOf(family, 1, free(plain)));
  const all = train(jobOf(family, 2, free(everything)));
  const longest = [];
  for (const [ranks, memory] of [
    [1, plain],
    [1, everything],
    [many, { ...everything, head_chunks: "auto" }],
  ] as const)
    longest.push((await longestOf(jobOf(family, ranks, limited(memory))))?.tokens ?? 0);
  const loss = furthest(all.losses, base.losses);
  const norm = furthest(all.norms, base.norms);
  if (family === "gpt2") for (const [i, length] of longest.entries()) longest[i] = Math.min(length, LEARNED);
  rows.push({ family, base, all, longest: longest as [number, number, number], loss, norm });
  console.error(`${family}: losses within ${loss.toExponential(1)}, ${longest.join(", ")} tokens`);
}
const text = [
  "# Every family with everything on",
  "",
  `Models of 4 layers (H 256, 16/8 heads of 32, vocabulary 2,048; experts: 4 of 256, 2 a token; windows of 512 where a family has them), float32, ` +
    `${steps} AdamW steps of ${whole(tokens)} tokens. Plain: one rank, no tiles, no checkpoints. All of it: two ranks (Ulysses, ZeRO 3), tiles of ` +
    `512 rows, checkpoints and the optimizer's states in host memory, attention kept, two head chunks. The longest sequences, by plan: of ` +
    `one rank and of ${many} with ${values.mib} MiB of device memory each. GPT-2's lengths end at the ${whole(LEARNED)} positions it has weights for. Made by \`npx tsx bench/families.ts --write docs/families_memory\`.`,
  "",
  markdown(
    [
      ...[
        "family",
        "losses differ by",
        "norms by",
        "peak, plain",
        "peak of a rank, all",
        "to plain",
        "seconds to plain",
      ],
      ...["longest, plain", "all, 1 rank", `all, ${many} ranks`, "to plain"],
    ],
    rows.map(({ family, base, all, longest: [one, same, spread], loss, norm }) => [
      ...[family, loss.toExponential(1), norm.toExponential(1), `${(base.device / 2 ** 20).toFixed(0)} MiB`],
      ...[`${(all.device / 2 ** 20).toFixed(0)} MiB`, (all.device / base.device).toFixed(2)],
      ...[(all.seconds / base.seconds).toFixed(2), whole(one), whole(same), whole(spread)],
      one > 0 ? `${(spread / one).toFixed(0)} x` : "",
    ]),
  ),
  "",
  "![the longest sequence by family](families_memory.svg)",
].join("\n");
publish(text, values.write && `${values.write}.md`);
if (values.write)
  writeFileSync(
    `${values.write}.svg`,
    bars({
      title: `The longest sequence of each family with ${values.mib} MiB a rank, tokens (by factors)`,
      names: ["plain", "all of it, 1 rank", `all of it, ${many} ranks`],
      groups: rows.map(({ family, longest }) => ({ label: family, values: longest })),
      format: whole,
      from: 100,
    }),
  );
