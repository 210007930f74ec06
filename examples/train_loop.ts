// A training loop written out: model, loader, loss, backward, clipping, optimizer.
//
//   npx tsx examples/train_loop.ts [MODEL_FOLDER ROWS.jsonl]
//
// Without arguments it trains a tiny random model on rows that it makes up.
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DataLoader, initModel, loadModel, nn, openData, optim, saveModel } from "longseq";

const [folder, rows] = process.argv.slice(2);
const work = mkdtempSync(join(tmpdir(), "longseq-example-"));

/** Counting in a circle: easy to learn. */
function makeRows(): string {
  const file = join(work, "rows.jsonl");
  const row = (start: number) => JSON.stringify({ input_ids: Array.from({ length: 64 }, (_, i) => (start + i) % 32) });
  writeFileSync(file, Array.from({ length: 32 }, (_, start) => `${row(start)}\n`).join(""));
  return file;
}

const model = folder
  ? await loadModel(folder, { device: "cpu", dtype: "float32" })
  : initModel({
      model_type: "llama",
      vocab_size: 32,
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 2,
      num_attention_heads: 4,
    });

const dataset = await openData({
  files: [rows ?? makeRows()],
  ...(folder ? { tokenizer: folder } : {}),
  sequenceLength: 256,
  overlong: "split",
  vocabSize: model.config.vocabSize,
  cacheDir: join(work, "cache"),
});
const loader = new DataLoader(dataset, { batchSize: 1, epochs: 4 });

const optimizer = new optim.AdamW(model.parameters(), { learningRate: 1e-3 });
for await (const batch of loader) {
  const loss = model.loss(batch);
  loss.backward();
  const norm = nn.clipGradNorm(model.parameters(), 1);
  optimizer.step();
  optimizer.zeroGrad();
  console.log(`loss ${(await loss.item()).toFixed(4)}  gradient norm ${(await norm.item()).toFixed(4)}`);
  loss.dispose();
  norm.dispose();
}

await saveModel(model, join(work, "model"));
console.log(`the model is in ${join(work, "model")}`);
await dataset.close();
