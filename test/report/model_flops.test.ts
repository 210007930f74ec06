// The operation count of a training step against counts made one pair and one weight at a time.

import t from "tap";
import { ArgumentError } from "../../lib/errors.js";
import {
  attendedPairs,
  forwardFlops,
  type ModelShape,
  matmulWeights,
  modelFlops,
} from "../../lib/report/model_flops.js";

const shape: ModelShape = {
  hiddenSize: 12,
  layers: 3,
  heads: 4,
  keyValueHeads: 2,
  headSize: 5,
  feedForward: 7,
  vocabulary: 11,
};

/** Pairs by looking at each. */
function countPairs(length: number, window: number | null): number {
  let pairs = 0;
  for (let i = 0; i < length; i++) for (let j = 0; j < length; j++) if (j <= i && (!window || i - j < window)) pairs++;
  return pairs;
}

t.test("attended pairs", async (t) => {
  for (const length of [0, 1, 2, 5, 8, 13])
    for (const window of [null, 0, 1, 2, 5, 13, 100])
      t.equal(attendedPairs(length, window), countPairs(length, window), `${length} tokens, window ${window}`);
  t.equal(attendedPairs(2 ** 24), 2 ** 47 + 2 ** 23, "16M tokens, exactly");
  for (const wrong of [-1, 1.5, Number.NaN]) t.throws(() => attendedPairs(wrong), ArgumentError);
});

t.test("weights of matrix products", async (t) => {
  const perLayer = 12 * 20 + 12 * 10 + 12 * 10 + 20 * 12 + 12 * 7 + 12 * 7 + 7 * 12;
  t.equal(matmulWeights(shape), 3 * perLayer + 12 * 11);
});

t.test("documents attend within themselves only", async (t) => {
  const documents = [3, 5, 1];
  const pairs = documents.reduce((sum, length) => sum + countPairs(length, null), 0);
  t.equal(forwardFlops(shape, documents), 2 * 9 * matmulWeights(shape) + 3 * 4 * 4 * 5 * pairs);
  t.equal(modelFlops(shape, documents), 3 * forwardFlops(shape, documents));
  t.ok(forwardFlops(shape, [9]) > forwardFlops(shape, documents), "one document has more pairs");
  t.equal(forwardFlops(shape, []), 0);
});

t.test("windows by layer", async (t) => {
  const mixed = { ...shape, windows: [null, 4, 4] };
  const pairs = countPairs(9, null) + 2 * countPairs(9, 4);
  t.equal(forwardFlops(mixed, [9]), 2 * 9 * matmulWeights(shape) + 4 * 4 * 5 * pairs);
  t.equal(forwardFlops({ ...shape, windows: [0, null, 100] }, [9]), forwardFlops(shape, [9]));
  t.throws(() => forwardFlops({ ...shape, windows: [4] }, [9]), /got 1 windows; expected one for each of 3 layers/);
});

t.test("Llama 3.1 8B, worked out by hand", async (t) => {
  const llama: ModelShape = {
    hiddenSize: 4096,
    layers: 32,
    heads: 32,
    keyValueHeads: 8,
    headSize: 128,
    feedForward: 14_336,
    vocabulary: 128_256,
  };
  // 8.03B parameters less the embedding table (525M) and the norms.
  t.equal(matmulWeights(llama), 7_504_658_432);
  t.equal(modelFlops(llama, [8192]), 6 * 7_504_658_432 * 8192 + 12 * 32 * 32 * 128 * ((8192 * 8193) / 2));
});
