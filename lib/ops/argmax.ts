// argmax: the index of the largest value of each row.
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";

/** x [T, V] -> [T] int32, the first where values tie. */
export function argmax(x: Tensor): Tensor {
  const index = Tensor.empty([x.shape[0] ?? 0], { device: x.device, dtype: "int32" });
  binding.ops.argmax(x.native(), index.native());
  return index;
}
