// Measures what native/runtime/rates/cpu.json holds: what row tiles cost a matrix product, and the rates of one thread as
// `longseq bench --calibrate` does.
//
//   npx tsx bench/rates.ts [--rows 6144] [--rounds 5] > native/runtime/rates/cpu.json
//
// Of tiles it is the time that the process spent on the CPU, with one thread, so that a machine that does other things as well
// gives the same figures.
// The products are the three of a linear layer (forward, and both gradients), over `rows` rows in tiles: small tiles read
// and add to the weight's gradient more often. Each figure is the best of the rounds, which alternate.
import { binding } from "../lib/binding.js";
import { Device, type DType, Tensor } from "../lib/index.js";
import { calibrate } from "../lib/train/calibrate.js";
import { textOf } from "../lib/train/rates.js";
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
const rounded = (value: number) => Number(value.toPrecision(3));

const [H, F] = [1024, 2816];
const sizes: number[] = [];
for (let rows = 64; rows <= most; rows *= 2) sizes.push(rows, ...(rows * 1.5 < most ? [rows * 1.5] : []));
const tiles: Record<string, [rows: number, share: number][]> = {};
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
  tiles[dtype] = [...best].sort(([a], [b]) => a - b).map(([count, time]) => [count, rounded(full / time)]);
}

// Links and the disk are as they were: nothing here measures them.
const { tiles: _, ...others } = await calibrate({ device: "cpu", threads: 1 });
const found = { ...others, measured: `${others.measured}, ${binding.cpuIsa()}`, tiles };
console.log(textOf(found).trimEnd());
