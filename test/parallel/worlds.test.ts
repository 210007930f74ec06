// Rows of worlds and memory settings in which every two values that can occur together do: each gives one rank's numbers.
import t from "tap";
import { coveringArray, uncovered } from "../sequence/covering.js";
import { admissible, describe, factors, Worlds } from "./worlds.js";

const rows = coveringArray(factors, admissible, 2);

t.test("the rows cover what they must", async (t) => {
  t.ok(rows.length >= 24, `${rows.length} rows`);
  t.same(uncovered(factors, admissible, rows, 2), []);
});

t.test(
  "loss, norm, gradients, parameters after five steps, and the bytes that meta foretold",
  { timeout: 0 },
  async (t) => {
    const worlds = new Worlds();
    for (const row of rows) t.same(await worlds.check(row), [], describe(row));
    worlds.dispose();
  },
);
