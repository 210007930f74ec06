// matmul and linear: products of matrices; gradients of weights go straight into `grad`, in float32.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { produce, Tensor } from "../tensor/tensor.js";

const swapped = (x: Tensor): Tensor => {
  const n = x.ndim;
  const shape = [...x.shape];
  const strides = [...x.strides];
  [shape[n - 2], shape[n - 1]] = [shape[n - 1] as number, shape[n - 2] as number];
  [strides[n - 2], strides[n - 1]] = [strides[n - 1] as number, strides[n - 2] as number];
  return x.viewOf(shape, strides, 0);
};

/** c = alpha a.b [+ bias] [+ c]; any strides; a [..., M, K], b [..., K, N], c [..., M, N]. No graph. */
export function matmulInto(
  a: Tensor,
  b: Tensor,
  c: Tensor,
  options: { bias?: Tensor | null; alpha?: number; accumulate?: boolean } = {},
): void {
  binding.ops.matmul(
    a.native(),
    b.native(),
    c.native(),
    options.bias?.native() ?? null,
    options.alpha ?? 1,
    options.accumulate ?? false,
  );
}

/** The same without a bias, a and b read transposed where asked. */
export function matmulTransposed(
  a: Tensor,
  transposeA: boolean,
  b: Tensor,
  transposeB: boolean,
  c: Tensor,
  accumulate = false,
  alpha = 1,
): void {
  const left = transposeA ? swapped(a) : a;
  const right = transposeB ? swapped(b) : b;
  matmulInto(left, right, c, { accumulate, alpha });
  if (left !== a) left.dispose();
  if (right !== b) right.dispose();
}

/** sum [N] float32 = (or +=) the rows of x [T, N] added up: a bias's gradient. No graph. */
export function addRowSums(x: Tensor, sum: Tensor, accumulate: boolean): void {
  const row = sum.viewOf([1, sum.shape[0] as number], [0, 1], 0);
  binding.ops.sum(x.native(), row.native(), 1, accumulate);
  row.dispose();
}

class Matmul extends Function<[Tensor, Tensor], Tensor> {
  readonly name = "matmul";
  forward(ctx: Context, a: Tensor, b: Tensor): Tensor {
    if (a.ndim < 2 || b.ndim !== a.ndim)
      throw new ArgumentError(
        `matmul: a has shape [${a.shape}], b [${b.shape}]; expected 2 to 4 dims, the same number`,
      );
    const c = Tensor.empty([...a.shape.slice(0, -1), b.shape[b.ndim - 1] as number], {
      device: a.device,
      dtype: a.dtype,
    });
    matmulInto(a, b, c);
    ctx.save(a, b);
    return c;
  }
  backward(ctx: Context, dc: Tensor): Grad[] {
    const [a, b] = [ctx.saved(0), ctx.saved(1)];
    let da: Tensor | null = null;
    let db: Tensor | null = null;
    if (ctx.needsGrad[0]) {
      da = Tensor.empty(a.shape, { device: a.device, dtype: a.dtype });
      matmulTransposed(dc, false, b, true, da);
    }
    if (ctx.needsGrad[1]) {
      db = Tensor.empty(b.shape, { device: b.device, dtype: b.dtype });
      matmulTransposed(a, true, dc, false, db);
    }
    return [da, db];
  }
}
const matmulFunction = new Matmul();

/** a [..., M, K] . b [..., K, N] -> [..., M, N]; equal leading sizes, at most two. float32 sums. */
export const matmul = (a: Tensor, b: Tensor): Tensor => matmulFunction.apply(a, b);

class Linear extends Function<[Tensor, Tensor, Tensor | null], Tensor> {
  readonly name = "linear";
  forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | null): Tensor {
    if (x.ndim !== 2 || weight.ndim !== 2 || x.shape[1] !== weight.shape[1])
      throw new ArgumentError(`linear: x has shape [${x.shape}], weight [${weight.shape}]; expected [T, I] and [O, I]`);
    const shape = [x.shape[0] as number, weight.shape[0] as number];
    const options = { device: x.device, dtype: x.dtype };
    const y = produce(shape, options, [x, weight, bias], (from, by, plus) => {
      const out = Tensor.empty(shape, options);
      const transposed = swapped(by as Tensor);
      matmulInto(from as Tensor, transposed, out, { bias: plus ?? null });
      transposed.dispose();
      return out;
    });
    // x serves the weight's gradient alone, the weight x's.
    ctx.save(ctx.needsGrad[1] ? x : null);
    ctx.values.saved = ctx.needsGrad[1] ? 1 : 0;
    ctx.values.shape = x.shape;
    if (ctx.needsGrad[0]) ctx.save(weight);
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    let dx: Tensor | null = null;
    if (ctx.needsGrad[0]) {
      const weight = ctx.saved(ctx.values.saved as number);
      dx = Tensor.empty(ctx.values.shape as number[], { device: dy.device, dtype: dy.dtype });
      matmulInto(dy, weight, dx);
    }
    const dweight = ctx.weightGrad(1, (out, accumulate) =>
      matmulTransposed(dy, true, ctx.saved(0), false, out, accumulate),
    );
    const dbias = ctx.weightGrad(2, (out, accumulate) => addRowSums(dy, out, accumulate));
    return [dx, dweight, dbias];
  }
}
const linearFunction = new Linear();

/** y = x . weight^T + bias.  x [T, I], weight [O, I], bias [O] or null -> [T, O]. */
export const linear = (x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor =>
  linearFunction.apply(x, weight, bias);
