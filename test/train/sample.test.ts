// Samples during a run: when they come, what they say, and that training does not notice them.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { loadModel } from "../../lib/models/index.js";
import type { RunItem } from "../../lib/report/events.js";
import { Trainer } from "../../lib/train/trainer.js";

const folder = mkdtempSync(join(tmpdir(), "longseq-sample-"));
t.teardown(() => rmSync(folder, { recursive: true }));
const data = join(folder, "train.jsonl");
writeFileSync(data, Array.from({ length: 8 }, (_, i) => `{"text": "row ${i} says nothing new"}\n`).join(""));

const config = (dir: string, train: object = {}, more: object = {}) => ({
  model: {
    init: {
      model_type: "llama",
      vocab_size: 259,
      hidden_size: 16,
      intermediate_size: 24,
      num_hidden_layers: 2,
      num_attention_heads: 2,
      max_position_embeddings: 128,
    },
  },
  data: { train: [data], sequenceLength: 64, tokenizer: "bytes" },
  train: { steps: 5, learningRate: 1e-2, ...train },
  output: { dir: join(folder, dir) },
  ...more,
});

async function run(options: ConstructorParameters<typeof Trainer>[0]): Promise<RunItem[]> {
  const items: RunItem[] = [];
  for await (const item of new Trainer(options).run()) items.push(item);
  return items;
}
const losses = (items: RunItem[]) => items.flatMap((item) => (item.event === undefined ? [item.loss] : []));

t.test("prompts are answered every so many steps and at the end", async (t) => {
  const plain = await run(config("plain"));
  const asked = await run(config("asked", { sampleEvery: 2, samplePrompts: ["row 1", "é"], sampleTokens: 7 }));
  t.same(losses(asked), losses(plain), "training does not notice");
  const samples = asked.flatMap((item) => (item.event === "sample" ? [item] : []));
  t.same(
    samples.map(({ step, prompt }) => [step, prompt]),
    [2, 4, 5].flatMap((step) => [
      [step, "row 1"],
      [step, "é"],
    ]),
  );
  // At the end they are the exported model's.
  using model = await loadModel(join(folder, "asked/model"));
  const ids: number[] = [];
  for await (const { id } of model.generate([256, ...Buffer.from("é")], { maxNewTokens: 7, stopIds: [257] }))
    ids.push(id);
  t.same(samples.at(-1)?.ids, ids);
  const lines = readFileSync(join(folder, "asked/metrics.jsonl"), "utf8").trimEnd().split("\n");
  const kept = lines.map((line) => JSON.parse(line)).filter(({ event }) => event === "sample");
  t.same(
    kept,
    samples.map(({ event, ...rest }) => ({ event, ...rest })),
  );
  // Live memory after the steps behind them is what it was.
  const live = (items: RunItem[]) => items.flatMap((item) => (item.event === undefined ? [item.deviceLiveBytes] : []));
  t.same(live(asked), live(plain));
});

t.test("where there is no memory for them the run goes on", async (t) => {
  const bytes = 2 ** 20;
  const items = await run(
    config(
      "tight",
      { sampleEvery: 5, samplePrompts: ["a"], sampleTokens: 1_000_000 },
      { memory: { deviceLimit: 8 * bytes } },
    ),
  );
  t.match(
    items.find((item) => item.event === "warning" && /no samples/.test(item.message)),
    { message: /^no samples after step 5: / },
  );
  t.equal(losses(items).length, 5);
});

t.test("what is refused", async (t) => {
  await t.rejects(run(config("a", { sampleEvery: 2 })), {
    code: "CONFIG",
    message: /samplePrompts: missing; give prompts/,
  });
  const ids = join(folder, "ids.jsonl");
  writeFileSync(ids, '{"input_ids": [1, 2, 3]}\n');
  await t.rejects(
    run(config("b", { sampleEvery: 2, samplePrompts: ["a"] }, { data: { train: [ids], sequenceLength: 64 } })),
    { code: "CONFIG", message: /there is no tokenizer; set data\.tokenizer/ },
  );
});
