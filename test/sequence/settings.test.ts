// Rows of memory settings in which every three values that can occur together do: each gives the plain run's numbers.
import t from "tap";
import { coveringArray, product, uncovered } from "./covering.js";
import { admissible, describe, factors, plainSetting, Settings, tiny } from "./settings.js";

const strength = 3;
const rows = coveringArray(factors, admissible, strength);

t.test("the rows cover what they must", async (t) => {
  t.ok(rows.length >= 60, `${rows.length} rows`);
  t.ok(rows.every(admissible), "no row that contradicts itself");
  t.same(uncovered(factors, admissible, rows, 2), [], "every pair of values");
  t.same(uncovered(factors, admissible, rows, strength), [], `every ${strength} values`);
  t.same(coveringArray(factors, admissible, strength), rows, "the same rows every time");
  t.ok(uncovered(factors, admissible, rows.slice(0, 5), 2).length > 0, "a gap would be seen");

  const small = { a: [0, 1, 2], b: [0, 1], c: [0, 1] } as const;
  const never = ({ a, b }: { a?: number; b?: number }) => !(a === 2 && b === 1);
  const all = [...product(small, never)];
  t.equal(all.length, 10);
  t.same(uncovered(small, never, coveringArray(small, never), 2), []);
  t.ok(coveringArray(small, never).length < all.length);
  t.same(
    uncovered(small, never, [{ a: 0, b: 0, c: 0 }], 1),
    [{ a: 1 }, { a: 2 }, { b: 1 }, { c: 1 }],
    "what a row lacks",
  );
});

t.test("loss, norm, gradients, parameters after five steps, and live bytes", async (t) => {
  const settings = new Settings();
  for (const row of rows) t.same(await settings.check(row), [], describe(row));
  settings.dispose();
  for (const tier of ["device", "host", "disk"] as const)
    t.equal(settings.device.memory(tier).live, 0, `${tier} is empty`);
});

t.test("reads from the disk into memory that writes have just left, many times over", async (t) => {
  // A segment of two layers, then one layer with kept attention: their parts differ in size, so slots do not fit again.
  const row = {
    ...plainSetting,
    checkpointEvery: 2,
    keepAttention: true,
    offload: "disk",
    accumulation: 1,
    tied: false,
    packed: false,
  } as const;
  const settings = new Settings(tiny, 1);
  for (let i = 0; i < 30; i++) t.same(await settings.check(row), [], `run ${i + 1}`);
  settings.dispose();
});
