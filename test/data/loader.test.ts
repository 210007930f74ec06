// Sequences, batches, datasets and the loader: targets, positions, bounds, overlong rows, cursors and epochs.

import path from "node:path";
import t from "tap";
import { collate, DataLoader, type DataOptions, makeSequence, openData } from "../../lib/data/index.js";
import { ConfigError, DataError } from "../../lib/errors.js";
import { GOLDEN, open, openingError, rejection, write } from "./helpers.js";

const numbers = (from: number, count: number) => Array.from({ length: count }, (_, i) => from + i);
/** Rows of the given lengths; row r holds r * 100, r * 100 + 1, ... */
const rowsOf = (...lengths: number[]) => lengths.map((length, r) => ({ input_ids: numbers(r * 100, length) }));

t.test("targets are shifted inside each document, positions restart, bounds cover the sequence", async (t) => {
  const sequence = makeSequence([
    { inputIds: Int32Array.of(1, 2, 3), labels: null },
    { inputIds: Int32Array.of(4), labels: null },
    { inputIds: Int32Array.of(5, 6, 7), labels: Int32Array.of(5, -100, 9) },
  ]);
  t.same(sequence, {
    inputIds: Int32Array.of(1, 2, 3, 4, 5, 6, 7),
    targets: Int32Array.of(2, 3, -100, -100, -100, 9, -100),
    positions: BigInt64Array.of(0n, 1n, 2n, 0n, 0n, 1n, 2n),
    cuSeqlens: BigInt64Array.of(0n, 3n, 4n, 7n),
    tokens: 7,
    validTokens: 3,
  });
  const other = makeSequence([{ inputIds: Int32Array.of(8, 9), labels: null }]);
  t.same(collate([sequence, other]), {
    inputIds: Int32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9),
    targets: Int32Array.of(2, 3, -100, -100, -100, 9, -100, 9, -100),
    positions: BigInt64Array.of(0n, 1n, 2n, 0n, 0n, 1n, 2n, 0n, 1n),
    cuSeqlens: BigInt64Array.of(0n, 3n, 4n, 7n, 9n),
    tokens: 9,
    validTokens: 4,
    sequences: 2,
  });
  t.throws(() => collate([]), { name: "ArgumentError" });
  t.throws(
    () => makeSequence([{ inputIds: Int32Array.of(1, 2), labels: Int32Array.of(1) }]),
    /2 token ids but 1 labels/,
  );
});

t.test("no packing, no shuffle: a row a sequence, in the files' order", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", rowsOf(3, 5));
  write(directory, "b.jsonl", [{ input_ids: [7, 8, 9], labels: [-100, 8, -100] }]);
  const data = await open(directory, {});
  t.equal(data.documents, 3);
  t.equal(data.tokens, 11);
  t.equal(data.longest, 5);
  t.same(data.plan(0), data.plan(5));
  const batches = [];
  for await (const batch of new DataLoader(data, { batchSize: 2 })) batches.push(batch);
  t.same(
    batches.map(({ sequences, tokens, validTokens }) => [sequences, tokens, validTokens]),
    [
      [2, 8, 6],
      [1, 3, 1],
    ],
  );
  t.same(Array.from(batches[0]?.inputIds ?? []), [0, 1, 2, 100, 101, 102, 103, 104]);
  t.same(Array.from(batches[1]?.targets ?? []), [8, -100, -100]);
  await data.close();
});

