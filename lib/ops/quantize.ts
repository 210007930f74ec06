// quantize, dequantize: block-scaled 8-bit storage of tensors that wait. No graph.
import { binding } from "../binding.js";
import type { DType } from "../tensor/dtype.js";
import { Tensor, type TensorOptions } from "../tensor/tensor.js";

/** int8, or float8 e4m3; 64 values of the last dim share a bfloat16 scale (ls_quantize_args in backend.h). */
export type BlockFormat = "int8" | "float8";
const formats: readonly BlockFormat[] = ["int8", "float8"];
const BLOCK = 64;

/** [..., W] -> the shape of its packed bytes, [..., W + 2 ceil(W / 64)]. */
export function packedShape(shape: readonly number[]): number[] {
  const width = shape[shape.length - 1] ?? 1;
  return [...shape.slice(0, -1), width + 2 * Math.ceil(width / BLOCK)];
}

/** x [..., W] float32 or bfloat16, contiguous in its last dim -> uint8 [..., W + 2 ceil(W / 64)]. */
export function quantize(x: Tensor, format: BlockFormat, options: TensorOptions = {}): Tensor {
  const packed = Tensor.empty(packedShape(x.shape), { ...options, device: x.device, dtype: "uint8" });
  binding.ops.quantize(x.native(), packed.native(), formats.indexOf(format));
  return packed;
}

/** The way back: packed [..., W + 2 ceil(W / 64)] -> [..., W]. */
export function dequantize(
  packed: Tensor,
  format: BlockFormat,
  shape: readonly number[],
  dtype: DType,
  options: TensorOptions = {},
): Tensor {
  const y = Tensor.empty(shape, { ...options, device: packed.device, dtype });
  binding.ops.dequantize(packed.native(), y.native(), formats.indexOf(format));
  return y;
}
