// embedding: rows of a table by token id; the backward adds rows in token order, so it is deterministic.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";

class Embedding extends Function<[Tensor, Tensor], Tensor> {
  readonly name = "embedding";
  forward(ctx: Context, ids: Tensor, table: Tensor): Tensor {
    const y = Tensor.empty([...ids.shape, table.shape[1] ?? 0], { device: table.device, dtype: table.dtype });
    binding.ops.embedding(ids.native(), table.native(), y.native());
    ctx.save(ids);
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const ids = ctx.saved(0);
    const dtable = ctx.weightGrad(1, (out, accumulate) => {
      if (!accumulate) out.fill(0);
      binding.ops.embeddingBackward(ids.native(), dy.native(), out.native());
    });
    return [null, dtable];
  }
}
const embeddingFunction = new Embedding();

/** table[ids].  ids [T] int32, table [V, H] -> [T, H]. An id outside 0 .. V-1 fails the device, naming it. */
export const embedding = (ids: Tensor, table: Tensor): Tensor => embeddingFunction.apply(ids, table);