t.test("overlong rows", async (t) => {
  const rows = [
    { input_ids: numbers(0, 10) },
    { input_ids: numbers(100, 25), labels: numbers(200, 25) },
    { input_ids: numbers(50, 4) },
  ];
  const raised = await openingError(t.testdir(), rows, { sequenceLength: 10, vocabSize: undefined });
  t.ok(raised instanceof DataError);
  t.match(
    raised.message,
    /rows\.jsonl:2: the row has 25 tokens, more than data\.sequence_length 10; raise data\.sequence_length, or set data\.overlong to truncate, split or drop$/,
  );
  const two = await openingError(t.testdir(), [...rows, { input_ids: numbers(0, 40) }], {
    sequenceLength: 10,
    vocabSize: undefined,
  });
  t.match(two.message, /:2: the row has 25 tokens.* \(2 rows are overlong, the longest of 40\)/);

  const directory = t.testdir();
  write(directory, "rows.jsonl", rows);
  const show = async (options: Partial<DataOptions>) => {
    const data = await open(directory, { sequenceLength: 10, ...options });
    const sequences = [];
    for (let i = 0; i < data.plan(0).sequences; i++) {
      const { inputIds, targets } = await data.sequence(0, i);
      sequences.push([inputIds.length, inputIds[0], targets.at(-2), targets.at(-1)]);
    }
    await data.close();
    return { sequences, dropped: data.dropped, tokens: data.tokens, warnings: data.warnings };
  };
  t.same(await show({ overlong: "truncate" }), {
    sequences: [
      [10, 0, 9, -100],
      [10, 100, 209, -100],
      [4, 50, 53, -100],
    ],
    dropped: 0,
    tokens: 24,
    warnings: ["data.train: 1 of 3 rows have more than 10 tokens and were cut"],
  });
  t.same(await show({ overlong: "split" }), {
    sequences: [
      [10, 0, 9, -100],
      [10, 100, 209, -100],
      [10, 110, 219, -100],
      [5, 120, 224, -100],
      [4, 50, 53, -100],
    ],
    dropped: 0,
    tokens: 39,
    warnings: [],
  });
  t.same(await show({ overlong: "drop" }), {
    sequences: [
      [10, 0, 9, -100],
      [4, 50, 53, -100],
    ],
    dropped: 1,
    tokens: 14,
    warnings: ["data.train: 1 of 3 rows have more than 10 tokens and were dropped"],
  });
  const exact = await show({ sequenceLength: 25, overlong: "raise" });
  t.equal(exact.sequences.length, 3, "a row of exactly sequence_length is not overlong");
});

t.test("packing: whole documents, at most sequence_length, nothing lost", async (t) => {
  const directory = t.testdir();
  const lengths = numbers(0, 60).map((i) => 1 + ((i * 37) % 30));
  write(
    directory,
    "rows.jsonl",
    lengths.map((length, r) => ({ input_ids: Array(length).fill(r) })),
  );
  for (const overlong of ["raise", "split"] as const) {
    const sequenceLength = overlong === "raise" ? 32 : 12;
    const data = await open(directory, { packing: true, shuffle: true, seed: 1, overlong, sequenceLength });
    for (const epoch of [0, 1]) {
      const seen = new Array(60).fill(0);
      for (let i = 0; i < data.plan(epoch).sequences; i++) {
        const { inputIds, targets, positions, cuSeqlens, tokens } = await data.sequence(epoch, i);
        t.ok(tokens <= sequenceLength);
        t.equal(tokens, data.plan(epoch).tokens(i));
        t.equal(cuSeqlens.at(-1), BigInt(tokens));
        for (const id of inputIds) seen[id]++;
        for (let k = 0; k < tokens; k++) {
          const lastOfDocument = cuSeqlens.includes(BigInt(k + 1));
          if (targets[k] !== (lastOfDocument ? -100 : inputIds[k + 1])) t.fail("a target crosses documents");
          if (positions[k] !== 0n && positions[k] !== (positions[k - 1] as bigint) + 1n) t.fail("positions jump");
          if ((positions[k] === 0n) !== cuSeqlens.includes(BigInt(k))) t.fail("positions restart elsewhere");
        }
      }
      t.same(seen, lengths);
    }
    await data.close();
  }
});

t.test("rows without a valid label are kept, and told once", async (t) => {
  const directory = t.testdir();
  write(directory, "rows.jsonl", [
    { input_ids: [1, 2] },
    { input_ids: [1, 2, 3], labels: [-100, -100, -100] },
    { input_ids: [4] },
    { input_ids: [5, 6], labels: [5, -100] },
  ]);
  const told: string[] = [];
  const data = await open(directory, { onWarning: (message) => told.push(message) });
  t.equal(told.length, 1);
  t.match(told[0], /rows\.jsonl:2: the row has no valid label and adds nothing to the loss \(3 rows have none\)$/);
  t.same(data.warnings, told);
  const step = await new DataLoader(data, { batchSize: 4 }).nextStep(2);
  t.equal(step?.validTokens, 1);
  t.same(
    step?.micro.map(({ validTokens }) => validTokens),
    [1, 0],
  );
  await data.close();
});

