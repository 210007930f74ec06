// The Trainer from TypeScript: the keys of the YAML file in camelCase, metrics as they come, Ctrl-C stops in good order.
//
//   npx tsx examples/trainer.ts TEXT_FILE...
//
// Each file becomes a document of bytes; run it again after Ctrl-C and it goes on.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { CancelledError, Trainer } from "longseq";

const files = process.argv.slice(2);
if (files.length === 0) files.push(new URL(import.meta.url).pathname);
mkdirSync("runs/example_data", { recursive: true });
writeFileSync(
  "runs/example_data/train.jsonl",
  files.map((file) => `${JSON.stringify({ text: readFileSync(file, "utf8") })}\n`).join(""),
);

const trainer = new Trainer({
  model: {
    init: {
      model_type: "qwen3",
      vocab_size: 259,
      hidden_size: 64,
      intermediate_size: 192,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 16,
      initializer_range: 0.1,
    },
  },
  data: { train: ["runs/example_data/train.jsonl"], tokenizer: "bytes", sequenceLength: "1K", overlong: "split" },
  train: { steps: 30, learningRate: 3e-3, warmupSteps: 5 },
  output: { dir: "runs/example" },
});

// Only the command line catches signals by itself.
const abort = new AbortController();
process.once("SIGINT", () => abort.abort());

try {
  for await (const item of trainer.run({ signal: abort.signal })) {
    if (item.event === undefined)
      console.log(`step ${item.step}: loss ${item.loss?.toFixed(4)}, ${Math.round(item.tokensPerSecond)} tokens/s`);
    else if (item.event === "done") console.log(item.message ?? `the model is in ${item.path}`);
  }
} catch (error) {
  if (!(error instanceof CancelledError)) throw error;
  console.log(error.message);
}
