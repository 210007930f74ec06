// The fields beside input_ids: each is honoured as the tool that writes it means it, or refused with its place.

import fs from "node:fs";
import path from "node:path";
import t from "tap";
import { type Batch, DataLoader, type DataOptions } from "../../lib/data/index.js";
import { parseRow } from "../../lib/data/rows.js";
import { DataError } from "../../lib/errors.js";
import { loadModel } from "../../lib/models/index.js";
import { figures, run, tiny } from "../train/helpers.js";
import { GOLDEN, open, openingError, write } from "./helpers.js";

/** What a row of these fields is trained on. */
function parsed(fields: object): { ids: number[]; labels: number[] | null; parts: number[] | null } {
  const { row } = parseRow(Buffer.from(JSON.stringify(fields)), "f", 1, 64);
  if (row.kind !== "tokens") throw new Error(`a row of kind ${row.kind}`);
  const list = (values: Int32Array | null) => (values === null ? null : Array.from(values));
  return { ids: Array.from(row.inputIds), labels: list(row.labels), parts: list(row.parts) };
}

const ids = [10, 11, 12, 13, 14];

t.test("each field's meaning", async (t) => {
  const cases: [name: string, fields: object, labels: number[] | null, parts: number[] | null][] = [
    ["one document by its positions", { position_ids: [0, 1, 2, 3, 4] }, null, null],
    ["a position of 0 begins a document", { position_ids: [0, 1, 0, 0, 1] }, null, [2, 1, 2]],
    ["lengths (TRL)", { seq_lengths: [3, 2] }, null, [3, 2]],
    ["lengths (ArcticTraining)", { packed_sample_seqlens: [3, 2], position_ids: [0, 1, 2, 0, 1] }, null, [3, 2]],
    ["one length", { seq_lengths: [5] }, null, null],
    ["a mask of ones", { attention_mask: [1, 1, 1, 1, 1], loss_mask: [1, 1, 1, 1, 1] }, null, null],
    ["no types but 0", { token_type_ids: [0, 0, 0, 0, 0] }, null, null],
    ["completion_mask", { completion_mask: [0, 0, 1, 1, 1] }, [-100, -100, 12, 13, 14], null],
    ["booleans", { assistant_masks: [false, true, true, false, true] }, [-100, 11, 12, -100, 14], null],
    ["loss_mask", { loss_mask: [1, 1, 0, 1, 1] }, [10, 11, -100, 13, 14], null],
    [
      "of several masks all must say 1",
      { loss_mask: [1, 1, 0, 1, 1], completion_mask: [0, 1, 1, 1, 1], assistant_masks: [1, 1, 1, 1, 0] },
      [-100, 11, -100, 13, -100],
      null,
    ],
    [
      "a mask beside labels",
      { labels: [-100, 20, 21, -100, 23], loss_mask: [1, 0, 1, 1, 1] },
      [-100, -100, 21, -100, 23],
      null,
    ],
    ["a row without a target", { loss_mask: [0, 0, 0, 0, 0] }, [-100, -100, -100, -100, -100], null],
  ];
  for (const [name, fields, labels, parts] of cases)
    t.same(parsed({ input_ids: ids, ...fields }), { ids, labels, parts }, name);
  const nulls = ["labels", "attention_mask", "position_ids", "seq_lengths", "packed_sample_seqlens", "loss_mask"];
  nulls.push("completion_mask", "assistant_masks", "token_type_ids", "text", "messages", "prompt", "completion");
  const absent = Object.fromEntries(nulls.map((key) => [key, null]));
  t.same(parsed({ ...absent, input_ids: ids }), { ids, labels: null, parts: null }, "null is absent");
});

t.test("padding leaves the row with all that stands at it", async (t) => {
  const bare = { labels: [-100, 11, 12, 13, 14], position_ids: [0, 1, 2, 0, 1] };
  const expected = { ids, labels: [-100, 11, 12, 13, 14], parts: [3, 2] };
  t.same(parsed({ input_ids: ids, ...bare }), expected);
  const padded = (left: number, right: number, positions: number[]) => {
    const around = (value: number, of: number[]) => [...Array(left).fill(value), ...of, ...Array(right).fill(value)];
    return parsed({
      input_ids: around(0, ids),
      attention_mask: around(0, [1, 1, 1, 1, 1]),
      labels: around(7, bare.labels),
      loss_mask: around(1, [1, 1, 1, 1, 1]),
      position_ids: positions,
    });
  };
  t.same(padded(2, 0, [1, 1, 0, 1, 2, 0, 1]), expected, "left, positions as transformers makes them for generation");
  t.same(padded(2, 0, [0, 1, 2, 3, 4, 0, 1]), expected, "left, positions that count the padding");
  t.same(padded(0, 3, [0, 1, 2, 0, 1, 2, 3, 4]), expected, "right, positions that go on");
  t.same(padded(1, 2, [0, 0, 1, 2, 0, 1, 0, 0]), expected, "both ends, positions of 0");
  t.same(padded(1, 1, [-1, 0, 1, 2, 0, 1, -1]), expected, "both ends, positions of -1");
  const foreign = { input_ids: [64, ...ids, -1], attention_mask: [0, 1, 1, 1, 1, 1, 0], labels: [-1, ...ids, 99] };
  t.same(parsed(foreign), { ids, labels: ids, parts: null }, "a padding token that is none of the model's");
  const lengths = parsed({ input_ids: [0, ...ids], attention_mask: [0, 1, 1, 1, 1, 1], seq_lengths: [1, 4] });
  t.same(lengths, { ids, labels: null, parts: [1, 4] });
});

