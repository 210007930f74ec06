// Whether everything on trains as plain training does: loss curves of several seeds over real text, and a task that cannot be
// learnt without looking back over a thousand tokens. A table and two pictures.
//
//   npx tsx bench/parity.ts [--seeds 5] [--steps 60] [--tokens 2048] [--copy-steps 400] [--copy 512] [--write docs/parity]
//
// Plain: one rank, no tiles, no checkpoints. All of it: two ranks (Ulysses, ZeRO 3), tiled MLP and loss, a checkpoint of every
// layer with attention kept, in host memory, two head chunks, optimizer states in host memory. The same float32 model.
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { stringify } from "yaml";
import { picture } from "./picture.js";
import { root } from "./side_by_side.js";
import { markdown, publish } from "./steps.js";

const { values } = parseArgs({
  options: {
    seeds: { type: "string", default: "5" },
    steps: { type: "string", default: "60" },
    tokens: { type: "string", default: "2048" },
    "copy-steps": { type: "string", default: "400" },
    copy: { type: "string", default: "512" },
    write: { type: "string" },
  },
});
const [seeds, steps, tokens] = [Number(values.seeds), Number(values.steps), Number(values.tokens)];
const [copySteps, copied] = [Number(values["copy-steps"]), Number(values.copy)];
const folder = mkdtempSync(join(tmpdir(), "longseq-parity-"));

const sides = {
  plain: { ranks: 1, memory: { tile_mlp: "off", tile_loss: "off", checkpoint: { every: 0, offload: "none" } } },
  "all of it": {
    ranks: 2,
    memory: {
      tile_mlp: 256,
      tile_loss: 256,
      head_chunks: 2,
      checkpoint: { every: 1, keep_attention: true, offload: "host", device_bytes: 0 },
      offload: { optimizer: "host" },
    },
  },
} as const;
type Side = keyof typeof sides;
const names = Object.keys(sides) as Side[];

interface Task {
  init: Record<string, unknown>;
  data: Record<string, unknown>;
  train: Record<string, unknown>;
}
interface Metrics {
  losses: number[];
  evaluations: [step: number, loss: number][];
  norms: number[];
}

function train(side: Side, seed: number, { init, data, train }: Task): Metrics {
  const { ranks, memory } = sides[side];
  const dir = join(folder, "run");
  rmSync(dir, { recursive: true, force: true });
  const path = join(folder, "config.yaml");
  const parallel = ranks > 1 ? { parallel: { sequence: ranks, ring: 1, zero: 3 } } : {};
  const output = { dir, save_every: 0 };
  writeFileSync(path, stringify({ model: { init }, data, train: { ...train, seed }, memory, ...parallel, output }));
  const words = [join(root, "bin/longseq.mjs"), "train", path, "--quiet", "--nproc", String(ranks)];
  const ended = spawnSync(process.execPath, words, { encoding: "utf8" });
  if (ended.status !== 0) throw new Error(`${side}, seed ${seed}: ${ended.stderr}`);
  const lines = readFileSync(join(dir, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, number | string | undefined>);
  const done = lines.filter(({ event }) => event === undefined);
  return {
    losses: done.map(({ loss }) => Number(loss)),
    norms: done.map(({ grad_norm: norm }) => Number(norm)),
    evaluations: lines.filter(({ event }) => event === "eval").map(({ step, loss }) => [Number(step), Number(loss)]),
  };
}

const mean = (all: readonly number[]): number => all.reduce((sum, one) => sum + one, 0) / all.length;
/** Half of the 95% confidence interval of the mean, by Student's t. */
function spread(all: readonly number[]): number {
  const t = [0, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228][all.length - 1] ?? 1.96;
  const middle = mean(all);
  const variance = all.reduce((sum, one) => sum + (one - middle) ** 2, 0) / (all.length - 1);
  return t * Math.sqrt(variance / all.length);
}

const text = join(root, "runs/demo_data/train.jsonl");
if (!existsSync(text)) throw new Error(`${text} is missing: run npm run demo first, or node scripts/demo_data.mjs`);
const vocabulary = 259;
const base = {
  ...{ model_type: "llama", vocab_size: vocabulary, hidden_size: 128, intermediate_size: 352, num_hidden_layers: 3 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 8192, initializer_range: 0.06 },
};
const prose: Task = {
  init: base,
  data: { train: [text], tokenizer: "bytes", sequence_length: tokens, overlong: "split" },
  train: { steps, learning_rate: 4e-3, warmup_steps: 5, schedule: "cosine", clip_grad_norm: 1 },
};

// A row is random symbols and then the same again; only the second half has labels. Who cannot look back `copied` tokens
// guesses: a loss of ln 64.
const SYMBOLS = 64;
function copyRows(count: number, seed: number): string {
  let state = seed;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) % SYMBOLS;
  };
  return Array.from({ length: count }, () => {
    const half = Array.from({ length: copied }, next);
    const row = { input_ids: [...half, ...half], labels: [...half.map(() => -100), ...half] };
    return `${JSON.stringify(row)}\n`;
  }).join("");
}
writeFileSync(join(folder, "copy.jsonl"), copyRows(4 * copySteps, 1));
writeFileSync(join(folder, "copy_eval.jsonl"), copyRows(8, 2));
const copy: Task = {
  init: { ...base, vocab_size: SYMBOLS, num_hidden_layers: 2 },
  data: { train: [join(folder, "copy.jsonl")], eval: [join(folder, "copy_eval.jsonl")], sequence_length: 2 * copied },
  train: {
    ...{ steps: copySteps, batch_size: 4, micro_batch_size: 1, eval_every: Math.floor(copySteps / 10) },
    ...{ learning_rate: 2e-3, warmup_steps: 20, schedule: "constant", clip_grad_norm: 1 },
  },
};

