// unary: elementwise functions of one tensor.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { Tensor } from "../tensor/tensor.js";

/** In the order of ls_unary_kind. */
const kinds = [
  "silu",
  "gelu",
  "gelu_tanh",
  "relu",
  "sigmoid",
  "tanh",
  "exp",
  "log",
  "sqrt",
  "neg",
  "abs",
  "square",
  "rsqrt",
] as const;
export type UnaryKind = (typeof kinds)[number];
/** Those that gate an MLP. */
export type Activation = "silu" | "gelu" | "gelu_tanh" | "relu";

export function unaryCode(kind: UnaryKind): number {
  const code = kinds.indexOf(kind);
  if (code < 0) throw new ArgumentError(`unknown function '${String(kind)}', expected one of ${kinds.join(", ")}`);
  return code;
}

class Unary extends Function<[Tensor, UnaryKind], Tensor> {
  readonly name = "unary";
  forward(ctx: Context, x: Tensor, kind: UnaryKind): Tensor {
    const y = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    binding.ops.unary(x.native(), y.native(), unaryCode(kind));
    ctx.save(x);
    ctx.values.kind = kind;
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const x = ctx.saved(0);
    const dx = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
    binding.ops.unaryBackward(x.native(), dy.native(), dx.native(), unaryCode(ctx.values.kind as UnaryKind));
    return [dx];
  }
}
const unaryFunction = new Unary();

/** y = f(x) elementwise, float32 arithmetic. */
export const unary = (x: Tensor, kind: UnaryKind): Tensor => unaryFunction.apply(x, kind);
export const silu = (x: Tensor): Tensor => unary(x, "silu");
export const gelu = (x: Tensor, approximate: "none" | "tanh" = "none"): Tensor =>
  unary(x, approximate === "tanh" ? "gelu_tanh" : "gelu");
export const relu = (x: Tensor): Tensor => unary(x, "relu");
export const exp = (x: Tensor): Tensor => unary(x, "exp");
export const log = (x: Tensor): Tensor => unary(x, "log");
export const neg = (x: Tensor): Tensor => unary(x, "neg");
