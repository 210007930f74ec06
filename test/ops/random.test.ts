// random: Philox4x32-10's published known answers, uniform and normal numbers from its words, any cut of a range.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, count, opTests, refusesBadArguments, rounded, withBench } from "./helpers.js";
import { philox } from "./philox.js";
import type { Storage } from "./strided.js";

/** Word of element e = offset + index. */
function words(seed: number, offset: number, length: number): number[] {
  const low = (x: bigint) => Number(BigInt.asUintN(32, x));
  const key = BigInt.asUintN(64, BigInt(seed));
  const all: number[] = [];
  for (let block = BigInt(offset) / 4n; all.length < length; block++)
    all.push(...philox([low(block), low(block >> 32n), 0, 0], [low(key), low(key >> 32n)]));
  return all.slice(0, Math.ceil(length / 4) * 4);
}

function uniform(seed: number, offset: number, length: number, low: number, high: number): number[] {
  return words(seed, offset, length)
    .slice(0, length)
    .map((word) => low + (word >>> 8) * 2 ** -24 * (high - low));
}

/** Box-Muller of words 0 and 1 for elements 0 and 1 of a block, of 2 and 3 for the others. */
function normal(seed: number, offset: number, length: number, mean: number, std: number): number[] {
  const all = words(seed, offset, length);
  const numbers: number[] = [];
  for (let i = 0; i < all.length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(((all[i] as number) >>> 8) * 2 ** -24 + 2 ** -24));
    const angle = 2 * Math.PI * ((all[i + 1] as number) >>> 8) * 2 ** -24;
    numbers.push(mean + std * radius * Math.cos(angle), mean + std * radius * Math.sin(angle));
  }
  return numbers.slice(0, length);
}

const one = (
  shape: number[],
  dtype: Storage,
  a: number,
  b: number,
  seed: number,
  offset: number,
  gauss: boolean,
): Case => ({
  name: `[${shape}] ${dtype} ${gauss ? "normal" : "uniform"} ${a}, ${b}, seed ${seed}, from ${offset}`,
  body(bench: Bench) {
    const y = bench.output(shape, dtype);
    binding.ops.random(y.native, a, b, seed, offset, gauss);
    bench.expect(y, "y", () => (gauss ? normal : uniform)(seed, offset, count(shape), a, b));
  },
});

export const cases: Case[] = [
  one([1], "float32", 0, 1, 0, 0, false),
  one([7, 37], "float32", -1, 1, 42, 0, false),
  one([7, 37], "float32", 0, 0.02, 42, 0, true),
  one([65], "float32", 3, 2, -5, 8, true),
  one([65], "bfloat16", 3, 2, 2 ** 53 - 1, 2 ** 40 + 4, true),
  one([130], "bfloat16", 5, 6, 7, 4, false),
  one([1003], "float32", 0, 1, 123_456_789_012, 2 ** 34 - 8, false),
  one([1003], "float32", 0, 1, -(2 ** 53) + 1, 2 ** 34 - 8, true),
  one([5, 4001], "float32", 0, 1, 1, 0, true),
  one([9], "float32", 2, 2, 1, 0, false),
  one([9], "float32", 2, 0, 1, 0, true),
  one([0, 3], "float32", 0, 1, 1, 0, true),
  one([], "float32", 0, 1, 1, 0, true),
];

await opTests("random", cases, (t) => {
  t.test("the reference is Philox: the vectors published with it", async (t) => {
    const hex = (text: string) => text.split(" ").map((word) => Number.parseInt(word, 16));
    const ones = Array(6).fill(0xffffffff);
    t.same(philox([0, 0, 0, 0], [0, 0]), hex("6627e8d5 e169c58d bc57ac4c 9b00dbd8"));
    t.same(philox(ones.slice(2), ones.slice(4)), hex("408f276d 41c83b0e a20bc7c6 6d5451fd"));
    t.same(
      philox(hex("243f6a88 85a308d3 13198a2e 03707344"), hex("a4093822 299f31d0")),
      hex("d16cfe09 94fdcceb 5001e420 24126ea1"),
    );
  });

  t.test("the words of seed 0 from 0 are the first of these", (t) =>
    withBench(async (bench) => {
      const y = bench.output([4]);
      binding.ops.random(y.native, 0, 2 ** 24, 0, 0, false);
      t.same([...(await y.values())], [0x6627e8, 0xe169c5, 0xbc57ac, 0x9b00db]);
    }),
  );

  t.test("a range is the same however it is cut", (t) =>
    withBench(async (bench) => {
      const whole = bench.output([300]);
      binding.ops.random(whole.native, 0, 1, 9, 400, true);
      const cut = bench.plain([300], "float32", new Float64Array(300));
      for (const [from, to] of [
        [0, 4],
        [4, 120],
        [120, 184],
        [184, 300],
      ] as const)
        binding.ops.random(bench.view(cut.native, [to - from], [1], from), 0, 1, 9, 400 + from, true);
      t.same(await cut.values(), await whole.values());
    }),
  );

  t.test("uniform numbers stay below the upper end, also after rounding", (t) =>
    withBench(async (bench) => {
      for (const [dtype, low, high] of [
        ["bfloat16", 0, 1],
        ["float32", 0, 0.1],
        ["bfloat16", -3, -1.01],
      ] as const) {
        const y = bench.output([100_000], dtype);
        binding.ops.random(y.native, low, high, 5, 0, false);
        const got = await y.values();
        const [least, most] = [got.reduce((a, b) => Math.min(a, b)), got.reduce((a, b) => Math.max(a, b))];
        t.ok(least >= rounded(low, dtype) && most < high, `${dtype}: ${least} to ${most}`);
      }
    }),
  );

  t.test("moments of a hundred thousand normal numbers", (t) =>
    withBench(async (bench) => {
      const y = bench.output([100_000]);
      binding.ops.random(y.native, 1, 2, 77, 0, true);
      const z = (await y.values()).map((value) => (value - 1) / 2);
      const moment = (k: number) => z.reduce((sum, value) => sum + value ** k, 0) / z.length;
      // Five standard deviations of each estimate.
      for (const [k, expected, spread] of [
        [1, 0, 1],
        [2, 1, 2],
        [3, 0, 15],
        [4, 3, 96],
      ] as const)
        t.ok(Math.abs(moment(k) - expected) < 5 * Math.sqrt(spread / z.length), `moment ${k} is ${moment(k)}`);
    }),
  );

  t.test("wrong arguments are refused", async (t) => {
    await refusesBadArguments(t, "random", [
      { name: "y", shape: [3, 8], anyShape: true },
      { name: "a", number: 0 },
      { name: "b", number: 1 },
      { name: "seed", integer: 1 },
      { name: "offset", integer: 0, bad: [-4, 1, 2, 7] },
      { name: "normal", integer: 1 },
    ]);
    await withBench(async (bench) => {
      const y = bench.output([4, 4], "float32", "columns");
      t.throws(() => binding.ops.random(y.native, 0, 1, 1, 0, true), { message: /random: y must be contiguous/ });
    });
  });
});
