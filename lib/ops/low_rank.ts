// What a low-rank adapter (LoRA, arXiv 2106.09685) adds to a product x W^T: scale * drop(x) A^T B^T, of rank r. Its
// parts are functions without a graph, for the halves of a layer; `lowRank` is the whole, with one.

import { type Context, Function, type Grad, type WeightGrad } from "../autograd/function.js";
import { Tensor } from "../tensor/tensor.js";
import { copyInto } from "./copy.js";
import { type Dropout, dropoutInto } from "./dropout.js";
import { matmulInto, matmulTransposed } from "./matmul.js";

/** What an adapter is beside its matrices. */
export interface LowRankKind {
  readonly scale: number;
  /** Of what A reads; null: nothing is dropped. */
  readonly dropout: Dropout | null;
}

/** An adapter of a product x W^T, x [T, I], W [O, I]. */
export interface LowRank extends LowRankKind {
  /** [r, I] */
  readonly a: Tensor;
  /** [O, r] */
  readonly b: Tensor;
  /** [T] int64, the numbers of x's rows for the dropout; null where nothing is dropped. */
  readonly rows: Tensor | null;
}

/** Where the gradients of A and B go. */
export interface LowRankGrads {
  readonly a: Pick<WeightGrad, "add"> | null;
  readonly b: Pick<WeightGrad, "add"> | null;
}

/** The adapter of given matrices; null where one is missing. */
export const lowRankOf = (
  kind: LowRankKind | null | undefined,
  a: Tensor | null | undefined,
  b: Tensor | null | undefined,
  rows: Tensor | null | undefined,
): LowRank | null => (kind && a && b ? { ...kind, a, b, rows: (kind.dropout && rows) ?? null } : null);

/** Calls `use` with the adapter of some of the rows. */
export function withRows(lowRank: LowRank, start: number, length: number, use: (part: LowRank) => void): void {
  const { rows } = lowRank;
  if (rows === null) {
    use(lowRank);
    return;
  }
  const part = rows.viewOf([length], rows.strides, start * (rows.strides[0] as number));
  use({ ...lowRank, rows: part });
  part.dispose();
}

/** Calls `use` with what A reads: x [T, I], or a new tensor of what is left of it. */
function withDropped(x: Tensor, { dropout, rows }: LowRank, use: (kept: Tensor) => void): void {
  if (dropout === null || rows === null) {
    use(x);
    return;
  }
  const kept = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
  dropoutInto(dropout, x, rows, kept);
  use(kept);
  kept.dispose();
}

/** x A^T: [T, r] float32, the caller's. */
export function lowOf(x: Tensor, lowRank: LowRank): Tensor {
  const shape = [x.shape[0] as number, lowRank.a.shape[0] as number];
  const low = Tensor.empty(shape, { device: x.device, dtype: "float32" });
  withDropped(x, lowRank, (kept) => matmulTransposed(kept, false, lowRank.a, true, low));
  return low;
}

/**
 * Calls `use` with two float32 factors of what is added to y. Tensor cores take bfloat16: a float32 product would pass
 * through memory as wide as y before it is added.
 */
function withFactors(y: Tensor, factors: readonly [Tensor, Tensor], use: (a: Tensor, b: Tensor) => void): void {
  if (!y.device.isGpu || y.dtype !== "bfloat16") {
    use(...factors);
    return;
  }
  const rounded = factors.map((factor) => {
    const copy = Tensor.empty(factor.shape, { device: factor.device, dtype: "bfloat16" });
    copyInto(factor, copy);
    return copy;
  }) as [Tensor, Tensor];
  use(...rounded);
  for (const copy of rounded) copy.dispose();
}

/** y [T, columns] += scale * low B^T, of B's rows from `first` on. */
export function addLow(low: Tensor, { b, scale }: LowRank, y: Tensor, first = 0): void {
  const rows = b.viewOf([y.shape[1] as number, b.shape[1] as number], b.strides, first * (b.strides[0] as number));
  withFactors(y, [low, rows], (left, right) => matmulTransposed(left, false, right, true, y, true, scale));
  rows.dispose();
}

