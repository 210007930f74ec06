// Filling parameters that are packed in 8 bits from their values, some rows at a time.

import { copyInto } from "../ops/copy.js";
import { type BlockFormat, packedShape, quantize } from "../ops/quantize.js";
import { untracked } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";
import { flatPart } from "../tensor/tiers.js";

/** Bytes of float32 at a time. */
const PIECE = 16 * 2 ** 20;

/** Values of a parameter from number `begin` on, for the receiver to fill. */
interface Piece {
  /** Flat, float32, on the device. */
  readonly values: Tensor;
  readonly begin: number;
}

/**
 * Pieces of a parameter of the given shape that together hold what belongs in `target`, its packed bytes from number
 * `begin` on. What was filled is packed when the next piece is asked for.
 */
export function* packedPieces(
  shape: readonly number[],
  format: BlockFormat,
  target: Tensor,
  begin: number,
): Generator<Piece> {
  const width = shape.at(-1) as number;
  const bytes = packedShape(shape).at(-1) as number;
  const end = begin + target.size;
  const rows = shape.slice(0, -1).reduce((product, size) => product * size, 1);
  // Random numbers are made from multiples of four on.
  const step = Math.max(4, Math.floor(PIECE / (4 * width)) & ~3);
  for (let row = Math.floor(begin / bytes) & ~3; row * bytes < end; row += step) {
    const count = Math.min(step, rows - row);
    using values = untracked(() => Tensor.empty([count, width], { device: target.device }));
    using flat = untracked(() => flatPart(values, 0, count * width));
    yield { values: flat, begin: row * width };
    using packed = untracked(() => quantize(values, format));
    const [from, to] = [Math.max(begin, row * bytes), Math.min(end, (row + count) * bytes)];
    using source = untracked(() => flatPart(packed, from - row * bytes, to - from));
    using part = untracked(() => flatPart(target, from - begin, to - from));
    copyInto(source, part);
  }
}
