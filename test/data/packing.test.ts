// Philox, permutations and the plan of an epoch.

import t from "tap";
import { PACKING_WINDOW, packBestFit, planEpoch } from "../../lib/data/packing.js";
import { CounterRandom, permutation, philox4x32 } from "../../lib/data/philox.js";

t.test("Philox4x32-10 gives Random123's known answers", async (t) => {
  // kat_vectors of the Random123 distribution.
  const cases: [counter: number[], key: number[], out: number[]][] = [
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ];
  const out = new Uint32Array(4);
  for (const [counter, key, expected] of cases) {
    philox4x32(Uint32Array.from(counter), Uint32Array.from(key), out);
    t.same(Array.from(out), expected);
  }
});

t.test("bounded integers are even, permutations are permutations", async (t) => {
  const random = new CounterRandom(7, 3);
  const counts = new Array(6).fill(0);
  for (let i = 0; i < 60_000; i++) counts[random.below(6)]++;
  // Chi-squared with 5 degrees of freedom: above 30 in one of 70,000 cases, and the seed is fixed.
  t.ok(counts.reduce((sum, n) => sum + (n - 10_000) ** 2 / 10_000, 0) < 30);
  const order = permutation(1000, 1, 0);
  t.same(
    Array.from(order).sort((a, b) => a - b),
    Array.from({ length: 1000 }, (_, i) => i),
  );
  t.same(permutation(1000, 1, 0), order);
  for (const [seed, stream] of [
    [2, 0],
    [1, 1],
    [2 ** 32 + 1, 0],
    [1, 2 ** 32],
  ] as const) {
    t.notSame(permutation(1000, seed, stream), order, `${seed} ${stream}`);
  }
  t.same(permutation(0, 1, 1), new Uint32Array(0));
  for (const bad of [-1, 1.5, Number.NaN, 2 ** 53])
    t.throws(() => new CounterRandom(bad, 0), { name: "ArgumentError" });
});

const identity = (n: number) => Uint32Array.from({ length: n }, (_, i) => i);
const groups = (lengths: number[], capacity: number, order = identity(lengths.length)) => {
  const packed = packBestFit(Int32Array.from(lengths), order, capacity);
  return Array.from({ length: packed.starts.length - 1 }, (_, i) =>
    Array.from(packed.order.slice(packed.starts[i], packed.starts[i + 1])),
  );
};

t.test("best fit, by hand", async (t) => {
  t.same(groups([6, 5, 4, 3, 2], 10), [
    [0, 2],
    [1, 3, 4],
  ]);
  t.same(groups([10, 10], 10), [[0], [1]], "a piece of exactly the capacity stands alone");
  t.same(groups([3, 3, 3, 3], 9), [[0, 1, 2], [3]], "the oldest of equals first");
  t.same(groups([2, 9, 1, 8], 10), [
    [0, 3],
    [1, 2],
  ]);
  t.same(groups([4, 5, 6], 10, Uint32Array.of(2, 0, 1)), [[2, 0], [1]], "pieces keep the order's order");
  t.same(groups([], 10), []);
});

/** The rule of packBestFit, written without its sorted window. */
function reference(lengths: Int32Array, order: Uint32Array, capacity: number): number[][] {
  const waiting = Array.from(order);
  const rank = new Map(waiting.map((piece, i) => [piece, i]));
  let window = waiting.splice(0, PACKING_WINDOW);
  const all: number[][] = [];
  while (window.length > 0) {
    const group: number[] = [];
    let room = capacity;
    let pick: number | undefined = window.reduce((a, b) => ((rank.get(b) ?? 0) < (rank.get(a) ?? 0) ? b : a));
    while (pick !== undefined) {
      group.push(pick);
      room -= lengths[pick] as number;
      window = window.filter((piece) => piece !== pick);
      window.push(...waiting.splice(0, PACKING_WINDOW - window.length));
      pick = undefined;
      let best = 0;
      for (const piece of window) {
        const length = lengths[piece] as number;
        if (length > room || length < best) continue;
        if (length === best && pick !== undefined && (rank.get(pick) ?? 0) < (rank.get(piece) ?? 0)) continue;
        best = length;
        pick = piece;
      }
    }
    all.push(group.sort((a, b) => (rank.get(a) ?? 0) - (rank.get(b) ?? 0)));
  }
  return all;
}

t.test("best fit against the plain rule, beyond the window", async (t) => {
  for (const [seed, capacity, most] of [
    [1, 100, 100],
    [2, 1000, 60],
    [3, 64, 64],
  ] as const) {
    const random = new CounterRandom(seed, 0);
    const count = 2500;
    const lengths = Int32Array.from({ length: count }, () => 1 + random.below(most));
    const order = permutation(count, seed, 9);
    const packed = packBestFit(lengths, order, capacity);
    const expected = reference(lengths, order, capacity);
    const got = Array.from({ length: packed.starts.length - 1 }, (_, i) =>
      Array.from(packed.order.slice(packed.starts[i], packed.starts[i + 1])),
    );
    t.same(got, expected);
    const sizes = got.map((group) => group.reduce((sum, piece) => sum + (lengths[piece] as number), 0));
    t.ok(sizes.every((size) => size <= capacity));
    const total = lengths.reduce((a, b) => a + b, 0);
    t.ok(total / (capacity * got.length) > 0.95, `fill ${total / (capacity * got.length)}`);
    t.same(
      got.flat().sort((a, b) => a - b),
      Array.from(identity(count)),
      "each piece once",
    );
  }
});

t.test("a plan is a function of lengths, seed and epoch", async (t) => {
  const count = 500;
  const random = new CounterRandom(5, 5);
  const pieces = {
    document: identity(count),
    begin: new Int32Array(count),
    end: Int32Array.from({ length: count }, () => 1 + random.below(50)),
  };
  const options = { packing: true, shuffle: true, seed: 3, sequenceLength: 128 };
  const show = (plan: ReturnType<typeof planEpoch>) =>
    Array.from({ length: plan.sequences }, (_, i) => plan.segments(i).map(({ document }) => document));
  const first = show(planEpoch(pieces, options, 0));
  t.same(show(planEpoch(pieces, options, 0)), first);
  t.notSame(show(planEpoch(pieces, options, 1)), first);
  t.notSame(show(planEpoch(pieces, { ...options, seed: 4 }, 0)), first);
  const plan = planEpoch(pieces, { ...options, packing: false }, 0);
  t.equal(plan.sequences, count);
  t.same(show(plan).flat(), Array.from(permutation(count, 3, 0)));
  t.equal(plan.tokens(0), pieces.end[permutation(count, 3, 0)[0] as number]);
  t.same(
    show(planEpoch(pieces, { ...options, packing: false, shuffle: false }, 7)).flat(),
    Array.from(identity(count)),
  );
});