t.test("epochs follow each other inside a batch, and cursors are exact", async (t) => {
  const directory = t.testdir();
  write(directory, "rows.jsonl", rowsOf(...numbers(0, 7).map((i) => 2 + (i % 3))));
  for (const packing of [false, true]) {
    const data = await open(directory, { packing, shuffle: true, seed: 5, sequenceLength: 6 });
    const perEpoch = [0, 1, 2].map((epoch) => data.plan(epoch).sequences);
    const total = perEpoch.reduce((a, b) => a + b, 0);
    t.equal(data.totalSequences(3), total);
    t.equal(data.totalSteps(3, 3), Math.ceil(total / 3));
    const all: { ids: number[]; cursor: object }[] = [];
    const loader = new DataLoader(data, { batchSize: 3, epochs: 3 });
    for (let step = await loader.nextStep(2); step !== null; step = await loader.nextStep(2)) {
      all.push({ ids: step.micro.flatMap(({ inputIds }) => Array.from(inputIds)), cursor: step.cursor });
      t.same(
        step.micro.map(({ sequences }) => sequences),
        step.sequences === 3 ? [2, 1] : step.sequences === 2 ? [2] : [1],
      );
      t.equal(
        step.tokens,
        step.micro.reduce((sum, { tokens }) => sum + tokens, 0),
      );
    }
    t.equal(all.length, data.totalSteps(3, 3));
    t.same(all.at(-1)?.cursor, { epoch: 3, sequence: 0 });
    const ordered: number[] = [];
    for (const [epoch, count] of perEpoch.entries()) {
      for (let i = 0; i < count; i++) ordered.push(...(await data.sequence(epoch, i)).inputIds);
    }
    t.same(
      all.flatMap(({ ids }) => ids),
      ordered,
      "the epochs' sequences laid end to end",
    );

    // From every cursor, through JSON, the rest is the same; also with another read-ahead, and by `at`.
    for (let k = 0; k + 1 < all.length; k++) {
      const cursor = JSON.parse(JSON.stringify(all[k]?.cursor));
      const rest = new DataLoader(data, { batchSize: 3, epochs: 3, cursor, prefetch: k % 3 });
      const next = await rest.nextBatch();
      t.same(Array.from(next?.inputIds ?? []), all[k + 1]?.ids);
      t.same(rest.cursor, all[k + 1]?.cursor);
      const again = await rest.at(cursor).nextBatch();
      t.same(again, next);
    }
    await data.close();
  }
});

t.test("the end: whole and fractional epochs, and no end", async (t) => {
  const directory = t.testdir();
  write(directory, "rows.jsonl", rowsOf(2, 2, 2, 2, 2));
  const data = await open(directory, {});
  const count = async (epochs: number | undefined, most = 100) => {
    const loader = new DataLoader(data, { batchSize: 2, epochs });
    const sizes = [];
    for await (const { sequences } of loader) if (sizes.push(sequences) === most) break;
    return sizes;
  };
  t.same(await count(undefined), [2, 2, 1], "one epoch");
  t.same(await count(2), [2, 2, 2, 2, 2]);
  t.same(await count(1.5), [2, 2, 2, 2], "5 + ceil(2.5) sequences");
  t.equal(data.totalSequences(1.5), 8);
  t.equal(data.totalSteps(1.5, 2), 4);
  t.same(await count(0.1), [1]);
  t.same(await count(Number.POSITIVE_INFINITY, 9), Array(9).fill(2));
  const loader = new DataLoader(data, { batchSize: 2, epochs: 2 });
  await loader.nextBatch();
  t.equal(loader.epochAt(loader.cursor), 0.4);
  for (const cursor of [
    { epoch: -1, sequence: 0 },
    { epoch: 0, sequence: 6 },
    { epoch: 0.5, sequence: 0 },
    { epoch: 0, sequence: Number.NaN },
  ]) {
    t.throws(() => new DataLoader(data, { batchSize: 1, cursor }), { name: "ArgumentError" });
  }
  t.same(new DataLoader(data, { batchSize: 1, cursor: { epoch: 0, sequence: 5 } }).cursor, { epoch: 1, sequence: 0 });
  for (const batchSize of [0, 1.5, Number.NaN])
    t.throws(() => new DataLoader(data, { batchSize }), { name: "ArgumentError" });
  t.throws(() => new DataLoader(data, { batchSize: 1, epochs: 0 }), { name: "ArgumentError" });
  await t.rejects(loader.nextStep(0), { name: "ArgumentError" });
  await t.rejects(data.sequence(0, 5), { name: "ArgumentError" });
  t.throws(() => data.plan(-1), { name: "ArgumentError" });
  t.throws(() => data.documentInfo(5), { name: "ArgumentError" });
  t.throws(() => data.totalSequences(Number.NaN), { name: "ArgumentError" });
  await data.close();
});

t.test("a fault while reading ahead comes when its batch is asked for", async (t) => {
  const directory = t.testdir();
  write(directory, "rows.jsonl", rowsOf(2, 2, 2));
  const data = await open(directory, {});
  const failing = Object.assign(Object.create(data), {
    plan: (epoch: number) => data.plan(epoch),
    sequence: (epoch: number, i: number) => (i === 2 ? Promise.reject(new Error("gone")) : data.sequence(epoch, i)),
  });
  const loader = new DataLoader(failing, { batchSize: 1, prefetch: 3 });
  t.equal((await loader.nextBatch())?.tokens, 2);
  t.equal((await loader.nextBatch())?.tokens, 2);
  t.match(await rejection(loader.nextBatch()), { message: "gone" });
  await data.close();
});

