// What the tests of lib/checkpoint share: raw safetensors files, child processes, numeric references.

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";

export const here = path.dirname(fileURLToPath(import.meta.url));
export const golden = path.join(here, "..", "golden", "safetensors");

/** Header (an object, or text or bytes as they are) and data to the bytes of a file. */
export function safetensorsBytes(header: object | string | Uint8Array, data: Uint8Array, length?: bigint): Buffer {
  const text =
    header instanceof Uint8Array
      ? Buffer.from(header)
      : Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([prefix, text, data]);
}

export function writeSafetensors(file: string, header: object | string | Uint8Array, data: Uint8Array): void {
  writeFileSync(file, safetensorsBytes(header, data));
}

/** A file of `size` bytes without blocks behind it, but for `parts`: [offset, bytes]. */
export function writeSparse(file: string, size: number, parts: [number, Uint8Array][]): void {
  const descriptor = openSync(file, "w");
  try {
    ftruncateSync(descriptor, size);
    for (const [offset, bytes] of parts) writeSync(descriptor, bytes, 0, bytes.length, offset);
  } finally {
    closeSync(descriptor);
  }
}

/** Starts a TypeScript file of this folder in a process of its own, under `ulimit -f blocks` (of 1,024 bytes) if given. */
export function startChild(file: string, args: string[], fileBlocks?: number): ChildProcess {
  const command = [process.execPath, "--import=tsx", path.join(here, file), ...args];
  const limit = fileBlocks === undefined ? "" : `ulimit -f ${fileBlocks}; `;
  // Without tap's hooks, which die of the SIGXFSZ that Node itself ignores; tap adds them to every child's environment.
  const script = `unset NODE_OPTIONS; ${limit}exec "$@"`;
  return spawn("bash", ["-c", script, "bash", ...command], { stdio: ["ignore", "pipe", "inherit"] });
}

export async function runChild(
  file: string,
  args: string[],
  fileBlocks?: number,
): Promise<{ code: number | null; out: string }> {
  const child = startChild(file, args, fileBlocks);
  let out = "";
  child.stdout?.on("data", (chunk) => {
    out += chunk;
  });
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  return { code, out };
}

// ---- numeric references, by search instead of bit tricks ----

const word = new DataView(new ArrayBuffer(8));

/** The float32 with these bits. */
export function float32OfBits(bits: number): number {
  word.setUint32(0, bits);
  return word.getFloat32(0);
}

export function bitsOfFloat32(value: number): number {
  word.setFloat32(0, value);
  return word.getUint32(0);
}

/** The value of a binary16. */
export function float16Value(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Bits of the bfloat16 nearest to a number that is no NaN, ties to even. */
export function nearestBfloat16(value: number): number {
  const sign = Object.is(value, -0) || value < 0 ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  const at = (bits: number): number => (bits === 0x7f80 ? 2 ** 128 : float32OfBits(bits * 65536));
  if (magnitude === Number.POSITIVE_INFINITY) return sign | 0x7f80;
  let low = 0;
  let high = 0x7f80;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (at(middle) <= magnitude) low = middle;
    else high = middle;
  }
  // Half-way points have few bits, so they and the comparison are exact.
  const half = (at(low) + at(high)) / 2;
  if (magnitude < half) return sign | low;
  if (magnitude > half) return sign | high;
  return sign | (low % 2 === 0 ? low : high);
}
