// Token losses of every family beside their logits, and what `evaluateLosses` makes of them by file and position.

import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { noGrad } from "../../lib/autograd/function.js";
import { openData } from "../../lib/data/index.js";
import { evaluateLosses } from "../../lib/eval/losses.js";
import { PositionLosses } from "../../lib/eval/positions.js";
import { type CausalLM, initModel, loadModel } from "../../lib/models/index.js";

const golden = join(import.meta.dirname, "../golden/models");
const folder = mkdtempSync(join(tmpdir(), "longseq-eval-"));
t.teardown(() => rmSync(folder, { recursive: true }));

/** -log softmax of a row at one place. */
function lossAt(row: Float64Array, target: number): number {
  const most = row.reduce((a, b) => Math.max(a, b));
  return most + Math.log(row.reduce((sum, value) => sum + Math.exp(value - most), 0)) - (row[target] as number);
}

/** Losses of the tokens behind the first, from the logits of a whole forward. */
async function plainLosses(model: CausalLM, ids: readonly number[]): Promise<number[]> {
  using logits = noGrad(() => model.forward({ inputIds: ids }));
  const values = Float64Array.from((await logits.data()) as Float32Array);
  const V = logits.shape[1] as number;
  return ids.slice(1).map((id, i) => lossAt(values.subarray(i * V, (i + 1) * V), id));
}

const close = (a: number, b: number, within = 2e-5) => Math.abs(a - b) <= within * Math.max(1, Math.abs(b));

for (const name of readdirSync(golden))
  t.test(`${name}: token losses are those of its logits`, async (t) => {
    using model = await loadModel(join(golden, name, "model"));
    const { live } = model.device.memory();
    const { vocabSize, maxPositionEmbeddings, learnedPositions } = model.config;
    const count = learnedPositions ? Math.min(17, maxPositionEmbeddings) : 17;
    const ids = Array.from({ length: count }, (_, i) => (i * 7 + 3) % vocabSize);
    const expected = await plainLosses(model, ids);
    for (const tileLoss of [0, 5]) {
      model.configureMemory({ tileLoss });
      using losses = model.tokenLosses({ inputIds: ids });
      t.equal(losses.dtype, "float64");
      const values = [...((await losses.data()) as Float64Array)];
      t.equal(values.pop(), 0, "the last token has no target");
      for (const [i, value] of values.entries())
        t.ok(close(value, expected[i] as number), `tile ${tileLoss}, token ${i}: ${value}, ${expected[i]}`);
    }
    using logits = noGrad(() => model.forward({ inputIds: ids }));
    using some = noGrad(() => model.forward({ inputIds: ids }, { rows: [4, 9] }));
    const V = logits.shape[1] as number;
    t.same(some.shape, [5, V]);
    const [all, part] = (await Promise.all([logits.data(), some.data()])) as [Float32Array, Float32Array];
    t.ok(part.every((value, i) => close(value, all[4 * V + i] as number)));
    for (const rows of [
      [3, 3],
      [-1, 2],
      [0, count + 1],
      [0.5, 2],
    ] as const)
      t.throws(() => model.forward({ inputIds: ids }, { rows }), { code: "ARGUMENT" });
    logits.dispose();
    some.dispose();
    t.equal(model.device.memory().live, live, "all memory is given back");
  });

t.test("buckets double from 128 on, or have a width", (t) => {
  const doubling = new PositionLosses();
  for (const position of [1, 127, 128, 255, 256, 511, 512, 5000]) doubling.add(position, position);
  t.same(
    doubling.positions().map(({ begin, end, tokens, loss }) => [begin, end, tokens, loss]),
    [
      [0, 128, 2, 64],
      [128, 256, 2, 191.5],
      [256, 512, 2, 383.5],
      [512, 1024, 1, 512],
      [4096, 8192, 1, 5000],
    ],
  );
  const even = new PositionLosses(100);
  for (const position of [1, 99, 100, 250]) even.add(position, 1);
  t.same(
    even.positions().map(({ begin, end, tokens }) => [begin, end, tokens]),
    [
      [0, 100, 2],
      [100, 200, 1],
      [200, 300, 1],
    ],
  );
  const some = new PositionLosses();
  for (const loss of [1, 2, 4]) some.add(1, loss);
  // Sample deviation sqrt(7/3), over sqrt(3).
  t.ok(close(some.total.standardError as number, Math.sqrt(7) / 3, 1e-12));
  t.ok(close(some.total.perplexity as number, Math.exp(7 / 3), 1e-12));
  t.match(new PositionLosses().total, { tokens: 0, loss: null, perplexity: null, standardError: null });
  some.add(2, Number.POSITIVE_INFINITY);
  t.match(some.total, { tokens: 4, loss: null, standardError: null });
  t.throws(() => new PositionLosses(0), { code: "ARGUMENT" });
  t.end();
});

