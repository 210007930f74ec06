// Measures what native/runtime/rates/cpu.json holds: rates of one thread, and what row tiles cost a matrix product.
//
//   npx tsx bench/rates.ts [--rows 6144] [--rounds 5] > native/runtime/rates/cpu.json
//
// Time is that which the process spent on the CPU, with one thread, so that a machine that does other things as well
// gives the same figures.
// The products are the three of a linear layer (forward, and both gradients), over `rows` rows in tiles: small tiles read
// and add to the weight's gradient more often. Each figure is the best of the rounds, which alternate.
import { cpus } from "node:os";
import { binding } from "../lib/binding.js";
import { Device, type DType, Tensor } from "../lib/index.js";
import { flags } from "./side_by_side.js";

const { rows: most, rounds } = flags({ rows: 6144, rounds: 5 });
const device = new Device("cpu", { threads: 1 });
const make = (shape: number[], dtype: DType = "float32", tier: "device" | "host" = "device") => {
  const made = Tensor.empty(shape, { device, dtype, tier });
  if (tier === "device" && (dtype === "float32" || dtype === "bfloat16"))
    binding.ops.random(made.native(), 0, 1, 1, 0, true);
  return made;
};
const seconds = async (work: () => void) => {
  await device.synchronize();
  const start = process.cpuUsage();
  work();
  await device.synchronize();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1e6;
};
/** Work per second, the best of some rounds. */
const rate = async (amount: number, work: () => void) => {
  let best = Number.POSITIVE_INFINITY;
  await seconds(work);
  for (let i = 0; i < rounds; i++) best = Math.min(best, await seconds(work));
  return amount / best;
};
const rounded = (value: number) => Number(value.toPrecision(3));

const [H, F] = [1024, 2816];
const sizes: number[] = [];
for (let rows = 64; rows <= most; rows *= 2) sizes.push(rows, ...(rows * 1.5 < most ? [rows * 1.5] : []));
const gemm: Record<string, { flops: number; rows: [rows: number, share: number][] }> = {};
for (const dtype of ["float32", "bfloat16"] as const) {
  const [x, dy, y, dx] = [
    make([most, H], dtype),
    make([most, F], dtype),
    make([most, F], dtype),
    make([most, H], dtype),
  ];
  const w = make([F, H], dtype);
  const dw = make([F, H]);
  const tile = (of: Tensor, at: number, count: number) => {
    const columns = of.shape[1] as number;
    return of.viewOf([count, columns], [columns, 1], at * columns);
  };
  const turned = (of: Tensor) => {
    const [a = 0, b = 0] = of.shape;
    return of.viewOf([b, a], [of.strides[1] as number, of.strides[0] as number], 0);
  };
  const products = (count: number) => () => {
    for (let at = 0; at < most; at += count) {
      const n = Math.min(count, most - at);
      const part = (of: Tensor) => tile(of, at, n);
      binding.ops.matmul(part(x).native(), turned(w).native(), part(y).native(), null, 1, false);
      binding.ops.matmul(part(dy).native(), w.native(), part(dx).native(), null, 1, false);
      binding.ops.matmul(turned(part(dy)).native(), part(x).native(), dw.native(), null, 1, at > 0);
    }
  };
  const best = new Map<number, number>();
  await seconds(products(most));
  for (let i = 0; i < rounds; i++)
    for (const count of sizes) {
      const time = await seconds(products(count));
      best.set(count, Math.min(best.get(count) ?? Number.POSITIVE_INFINITY, time));
      console.error(`${dtype} ${count} rows: ${((6 * most * H * F) / time / 1e9).toFixed(1)} GFLOP/s`);
    }
  const full = Math.min(...best.values());
  gemm[dtype] = {
    flops: rounded((6 * most * H * F) / full),
    rows: [...best].sort(([a], [b]) => a - b).map(([count, time]) => [count, rounded(full / time)]),
  };
}

const [T, N, D] = [4096, 8, 128];
const attention: Record<string, { forward: number; backward: number }> = {};
for (const dtype of ["float32", "bfloat16"] as const) {
  const head = () => make([T, N, D], dtype);
  const [q, k, v, o, dout, dq, dk, dv] = [head(), head(), head(), head(), head(), head(), head(), head()];
  const lse = make([N, T]);
  const flops = 4 * N * D * ((T * (T + 1)) / 2);
  const [a, b, c, d, e] = [q, k, v, o, lse].map((x) => (x as Tensor).native()) as [never, never, never, never, never];
  const scale = 1 / Math.sqrt(D);
  const forward = await rate(flops, () => binding.ops.attention(a, b, c, d, e, null, scale, true, 0, 0, 0));
  const backward = await rate(2 * flops, () =>
    binding.ops.attentionBackward(
      ...[a, b, c, d, e],
      (dout as Tensor).native(),
      null,
      (dq as Tensor).native(),
      (dk as Tensor).native(),
      (dv as Tensor).native(),
      null,
      scale,
      true,
      0,
      0,
      0,
      false,
      false,
      true,
    ),
  );
  attention[dtype] = { forward: rounded(forward), backward: rounded(backward) };
}

const large = make([2 ** 26]);
const second = make([2 ** 26]);
const host = make([2 ** 26], "float32", "host");
binding.ops.copy(large.native(), host.native());
const stream = await rate(3 * large.bytes, () => binding.ops.axpby(large.native(), second.native(), null, 1, 1));
const copy = await rate(large.bytes, () => binding.ops.copy(large.native(), host.native(), 1));
const found = {
  device: "cpu",
  measured: `${cpus()[0]?.model.trim()}, ${binding.cpuIsa()}, one thread`,
  gemm,
  attention,
  streamBytes: rounded(stream),
  copyBytes: rounded(copy),
};
// A pair of numbers on one line.
console.log(JSON.stringify(found, null, 2).replaceAll(/\[\s+([\d.]+),\s+([\d.]+)\s+\]/g, "[$1, $2]"));
