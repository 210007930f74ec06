// Values of checkpoints that must be numbers, since what they spoil would show much later, or never.

import { ModelError } from "../errors.js";

/** What SafetensorsFile and ModelFolder have. */
interface Weights {
  readonly entries: ReadonlyMap<string, { readonly shape: readonly number[] }>;
  readBytes(name: string, options: { begin: number; count: number; dtype: "F32" }): Promise<ArrayBuffer>;
}

/** Values that are read at a time. */
const PIECE = 1 << 22;

/**
 * Reads `range` of a tensor, by default all of it, and throws ModelError for the first value that is not finite. file: where
 * it is from; role: what it is for, such as ", which chooses experts,".
 */
export async function refuseNonFinite(
  weights: Weights,
  name: string,
  { file, role = "", range }: { file: string; role?: string; range?: { begin: number; count: number } },
): Promise<void> {
  const { shape } = weights.entries.get(name) as { shape: readonly number[] };
  const { begin: first, count } = range ?? { begin: 0, count: shape.reduce((product, size) => product * size, 1) };
  for (let begin = first; begin < first + count; begin += PIECE) {
    const piece = { begin, count: Math.min(PIECE, first + count - begin), dtype: "F32" } as const;
    const values = new Float32Array(await weights.readBytes(name, piece));
    const at = values.findIndex((value) => !Number.isFinite(value));
    if (at < 0) continue;
    const columns = shape.at(-1) ?? 1;
    const [row, column] = [Math.floor((begin + at) / columns), (begin + at) % columns];
    throw new ModelError(`${file}: tensor ${name}${role} has ${values[at]} at [${row}, ${column}]; it must be finite`, {
      path: file,
      tensor: name,
      row,
      column,
    });
  }
}
