// What 8-bit checkpoints do to gradients and to training, beside native ones: the table of docs/checkpoint_formats.md.
//
//   npx tsx bench/checkpoint_formats.ts [--tokens 1024] [--warm 6] [--train 100]
//
// Two models learn the bytes of this package's own sources for some AdamW steps, so that activations are those of a model
// that was trained; then one batch's gradients are taken with each format. At last the small one learns from the start
// with each format.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type CausalLM, device, initModel, type MemoryOptions, nn, optim, type Parameter } from "../lib/index.js";
import { flags, table } from "./side_by_side.js";

const options = flags({ tokens: 1024, warm: 6, train: 100 });
const cpu = device("cpu");
const folder = new URL("../lib/", import.meta.url).pathname;
const text = Buffer.concat(
  readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .sort()
    .map((name) => readFileSync(join(folder, name))),
);

const common = { model_type: "llama", rms_norm_eps: 1e-5, max_position_embeddings: 65_536, vocab_size: 256 };
const small = {
  ...common,
  hidden_size: 128,
  num_hidden_layers: 6,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: 344,
};
/** The 56M Llama of the other benchmarks. */
const large = {
  ...common,
  hidden_size: 512,
  num_hidden_layers: 8,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  intermediate_size: 1408,
  vocab_size: 32_000,
};

const formats = ["native", "int8", "float8"] as const;
const memory = (format: (typeof formats)[number], keepAttention: boolean): MemoryOptions => ({
  checkpointEvery: 1,
  keepAttention,
  offload: "host",
  deviceBytes: 0,
  format,
  tileMlp: 1024,
  tileLoss: 1024,
});

const rowOf = (tokens: number, index: number): { inputIds: Int32Array } => {
  const start = (index * tokens) % (text.length - tokens);
  return { inputIds: Int32Array.from(text.subarray(start, start + tokens)) };
};

async function learn(model: CausalLM, tokens: number, steps: number): Promise<number[]> {
  const optimizer = new optim.AdamW([...new Set(model.parameters())], { learningRate: 2e-3 });
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const loss = model.loss(rowOf(tokens, step));
    loss.backward();
    nn.clipGradNorm(model.parameters(), 1).dispose();
    optimizer.step();
    optimizer.zeroGrad();
    losses.push(await loss.item());
    loss.dispose();
  }
  optimizer.dispose();
  return losses;
}

interface Gradients {
  loss: number;
  norm: number;
  byName: Map<string, Float32Array>;
  bytes: number;
}

async function gradients(model: CausalLM, tokens: number, setting: MemoryOptions): Promise<Gradients> {
  model.configureMemory(setting);
  for (const parameter of model.parameters()) {
    parameter.grad?.dispose();
    parameter.grad = null;
  }
  cpu.trim();
  cpu.resetPeaks();
  const root = model.loss(rowOf(tokens, 1000));
  root.backward();
  const loss = await root.item();
  root.dispose();
  const byName = new Map<string, Float32Array>();
  let squares = 0;
  for (const [name, parameter] of model.namedParameters() as Iterable<[string, Parameter]>) {
    if (parameter.grad === null) throw new Error(`${name} has no gradient`);
    const grad = ((await parameter.grad.data()) as Float32Array).slice();
    byName.set(name, grad);
    for (const value of grad) squares += value * value;
    parameter.grad.dispose();
    parameter.grad = null;
  }
  return { loss, norm: Math.sqrt(squares), byName, bytes: cpu.memory("host").categoryPeak.checkpoints ?? 0 };
}

/** Of all gradients: root mean square and largest difference, over the root mean square of the native one (the latter by
 * tensor), and the tensor whose error is the largest share of it, with that tensor's share of the gradient's norm. */
function errors(a: Gradients, native: Gradients): { rms: number; max: number; worst: number; where: string } {
  let difference = 0;
  let norm = 0;
  let max = 0;
  let worst = 0;
  let where = "";
  let whereSquares = 0;
  for (const [name, expected] of native.byName) {
    const got = a.byName.get(name) as Float32Array;
    let own = 0;
    let ownNorm = 0;
    let ownMax = 0;
    expected.forEach((value, i) => {
      const off = (got[i] as number) - value;
      own += off * off;
      ownNorm += value * value;
      ownMax = Math.max(ownMax, Math.abs(off));
    });
    difference += own;
    norm += ownNorm;
    max = Math.max(max, ownMax / Math.sqrt(ownNorm / expected.length));
    if (Math.sqrt(own / ownNorm) > worst) {
      worst = Math.sqrt(own / ownNorm);
      where = name.replace(/^model\./, "").replace(/\.weight$/, "");
      whereSquares = ownNorm;
    }
  }
  return {
    rms: Math.sqrt(difference / norm),
    max,
    worst,
    where: where && `${where} ${digits(Math.sqrt(whereSquares / norm))}`,
  };
}

const digits = (value: number): string => (value === 0 ? "0" : value.toExponential(1));

for (const [name, fields, tokens, warm] of [
  ["small (H 128, 6 layers)", small, 512, options.train],
  ["56M (H 512, 8 layers, V 32000)", large, options.tokens, options.warm],
] as const) {
  const model = await initModel(fields, { device: "cpu", dtype: "float32", seed: 1, memory: memory("native", true) });
  const losses = await learn(model, tokens, warm);
  const rows: string[][] = [];
  for (const keepAttention of [false, true]) {
    const native = await gradients(model, tokens, memory("native", keepAttention));
    for (const format of formats) {
      const got = format === "native" ? native : await gradients(model, tokens, memory(format, keepAttention));
      const { rms, max, worst, where } = errors(got, native);
      rows.push([
        format,
        keepAttention ? "yes" : "no",
        digits(Math.abs(got.loss / native.loss - 1)),
        digits(Math.abs(got.norm / native.norm - 1)),
        digits(rms),
        digits(worst),
        digits(max),
        where,
        String(Math.round(got.bytes / tokens)),
      ]);
    }
  }
  console.log(`\n${name}, T = ${tokens}, after ${warm} steps (loss ${losses.at(-1)?.toFixed(3)}), float32\n`);
  const heads = [
    "format",
    "attention kept",
    "loss",
    "gradient norm",
    "gradients, rms",
    "worst tensor, rms",
    "max",
    "worst tensor: share of the norm",
    "bytes a token",
  ];
  console.log(table(heads, rows));
  model.dispose();
}

console.log(`\nsmall, learning from the start with each format, ${options.train} steps of T = 512\n`);
const learned: string[][] = [];
let nativeLoss = 0;
for (const format of formats) {
  const model = await initModel(small, { device: "cpu", dtype: "float32", seed: 1, memory: memory(format, true) });
  const losses = await learn(model, 512, options.train);
  const last = losses.slice(-20).reduce((sum, value) => sum + value, 0) / Math.min(20, losses.length);
  if (format === "native") nativeLoss = last;
  learned.push([format, last.toFixed(4), digits(Math.abs(last / nativeLoss - 1))]);
  model.dispose();
}
console.log(table(["format", "mean loss of the last 20 steps", "relative difference"], learned));