t.test("what cannot be honoured is refused", async (t) => {
  const both = "positions count up by one, and begin at 0 again where a document begins";
  const cases: [fields: object, message: string][] = [
    [{ attention_mask: [1, 1] }, '"attention_mask" has 2 values but "input_ids" has 5; they must align one to one'],
    [{ attention_mask: 1 }, '"attention_mask" must be a list of 0 and 1, not 1'],
    [{ attention_mask: [[1, 1, 1, 1, 1]] }, '"attention_mask"[0] is a list, not 0 or 1 (one row is one flat list)'],
    [
      { attention_mask: [1, 1, 2, 2, 3] },
      '"attention_mask"[2] is 2, not 0 or 1; documents that share a row are told by position_ids or seq_lengths',
    ],
    [{ attention_mask: [0, 0, 0, 0, 0] }, '"attention_mask" is all 0: the row has no token'],
    [
      { attention_mask: [0, 1, 1, 0, 1] },
      '"attention_mask"[3] is 0 between tokens that count; padding stands at the row\'s ends only (loss_mask keeps a token out of the loss alone)',
    ],
    [{ position_ids: [1, 2, 3, 4, 5] }, '"position_ids"[0] is 1; a row\'s first token has position 0'],
    [{ position_ids: [0, 1, 3, 4, 5] }, `"position_ids"[2] is 3 after 1; ${both}`],
    [{ position_ids: [0, 1, 2, 2, 3] }, `"position_ids"[3] is 2 after 2; ${both}`],
    [{ position_ids: [0, 1, 0, 2, 3] }, `"position_ids"[3] is 2 after 0; ${both}`],
    [{ position_ids: [0, 1, -1, 0, 1] }, `"position_ids"[2] is -1 after 1; ${both}`],
    [{ position_ids: [0, 1, 2 ** 31, 0, 1] }, '"position_ids"[2] is 2147483648; a position lies below 2^31'],
    [{ position_ids: [0, 1, 2.5, 0, 1] }, '"position_ids"[2] is 2.5, not an integer'],
    [{ position_ids: [[0, 1, 2, 3, 4]] }, '"position_ids"[0] is a list, not an integer (one row is one flat list)'],
    [
      { attention_mask: [0, 0, 1, 1, 1], position_ids: [0, 0, 1, 2, 3] },
      '"position_ids"[2] is 1; a row\'s first token has position 0',
    ],
    [{ seq_lengths: [2, 2] }, '"seq_lengths" add up to 4, but the row has 5 tokens (padding is not counted)'],
    [{ seq_lengths: [5, 0] }, '"seq_lengths"[1] is 0; a document has 1 to 5 of the row\'s 5 tokens'],
    [{ seq_lengths: 5 }, '"seq_lengths" must be a list of integers, not 5'],
    [
      { seq_lengths: [2, 3], position_ids: [0, 1, 2, 0, 1] },
      '"seq_lengths"[0] is 2, but by "position_ids" that document has 3 tokens; keep the right one of the two',
    ],
    [
      { seq_lengths: [2, 3], packed_sample_seqlens: [5] },
      '"packed_sample_seqlens"[0] is 5, but by "seq_lengths" that document has 2 tokens; keep the right one of the two',
    ],
    [{ loss_mask: [1, 1, 0.5, 1, 1] }, '"loss_mask"[2] is 0.5, not 0 or 1'],
    [{ completion_mask: [1, 1, null, 1, 1] }, '"completion_mask"[2] is null, not 0 or 1'],
    [{ assistant_masks: ["1"] }, '"assistant_masks"[0] is "1", not 0 or 1'],
    [{ assistant_masks: [] }, '"assistant_masks" has 0 values but "input_ids" has 5; they must align one to one'],
    [{ token_type_ids: [0, 0, 0, 1, 1] }, '"token_type_ids"[3] is 1; the models here know one type of token, 0'],
  ];
  for (const [fields, message] of cases) {
    t.throws(() => parsed({ input_ids: ids, ...fields }), { constructor: DataError, message: `f:1: ${message}` });
  }
  for (const key of ["labels", "attention_mask", "position_ids", "seq_lengths", "completion_mask", "loss_mask"]) {
    const error = await openingError(t.testdir(), [{ text: "good" }, { text: "bad", [key]: [1, 1, 1] }]);
    t.match(error.message, `rows.jsonl:2: "${key}" goes with "input_ids" only; here the tokens are made from the text`);
  }
});

