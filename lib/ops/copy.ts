// copy: casts, clones and layout changes; and the views that need none: reshape, permute, narrow.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import type { DType } from "../tensor/dtype.js";
import { contiguousStrides, Tensor } from "../tensor/tensor.js";

/** dst = src with cast; equal sizes, any strides. No graph. */
export function copyInto(src: Tensor, dst: Tensor): void {
  binding.ops.copy(src.native(), dst.native());
}

const copied = (x: Tensor, dtype: DType): Tensor => {
  const y = Tensor.empty(x.shape, { device: x.device, dtype });
  copyInto(x, y);
  return y;
};

class Copy extends Function<[Tensor, DType], Tensor> {
  readonly name = "copy";
  forward(ctx: Context, x: Tensor, dtype: DType): Tensor {
    ctx.values.dtype = x.dtype;
    return copied(x, dtype);
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const dtype = ctx.values.dtype as DType;
    return [dy.dtype === dtype ? dy : copied(dy, dtype)];
  }
}
const copyFunction = new Copy();

/** The same values in another dtype; the tensor itself where it has it already. */
export const cast = (x: Tensor, dtype: DType): Tensor => (x.dtype === dtype ? x : copyFunction.apply(x, dtype));
/** A copy with plain strides. */
export const clone = (x: Tensor): Tensor => copyFunction.apply(x, x.dtype);
/** The tensor itself where its strides are plain, else a copy. */
export const contiguous = (x: Tensor): Tensor => (x.isContiguous ? x : clone(x));

/** Views: forward and backward are the same kind of map. */
class View extends Function<[Tensor, (x: Tensor) => Tensor, (dy: Tensor) => Tensor], Tensor> {
  readonly name = "view";
  forward(ctx: Context, x: Tensor, map: (x: Tensor) => Tensor, back: (dy: Tensor) => Tensor): Tensor {
    ctx.values.back = back;
    return map(x);
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    return [(ctx.values.back as (dy: Tensor) => Tensor)(dy)];
  }
}
const viewFunction = new View();

/** Strides of x under another shape, where the bytes allow it. */
function reshapedStrides(x: Tensor, shape: readonly number[]): number[] | undefined {
  if (x.isContiguous) return contiguousStrides(shape);
  // Dims of x in runs that are plain among themselves; each new dim must lie inside one run.
  const strides: number[] = new Array(shape.length);
  let at = x.ndim - 1;
  let j = shape.length - 1;
  while (at >= 0) {
    let run = x.shape[at] as number;
    const stride = x.strides[at] as number;
    while (at > 0 && x.strides[at - 1] === stride * run) run *= x.shape[--at] as number;
    at--;
    let inner = stride;
    while (j >= 0 && run > 1 && run % (shape[j] as number) === 0) {
      strides[j] = inner;
      inner *= shape[j] as number;
      run /= shape[j] as number;
      j--;
    }
    if (run !== 1) return undefined;
  }
  while (j >= 0) {
    if (shape[j] !== 1) return undefined;
    strides[j--] = 0;
  }
  return strides;
}

function reshaped(x: Tensor, shape: readonly number[]): Tensor {
  const strides = x.size === 0 ? contiguousStrides(shape) : reshapedStrides(x, shape);
  if (strides) return x.viewOf(shape, strides, 0);
  const plain = copied(x, x.dtype);
  const view = plain.viewOf(shape, contiguousStrides(shape), 0);
  plain.dispose();
  return view;
}

/** The same values in another shape: a view where strides allow it, else a copy. One size may be -1. */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  const known = shape.reduce((product, size) => (size === -1 ? product : product * size), 1);
  const full = shape.map((size) => (size === -1 ? x.size / known : size));
  if (full.reduce((product, size) => product * size, 1) !== x.size || !full.every(Number.isInteger))
    throw new ArgumentError(`reshape: [${x.shape}] cannot become [${shape}]`);
  const before = x.shape;
  return viewFunction.apply(
    x,
    (t) => reshaped(t, full),
    (dy) => reshaped(dy, before),
  );
}

function permuted(x: Tensor, dims: readonly number[]): Tensor {
  return x.viewOf(
    dims.map((d) => x.shape[d] as number),
    dims.map((d) => x.strides[d] as number),
    0,
  );
}

/** Dims in another order, as a view. */
export function permute(x: Tensor, dims: readonly number[]): Tensor {
  if (dims.length !== x.ndim || [...dims].sort((a, b) => a - b).some((d, i) => d !== i))
    throw new ArgumentError(`permute: [${dims}] is no order of the dims of [${x.shape}]`);
  const inverse = dims.map((_, i) => dims.indexOf(i));
  return viewFunction.apply(
    x,
    (t) => permuted(t, dims),
    (dy) => permuted(dy, inverse),
  );
}

function narrowed(x: Tensor, dim: number, start: number, length: number): Tensor {
  const shape = x.shape.map((size, i) => (i === dim ? length : size));
  return x.viewOf(shape, x.strides, start * (x.strides[dim] as number));
}

/** The part start .. start + length - 1 of a dim, as a view. */
export function narrow(x: Tensor, dim: number, start: number, length: number): Tensor {
  const at = dim < 0 ? dim + x.ndim : dim;
  const size = x.shape[at];
  if (size === undefined || !(start >= 0) || !(length >= 0) || start + length > size)
    throw new ArgumentError(
      `narrow: ${start} .. ${start + length - 1} of dim ${dim} of a tensor of shape [${x.shape}]`,
    );
  const { shape, device } = x;
  return viewFunction.apply(
    x,
    (t) => narrowed(t, at, start, length),
    (dy) => {
      const dx = Tensor.full(shape, 0, { device, dtype: dy.dtype });
      const part = narrowed(dx, at, start, length);
      copyInto(dy, part);
      part.dispose();
      return dx;
    },
  );
}
