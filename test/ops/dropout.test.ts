// dropout against Philox in JavaScript: which elements stay, by row number and column; layouts, dtypes, adding up.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, type Lie, opTests, refusesBadArguments, withBench } from "./helpers.js";
import { philox } from "./philox.js";
import type { Storage } from "./strided.js";

interface Options {
  rate?: number;
  seed?: number;
  stream?: number;
  first?: number;
  accumulate?: boolean;
  x?: Storage;
  y?: Storage;
  kind?: Lie;
  /** Numbers of the rows; default 5, 6, ... */
  numbers?: bigint[];
}

/** 0, or 1 / (1 - rate). */
function factor(number: bigint, column: number, { rate = 0.3, seed = 7, stream = 9 }: Options): number {
  const low = (x: bigint) => Number(BigInt.asUintN(32, x));
  const key = BigInt(seed);
  const counter = [Math.floor(column / 4), stream, low(number), low(number >> 32n)];
  const word = philox(counter, [low(key), low(key >> 32n)])[column % 4] as number;
  return word >= Math.floor(rate * 2 ** 32) ? Math.fround(1 / (1 - rate)) : 0;
}

const one = (rows: number, width: number, options: Options = {}): Case => ({
  name: `[${rows}, ${width}] ${JSON.stringify({ ...options, numbers: options.numbers?.map(String) })}`,
  body(bench: Bench) {
    const { rate = 0.3, seed = 7, stream = 9, first = 0, accumulate = false, kind = "rows" } = options;
    const {
      x: xType = "float32",
      y: yType = xType,
      numbers = Array.from({ length: rows }, (_, i) => BigInt(5 + i)),
    } = options;
    const x = bench.input([rows, width], xType, kind, 1, 0.5);
    const before = accumulate ? bench.input([rows, width], yType, kind, 1, 0.5) : null;
    const y = before?.tensor ?? bench.output([rows, width], yType, kind);
    const at = bench.plain([rows], "int64", numbers);
    binding.ops.dropout(x.native, at.native, y.native, rate, seed, stream, first, accumulate);
    bench.expect(y, "y", () =>
      x.values.map(
        (value, i) =>
          value * factor(numbers[Math.floor(i / width)] as bigint, first + (i % width), options) +
          (before?.values[i] ?? 0),
      ),
    );
  },
});

export const cases: Case[] = [
  one(1, 1),
  one(3, 64),
  one(5, 67),
  one(9, 264, { x: "bfloat16" }),
  one(9, 131, { x: "bfloat16", y: "float32", kind: "gaps" }),
  one(9, 130, { x: "float32", y: "bfloat16", first: 3 }),
  one(4, 200, { first: 61, rate: 0.5, seed: 2 ** 45 + 3, stream: 2 ** 32 - 1 }),
  one(4, 40, { first: 96, accumulate: true, kind: "steps" }),
  one(6, 75, { first: 5, accumulate: true, x: "bfloat16" }),
  one(3, 33, { numbers: [0n, 2n ** 32n + 1n, -1n] }),
  one(3, 48, { rate: 0 }),
  one(2, 1000, { rate: 0.999 }),
  one(0, 8),
  one(5, 0),
];

await opTests("dropout", cases, (t) => {
  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "dropout", [
      { name: "x", shape: [3, 8] },
      { name: "rows", shape: [3], dtype: "int64" },
      { name: "y", shape: [3, 8] },
      { name: "rate", number: 0.1, bad: [1, -0.1, Number.NaN] },
      { name: "seed", integer: 1 },
      { name: "stream", integer: 2, bad: [-1, 2 ** 32] },
      { name: "first", integer: 0, bad: [-1, 2 ** 40] },
      { name: "accumulate", integer: 0 },
    ]);
  });

  t.test("as many go as the rate says, and the mean stays", async (t) => {
    await withBench(async (bench) => {
      for (const rate of [0.05, 0.1, 0.5, 0.9]) {
        const [rows, width] = [300, 512];
        const x = bench.given([rows, width], new Float64Array(rows * width).fill(1));
        const y = bench.output([rows, width]);
        const at = bench.plain(
          [rows],
          "int64",
          Array.from({ length: rows }, (_, i) => BigInt(i)),
        );
        binding.ops.dropout(x.native, at.native, y.native, rate, 1, 2, 0, false);
        const values = await y.values();
        const gone = values.filter((value) => value === 0).length / values.length;
        const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
        // Six standard deviations.
        const spread = 6 * Math.sqrt((rate * (1 - rate)) / values.length);
        t.ok(Math.abs(gone - rate) < spread, `${gone} of ${rate}`);
        t.ok(Math.abs(mean - 1) < spread / (1 - rate), `mean ${mean}`);
      }
    });
  });
});
