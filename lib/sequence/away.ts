// A tensor that left the device: where its bytes wait (host, disk, or packed on the device), and their way there and
// back on the copy and disk queues.
import { binding, type NativeDisk } from "../binding.js";
import { type BlockFormat, dequantize, packedShape, quantize } from "../ops/quantize.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { untracked } from "../tensor/scope.js";
import { contiguousStrides, defer, produce, Tensor } from "../tensor/tensor.js";
import type { Slot, Staging } from "./staging.js";

/** In the order of ls_queue_kind. */
const queues = { copyOut: 1, copyIn: 2 } as const;

/** Where tensors go. */
export interface Destination {
  tier: "none" | "host" | "disk";
  /** Tensors whose bytes other queues still read: given back at the store's next step, when compute waits for them. */
  readonly leaving: Tensor[];
  readonly staging: Staging;
  /** Bytes of staging. */
  readonly stagingBytes: () => number;
  /** The file of the disk tier, opened when it is first asked for. Errors: IoError. */
  readonly disk: (device: Device) => NativeDisk;
}

/** Rows of the first dim: blocks then do not end with each head. */
const rowsOf = (shape: readonly number[]): number[] => {
  const rows = shape[0] as number;
  return [rows, shape.reduce((product, size) => product * size, 1) / Math.max(1, rows)];
};

const like = ({ shape, dtype, device }: Pick<Tensor, "shape" | "dtype" | "device">, tier: "device" | "host"): Tensor =>
  Tensor.empty(shape, { device, dtype, tier, category: "checkpoints" });

export class Away {
  readonly #to: Destination;
  readonly #shape: readonly number[];
  readonly #dtype: DType;
  readonly #format: BlockFormat | null;
  /** What travels: the tensor, or its packed bytes. */
  readonly #form: Pick<Tensor, "shape" | "dtype" | "device" | "bytes">;
  #rest: Tensor | null = null;
  #disk: NativeDisk | null = null;
  #slot: Slot | null = null;
  #arrived: Tensor | null = null;

  /** Sends the tensor out and takes over its handle. format: null keeps every bit. Errors: OutOfMemoryError, IoError. */
  constructor(tensor: Tensor, format: BlockFormat | null, to: Destination) {
    this.#to = to;
    this.#shape = tensor.shape;
    this.#dtype = tensor.dtype;
    const packs = format !== null && tensor.ndim > 0 && tensor.isContiguous;
    this.#format = packs ? format : null;
    const { device } = tensor;
    this.#form = packs
      ? {
          shape: packedShape(rowsOf(tensor.shape)),
          dtype: "uint8",
          device,
          bytes: product(packedShape(rowsOf(tensor.shape))),
        }
      : { shape: tensor.shape, dtype: tensor.dtype, device, bytes: tensor.bytes };
    untracked(() => {
      const form = packs ? this.#pack(tensor, format) : tensor.alias();
      try {
        this.#send(form);
      } catch (error) {
        form.dispose();
        this.#rest?.dispose();
        throw error;
      }
    });
    tensor.dispose();
  }

  #pack(tensor: Tensor, format: BlockFormat): Tensor {
    const shape = rowsOf(tensor.shape);
    const rows = tensor.viewOf(shape, contiguousStrides(shape), 0);
    try {
      return quantize(rows, format, { category: "checkpoints" });
    } finally {
      rows.dispose();
    }
  }

  /** Takes over `form`. */
  #send(form: Tensor): void {
    const { tier, leaving } = this.#to;
    if (tier === "none") {
      this.#rest = form;
      return;
    }
    if (tier === "host") {
      this.#rest = like(form, "host");
      binding.ops.copy(form.native(), this.#rest.native(), queues.copyOut);
    } else {
      this.#disk = this.#to.disk(form.device);
      this.#rest = Tensor.empty([form.bytes], {
        device: form.device,
        dtype: "uint8",
        tier: "disk",
        category: "checkpoints",
      });
      const slot = this.#to.staging.take(this.#form, this.#to.stagingBytes(), false);
      binding.ops.copy(form.native(), slot.tensor.native(), queues.copyOut);
      binding.diskWrite(this.#disk, slot.tensor.native(), this.#rest.native());
    }
    leaving.push(form);
  }

  /** Bytes where it waits. */
  get bytes(): number {
    return this.#form.bytes;
  }

  /** Starts the way from the disk to host memory. */
  read(): void {
    if (!this.#disk || !this.#rest || this.#slot) return;
    const slot = this.#to.staging.take(this.#form, this.#to.stagingBytes(), true);
    this.#slot = slot;
    binding.diskRead(this.#disk, this.#rest.native(), slot.tensor.native());
  }

  /** Starts the way back to the device, as far as copies go. */
  arrive(): void {
    if (this.#arrived || !this.#rest) return;
    if (this.#to.tier === "none") {
      this.#arrived = this.#rest;
      this.#rest = null;
      return;
    }
    this.read();
    const source = this.#slot?.tensor ?? this.#rest;
    const arrived = untracked(() => like(this.#form, "device"));
    this.#arrived = arrived;
    binding.ops.copy(source.native(), arrived.native(), queues.copyIn);
    if (this.#slot) this.#slot.held = false;
    this.#slot = null;
    this.#to.leaving.push(this.#rest);
    this.#rest = null;
  }

  /** The tensor, whose bytes are the caller's alone; compute waits for them where they are first used. */
  take(): Tensor {
    this.arrive();
    const arrived = this.#arrived as Tensor;
    this.#arrived = null;
    const format = this.#format;
    if (format === null) return arrived;
    const [shape, dtype, device] = [this.#shape, this.#dtype, arrived.device];
    const unpacked = untracked(() =>
      defer(true, () =>
        produce(shape, { device, dtype }, [arrived], (packed) => unpack(packed as Tensor, format, shape, dtype)),
      ),
    );
    arrived.dispose();
    return unpacked;
  }

  dispose(): void {
    if (this.#slot) this.#slot.held = false;
    this.#slot = null;
    if (this.#rest) this.#to.leaving.push(this.#rest);
    this.#rest = null;
    this.#arrived?.dispose();
    this.#arrived = null;
  }
}

const product = (shape: readonly number[]): number => shape.reduce((total, size) => total * size, 1);

function unpack(packed: Tensor, format: BlockFormat, shape: readonly number[], dtype: DType): Tensor {
  const rows = untracked(() => dequantize(packed, format, rowsOf(shape), dtype, { category: "checkpoints" }));
  const y = rows.viewOf(shape, contiguousStrides(shape), 0);
  rows.dispose();
  return y;
}
