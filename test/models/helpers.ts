// What the tests of models share: the golden cases, and the measure of an error.

import { readdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { fileURLToPath } from "node:url";
import { SafetensorsFile } from "../../lib/checkpoint/safetensors.js";
import { type Place, tensorsOf } from "../../lib/models/stored.js";

export const goldenFolder = path.join(path.dirname(fileURLToPath(import.meta.url)), "..", "golden", "models");
export const goldenCases = readdirSync(goldenFolder).sort();

export interface Golden {
  readonly purpose: string;
  readonly tokens: number;
  readonly documents: readonly number[];
  readonly valid_tokens: number;
  readonly loss: number;
  readonly grad_norm: number;
  readonly parameters: readonly string[];
}

export interface GoldenCase {
  readonly name: string;
  /** The Hugging Face folder. */
  readonly model: string;
  readonly golden: Golden;
  readonly inputIds: Int32Array;
  readonly labels: Int32Array;
  readonly cuSeqlens: BigInt64Array;
  float32(tensor: string): Promise<Float32Array>;
}

/** Calls `use` with a case of test/golden/models. */
export async function withGolden(name: string, use: (golden: GoldenCase) => Promise<void>): Promise<void> {
  const folder = path.join(goldenFolder, name);
  using file = await SafetensorsFile.open(path.join(folder, "golden.safetensors"));
  await use({
    name,
    model: path.join(folder, "model"),
    golden: JSON.parse(readFileSync(path.join(folder, "golden.json"), "utf8")),
    inputIds: new Int32Array(await file.readBytes("input_ids")),
    labels: new Int32Array(await file.readBytes("labels")),
    cuSeqlens: new BigInt64Array(await file.readBytes("cu_seqlens")),
    float32: async (tensor) => new Float32Array(await file.readBytes(tensor)),
  });
}

/** Puts a parameter's values where they are in the tensor that stores them, with others or transposed. */
export function putStored({ stored, shape }: Place, values: Float32Array, whole: Float32Array): void {
  if (stored.each !== undefined) {
    whole.set(values);
    return;
  }
  const [rows = 0, columns = 1] = shape;
  const { first, count, period, periods } = stored.rows ?? { first: 0, count: rows, period: rows, periods: 1 };
  for (const [i, value] of values.entries()) {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const at = Math.floor(row / count) * period + first + (row % count);
    whole[stored.transposed ? column * period * periods + at : at * columns + column] = value;
  }
}

/** Elements of all tensors that hold a parameter. */
export const storedSize = ({ stored, shape }: Place): number =>
  tensorsOf(stored, shape).reduce((sum, one) => sum + one.shape.reduce((product, length) => product * length, 1), 0);

/** max|x - reference| / rms(reference), the measure of the design. */
export function error(x: ArrayLike<number>, reference: ArrayLike<number>): number {
  if (x.length !== reference.length) return Number.POSITIVE_INFINITY;
  let squares = 0;
  let most = 0;
  for (let i = 0; i < reference.length; i++) {
    const expected = reference[i] as number;
    squares += expected * expected;
    const difference = Math.abs((x[i] as number) - expected);
    // Not Math.max alone: NaN must not be lost.
    most = difference >= most || Number.isNaN(difference) ? difference : most;
  }
  const rms = Math.sqrt(squares / reference.length);
  return rms === 0 ? most : most / rms;
}