const numbers = (from: number, count: number) => Array.from({ length: count }, (_, i) => from + i);
const restarts = (...lengths: number[]) => lengths.flatMap((length) => numbers(0, length));

/** The batches of an epoch, all of them. */
async function batches(directory: string, options: Partial<DataOptions>, batchSize = 1): Promise<Batch[]> {
  const data = await open(directory, options);
  const all: Batch[] = [];
  for await (const batch of new DataLoader(data, { batchSize })) all.push(batch);
  await data.close();
  return all;
}

t.test("a packed row gives the batches of its documents packed", async (t) => {
  const lengths = [3, 1, 6, 4];
  const documents = lengths.map((length, i) => ({
    input_ids: numbers(10 * i, length),
    labels: numbers(10 * i, length).map((id, k) => (k % 3 === 1 ? -100 : id)),
  }));
  const one = {
    input_ids: documents.flatMap(({ input_ids }) => input_ids),
    labels: documents.flatMap(({ labels }) => labels),
  };
  const apart = t.testdir({ apart: {}, positions: {}, lengths: {}, padded: {} });
  write(apart, "apart/rows.jsonl", documents);
  write(apart, "positions/rows.jsonl", [{ ...one, position_ids: restarts(...lengths) }]);
  write(apart, "lengths/rows.jsonl", [{ ...one, seq_lengths: lengths }]);
  const pad = (value: number, of: number[]) => [value, value, ...of, value];
  write(apart, "padded/rows.jsonl", [
    {
      input_ids: pad(0, one.input_ids),
      labels: pad(0, one.labels),
      attention_mask: pad(
        0,
        one.labels.map(() => 1),
      ),
      position_ids: pad(1, restarts(...lengths)),
    },
  ]);
  const expected = await batches(path.join(apart, "apart"), { packing: true, sequenceLength: 14 });
  t.equal(expected.length, 1);
  t.same(Array.from(expected[0]?.cuSeqlens ?? []), [0n, 3n, 4n, 10n, 14n]);
  for (const name of ["positions", "lengths", "padded"]) {
    for (const packing of [false, true]) {
      const directory = path.join(apart, name);
      t.same(await batches(directory, { packing, sequenceLength: 14 }), expected, `${name}, packing ${packing}`);
      t.same(await batches(directory, { packing, sequenceLength: 14 }), expected, "from the cache");
    }
  }
});

t.test("packed rows among others: packing, workers, overlong rows, samples", async (t) => {
  const directory = t.testdir();
  const packed = (from: number, ...lengths: number[]) => ({
    input_ids: numbers(
      from,
      lengths.reduce((a, b) => a + b),
    ),
    position_ids: restarts(...lengths),
  });
  write(directory, "rows.jsonl", [
    { input_ids: [1, 2, 3] },
    packed(10, 2, 4, 3),
    packed(30, 12, 1, 5),
    packed(60, 1, 1),
  ]);
  const shape = ({ inputIds, cuSeqlens, validTokens }: Batch) => [
    Array.from(cuSeqlens.subarray(0, -1), (begin) => inputIds[Number(begin)]),
    Array.from(cuSeqlens, Number).at(-1),
    validTokens,
  ];
  const shapes = async (options: Partial<DataOptions>) => (await batches(directory, options)).map(shape);
  t.same(
    await shapes({}),
    [
      [[1], 3, 2],
      [[10, 12, 16], 9, 6],
      [[30, 42, 43], 18, 15],
      [[60, 61], 2, 0],
    ],
    "a row is a sequence of several documents",
  );
  t.same(
    await shapes({ packing: true, sequenceLength: 23 }),
    [
      [[1, 30, 42, 43, 60, 61], 23, 17],
      [[10, 12, 16], 9, 6],
    ],
    "packed with others it stays whole",
  );
  t.same(await shapes({ overlong: "drop", sequenceLength: 8 }), [
    [[1], 3, 2],
    [[60, 61], 2, 0],
  ]);
  t.same(
    await shapes({ overlong: "truncate", sequenceLength: 8 }),
    [
      [[1], 3, 2],
      [[10, 12, 16], 8, 5],
      [[30], 8, 7],
      [[60, 61], 2, 0],
    ],
    "cut in the middle of a document",
  );
  t.same(
    await shapes({ overlong: "split", sequenceLength: 8 }),
    [
      [[1], 3, 2],
      [[10, 12], 6, 4],
      [[16], 3, 2],
      [[30], 8, 7],
      [[38, 42], 5, 3],
      [[43], 5, 4],
      [[60, 61], 2, 0],
    ],
    "split between documents, inside one only where it is too long itself",
  );

  const told: string[] = [];
  const data = await open(directory, {
    workers: 2,
    cacheDir: path.join(directory, "other"),
    onWarning: (message) => told.push(message),
  });
  t.match(told, [/rows\.jsonl:4: the row has no valid label and adds nothing to the loss \(1 row has none\)$/]);
  t.equal(data.documents, 4);
  const sample = await data.describeSample(1);
  t.same(
    sample.documents.map(({ line, begin, end, tokens }) => [
      line,
      begin,
      end,
      tokens.map(({ target }) => Number(target)),
    ]),
    [
      [2, 0, 2, [0, 1]],
      [2, 2, 6, [0, 1, 1, 1]],
      [2, 6, 9, [0, 1, 1]],
    ],
  );
  t.equal(sample.validTokens, 6);
  await data.close();
  t.match(
    (await openingError(t.testdir(), [packed(0, 8, 8)], { sequenceLength: 10 })).message,
    /the row has 16 tokens/,
  );
});

