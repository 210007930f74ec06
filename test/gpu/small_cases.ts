// Few small calls of the kernels that share memory between threads, for compute-sanitizer, which makes them slow:
// attention of each head size with its masks and backwards, and matrix products. Results are only looked at for NaN.
import t from "tap";
import { binding } from "../../lib/binding.js";
import { int64 } from "../ops/strided.js";
import { openGpu, Pool, squares } from "./device.js";

t.setTimeout(0);
const device = openGpu();
const { ops } = binding;

for (const D of [64, 96, 128, 256])
  for (const [what, window, packed, deterministic] of [
    ["causal", 0, false, false],
    ["window", 40, false, false],
    ["packed, deterministic", 0, true, true],
  ] as const)
    await t.test(`attention, heads of ${D}, ${what}`, { timeout: 0 }, async (t) => {
      const pool = new Pool(device);
      const [T, N, K] = [161, 2, 1];
      const [q, dout] = [pool.random([T, N, D]), pool.random([T, N, D])];
      const [k, v] = [pool.random([T, K, D]), pool.random([T, K, D])];
      const [o, dq] = [pool.poisoned([T, N, D]), pool.poisoned([T, N, D])];
      const [dk, dv] = [pool.poisoned([T, K, D]), pool.poisoned([T, K, D])];
      const lse = pool.poisoned([N, T], "float32");
      const documents = packed ? int64(device.native, [0, 50, 51, T]) : null;
      const scale = 1 / Math.sqrt(D);
      ops.attention(q, k, v, o, lse, documents, scale, true, window, 0, 0);
      ops.attentionBackward(
        ...([q, k, v, o, lse, dout, null, dq, dk, dv, documents] as const),
        ...([scale, true, window, 0, 0, false, false, deterministic] as const),
      );
      for (const [name, tensor] of Object.entries({ o, lse, dq, dk, dv }))
        t.ok(Number.isFinite(await squares(device, tensor)), `${name} is written`);
      pool.free();
      if (documents) binding.release(documents);
    });

for (const dtype of ["float32", "bfloat16"] as const)
  await t.test(`products of ${dtype}`, { timeout: 0 }, async (t) => {
    const pool = new Pool(device);
    const [a, b, c] = [pool.random([65, 72], dtype), pool.random([40, 72], dtype), pool.poisoned([65, 40], dtype)];
    ops.matmul(a, pool.view(b, [72, 40], [1, 72]), c, null, 1, false);
    t.ok(Number.isFinite(await squares(device, c)), "c is written");
    pool.free();
  });
