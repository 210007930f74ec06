// Element types: names, sizes, and the typed arrays that hold them in JavaScript.
import { ArgumentError } from "../errors.js";

/** Storage types. Arithmetic on bfloat16 is float32. */
export type DType = "float32" | "bfloat16" | "float64" | "int32" | "int64" | "uint8";

/** In the order of ls_dtype. */
const names: readonly DType[] = ["float32", "bfloat16", "float64", "int32", "int64", "uint8"];
const sizes: Record<DType, number> = { float32: 4, bfloat16: 2, float64: 8, int32: 4, int64: 8, uint8: 1 };

export type DataArray = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint8Array | Uint16Array;

/** The number that stands for a dtype in the addon. */
export function dtypeCode(dtype: DType): number {
  const code = names.indexOf(dtype);
  if (code < 0) throw new ArgumentError(`dtype is ${String(dtype)}, expected one of ${names.join(", ")}`);
  return code;
}

export const dtypeBytes = (dtype: DType): number => sizes[dtype];
export const isFloating = (dtype: DType): boolean => dtype === "float32" || dtype === "bfloat16" || dtype === "float64";

/** The dtype that a typed array stands for. */
export function dtypeOf(data: ArrayBufferView): DType | undefined {
  if (data instanceof Float32Array) return "float32";
  if (data instanceof Float64Array) return "float64";
  if (data instanceof Int32Array) return "int32";
  if (data instanceof BigInt64Array) return "int64";
  if (data instanceof Uint8Array) return "uint8";
  return undefined;
}

/** A typed array over the bytes; bfloat16 becomes raw Uint16Array. */
export function arrayOver(buffer: ArrayBuffer, dtype: DType): DataArray {
  switch (dtype) {
    case "float32":
      return new Float32Array(buffer);
    case "bfloat16":
      return new Uint16Array(buffer);
    case "float64":
      return new Float64Array(buffer);
    case "int32":
      return new Int32Array(buffer);
    case "int64":
      return new BigInt64Array(buffer);
    case "uint8":
      return new Uint8Array(buffer);
  }
}

const cell = new Float32Array(1);
const bits = new Uint32Array(cell.buffer);

/** Rounds to bfloat16, ties to even, and returns its 16 bits. */
export function toBfloat16(value: number): number {
  cell[0] = value;
  const word = bits[0] as number;
  if (Number.isNaN(value)) return 0x7fc0;
  return ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) & 0xffff;
}

/** Numbers (or bigints) to the typed array of a dtype. */
export function encode(values: ArrayLike<number | bigint>, dtype: DType): DataArray {
  switch (dtype) {
    case "float32":
      return Float32Array.from(values as ArrayLike<number>, Number);
    case "bfloat16":
      return Uint16Array.from(values as ArrayLike<number>, (value) => toBfloat16(Number(value)));
    case "float64":
      return Float64Array.from(values as ArrayLike<number>, Number);
    case "int32":
      return Int32Array.from(values as ArrayLike<number>, Number);
    case "int64":
      return BigInt64Array.from(Array.from(values as ArrayLike<number | bigint>, BigInt));
    case "uint8":
      return Uint8Array.from(values as ArrayLike<number>, Number);
  }
}
