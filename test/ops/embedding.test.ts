// embedding and its backward: rows as stored, gradients added in ascending order of the tokens, ids out of range.
import { binding, type NativeDevice } from "../../lib/binding.js";
import { ArgumentError } from "../../lib/errors.js";
import {
  type Argument,
  type Bench,
  type Case,
  opTests,
  ownDevice,
  Plain,
  refusesBadArguments,
  rounded,
} from "./helpers.js";
import type { Storage } from "./strided.js";

const onCpu = (process.env.LONGSEQ_TEST_DEVICE ?? "cpu") === "cpu";

interface Spec {
  tokens: number;
  vocabulary: number;
  width: number;
  table?: Storage;
  y?: Storage;
  strided?: boolean;
  /** Every id is this one. */
  same?: number;
}

const one = (spec: Spec): Case => ({
  name: JSON.stringify(spec),
  body(bench: Bench) {
    const { tokens, vocabulary, width, table = "float32", y = "float32" } = spec;
    const kind = spec.strided ? "gaps" : "rows";
    const ids = Array.from({ length: tokens }, () => spec.same ?? bench.random.below(vocabulary));
    const native = bench.plain([tokens], "int32", ids).native;
    const ttable = bench.input([vocabulary, width], table, kind);
    const ty = bench.output([tokens, width], y, kind);
    const dy = bench.input([tokens, width], y, kind);
    const dtable = bench.input([vocabulary, width], "float32", kind);
    binding.ops.embedding(native, ttable.native, ty.native);
    binding.ops.embeddingBackward(native, dy.native, dtable.native);
    bench.expectExactly(ty, "y", () =>
      ids.flatMap((id) => [...ttable.values.subarray(id * width, (id + 1) * width)].map((v) => rounded(v, y))),
    );
    // Float32 sums in ascending t: the order is the contract, so the bits are known.
    bench.expectExactly(dtable.tensor, "dtable", () => {
      const sums = Float32Array.from(dtable.values);
      for (const [t, id] of ids.entries()) {
        for (let i = 0; i < width; i++)
          sums[id * width + i] = (sums[id * width + i] as number) + (dy.values[t * width + i] as number);
      }
      return sums;
    });
  },
});

export const cases: Case[] = [
  one({ tokens: 1, vocabulary: 1, width: 1 }),
  // Ids that come more often than a warp looks up at once; rows of whole vectors that no warp fills.
  one({ tokens: 200, vocabulary: 3, width: 264, y: "bfloat16" }),
  one({ tokens: 97, vocabulary: 2, width: 520 }),
  one({ tokens: 64, vocabulary: 9, width: 24, same: 4 }),
  one({ tokens: 50, vocabulary: 13, width: 33 }),
  one({ tokens: 200, vocabulary: 1000, width: 64, strided: true }),
  one({ tokens: 90, vocabulary: 40, width: 130, table: "bfloat16", y: "bfloat16", strided: true }),
  one({ tokens: 90, vocabulary: 40, width: 65, table: "bfloat16" }),
  one({ tokens: 90, vocabulary: 40, width: 65, y: "bfloat16" }),
  one({ tokens: 700, vocabulary: 4, width: 300, same: 3 }),
  one({ tokens: 2000, vocabulary: 50, width: 200 }),
  one({ tokens: 0, vocabulary: 5, width: 8 }),
  one({ tokens: 5, vocabulary: 5, width: 0 }),
];

/** On a device of its own, since the failure stays there: the error of the next read. */
async function failure(ids: number[], run: (device: NativeDevice, ids: Plain) => void): Promise<Error> {
  const device = ownDevice();
  const tensor = new Plain(device, [ids.length], "int32", ids);
  run(device, tensor);
  return (await tensor.raw().then(
    () => new Error("the read succeeded"),
    (error) => error,
  )) as Error;
}

await opTests("embedding", cases, (t) => {
  t.test("an id outside the table rejects the next read, with the first such index", async (t) => {
    for (const id of [7, -1, 2 ** 31 - 1, -(2 ** 31)]) {
      const forward = await failure([0, 6, id, 99], (device, ids) => {
        const [table, y] = [
          new Plain(device, [7, 3], "float32", Array(21)),
          new Plain(device, [4, 3], "float32", Array(12)),
        ];
        binding.ops.embedding(ids.native, table.native, y.native);
      });
      // A GPU sees the id while other ops are enqueued: it is the read that fails there, without the op's shapes.
      const op = onCpu ? "embedding.*int32\\[4\\]" : "embedding";
      t.match(forward.message, new RegExp(`${op}.*id ${id} at index 2 .*7 rows`), forward.message);
      t.ok(forward instanceof ArgumentError, forward.name);
      const backward = await failure([0, 6, id, 99], (device, ids) => {
        const [table, y] = [
          new Plain(device, [7, 3], "float32", Array(21)),
          new Plain(device, [4, 3], "float32", Array(12)),
        ];
        binding.ops.embeddingBackward(ids.native, y.native, table.native);
      });
      t.match(backward.message, new RegExp(`embedding_backward.*id ${id} at index 2`), backward.message);
    }
  });

  t.test("wrong arguments are refused", async (t) => {
    const ids: Argument = { name: "ids", shape: [4], dtype: "int32" };
    const free = { anyShape: true };
    await refusesBadArguments(t, "embedding", [
      ids,
      { name: "table", shape: [7, 3], ...free },
      { name: "y", shape: [4, 3] },
    ]);
    await refusesBadArguments(t, "embeddingBackward", [
      ids,
      { name: "dy", shape: [4, 3] },
      { name: "dtable", shape: [7, 3] },
    ]);
  });
});
