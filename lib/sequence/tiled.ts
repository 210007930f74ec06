// Sequence tiling (ALST): a row-wise function runs tile by tile, so that its intermediates exist for one tile only.
import { alone, type Context, Function, type Grad, noGrad, pullBack } from "../autograd/function.js";
import { ArgumentError } from "../errors.js";
import { copyInto, narrow } from "../ops/copy.js";
import { produce, Tensor } from "../tensor/tensor.js";
import { eachTile } from "./each_tile.js";

export interface TiledOptions {
  /** Rows a tile; the last may have fewer. 0 or more than the rows of x: one plain call, nothing recomputed. */
  rows: number;
  /** What `fn` trains: gradients flow to these, and none may be missing. */
  parameters: Iterable<Tensor>;
  /** Sizes of the result behind its rows; default those of x. */
  columns?: readonly number[];
  /** What else `fn` reads, without a gradient. */
  others?: readonly Tensor[];
}

/** Row ranges of equal tiles. */
export function tiles(total: number, rows: number): { start: number; length: number }[] {
  const result: { start: number; length: number }[] = [];
  for (let start = 0; start < total; start += rows) result.push({ start, length: Math.min(rows, total - start) });
  return result;
}

/** first: the number of the first row of x. others: the tensors of the options. */
type RowFunction = (x: Tensor, first: number, ...others: Tensor[]) => Tensor;

class Tiled extends Function<[RowFunction, TiledOptions, Tensor, ...Tensor[]], Tensor> {
  readonly name = "tiled";
  forward(ctx: Context, fn: RowFunction, options: TiledOptions, x: Tensor): Tensor {
    const [total = 0, ...own] = x.shape;
    const columns = options.columns ?? own;
    const shape = [total, ...columns];
    const made = { device: x.device, dtype: x.dtype };
    const { others = [] } = options;
    const y = produce(shape, made, [x, ...others], (from, ...read) =>
      noGrad(() => {
        const out = Tensor.empty(shape, made);
        eachTile(x.device, total, options.rows, ({ start, length }) => {
          const part = fn(narrow(from as Tensor, 0, start, length), start, ...(read as Tensor[]));
          if (part.ndim !== columns.length + 1 || [length, ...columns].some((size, i) => size !== part.shape[i]))
            throw new ArgumentError(
              `tiled: the function made [${part.shape}] of ${length} rows, expected [${[length, ...columns]}]; ` +
                "it must work row by row, and `columns` must name what differs from its input",
            );
          copyInto(part, narrow(out, 0, start, length));
        });
        return out;
      }),
    );
    ctx.save(x, ...others);
    ctx.values = { fn, rows: options.rows, others: others.length };
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const { fn, rows, others } = ctx.values as { fn: RowFunction; rows: number; others: number };
    const x = ctx.saved(0);
    const read = Array.from({ length: others }, (_, i) => ctx.saved(1 + i));
    const wanted = ctx.needsGrad[2] === true;
    const like = { device: x.device, dtype: x.dtype };
    // A tile of dy is read before that of dx is written.
    const over = alone(dy) && dy.dtype === x.dtype && dy.shape.join() === x.shape.join();
    const dx = !wanted ? null : over ? dy : Tensor.empty(x.shape, like);
    eachTile(x.device, x.shape[0] as number, rows, ({ start, length }) => {
      const tile = (whole: Tensor): Tensor => noGrad(() => narrow(whole, 0, start, length));
      // Hooks of the parameters run when the outer walk has seen them all.
      const part = pullBack((input) => fn(input, start, ...read), tile(x), tile(dy), wanted);
      if (!dx) return;
      if (part) copyInto(part, tile(dx));
      else tile(dx).fill(0);
      part?.dispose();
    });
    // Parameters got their shares in the tiles' own walks.
    return [null, null, dx];
  }
}
const tiledFunction = new Tiled();

/** fn(x, 0) for a function of rows: fn(x)[t] depends on x[t] alone (and its number).  x [T, ...] -> [T, ...]. Saves x only and runs `fn`
 * again, a tile at a time, in the backward. */
export function tiled(fn: RowFunction, x: Tensor, options: TiledOptions): Tensor {
  if (!Number.isInteger(options.rows) || options.rows < 0)
    throw new ArgumentError(`tiled: rows is ${options.rows}, expected a whole number, 0 for no tiles`);
  if (options.rows === 0 || options.rows >= (x.shape[0] ?? 0)) return fn(x, 0, ...(options.others ?? []));
  return tiledFunction.apply(fn, options, x, ...options.parameters);
}