/** y [T, O] += what the adapter makes of x. */
export function addLowRank(x: Tensor, lowRank: LowRank | null, y: Tensor): void {
  if (lowRank === null) return;
  const low = lowOf(x, lowRank);
  addLow(low, lowRank, y);
  low.dispose();
}

/**
 * Adds the gradients of A and B, from the gradient d [T, O] of what was made of x. dlow [T, r] float32 becomes the
 * gradient of x A^T, from which `addBack` makes x's.
 */
export function lowRankGradients(lowRank: LowRank, x: Tensor, d: Tensor, grads: LowRankGrads, dlow: Tensor): void {
  const { b, scale } = lowRank;
  if (grads.b) {
    const low = lowOf(x, lowRank);
    grads.b.add((out, accumulate) => matmulTransposed(d, true, low, false, out, accumulate, scale));
    low.dispose();
  }
  matmulInto(d, b, dlow, { alpha: scale });
  grads.a?.add((out, accumulate) =>
    withDropped(x, lowRank, (kept) => matmulTransposed(dlow, true, kept, false, out, accumulate)),
  );
}

/** [T, r] float32 for `lowRankGradients` to fill. */
export const emptyLow = (x: Tensor, { a }: LowRank): Tensor =>
  Tensor.empty([x.shape[0] as number, a.shape[0] as number], { device: x.device, dtype: "float32" });

/** dx [T, columns] += dlow A, of A's columns from `first` on. */
export function addBack(dlow: Tensor, lowRank: LowRank, dx: Tensor, first = 0): void {
  const { a, dropout, rows } = lowRank;
  const columns = dx.shape[1] as number;
  const part = a.viewOf([a.shape[0] as number, columns], a.strides, first * (a.strides[1] as number));
  withFactors(dx, [dlow, part], (left, right) => {
    if (dropout === null || rows === null) {
      matmulInto(left, right, dx, { accumulate: true });
      return;
    }
    const kept = Tensor.empty(dx.shape, { device: dx.device, dtype: dx.dtype });
    matmulInto(left, right, kept);
    dropoutInto(dropout, kept, rows, dx, { first, accumulate: true });
    kept.dispose();
  });
  part.dispose();
}

class LowRankProduct extends Function<[LowRankKind, Tensor, Tensor, Tensor, Tensor | null], Tensor> {
  readonly name = "low_rank";
  forward(ctx: Context, kind: LowRankKind, x: Tensor, a: Tensor, b: Tensor, rows: Tensor | null): Tensor {
    const lowRank = lowRankOf(kind, a, b, rows) as LowRank;
    const y = Tensor.full([x.shape[0] as number, b.shape[0] as number], 0, { device: x.device, dtype: x.dtype });
    addLowRank(x, lowRank, y);
    ctx.save(x, a, b, lowRank.rows);
    ctx.values = { kind, rows: lowRank.rows !== null };
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const [x, a, b] = [ctx.saved(0), ctx.saved(1), ctx.saved(2)];
    const lowRank = lowRankOf(ctx.values.kind as LowRankKind, a, b, ctx.values.rows ? ctx.saved(3) : null) as LowRank;
    const grads = { a: ctx.weight(2), b: ctx.weight(3) };
    const dlow = emptyLow(x, lowRank);
    lowRankGradients(lowRank, x, dy, grads, dlow);
    let dx: Tensor | null = null;
    if (ctx.needsGrad[1]) {
      dx = Tensor.full(x.shape, 0, { device: x.device, dtype: x.dtype });
      addBack(dlow, lowRank, dx);
    }
    dlow.dispose();
    return [null, dx, grads.a?.result, grads.b?.result];
  }
}
const lowRankProduct = new LowRankProduct();

/** scale * drop(x) A^T B^T.  x [T, I], A [r, I], B [O, r] -> [T, O]. */
export const lowRank = (x: Tensor, { a, b, rows, ...kind }: LowRank): Tensor =>
  lowRankProduct.apply(kind, x, a, b, rows);