try {
  const runs = new Map<Side, Metrics[]>(names.map((name) => [name, []]));
  for (let seed = 0; seed < seeds; seed++)
    for (const side of names) {
      const found = train(side, seed, prose);
      runs.get(side)?.push(found);
      console.error(`seed ${seed}, ${side}: loss ${found.losses.at(-1)}`);
    }
  const of = (side: Side) => runs.get(side) as Metrics[];
  const at = (side: Side, step: number) => of(side).map(({ losses }) => losses[step] as number);
  const stepNumbers = Array.from({ length: steps }, (_, i) => i);
  const differences = (step: number) => at("all of it", step).map((loss, i) => loss - (at("plain", step)[i] as number));
  const curve = (name: string, valuesAt: (step: number) => number[]) => ({
    name,
    points: stepNumbers.map((step) => [step + 1, mean(valuesAt(step))] as const),
    band: stepNumbers.map((step) => {
      const [middle, half] = [mean(valuesAt(step)), spread(valuesAt(step))];
      return [step + 1, middle - half, middle + half] as const;
    }),
  });
  const copies = new Map(names.map((side) => [side, train(side, 0, copy)]));
  const svg = picture({
    title: `Loss over real text, ${seeds} seeds (mean, and its 95% interval)`,
    x: "step",
    formatX: String,
    formatY: (value) => value.toFixed(1),
    panels: names.map((side) => ({ title: side, lines: [curve(side, (step) => at(side, step))] })),
  });
  const most = Math.max(...stepNumbers.flatMap((step) => differences(step).map(Math.abs)), 1e-9);
  const differenceSvg = picture({
    title: "Loss of all of it less that of plain training, seed by seed (mean, and its 95% interval)",
    x: "step",
    formatX: String,
    formatY: (value) => value.toExponential(1),
    y: [-1.1 * most, 1.1 * most],
    panels: [{ title: "difference", lines: [curve("all of it - plain", differences)] }],
  });
  const copySvg = picture({
    title: `Copying ${copied} random symbols: held-out loss (guessing: ${Math.log(SYMBOLS).toFixed(2)})`,
    x: "step",
    formatX: String,
    formatY: (value) => value.toFixed(1),
    panels: [{ title: "", lines: names.map((name) => ({ name, points: copies.get(name)?.evaluations ?? [] })) }],
  });
  const last = steps - 1;
  const norms = names.map((side) => of(side).map(({ norms: all }) => all));
  const normDifference = Math.max(
    ...(norms[0] as number[][]).flatMap((all, seed) =>
      all.map((norm, step) => Math.abs((norms[1]?.[seed]?.[step] as number) / norm - 1)),
    ),
  );
  const lines = [
    "# Parity",
    "",
    "Plain training is one rank without tiles and checkpoints; all of it is two ranks (Ulysses, ZeRO 3), tiled MLP and loss, " +
      "checkpoints of every layer in host memory with attention kept, two head chunks, and optimizer states in host memory. " +
      `The same float32 Llama (hidden size 128) and the same data. Made by \`npx tsx bench/parity.ts --write docs/parity\`.`,
    "",
    `## Real text: ${tokens.toLocaleString("en-US")} tokens a sequence, ${steps} steps, ${seeds} seeds`,
    "",
    markdown(
      ["", ...names, "difference (95% interval)"],
      [
        ["loss of the first step", 0],
        ["loss of the last step", last],
      ].map(([what, step]) => [
        String(what),
        ...names.map(
          (side) => `${mean(at(side, step as number)).toFixed(6)} ± ${spread(at(side, step as number)).toFixed(6)}`,
        ),
        `${mean(differences(step as number)).toExponential(1)} ± ${spread(differences(step as number)).toExponential(1)}`,
      ]),
    ),
    "",
    `Over all steps and seeds the losses are at most ${most.toExponential(1)} apart, gradient norms ${normDifference.toExponential(1)} of themselves.`,
    "",
    "![loss curves](parity.svg)",
    "![their difference](parity_difference.svg)",
    "",
    `## Copying ${copied} random symbols out of ${SYMBOLS}`,
    "",
    `Rows are ${copied} random symbols and the same again, with labels in the second half alone: without attention over ${copied} tokens ` +
      `the loss stays at ln ${SYMBOLS} = ${Math.log(SYMBOLS).toFixed(3)}. Held-out rows, ${copySteps} steps of four.`,
    "",
    markdown(
      ["step", ...names],
      (copies.get("plain")?.evaluations ?? []).map(([step, loss], i) => [
        String(step),
        loss.toFixed(4),
        Number(copies.get("all of it")?.evaluations[i]?.[1]).toFixed(4),
      ]),
    ),
    "",
    "![held-out loss of copying](parity_copy.svg)",
  ];
  publish(lines.join("\n"), values.write && `${values.write}.md`);
  if (values.write) {
    writeFileSync(`${values.write}.svg`, svg);
    writeFileSync(`${values.write}_difference.svg`, differenceSvg);
    writeFileSync(`${values.write}_copy.svg`, copySvg);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
