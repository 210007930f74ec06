// What frozen base weights in 8 bits do to the loss and to the training of adapters: the table of docs/adapters.md.
//
//   npx tsx bench/base_formats.ts [--warm 400] [--train 100]
//
// A small model learns the bytes of this package's own sources. With each format it then gives the loss of text that it has
// not seen (adapters begin as nothing), and its adapters learn that of the documentation.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type AdapterConfig,
  type CausalLM,
  device,
  initModel,
  loadModel,
  nn,
  noGrad,
  optim,
  saveModel,
} from "../lib/index.js";
import { flags, table } from "./side_by_side.js";

const options = flags({ warm: 400, train: 100 });
const TOKENS = 512;
const root = new URL("..", import.meta.url).pathname;
const bytesOf = (folder: string, end: string): Buffer =>
  Buffer.concat(
    readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(end))
      .sort()
      .map((name) => readFileSync(join(root, folder, name))),
  );
const [sources, unseen, prose] = [bytesOf("lib", ".ts"), bytesOf("test/models", ".ts"), bytesOf("docs", ".md")];

const rowOf = (text: Buffer, index: number): { inputIds: Int32Array } => {
  const start = (index * TOKENS) % (text.length - TOKENS);
  return { inputIds: Int32Array.from(text.subarray(start, start + TOKENS)) };
};

async function learn(model: CausalLM, text: Buffer, steps: number, learningRate: number): Promise<number> {
  const trained = model.parameters().filter(({ requiresGrad }) => requiresGrad);
  const optimizer = new optim.AdamW(trained, { learningRate });
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const loss = model.loss(rowOf(text, step));
    loss.backward();
    nn.clipGradNorm(trained, 1).dispose();
    optimizer.step();
    optimizer.zeroGrad();
    losses.push(await loss.item());
    loss.dispose();
  }
  optimizer.dispose();
  return losses.slice(-20).reduce((sum, loss) => sum + loss, 0) / Math.min(20, losses.length);
}

async function lossOf(model: CausalLM, text: Buffer, rows: number): Promise<number> {
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    const loss = noGrad(() => model.loss(rowOf(text, row)));
    sum += await loss.item();
    loss.dispose();
  }
  return sum / rows;
}

const folder = mkdtempSync(join(tmpdir(), "longseq-base-formats-"));
try {
  const fields = {
    model_type: "llama",
    rms_norm_eps: 1e-5,
    max_position_embeddings: 65_536,
    vocab_size: 256,
    hidden_size: 128,
    num_hidden_layers: 6,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    intermediate_size: 344,
  };
  const base = initModel(fields, { device: "cpu", dtype: "float32", seed: 1 });
  const reached = await learn(base, sources, options.warm, 2e-3);
  await saveModel(base, join(folder, "base"));
  base.dispose();
  console.log(
    `H 128, 6 layers, bytes; ${options.warm} steps of T = ${TOKENS} on its sources (loss ${reached.toFixed(3)})\n`,
  );
  const rows: string[][] = [];
  let native: [number, number] | undefined;
  for (const baseFormat of [null, "int8", "float8"] as const) {
    const adapter: AdapterConfig = {
      rank: 8,
      alpha: 16,
      targetModules: "all-linear",
      modulesToSave: [],
      dropout: 0,
      rslora: false,
      init: true,
      path: null,
      baseFormat,
      file: "adapter",
    };
    const before = device("cpu").memory().live;
    const model = await loadModel(join(folder, "base"), {
      dtype: "float32",
      adapter,
      seed: 1,
      memory: { checkpointEvery: 1 },
    });
    const bytes = device("cpu").memory().live - before;
    const found: [number, number] = [await lossOf(model, unseen, 40), await learn(model, prose, options.train, 2e-3)];
    native ??= found;
    const off = (i: 0 | 1): string => `${((100 * found[i]) / (native as [number, number])[i] - 100).toFixed(3)}%`;
    rows.push([
      baseFormat ?? "native",
      (bytes / 1e6).toFixed(2),
      found[0].toFixed(4),
      off(0),
      found[1].toFixed(4),
      off(1),
    ]);
    model.dispose();
  }
  const heads = ["format", "MB, adapters included", "loss of unseen text", "", "of adapters' last 20 steps", ""];
  console.log(table(heads, rows));
} finally {
  rmSync(folder, { recursive: true, force: true });
}
