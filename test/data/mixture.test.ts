// Mixtures of data.train: shares by weights, passes by epochs, the same for every way to take them, exact from any cursor.

import path from "node:path";
import t, { type Test } from "tap";
import { DataLoader, type DataOptions, type Dataset } from "../../lib/data/index.js";
import { ConfigError, DataError } from "../../lib/errors.js";
import { fresh, open, rejection, write } from "./helpers.js";

/** Files a, b, ... of so many rows; the rows of the first say 1000, 1001, ..., of the second 2000, ... */
function files(t: Test, counts: number[], length = 4): { directory: string; paths: string[] } {
  const directory = fresh(t);
  const paths = counts.map((count, f) =>
    write(
      directory,
      `${"abc"[f]}.jsonl`,
      Array.from({ length: count }, (_, i) => ({ input_ids: Array(length).fill(1000 * (f + 1) + i) })),
    ),
  );
  return { directory, paths };
}

/** What each sequence of an epoch begins with, one document a sequence. */
async function epochOf(data: Dataset, epoch: number): Promise<number[]> {
  const { sequences } = data.plan(epoch);
  const all = Array.from({ length: sequences }, (_, i) => data.sequence(epoch, i));
  return (await Promise.all(all)).map(({ inputIds }) => inputIds[0] as number);
}

const count = (list: number[], of: number) => list.filter((id) => Math.floor(id / 1000) === of).length;

t.test("epochs: so many passes an epoch; a fraction goes on where the last epoch ended", async (t) => {
  const { directory, paths } = files(t, [4, 3, 2]);
  const [a, b, c] = paths as [string, string, string];
  const entries = [{ path: a, epochs: 0.5 }, b, { path: c, epochs: 3 }];
  for (const shuffle of [false, true]) {
    const data = await open(directory, { files: entries, shuffle, seed: 3 });
    const epochs = await Promise.all([0, 1, 2, 3].map((epoch) => epochOf(data, epoch)));
    for (const epoch of epochs) {
      t.same(
        [1, 2, 3].map((of) => count(epoch, of)),
        [2, 3, 6],
      );
      for (const id of [2000, 2001, 2002]) t.equal(epoch.filter((one) => one === id).length, 1);
      for (const id of [3000, 3001]) t.equal(epoch.filter((one) => one === id).length, 3);
    }
    for (const pair of [epochs.slice(0, 2), epochs.slice(2)])
      t.same(
        pair
          .flat()
          .filter((id) => id < 2000)
          .sort(),
        [1000, 1001, 1002, 1003],
        "two halves are a whole pass",
      );
    if (!shuffle) t.same(epochs[1], [1002, 1003, 2000, 2001, 2002, 3000, 3001, 3000, 3001, 3000, 3001]);
    else t.notSame(epochs[0], epochs[1]);
    await data.close();
  }
});

t.test("epochs of 1 are the plain data, bit for bit", async (t) => {
  const { directory, paths } = files(t, [5, 6]);
  const options = { shuffle: true, packing: true, sequenceLength: 10 };
  const [plain, told] = await Promise.all([
    open(directory, { files: paths, ...options }),
    open(directory, { files: paths.map((path) => ({ path, epochs: 1 })), ...options }),
  ]);
  t.equal(told.fingerprint, plain.fingerprint);
  t.equal(told.mixture, null);
  t.same(await epochOf(told, 2), await epochOf(plain, 2));
  await Promise.all([plain.close(), told.close()]);
});

t.test(
  "weights: tokens stand to each other as they do, and an epoch ends with the first entry that is through",
  async (t) => {
    const directory = fresh(t);
    const rows = (count: number, length: number, from: number) =>
      Array.from({ length: count }, (_, i) => ({ input_ids: Array(length).fill(from + i) }));
    const a = write(directory, "a.jsonl", rows(60, 10, 1000));
    const b = write(directory, "b.jsonl", rows(40, 30, 2000));
    const entries = [
      { path: a, weight: 3 },
      { path: b, weight: 1 },
    ];
    // 600 and 1,200 tokens: with 3 to 1, a pass over a takes 200 tokens of b, 6 and 2/3 rows.
    for (const shuffle of [false, true]) {
      const data = await open(directory, { files: entries, shuffle });
      const epochs = await Promise.all([0, 1, 2, 3, 4, 5].map((epoch) => epochOf(data, epoch)));
      t.same(
        epochs.map((epoch) => [count(epoch, 1), count(epoch, 2)]),
        [
          [60, 6],
          [60, 7],
          [60, 7],
          [60, 6],
          [60, 7],
          [60, 7],
        ],
      );
      t.equal(new Set(epochs.flat().filter((id) => id >= 2000)).size, 40, "all of b has come after six epochs");
      if (!shuffle) {
        const [epoch] = epochs as [number[]];
        for (let i = 0; i + 11 <= epoch.length; i += 11) t.equal(count(epoch.slice(i, i + 11), 2), 1, "evenly spread");
      }
      t.equal(data.totalSequences(3), 66 + 67 + 67);
      await data.close();
    }
  },
);