const fields = {
  model_type: "llama",
  vocab_size: 50,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  max_position_embeddings: 64,
  initializer_range: 0.4,
};
const document = (length: number, seed: number) => Array.from({ length }, (_, i) => (i * i * seed + seed) % 50);
const write = (name: string, rows: object[]): string => {
  const file = join(folder, name);
  writeFileSync(file, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  return file;
};

for (const [what, more] of [
  ["plain positions", {}],
  ["positions that hang on the length", { rope_scaling: { rope_type: "dynamic", factor: 2 } }],
] as const)
  t.test(`by file and position, each document alone: ${what}`, async (t) => {
    using model = initModel({ ...fields, ...more }, { seed: 3 });
    // Two documents that share a batch, one that exceeds it, labels that leave some out, and one that is cut.
    const docs = [document(9, 3), document(20, 7), document(300, 11)];
    const masked = document(12, 5).map((id, i) => (i % 3 === 0 ? -100 : id));
    const a = write("a.jsonl", [{ input_ids: docs[0] }, { input_ids: docs[1] }]);
    const b = write("b.jsonl", [{ input_ids: document(12, 5), labels: masked }, { input_ids: docs[2] }]);
    const data = await openData({
      files: [a, b],
      sequenceLength: 200,
      overlong: "split",
      packing: false,
      shuffle: false,
      cacheDir: join(folder, "cache"),
    });
    const seen: number[] = [];
    const results = await evaluateLosses(model, data, {
      folder: "somewhere",
      sequenceLength: 200,
      bucket: 10,
      onProgress: ({ sequences, of }) => seen.push(sequences, of),
    });
    await data.close();
    t.same(seen, [1, 5, 2, 5, 3, 5, 4, 5, 5, 5]);
    const expected: { file: string; position: number; loss: number }[] = [];
    const add = async (file: string, ids: number[], labels: number[] = ids) => {
      for (const [i, loss] of (await plainLosses(model, ids)).entries())
        if (labels[i + 1] !== -100) expected.push({ file, position: i + 1, loss });
    };
    await add(a, docs[0] as number[]);
    await add(a, docs[1] as number[]);
    await add(b, document(12, 5), masked);
    await add(b, (docs[2] as number[]).slice(0, 200));
    await add(b, (docs[2] as number[]).slice(200));
    const mean = (list: typeof expected) => list.reduce((sum, { loss }) => sum + loss, 0) / list.length;
    t.equal(results.total.tokens, expected.length);
    t.ok(close(results.total.loss as number, mean(expected)));
    t.match(results, { version: 1, model: "somewhere", sequenceLength: 200, total: { documents: 4 } });
    for (const { file, documents, tokens, loss, positions } of results.files) {
      const own = expected.filter((one) => one.file === file);
      t.equal(documents, 2);
      t.equal(tokens, own.length);
      t.ok(close(loss as number, mean(own)));
      t.equal(
        positions.reduce((sum, one) => sum + one.tokens, 0),
        own.length,
      );
    }
    for (const { begin, end, tokens, loss } of results.positions) {
      const own = expected.filter(({ position }) => position >= begin && position < end);
      t.equal(end - begin, 10);
      t.equal(tokens, own.length);
      t.ok(close(loss as number, mean(own)), `bucket ${begin}: ${loss}, ${mean(own)}`);
    }
    const controller = new AbortController();
    controller.abort(new Error("enough"));
    await t.rejects(
      evaluateLosses(model, data, { folder: "", sequenceLength: null, signal: controller.signal }),
      /enough/,
    );
  });
