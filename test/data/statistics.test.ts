// Statistics of a dataset: counted by hand for small ones, and as they are printed.

import t from "tap";
import { statisticsLines } from "../../lib/cli/data_stats.js";
import { statisticsOf } from "../../lib/data/index.js";
import { fresh, open, write } from "./helpers.js";

const row = (length: number, masked = 0) => {
  const input_ids = Array.from({ length }, (_, i) => i);
  return { input_ids, labels: input_ids.map((id, i) => (i < masked ? -100 : id)) };
};

t.test("rows, tokens, lengths, what is lost and how full sequences are", async (t) => {
  const directory = fresh(t);
  const files = [
    write(directory, "a.jsonl", [row(4), row(4, 2), row(3)]),
    write(directory, "b.jsonl", [row(1), row(20), row(9, 9)]),
  ];
  const expected = {
    raise: { lost: 0, tokens: 41 },
    truncate: { lost: 13, tokens: 28 },
    split: { lost: 0, tokens: 41 },
    drop: { lost: 29, tokens: 12 },
  };
  for (const overlong of ["raise", "truncate", "split", "drop"] as const) {
    const options = {
      files,
      packing: true,
      sequenceLength: 8,
      overlong: overlong === "raise" ? "split" : overlong,
    } as const;
    const data = await open(directory, options);
    const found = statisticsOf(data, overlong, 4);
    t.equal(found.rows, 6);
    t.equal(found.tokens, 41);
    t.equal(found.trainedTokens, 3 + 2 + 2 + 0 + 19 + 0);
    t.equal(found.unlabelledRows, 2);
    t.same(
      found.sources.map(({ rows, tokens, trainedTokens, longest }) => [rows, tokens, trainedTokens, longest]),
      [
        [3, 11, 7, 4],
        [3, 30, 19, 20],
      ],
    );
    t.same(
      found.lengths.map(({ from, to, rows, tokens }) => [from, to, rows, tokens]),
      [
        [1, 1, 1, 1],
        [2, 3, 1, 3],
        [4, 7, 2, 8],
        [8, 15, 1, 9],
        [16, 31, 1, 20],
      ],
    );
    t.equal(found.median, 4);
    t.equal(found.overlongRows, 2);
    t.equal(found.lostTokens, expected[overlong].lost, overlong);
    t.equal(found.sequences, data.plan(0).sequences);
    t.equal(found.sequenceTokens, expected[overlong].tokens, overlong);
    t.equal(found.filled, found.sequenceTokens / (8 * found.sequences));
    t.equal(found.stepsPerEpoch, Math.ceil(found.sequences / 4));
    const lines = statisticsLines(found, overlong, 8);
    t.equal(lines[0], "6 rows, 41 tokens, of which 63.4% count in the loss");
    t.match(lines.join("\n"), /2 rows have more than 8 tokens: .*data\.overlong/);
    t.match(lines.join("\n"), / {2}4 to 7 +2 {2}#{40}\n {2}8 to 15 +1 {2}#{20}\n/);
    await data.close();
  }
});

t.test("passes of a mixture", async (t) => {
  const directory = fresh(t);
  const [a, b] = [write(directory, "a.jsonl", [row(4), row(4)]), write(directory, "b.jsonl", [row(8), row(8)])];
  const files = [
    { path: a, weight: 1 },
    { path: b, weight: 1 },
  ];
  const data = await open(directory, { files });
  const found = statisticsOf(data, "raise", 1);
  t.same(found.passes, [1, 0.5]);
  t.equal(found.sequenceTokens, 16);
  await data.close();
});
