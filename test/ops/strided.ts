// Tensors of any strides for tests of single ops: made from numbers, surrounded by guard values, read back.
import { binding, type NativeDevice, type NativeTensor } from "../../lib/binding.js";
import { dtypeCode, toBfloat16 } from "../../lib/tensor/dtype.js";

export type Storage = "float32" | "bfloat16";

const devices = new Map<number, NativeDevice>();

/** LONGSEQ_TEST_DEVICE names another device than cpu, LONGSEQ_TEST_BACKEND the library that it comes from. */
const deviceName = process.env.LONGSEQ_TEST_DEVICE ?? "cpu";
const library = process.env.LONGSEQ_TEST_BACKEND;
if (library) binding.openBackend(library);
/** The backend under test: "cpu", "cuda", "cuda_emul". */
export const backend: string = deviceName.split(":")[0] as string;

/** A device under test that no other test shares: a failure inside its queue stays with it. */
export const openDevice = (threads: number): NativeDevice =>
  binding.openDevice(deviceName, backend, Number(deviceName.split(":")[1] ?? 0), threads);

/** The device under test with so many threads. */
export function deviceWith(threads: number): NativeDevice {
  let found = devices.get(threads);
  if (!found) {
    found = openDevice(threads);
    devices.set(threads, found);
  }
  return found;
}

/** Set by a suite that wants other numbers in every run. */
const shift = Number(process.env.LONGSEQ_TEST_SEED ?? 0);

/** A small fast generator; the same numbers in every run, unless LONGSEQ_TEST_SEED names others. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = ((seed + shift) * 2654435761 + 1) >>> 0;
  }
  /** Uniform in [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let x = this.#state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }
  below(n: number): number {
    return Math.floor(this.next() * n);
  }
  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
  chance(p: number): boolean {
    return this.next() < p;
  }
}

const cell = new Float32Array(1);
const bits = new Uint32Array(cell.buffer);
const fromBfloat16 = (half: number): number => {
  bits[0] = half << 16;
  return cell[0] as number;
};

/** How the elements of a shape lie: strides, the first one's offset, the length of the memory. */
export interface Layout {
  strides: number[];
  offset: number;
  length: number;
}

/** order: dims from the outermost to the innermost; gap: unused elements after each row of each dim; step: of the
 * innermost. */
export function layout(shape: readonly number[], order: readonly number[], gap = 0, step = 1): Layout {
  const strides = shape.map(() => 0);
  let size = step;
  for (const dim of [...order].reverse()) {
    strides[dim] = size;
    size = size * (shape[dim] as number) + gap;
  }
  return { strides, offset: gap, length: size + 2 * gap + step };
}

const ordered = (shape: readonly number[]) => shape.map((_, i) => i);
export const contiguous = (shape: readonly number[]): Layout => ({ ...layout(shape, ordered(shape)), offset: 0 });

/** Where the elements of a shape lie, row-major. */
function placesOf(shape: readonly number[], at: Layout): Int32Array {
  // Dim by dim, each element's place is that of the row it is in and its own step from there.
  let places = Int32Array.of(at.offset);
  for (const [dim, size] of shape.entries()) {
    const stride = at.strides[dim] as number;
    const next = new Int32Array(places.length * size);
    let to = 0;
    for (const start of places) for (let i = 0; i < size; i++) next[to++] = start + i * stride;
    places = next;
  }
  return places;
}

export class Strided {
  readonly native: NativeTensor;
  readonly #memory: NativeTensor;
  readonly #length: number;
  /** Where the elements lie, row-major, and which of the memory that is. */
  readonly #places: Int32Array;
  readonly #used: Uint8Array;

