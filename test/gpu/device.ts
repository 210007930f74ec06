// The device that the GPU checks and benches run on: LONGSEQ_TEST_DEVICE (see test/ops/strided.ts), here by default cuda.
import { binding, type NativeTensor } from "../../lib/binding.js";
import { Device, type DeviceOptions } from "../../lib/index.js";
import { type DType, dtypeCode } from "../../lib/tensor/dtype.js";
// Opens the backend that LONGSEQ_TEST_BACKEND names.
import "../ops/strided.js";

export const deviceName = process.env.LONGSEQ_TEST_DEVICE ?? "cuda";
/** Sizes that a CPU can do: to try the checks themselves where no GPU is. */
export const small = process.env.LONGSEQ_GPU_SMALL === "1";
/** Other random numbers in every run of the suite. */
export const seed = Number(process.env.LONGSEQ_TEST_SEED ?? 0);

export const openGpu = (options: DeviceOptions = {}): Device => new Device(deviceName, options);

export type Engine = "cudnn" | "native";
/** The device with its attention on one engine alone: what that cannot take is refused. Elsewhere there is but one. */
export const openWith = (attention: Engine): Device => openGpu(/^cuda(:\d+)?$/.test(deviceName) ? { attention } : {});

/** Tensors that are released together. */
export class Pool {
  readonly #made: NativeTensor[] = [];
  #seed = seed * 1000;
  constructor(readonly device: Device) {}

  empty(shape: readonly number[], dtype: DType = "bfloat16"): NativeTensor {
    const tensor = binding.empty(this.device.native, shape, dtypeCode(dtype), 4, 0);
    this.#made.push(tensor);
    return tensor;
  }
  /** Full of NaN: what is left out shows. */
  poisoned(shape: readonly number[], dtype: DType = "bfloat16"): NativeTensor {
    const tensor = this.empty(shape, dtype);
    binding.ops.fill(tensor, Number.NaN);
    return tensor;
  }
  /** Normal values. */
  random(shape: readonly number[], dtype: DType = "bfloat16", deviation = 1): NativeTensor {
    const tensor = this.empty(shape, dtype);
    binding.ops.random(tensor, 0, deviation, ++this.#seed, 0, true);
    return tensor;
  }
  view(tensor: NativeTensor, shape: readonly number[], strides: readonly number[], offset = 0): NativeTensor {
    const view = binding.view(tensor, shape, strides, offset);
    this.#made.push(view);
    return view;
  }
  write(shape: readonly number[], dtype: DType, values: ArrayBufferView): NativeTensor {
    const tensor = this.empty(shape, dtype);
    binding.write(tensor, values, true);
    return tensor;
  }
  free(): void {
    for (const tensor of this.#made.splice(0).reverse()) binding.release(tensor);
  }
}

/** float64 sum of squares of a tensor of any size; NaN where one element is. */
export async function squares(device: Device, tensor: NativeTensor): Promise<number> {
  const sum = binding.empty(device.native, [], dtypeCode("float64"), 4, 0);
  binding.ops.fill(sum, 0);
  binding.ops.normSquared(tensor, sum);
  const value = new Float64Array(await binding.read(sum))[0] as number;
  binding.release(sum);
  return value;
}
