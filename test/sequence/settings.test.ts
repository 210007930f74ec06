// Rows of memory settings in which every three values that can occur together do, of a Llama, and every two of each
// family: each gives the plain run's numbers. npm run test:full takes every three of each family.
import t from "tap";
import { full } from "../full.js";
import { coveringArray, product, uncovered } from "./covering.js";
import { admissible, describe, factors, plainSetting, type Setting, Settings, tiny, usual } from "./settings.js";

const strength = 3;
const { family: families, ...memory } = factors;
// A table of the same shape with fewer values.
const ofLlama = { ...memory, family: ["llama"] } as unknown as typeof factors;
const everyThree: Setting[] = coveringArray(full ? factors : ofLlama, admissible, strength);
const everyTwo: Setting[] = coveringArray(factors, admissible, 2);
const rows = [...everyThree, ...everyTwo];

t.test("the rows cover what they must", async (t) => {
  t.ok(rows.length >= 60, `${rows.length} rows`);
  t.ok(rows.every(admissible), "no row that contradicts itself");
  t.same(uncovered(factors, admissible, rows, 2), [], "every pair of values");
  t.same(uncovered(full ? factors : ofLlama, admissible, rows, strength), [], `every ${strength} values`);
  t.same(coveringArray(ofLlama, admissible, 2), coveringArray(ofLlama, admissible, 2), "the same rows every time");
  for (const family of families)
    t.ok(
      rows.some((row) => row.family === family),
      family,
    );
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
  for (const [sizes, some] of [
    [usual, everyTwo],
    [tiny, everyThree],
  ] as const) {
    const settings = new Settings(sizes);
    for (const row of some) t.same(await settings.check(row), [], describe(row));
    settings.dispose();
    for (const tier of ["device", "host", "disk"] as const)
      t.equal(settings.device.memory(tier).live, 0, `${tier} is empty`);
  }
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
    family: "llama",
  } as const;
  const settings = new Settings(tiny, 1);
  for (let i = 0; i < 30; i++) t.same(await settings.check(row), [], `run ${i + 1}`);
  settings.dispose();
});