  private constructor(
    readonly shape: readonly number[],
    readonly dtype: Storage,
    readonly at: Layout,
    device: NativeDevice,
    values: ArrayLike<number> | null,
  ) {
    this.#length = Math.max(1, at.length);
    const data = dtype === "float32" ? new Float32Array(this.#length) : new Uint16Array(this.#length);
    // What lies between the elements must neither be read into a result nor written: it is a NaN throughout.
    data.fill(dtype === "float32" ? Number.NaN : 0x7fc0);
    this.#used = new Uint8Array(this.#length);
    this.#places = placesOf(shape, at);
    for (let i = 0; i < this.#places.length; i++) {
      const index = this.#places[i] as number;
      this.#used[index] = 1;
      if (values) data[index] = dtype === "float32" ? (values[i] as number) : toBfloat16(values[i] as number);
    }
    this.#memory = binding.empty(device, [this.#length], dtypeCode(dtype), 4, 0);
    binding.write(this.#memory, data, false);
    this.native = binding.view(this.#memory, shape, at.strides, at.offset);
  }

  static from(
    device: NativeDevice,
    shape: readonly number[],
    values: ArrayLike<number>,
    dtype: Storage = "float32",
    at: Layout = contiguous(shape),
  ): Strided {
    return new Strided(shape, dtype, at, device, values);
  }

  /** Filled with NaN: an op that reads it, or leaves an element out, is found. */
  static poisoned(
    device: NativeDevice,
    shape: readonly number[],
    dtype: Storage = "float32",
    at: Layout = contiguous(shape),
  ): Strided {
    return new Strided(shape, dtype, at, device, null);
  }

  /** All memory as stored, guards included. */
  async raw(): Promise<Float32Array | Uint16Array> {
    const buffer = await binding.read(this.#memory);
    return this.dtype === "float32" ? new Float32Array(buffer) : new Uint16Array(buffer);
  }

  /** The elements, row-major. Throws where a guard was overwritten. */
  async values(): Promise<Float64Array> {
    const raw = await this.raw();
    const value = (i: number) =>
      this.dtype === "float32" ? (raw[i] as number) : fromBfloat16((raw as Uint16Array)[i] as number);
    for (let i = 0; i < this.#length; i++) {
      if (!this.#used[i] && !Number.isNaN(value(i))) {
        throw new Error(`element ${i}, outside a tensor of shape [${this.shape.join(", ")}], was overwritten`);
      }
    }
    const values = new Float64Array(this.#places.length);
    for (let i = 0; i < values.length; i++) values[i] = value(this.#places[i] as number);
    return values;
  }

  free(): void {
    binding.release(this.native);
    binding.release(this.#memory);
  }
}

/** Uniform in [-1, 1), as the storage holds them: a reference starts from the rounded numbers. */
export function randomValues(random: Random, count: number, dtype: Storage): Float64Array {
  const values = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const x = random.next() * 2 - 1;
    values[i] = dtype === "float32" ? Math.fround(x) : fromBfloat16(toBfloat16(x));
  }
  return values;
}

/** max|x - ref| / max(rms(ref), least); NaN anywhere is Infinity. Beside that, an element may be off by the rounding of
 * its storage, which for bfloat16 shows in elements far above the root mean square. */
export function distance(x: Float64Array, ref: Float64Array, storage: Storage = "float32", least = 0): number {
  const rounding = storage === "bfloat16" ? 2 ** -8 : 2 ** -23;
  let worst = 0;
  let square = 0;
  for (let i = 0; i < ref.length; i++) {
    const r = ref[i] as number;
    square += r * r;
    const difference = Math.abs((x[i] as number) - r) - rounding * Math.abs(r);
    if (!(difference <= worst)) worst = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
  }
  return ref.length === 0 ? 0 : worst / Math.max(Math.sqrt(square / ref.length), least, 1e-30);
}

/** The project's bound on `distance`. */
export const tolerance = (reduction: number, dtype: Storage): number =>
  dtype === "bfloat16" ? 1.6e-2 : Math.min(1e-4, 1.3e-6 * Math.sqrt(reduction));

export const int64 = (device: NativeDevice, values: readonly number[]): NativeTensor => {
  const made = binding.empty(device, [values.length], dtypeCode("int64"), 4, 0);
  binding.write(made, BigInt64Array.from(values, BigInt), true);
  return made;
};
