// Making tensors: from JavaScript data, constants, and counter-based random numbers.
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { type DType, dtypeOf, encode } from "./dtype.js";
import { type Nested, Tensor, type TensorOptions } from "./tensor.js";

export interface FromDataOptions extends TensorOptions {
  /** Default: that of the nesting, or the length. */
  shape?: readonly number[];
  /** Whether ops may look at the values before they run, as attention does at cu_seqlens. Default: of int64 they may. */
  keepValues?: boolean;
}

/** From a number, nested arrays or a typed array. dtype default: that of the typed array, else float32. */
export function tensor(data: Nested | ArrayBufferView, options: FromDataOptions = {}): Tensor {
  let flat: ArrayLike<number | bigint>;
  let shape: number[];
  let dtype: DType | undefined = options.dtype;
  if (ArrayBuffer.isView(data)) {
    dtype ??= dtypeOf(data);
    flat = data as unknown as ArrayLike<number | bigint>;
    if (typeof flat.length !== "number" || dtype === undefined)
      throw new ArgumentError(
        "tensor(): this kind of array has no dtype; use Float32Array, Float64Array, Int32Array, BigInt64Array or Uint8Array",
      );
    shape = [flat.length];
  } else {
    shape = [];
    for (let level: unknown = data; Array.isArray(level); level = level[0]) shape.push(level.length);
    const values: (number | bigint)[] = [];
    const walk = (level: unknown, dim: number): void => {
      if (Array.isArray(level)) {
        if (dim >= shape.length || level.length !== shape[dim])
          throw new ArgumentError(`tensor(): the nested arrays are ragged at depth ${dim}`);
        for (const item of level) walk(item, dim + 1);
      } else if (dim !== shape.length || (typeof level !== "number" && typeof level !== "bigint")) {
        throw new ArgumentError(`tensor(): found ${typeof level} among the numbers`);
      } else {
        values.push(level);
      }
    };
    walk(data, 0);
    flat = values;
  }
  const wanted = options.shape ? [...options.shape] : shape;
  const count = wanted.reduce((product, size) => product * size, 1);
  if (count !== flat.length)
    throw new ArgumentError(`tensor(): ${flat.length} values do not fill the shape [${wanted}]`);
  const type = dtype ?? "float32";
  const made = Tensor.empty(wanted, { ...options, dtype: type });
  const matching = ArrayBuffer.isView(flat) && dtypeOf(flat) === type;
  const { keepValues = type === "int64" } = options;
  binding.write(made.native(), matching ? (flat as unknown as ArrayBufferView) : encode(flat, type), keepValues);
  return made;
}

export const empty = (shape: readonly number[], options: TensorOptions = {}): Tensor => Tensor.empty(shape, options);
export const full = (shape: readonly number[], value: number, options: TensorOptions = {}): Tensor =>
  Tensor.full(shape, value, options);
export const zeros = (shape: readonly number[], options: TensorOptions = {}): Tensor => Tensor.full(shape, 0, options);
export const ones = (shape: readonly number[], options: TensorOptions = {}): Tensor => Tensor.full(shape, 1, options);

export interface RandomOptions extends TensorOptions {
  seed?: number;
  /** Position in the stream, a multiple of 4: disjoint ranges give independent numbers. */
  offset?: number;
}

/** Normal numbers by Philox4x32-10: the same on every backend. */
export function randn(shape: readonly number[], options: RandomOptions & { mean?: number; std?: number } = {}): Tensor {
  const made = Tensor.empty(shape, options);
  binding.ops.random(made.native(), options.mean ?? 0, options.std ?? 1, options.seed ?? 0, options.offset ?? 0, true);
  return made;
}

/** Uniform numbers in [low, high). */
export function rand(shape: readonly number[], options: RandomOptions & { low?: number; high?: number } = {}): Tensor {
  const made = Tensor.empty(shape, options);
  binding.ops.random(made.native(), options.low ?? 0, options.high ?? 1, options.seed ?? 0, options.offset ?? 0, false);
  return made;
}