t.test("fingerprints tell datasets apart", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", rowsOf(3, 4));
  const seen = new Set<string>();
  for (const options of [
    {},
    { shuffle: true },
    { shuffle: true, seed: 1 },
    { packing: true },
    { sequenceLength: 65 },
    { overlong: "drop" as const },
  ]) {
    const data = await open(directory, options);
    seen.add(data.fingerprint);
    await data.close();
  }
  t.equal(seen.size, 6);
  write(directory, "a.jsonl", rowsOf(3, 5));
  seen.add((await open(directory, {})).fingerprint);
  t.equal(seen.size, 7);
});

t.test("samples in readable form", async (t) => {
  const directory = t.testdir();
  write(directory, "rows.jsonl", [{ prompt: "ab", completion: "c" }, { input_ids: [1, 300] }]);
  const data = await open(directory, { tokenizer: "bytes" });
  t.same(await data.describeSample(0), {
    sequence: 0,
    tokens: 5,
    validTokens: 2,
    documents: [
      {
        file: path.join(directory, "rows.jsonl"),
        line: 1,
        begin: 0,
        end: 5,
        tokens: [
          { id: 256, piece: "<|bos|>", label: -100, target: false },
          { id: 97, piece: "a", label: -100, target: false },
          { id: 98, piece: "b", label: -100, target: false },
          { id: 99, piece: "c", label: 99, target: true },
          { id: 257, piece: "<|eos|>", label: 257, target: true },
        ],
      },
    ],
  });
  t.same((await data.describeSample(1)).documents[0]?.tokens[1], { id: 300, piece: "<300>", label: 300, target: true });
  await data.close();
  const bare = await open(directory, { files: [write(directory, "ids.jsonl", [{ input_ids: [1, 2] }])] });
  t.equal((await bare.describeSample(0)).documents[0]?.tokens[0]?.piece, null);
  await bare.close();
  const chat = await open(directory, {
    files: [
      write(directory, "chat.jsonl", [
        {
          messages: [
            { role: "user", content: "Hi" },
            { role: "assistant", content: "Yo" },
          ],
        },
      ]),
    ],
    tokenizer: path.join(GOLDEN, "qwen2"),
  });
  const shown = (await chat.describeSample(0)).documents[0]?.tokens ?? [];
  t.equal(
    shown
      .filter(({ target }) => target)
      .map(({ piece }) => piece)
      .join(""),
    "Yo<|im_end|>",
  );
  await chat.close();
});

t.test("options that cannot be", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", rowsOf(3));
  const refuse = async (options: Partial<DataOptions>, message: RegExp) => {
    const error = await rejection(
      openData({ files: [path.join(directory, "a.jsonl")], sequenceLength: 8, cacheDir: directory, ...options }),
    );
    t.ok(error instanceof ConfigError, error.message);
    t.match(error.message, message);
  };
  await refuse({ sequenceLength: 1 }, /^data\.sequence_length must be an integer from 2 to 2147483647, not 1$/);
  await refuse({ sequenceLength: Number.NaN }, /^data\.sequence_length .*, not NaN$/);
  await refuse({ overlong: "cut" as "drop" }, /^data\.overlong must be raise, truncate, split or drop, not "cut"$/);
  await refuse({ seed: -1 }, /^train\.seed must be an integer from 0/);
  await refuse({ files: [path.join(directory, "*.txt")] }, /^data\.train: no file matches/);
  await refuse({ files: [path.join(directory, "b.jsonl")], key: "data.eval" }, /^data\.eval: there is no file/);
  await refuse({ tokenizer: "gpt5" }, /^data\.tokenizer: there is no file "gpt5"/);
});

t.test("many files, more than stay open at once", async (t) => {
  const directory = t.testdir();
  for (let f = 0; f < 90; f++) write(directory, `f${String(f).padStart(2, "0")}.jsonl`, [{ input_ids: [f, f] }]);
  const data = await open(directory, { workers: 2 });
  const ids: number[] = [];
  for await (const { inputIds } of new DataLoader(data, { batchSize: 30, prefetch: 3 })) ids.push(...inputIds);
  t.same(
    ids,
    numbers(0, 90).flatMap((f) => [f, f]),
  );
  t.same(data.documentInfo(89), { file: path.join(directory, "f89.jsonl"), line: 1, tokens: 2, validTokens: 1 });
  await data.close();
});
