// Times one op on our side and PyTorch's in turn, for the op benchmarks.
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Device } from "../lib/tensor/device.js";
import { measure, python } from "./side_by_side.js";

const here = dirname(fileURLToPath(import.meta.url));

/** Seconds of each of `reps` runs of what `enqueue` puts into the device's queue, after one that does not count. */
export async function timed(device: Device, reps: number, enqueue: () => void): Promise<number[]> {
  const seconds: number[] = [];
  for (let i = 0; i <= reps; i++) {
    await device.synchronize();
    const began = process.hrtime.bigint();
    enqueue();
    await device.synchronize();
    if (i > 0) seconds.push(Number(process.hrtime.bigint() - began) / 1e9);
  }
  return seconds;
}

/** The JSON line of a script in bench/pytorch. */
export async function pytorchRate(
  script: string,
  args: readonly (string | number)[],
): Promise<Record<string, unknown>> {
  const run = await measure([python, join(here, "pytorch", script), ...args.map(String)]);
  return JSON.parse(run.stdout.trim().split("\n").pop() ?? "");
}

const median = (values: number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2
    ? (sorted[middle] as number)
    : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
};

/** Both sides in turn, `rounds` times; the median seconds of each. */
export async function alternate(
  rounds: number,
  ours: () => Promise<number[]>,
  pytorch: () => Promise<number[]>,
): Promise<{ ours: number; pytorch: number }> {
  const all: { ours: number[]; pytorch: number[] } = { ours: [], pytorch: [] };
  for (let i = 0; i < rounds; i++) {
    all.ours.push(...(await ours()));
    all.pytorch.push(...(await pytorch()));
  }
  return { ours: median(all.ours), pytorch: median(all.pytorch) };
}