t.test("training on packed and padded rows is training on their documents", async (t) => {
  const directory = t.testdir();
  const lengths = [
    [9, 4, 11],
    [5, 5, 14],
    [20, 3],
    [1, 2, 16, 4],
  ];
  const next = (i: number) => (i * 37 + 11) % 64;
  const rows = lengths.map((row, r) => row.map((length, d) => numbers(50 * r + 7 * d, length).map(next)));
  const mask = (ids: number[]) => ids.map((_, i) => Number(i % 5 !== 2));
  write(
    directory,
    "apart.jsonl",
    rows.flatMap((row) => row.map((input_ids) => ({ input_ids, loss_mask: mask(input_ids) }))),
  );
  const width = 32;
  const pad = (of: number[], value: number) => [...of, ...Array(width - of.length).fill(value)];
  write(
    directory,
    "packed.jsonl",
    rows.map((row, r) => ({
      input_ids: pad(row.flat(), 0),
      attention_mask: pad(
        row.flat().map(() => 1),
        0,
      ),
      loss_mask: pad(row.flatMap(mask), 1),
      position_ids: pad(restarts(...(lengths[r] as number[])), 0),
      length: width,
    })),
  );
  // The same documents in the same order make each step of both, and the evaluation.
  const file = (name: string) => path.join(directory, name);
  const settings = (batchSize: number, microBatchSize: number) => ({
    train: { steps: 3, warmupSteps: 0, batchSize, microBatchSize },
    data: { packing: false, shuffle: false, sequenceLength: width },
  });
  const trained = async (name: string, size: number) => {
    const { data, ...rest } = settings(size, size);
    const rows = file(`${name}.jsonl`);
    const { events } = await run(tiny(rows, file(name), { ...rest, data: { ...data, eval: [rows] } }));
    const warnings = events.filter((event) => event.event === "warning" && event.message.includes("no effect"));
    return { steps: figures(file(name)), evals: events.filter(({ event }) => event === "eval"), warnings };
  };
  const [apart, packed] = [await trained("apart", 12), await trained("packed", 4)];
  t.same(packed.steps, apart.steps);
  t.match(packed.evals[0], { event: "eval", loss: Number });
  t.same(packed.evals, apart.evals);
  t.same(apart.warnings, []);
  t.equal(packed.warnings.length, 1, "the evaluation's rows hold it too");
  t.match(packed.warnings, [
    { message: /^data\.train: the rows hold what has no effect here: "length" \(first at .*packed\.jsonl:1\)$/ },
  ]);
});

t.test("losses equal those of transformers for the same fields", async (t) => {
  interface Case {
    model: string;
    case: string;
    row: object;
    loss: number;
  }
  const cases = JSON.parse(fs.readFileSync(path.join(GOLDEN, "rows.json"), "utf8")) as Case[];
  const directory = t.testdir();
  for (const name of new Set(cases.map(({ model }) => model))) {
    const folder = path.join(GOLDEN, "..", "models", name, "model");
    const model = await loadModel(folder, { device: "cpu", dtype: "float32" });
    for (const { case: what, row, loss } of cases.filter(({ model }) => model === name)) {
      write(directory, "rows.jsonl", [row]);
      const [batch] = await batches(directory, {});
      const scalar = model.loss(batch as Batch);
      const ours = await scalar.item();
      scalar.dispose();
      t.ok(Math.abs(ours - loss) <= 2e-6 * loss, `${name}, ${what}: ${ours} and ${loss}`);
    }
    model.dispose();
  }
});
