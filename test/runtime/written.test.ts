// What a write does beside the bytes: host copies of cu_seqlens never go stale, and no output is broadcast.
import t from "tap";
import { binding, type NativeTensor } from "../../lib/binding.js";
import { ArgumentError } from "../../lib/errors.js";
import { Plain } from "../ops/helpers.js";
import { deviceWith } from "../ops/strided.js";

const device = deviceWith(2);
const heads = (values: number[]) => new Plain(device, [4, 1, 2], "float32", values);
const q = heads([0.1, 0.2, -0.3, 0.4, 0.5, -0.6, 0.7, 0.8]);

/** Attention of 4 tokens with these document bounds. */
async function attend(bounds: NativeTensor): Promise<Float64Array> {
  const [o, lse] = [heads(Array(8)), new Plain(device, [1, 4], "float32", Array(4))];
  try {
    binding.ops.attention(q.native, q.native, q.native, o.native, lse.native, bounds, 1, true, 0, 0, 0);
    return await o.values();
  } finally {
    o.free();
    lse.free();
  }
}

t.test("bounds written anew are the ones used; bounds made by an op, or in part, are refused", async (t) => {
  const make = (...values: bigint[]) => new Plain(device, [3], "int64", values);
  const [two, one, bounds] = [make(0n, 2n, 4n), make(0n, 4n, 4n), make(0n, 2n, 4n)];
  const [expected, other] = [await attend(two.native), await attend(one.native)];
  t.notSame(expected, other);
  t.same(await attend(bounds.native), expected);
  binding.write(bounds.native, BigInt64Array.of(0n, 4n, 4n), true);
  t.same(await attend(bounds.native), other, "written again");
  const refused = { name: "ArgumentError", message: /cu_seqlens must be made from host numbers/ };
  binding.write(bounds.native, BigInt64Array.of(0n, 2n, 4n), false);
  await t.rejects(attend(bounds.native), refused, "written without a host copy");
  binding.write(bounds.native, BigInt64Array.of(0n, 2n, 4n), true);
  binding.ops.copy(one.native, bounds.native);
  await t.rejects(attend(bounds.native), refused, "copied into");
  const part = binding.view(two.native, [2], [1], 1);
  binding.write(part, BigInt64Array.of(0n, 4n), true);
  await t.rejects(attend(two.native), refused, "written in part");
  binding.release(part);
  for (const tensor of [two, one, bounds]) tensor.free();
});

t.test("an output that is broadcast is refused: threads would race for its one element", async (t) => {
  const one = new Plain(device, [1, 5], "float32", Array(5).fill(2));
  const many = binding.view(one.native, [3, 5], [0, 1], 0);
  const whole = new Plain(device, [3, 5], "float32", Array(15).fill(1));
  t.throws(() => binding.ops.fill(many, 1), ArgumentError);
  t.throws(() => binding.ops.copy(whole.native, many), { message: /copy: dst is written, but broadcast in dim 0/ });
  t.throws(() => binding.ops.binary(whole.native, many, many, 0), ArgumentError);
  t.throws(() => binding.ops.axpby(whole.native, many, null, 1, 1), ArgumentError);
  binding.ops.binary(whole.native, many, whole.native, 0);
  t.same([...(await whole.values())], Array(15).fill(3), "as an input it is fine");
  binding.ops.fill(binding.view(one.native, [1, 5], [0, 1], 0), 4);
  t.same([...(await one.values())], Array(5).fill(4), "a stride of 0 over one element is nothing");
  binding.release(many);
  for (const tensor of [one, whole]) tensor.free();
});
