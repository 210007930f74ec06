// binary: add, sub, mul, div of two tensors with broadcasting, or of a tensor and a number.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { produce, Tensor } from "../tensor/tensor.js";
import { axpbyInto, scale } from "./axpby.js";
import { sumTo } from "./sum.js";

/** In the order of ls_binary_kind. */
const kinds = ["add", "sub", "mul", "div", "maximum"] as const;
export type BinaryKind = (typeof kinds)[number];

/** The common shape, as NumPy broadcasts. Errors: ArgumentError. */
export function broadcastShape(a: readonly number[], b: readonly number[], op: string): number[] {
  const ndim = Math.max(a.length, b.length);
  return Array.from({ length: ndim }, (_, i) => {
    const x = a[i - ndim + a.length] ?? 1;
    const y = b[i - ndim + b.length] ?? 1;
    if (x !== y && x !== 1 && y !== 1) throw new ArgumentError(`${op}: shapes [${a}] and [${b}] do not broadcast`);
    return x === 1 ? y : x;
  });
}

/** A view with zero strides where the shape grew; without graph. */
export function broadcastView(x: Tensor, shape: readonly number[]): Tensor {
  const lead = shape.length - x.ndim;
  const strides = shape.map((size, i) =>
    i < lead || (x.shape[i - lead] === 1 && size !== 1) ? 0 : (x.strides[i - lead] as number),
  );
  return x.viewOf(shape, strides, 0);
}

function compute(a: Tensor, b: Tensor, kind: BinaryKind): Tensor {
  const shape = broadcastShape(a.shape, b.shape, kind);
  const options = { device: a.device, dtype: a.dtype };
  return produce(shape, options, [a, b], (x, z) => {
    const y = Tensor.empty(shape, options);
    const [left, right] = [broadcastView(x as Tensor, shape), broadcastView(z as Tensor, shape)];
    binding.ops.binary(left.native(), right.native(), y.native(), kinds.indexOf(kind));
    left.dispose();
    right.dispose();
    return y;
  });
}

class Binary extends Function<[Tensor, Tensor, BinaryKind], Tensor> {
  readonly name = "binary";
  forward(ctx: Context, a: Tensor, b: Tensor, kind: BinaryKind): Tensor {
    const y = compute(a, b, kind);
    ctx.values = { kind, a: a.shape, b: b.shape, aType: a.dtype, bType: b.dtype };
    if (kind === "mul" || kind === "div") ctx.save(a, b);
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const { kind, a: aShape, b: bShape } = ctx.values as { kind: BinaryKind; a: number[]; b: number[] };
    // sumTo consumes what it is given and undoes the broadcast.
    if (kind === "add")
      return [ctx.needsGrad[0] ? sumTo(dy.alias(), aShape) : null, ctx.needsGrad[1] ? sumTo(dy.alias(), bShape) : null];
    if (kind === "sub")
      return [
        ctx.needsGrad[0] ? sumTo(dy.alias(), aShape) : null,
        ctx.needsGrad[1] ? sumTo(scale(dy, -1), bShape) : null,
      ];
    const [a, b] = [ctx.saved(0), ctx.saved(1)];
    if (kind === "mul")
      return [
        ctx.needsGrad[0] ? sumTo(compute(dy, b, "mul"), aShape) : null,
        ctx.needsGrad[1] ? sumTo(compute(dy, a, "mul"), bShape) : null,
      ];
    const da = compute(dy, b, "div");
    let db: Tensor | null = null;
    if (ctx.needsGrad[1]) {
      const ratio = compute(a, b, "div");
      const product = compute(da, ratio, "mul");
      axpbyInto(product, product, { alpha: -1, beta: 0 });
      ratio.dispose();
      db = sumTo(product, bShape);
    }
    if (!ctx.needsGrad[0]) {
      da.dispose();
      return [null, db];
    }
    return [sumTo(da, aShape), db];
  }
}
const binaryFunction = new Binary();

const withNumber = (a: Tensor, b: Tensor | number): Tensor =>
  typeof b === "number" && a instanceof Tensor
    ? Tensor.full([], b, { device: a.device, dtype: a.dtype })
    : (b as Tensor);

/** a + b, broadcast. */
export const add = (a: Tensor, b: Tensor | number): Tensor => binaryFunction.apply(a, withNumber(a, b), "add");
/** a - b, broadcast. */
export const sub = (a: Tensor, b: Tensor | number): Tensor => binaryFunction.apply(a, withNumber(a, b), "sub");
/** a * b, broadcast. */
export const mul = (a: Tensor, b: Tensor | number): Tensor =>
  typeof b === "number" ? scale(a, b) : binaryFunction.apply(a, b, "mul");
/** a / b, broadcast. */
export const div = (a: Tensor, b: Tensor | number): Tensor =>
  typeof b === "number" ? scale(a, 1 / b) : binaryFunction.apply(a, b, "div");