t.test("the loader goes on exactly from every cursor, over epochs, packed and shuffled", async (t) => {
  const { directory, paths } = files(t, [7, 5, 9]);
  const entries = paths.map((path, i) => ({ path, weight: i + 1 }));
  const data = await open(directory, { files: entries, shuffle: true, packing: true, sequenceLength: 12, seed: 9 });
  const all: string[] = [];
  const cursors = [];
  const loader = new DataLoader(data, { batchSize: 2, epochs: 5 });
  for (;;) {
    cursors.push(loader.cursor);
    const step = await loader.nextStep();
    if (step === null) break;
    all.push(step.micro.map(({ inputIds }) => [...inputIds].join()).join(";"));
  }
  t.equal(all.length, data.totalSteps(5, 2));
  for (const [i, cursor] of cursors.entries()) {
    const step = await new DataLoader(data, { batchSize: 2, epochs: 5, cursor }).nextStep();
    t.equal(step?.micro.map(({ inputIds }) => [...inputIds].join()).join(";"), all[i]);
  }
  // Shares of a step are the same sequences, whoever takes them.
  const shared = new DataLoader(data, { batchSize: 2, epochs: 5 });
  const second = await shared.nextStep(1, { index: 1, count: 2 });
  t.equal(second?.micro.map(({ inputIds }) => [...inputIds].join()).join(";"), all[0]?.split(";")[1]);
  await data.close();
});

t.test("a cursor is of the weights that it was made with", async (t) => {
  const { directory, paths } = files(t, [3, 3]);
  const [a, b] = paths as [string, string];
  const prints = await Promise.all(
    [
      [a, b],
      [
        { path: a, weight: 1 },
        { path: b, weight: 2 },
      ],
      [
        { path: a, weight: 1 },
        { path: b, weight: 3 },
      ],
      [{ path: a, epochs: 2 }, b],
    ].map(async (entries) => {
      const data = await open(directory, { files: entries });
      await data.close();
      return data.fingerprint;
    }),
  );
  t.equal(new Set(prints).size, prints.length);
});

t.test("mixtures that cannot be", async (t) => {
  const { directory, paths } = files(t, [3, 3]);
  const [a, b] = paths as [string, string];
  const empty = write(directory, "empty.jsonl", "");
  const cases: [entries: DataOptions["files"], kind: typeof ConfigError | typeof DataError, message: RegExp][] = [
    [[{ path: a, weight: 1 }, b], ConfigError, /data\.train: .*b\.jsonl has no weight, but other entries have/],
    [[{ path: a, weight: 1, epochs: 2 }], ConfigError, /a\.jsonl has a weight and a number of epochs/],
    [[{ path: a, weight: 0 }], ConfigError, /weight of .*a\.jsonl must be a number above 0, not 0/],
    [[{ path: a, epochs: 2 }, path.join(directory, "?.jsonl")], ConfigError, /a\.jsonl belongs to two entries/],
    [
      [
        { path: a, weight: 1 },
        { path: empty, weight: 1 },
      ],
      DataError,
      /empty\.jsonl has a weight of 1 and no usable rows/,
    ],
    [[{ path: a, epochs: 0.1 }], DataError, /an epoch would hold less than one row of .*a\.jsonl \(epochs: 0\.1\)/],
  ];
  for (const [entries, kind, message] of cases) {
    const error = await rejection(open(directory, { files: entries }));
    t.ok(error instanceof kind, message.source);
    t.match(error.message, message);
  }
});
