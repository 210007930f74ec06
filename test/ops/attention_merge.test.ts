// Attention over two sets of keys put together, against float64: layouts, dtypes, rows that one set or neither has keys for.
import { binding } from "../../lib/binding.js";
import { type Bench, type Case, type Lie, opTests, withBench } from "./helpers.js";
import type { Storage } from "./strided.js";

const none = Number.NEGATIVE_INFINITY;
const at = (values: ArrayLike<number>, i: number): number => values[i] as number;

/** log(exp(a) + exp(b)) */
function both(a: number, b: number): number {
  const top = Math.max(a, b);
  return top === none ? none : top + Math.log(Math.exp(a - top) + Math.exp(b - top));
}

/** keyless: rows that the first or the second set has no key for. */
const one = (
  [T, N, D]: [number, number, number],
  dtype: Storage,
  part: Storage,
  lie: Lie,
  keyless: (row: number, second: boolean) => boolean = () => false,
): Case => ({
  name: `[${T}, ${N}, ${D}] ${dtype} ${lie}, part ${part}`,
  body(bench: Bench) {
    const shape = [T, N, D];
    const o = bench.input(shape, dtype, lie);
    const other = bench.input(shape, part, lie);
    const lse = (second: boolean) =>
      bench.given(
        [N, T],
        Array.from({ length: N * T }, (_, i) => (keyless(i % T, second) ? none : 8 * bench.random.next() - 4)),
      );
    const [first, second] = [lse(false), lse(true)];
    binding.ops.attentionMerge(o.native, first.native, other.native, second.native);
    const sums = () => first.values.map((a, i) => both(a, at(second.values, i)));
    bench.expect(first.tensor, "lse", sums);
    bench.expect(o.tensor, "o", () => {
      const all = sums();
      return o.values.map((value, i) => {
        const row = (Math.floor(i / D) % N) * T + Math.floor(i / (N * D));
        const weight = (values: Float64Array) => Math.exp(at(values, row) - at(all, row));
        return weight(first.values) * value + weight(second.values) * at(other.values, i);
      });
    });
  },
});

export const cases: Case[] = [
  one([7, 3, 17], "float32", "float32", "rows"),
  one([5, 4, 64], "float32", "float32", "gaps"),
  one([9, 2, 128], "float32", "bfloat16", "rows"),
  one([6, 3, 33], "bfloat16", "float32", "spread"),
  one([300, 2, 6], "float32", "float32", "columns"),
  one([8, 2, 16], "float32", "float32", "rows", (row, second) => (row % 3 === 1) === second && row % 3 !== 2),
  one([1, 1, 1], "float32", "float32", "rows"),
];

await opTests("attention_merge", cases, (t) => {
  t.test("a row without any key stays without", (t) =>
    withBench(async (bench) => {
      const o = bench.given([2, 1, 3], [0, 0, 0, 1, 2, 3]);
      const part = bench.given([2, 1, 3], [0, 0, 0, 5, 5, 5]);
      const [lse, partLse] = [bench.given([1, 2], [none, 1]), bench.given([1, 2], [none, none])];
      binding.ops.attentionMerge(o.native, lse.native, part.native, partLse.native);
      t.same([...(await o.tensor.values())], [0, 0, 0, 1, 2, 3]);
      t.same([...(await lse.tensor.values())], [none, 1]);
    }),
  );
  t.test("wrong arguments", (t) =>
    withBench(async (bench) => {
      const o = bench.input([4, 2, 8]);
      const lse = bench.input([2, 4]);
      const merge = (part: number[], partLse: number[]) => () =>
        binding.ops.attentionMerge(o.native, lse.native, bench.input(part).native, bench.input(partLse).native);
      t.throws(merge([4, 2, 7], [2, 4]), /attention_merge: part has shape \[4, 2, 7\]/);
      t.throws(merge([4, 2, 8], [4, 2]), /attention_merge: part_lse/);
    }),
  );
});
