// How fast devices are, from the small files in native/runtime/rates (bench/rates.ts measures them): for tiles, and for
// estimates of a step's time.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type OpCount, packageRoot } from "../binding.js";
import type { DType } from "../tensor/dtype.js";

/** Rates of one thread of a CPU, or of a whole GPU. */
export interface Rates {
  device: string;
  /** On what they were measured. */
  measured: string;
  /** By storage dtype: FLOP/s, and which share of them row tiles reach, ascending. */
  gemm: Record<string, { flops: number; rows: [rows: number, share: number][] }>;
  /** FLOP/s by storage dtype. */
  attention: Record<string, { forward: number; backward: number }>;
  /** Bytes a second of ops that only read and write. */
  streamBytes: number;
  /** Bytes a second between device and host, whatever the threads. */
  copyBytes: number;
}

/** What tiles may cost of the full rate. */
const TILE_LOSS = 0.03;

/** Of a kind of device, such as "cpu". */
export function ratesOf(device: string): Rates {
  return JSON.parse(readFileSync(join(packageRoot, "native/runtime/rates", `${device}.json`), "utf8")) as Rates;
}

/** Rows of the smallest tile whose matrix products run within 3% of the full rate. */
export function smallestTile(rates: Rates, dtype: DType): number {
  const { rows } = rates.gemm[dtype] ?? (rates.gemm.float32 as Rates["gemm"][string]);
  const least = rows.find(([, share]) => share >= 1 - TILE_LOSS) ?? (rows.at(-1) as [number, number]);
  return least[0];
}

/** Seconds by what is done in them. */
export interface SecondsByPart {
  attention: number;
  products: number;
  /** What only reads and writes. */
  rest: number;
}

/** Seconds of a step's ops by these rates, on `threads` threads. Copies between tiers are taken to run beside compute. */
export function secondsByPart(
  rates: Rates,
  dtype: DType,
  ops: Record<string, OpCount>,
  threads: number,
): SecondsByPart {
  const gemm = (rates.gemm[dtype] ?? rates.gemm.float32)?.flops as number;
  const attention = (rates.attention[dtype] ?? rates.attention.float32) as Rates["attention"][string];
  const seconds = { attention: 0, products: 0, rest: 0 };
  for (const [name, { flops, bytes }] of Object.entries(ops)) {
    if (name === "attention") seconds.attention += flops / attention.forward / threads;
    else if (name === "attention_backward") seconds.attention += flops / attention.backward / threads;
    else if (flops > 0) seconds.products += flops / gemm / threads;
    else seconds.rest += bytes / rates.streamBytes / threads;
  }
  return seconds;
}

/** The same in one. */
export function estimatedSeconds(rates: Rates, dtype: DType, ops: Record<string, OpCount>, threads: number): number {
  const { attention, products, rest } = secondsByPart(rates, dtype, ops, threads);
  return attention + products + rest;
}
