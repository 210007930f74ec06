// Tensors: a handle on device bytes with shape, strides and dtype, and its place in the autograd graph.

import type { BackwardOptions, Node } from "../autograd/function.js";
import { binding, type NativeTensor } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { type Category, categoryCode, type Device, device as openDevice, type Tier, tierCode } from "./device.js";
import { arrayOver, type DataArray, type DType, dtypeBytes, dtypeCode, dtypeOf, encode } from "./dtype.js";
import { layerAtWork } from "./layer.js";
import { type Scope, type Scoped, track, untracked } from "./scope.js";

export interface TensorOptions {
  device?: Device | string;
  dtype?: DType;
  category?: Category;
  tier?: Tier;
  requiresGrad?: boolean;
}

/** Numbers, nested as deep as the shape. */
export type Nested = number | bigint | readonly Nested[];

/** Differentiable ops that methods of Tensor call; lib/ops sets them, since an op needs Tensor first. */
export interface TensorMethods {
  add(a: Tensor, b: Tensor | number): Tensor;
  sub(a: Tensor, b: Tensor | number): Tensor;
  mul(a: Tensor, b: Tensor | number): Tensor;
  div(a: Tensor, b: Tensor | number): Tensor;
  matmul(a: Tensor, b: Tensor): Tensor;
  sum(x: Tensor, dim?: number, keepDim?: boolean): Tensor;
  reshape(x: Tensor, shape: readonly number[]): Tensor;
  permute(x: Tensor, dims: readonly number[]): Tensor;
  narrow(x: Tensor, dim: number, start: number, length: number): Tensor;
  cast(x: Tensor, dtype: DType): Tensor;
  contiguous(x: Tensor): Tensor;
  clone(x: Tensor): Tensor;
  backward(root: Tensor, grad: Tensor | null | undefined, options: BackwardOptions): void;
}
let methods: TensorMethods;
export const setMethods = (value: TensorMethods): void => {
  methods = value;
};

export const contiguousStrides = (shape: readonly number[]): number[] => {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= shape[i] as number;
  }
  return strides;
};

/** A result that is computed when somebody reads it: a recomputation stops where its values are not needed. */
class Deferred {
  #compute: (() => Tensor) | null;
  #made: Tensor | null = null;
  readonly #inputs: Tensor[];
  #holders = 1;
  #category: Category | null = null;

  constructor(inputs: readonly (Tensor | null)[], compute: (...inputs: (Tensor | null)[]) => Tensor) {
    const held = inputs.map((input) => input?.alias().keep() ?? null);
    this.#inputs = held.filter((input) => input !== null);
    this.#compute = () => compute(...held);
  }

  hold(): this {
    this.#holders++;
    return this;
  }

  value(): Tensor {
    if (this.#compute) {
      this.#made = this.#compute().keep();
      if (this.#category) this.#made.countAs(this.#category);
      this.#letGo();
    }
    return this.#made as Tensor;
  }

  /** What its bytes are for, as soon as there are any. */
  countAs(category: Category): void {
    if (this.#made) this.#made.countAs(category);
    else this.#category = category;
  }

  release(): void {
    if (--this.#holders > 0) return;
    this.#letGo();
    this.#made?.dispose();
  }

  #letGo(): void {
    this.#compute = null;
    for (const input of this.#inputs) input.dispose();
  }
}

let deferring = false;

/** Runs `fn`; results that `produce` makes in it are computed only when they are read. */
export function defer<T>(value: boolean, fn: () => T): T {
  const before = deferring;
  deferring = value;
  try {
    return fn();
  } finally {
    deferring = before;
  }
}

/** A result of known shape, which `make` computes from the inputs: now or, inside `defer`, when it is read. */
export function produce(
  shape: readonly number[],
  options: { device: Device; dtype: DType },
  inputs: readonly (Tensor | null)[],
  make: (...inputs: (Tensor | null)[]) => Tensor,
): Tensor {
  if (!deferring) return make(...inputs);
  const source = new Deferred(inputs, (...given) => defer(false, () => make(...given)));
  return new Tensor(null, [...shape], contiguousStrides(shape), options.dtype, options.device, "activations", source);
}

export class Tensor implements Scoped {
  #handle: NativeTensor | null;
  #source: Deferred | null;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
  /** What it was made for. */
  readonly category: Category;
  requiresGrad = false;
  /** Accumulated by backward(): float32, the tensor's shape. */
  grad: Tensor | null = null;
  /** The same in host memory, of a leaf whose gradients live there (see CausalLM.configureMemory); `grad` is then null
   * between backwards. */
  hostGrad: Tensor | null = null;
  /** The function that made it, null for a leaf. */
  node: Node | null = null;
  outputIndex = 0;
  scope: Scope | undefined = undefined;
  #hooks: ((tensor: Tensor) => void)[] | undefined;

  constructor(
    handle: NativeTensor | null,
    shape: readonly number[],
    strides: readonly number[],
    dtype: DType,
    device: Device,
    category: Category,
    source: Deferred | null = null,
  ) {
    this.#handle = handle;
    this.#source = source;
    this.shape = shape;
    this.strides = strides;
    this.dtype = dtype;
    this.device = device;
    this.category = category;
    track(this);
  }

  /** Uninitialised. Errors: OutOfMemoryError, ArgumentError. */
  static empty(shape: readonly number[], options: TensorOptions = {}): Tensor {
    if (!Array.isArray(shape)) throw new ArgumentError(`shape is ${typeof shape}, expected an array of sizes`);
    const device = openDevice(options.device ?? "cpu");
    const dtype = options.dtype ?? "float32";
    const category = options.category ?? "activations";
    const handle = binding.empty(
      device.native,
      shape,
      dtypeCode(dtype),
      categoryCode(category),
      tierCode(options.tier ?? "device"),
    );
    const made = new Tensor(handle, [...shape], contiguousStrides(shape), dtype, device, category);
    if (options.requiresGrad) made.requiresGrad = true;
    return made;
  }

  static full(shape: readonly number[], value: number, options: TensorOptions = {}): Tensor {
    const made = Tensor.empty(shape, options);
    binding.ops.fill(made.native(), value);
    return made;
  }

  /** The addon's handle: also what other addons get (see `longseq/include`). Errors: ArgumentError once disposed. */
  native(): NativeTensor {
    if (!this.#handle && this.#source) {
      this.#handle = binding.view(this.#source.value().native(), this.shape, this.strides, 0);
      this.#source.release();
      this.#source = null;
    }
    if (!this.#handle)
      throw new ArgumentError(
        `a tensor of shape [${this.shape}] was disposed: by dispose(), at the end of its scope, or by a backward() that walked it`,
      );
    return this.#handle;
  }

  /** Its bytes, and so those of its views, are counted as this category's from now on. */
  countAs(category: Category): void {
    if (this.#source && !this.#handle) this.#source.countAs(category);
    else binding.countAs(this.native(), categoryCode(category));
  }

  /** Its bytes are from now on those of `other`, whose handle ends: a move to another place. */
  protected takeOver(other: Tensor): void {
    const handle = other.#handle;
    if (handle === null) return;
    other.#handle = null;
    other.scope?.delete(other);
    if (this.#handle) binding.release(this.#handle);
    this.#handle = handle;
  }

  get disposed(): boolean {
    return this.#handle === null && this.#source === null;
  }

  /** Elements. */
  get size(): number {
    return this.shape.reduce((product, size) => product * size, 1);
  }

  /** Bytes of its elements. */
  get bytes(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  get ndim(): number {
    return this.shape.length;
  }

  get isLeaf(): boolean {
    return this.node === null;
  }

  get isContiguous(): boolean {
    const plain = contiguousStrides(this.shape);
    return this.shape.every((size, i) => size === 1 || this.strides[i] === plain[i]);
  }

  /** Gives the memory back (views of the same bytes keep it). A second call does nothing. */
  dispose(): void {
    if (this.disposed) return;
    const handle = this.#handle;
    this.#handle = null;
    this.#source?.release();
    this.#source = null;
    this.scope?.delete(this);
    if (handle) binding.release(handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Takes it out of its scope: it lives until dispose(). */
  keep(): this {
    this.scope?.delete(this);
    return this;
  }

  /** A second handle on the same bytes, outside the graph. */
  alias(): Tensor {
    if (this.#source && !this.#handle)
      return new Tensor(null, this.shape, this.strides, this.dtype, this.device, this.category, this.#source.hold());
    return this.viewOf(this.shape, this.strides, 0);
  }

  /** The same bytes without the graph. */
  detach(): Tensor {
    return this.alias();
  }

  /** A view with any shape, strides and offset in elements, outside the graph; checked against the bytes. */
  viewOf(shape: readonly number[], strides: readonly number[], offset: number): Tensor {
    const handle = binding.view(this.native(), shape, strides, offset);
    return new Tensor(handle, [...shape], [...strides], this.dtype, this.device, this.category);
  }

  // ---- reading and writing ----

  /** The values, row-major, once everything enqueued before is done. bfloat16 comes as Float32Array. */
  async data(): Promise<DataArray> {
    const source = this.dtype === "bfloat16" || !this.isContiguous ? this.#plainCopy() : this;
    const bytes = binding.read(source.native());
    if (source !== this) source.dispose();
    return arrayOver(await bytes, source.dtype);
  }

  #plainCopy(): Tensor {
    const copy = Tensor.empty(this.shape, {
      device: this.device,
      dtype: this.dtype === "bfloat16" ? "float32" : this.dtype,
    }).keep();
    binding.ops.copy(this.native(), copy.native());
    return copy;
  }

  /** The one value. Errors: ArgumentError for more than one. */
  async item(): Promise<number> {
    if (this.size !== 1) throw new ArgumentError(`item(): the tensor has shape [${this.shape}], expected one element`);
    return Number((await this.data())[0]);
  }

  /** The values as nested arrays of numbers. */
  async toArray(): Promise<Nested> {
    const flat = await this.data();
    let at = 0;
    const build = (dim: number): Nested =>
      dim === this.shape.length
        ? Number(flat[at++])
        : Array.from({ length: this.shape[dim] as number }, () => build(dim + 1));
    return build(0);
  }

  /** Overwrites the values, in place. data: as many numbers as elements, row-major. */
  copyFrom(data: ArrayLike<number | bigint> | Tensor): this {
    if (data instanceof Tensor) {
      binding.ops.copy(data.native(), this.native());
      return this;
    }
    if (data.length !== this.size)
      throw new ArgumentError(`copyFrom(): ${data.length} values for a tensor of shape [${this.shape}]`);
    const matching = ArrayBuffer.isView(data) && dtypeOf(data) === this.dtype;
    const array = matching ? (data as unknown as DataArray) : encode(data, this.dtype);
    if (this.isContiguous) {
      binding.write(this.native(), array, this.dtype === "int64");
    } else {
      const staged = Tensor.empty(this.shape, { device: this.device, dtype: this.dtype });
      binding.write(staged.native(), array, false);
      binding.ops.copy(staged.native(), this.native());
      staged.dispose();
    }
    return this;
  }

  fill(value: number): this {
    binding.ops.fill(this.native(), value);
    return this;
  }

  // ---- graph ----

  /** Adds gradients to the leaves' `grad`; frees the graph it walked (see lib/autograd). */
  backward(grad?: Tensor | null, options: BackwardOptions = {}): void {
    methods.backward(this, grad, options);
  }

  /** Runs after each backward() that completed this leaf's gradient. Returns a function that removes it. */
  registerHook(hook: (tensor: Tensor) => void): () => void {
    this.#hooks ??= [];
    this.#hooks.push(hook);
    return () => {
      this.#hooks = this.#hooks?.filter((other) => other !== hook);
    };
  }

  /** Called by the engine. */
  runHooks(): void {
    for (const hook of this.#hooks ?? []) hook(this);
  }

  // ---- differentiable methods ----

  add(other: Tensor | number): Tensor {
    return methods.add(this, other);
  }
  sub(other: Tensor | number): Tensor {
    return methods.sub(this, other);
  }
  mul(other: Tensor | number): Tensor {
    return methods.mul(this, other);
  }
  div(other: Tensor | number): Tensor {
    return methods.div(this, other);
  }
  matmul(other: Tensor): Tensor {
    return methods.matmul(this, other);
  }
  /** Over one dim, or over all. */
  sum(dim?: number, keepDim = false): Tensor {
    return methods.sum(this, dim, keepDim);
  }
  mean(dim?: number, keepDim = false): Tensor {
    const count = dim === undefined ? this.size : (this.shape[dim < 0 ? dim + this.ndim : dim] as number);
    return methods.mul(methods.sum(this, dim, keepDim), 1 / count);
  }
  /** A view where strides allow it, else a copy. One size may be -1. */
  reshape(shape: readonly number[]): Tensor {
    return methods.reshape(this, shape);
  }
  view(shape: readonly number[]): Tensor {
    return methods.reshape(this, shape);
  }
  permute(dims: readonly number[]): Tensor {
    return methods.permute(this, dims);
  }
  transpose(a: number, b: number): Tensor {
    const dims = this.shape.map((_, i) => i);
    const from = a < 0 ? a + this.ndim : a;
    const to = b < 0 ? b + this.ndim : b;
    if (!(from in dims) || !(to in dims))
      throw new ArgumentError(`transpose(${a}, ${b}) of a tensor of shape [${this.shape}]`);
    [dims[from], dims[to]] = [to, from];
    return methods.permute(this, dims);
  }
  /** The part start .. start + length - 1 of a dim, as a view. */
  narrow(dim: number, start: number, length: number): Tensor {
    return methods.narrow(this, dim, start, length);
  }
  to(dtype: DType): Tensor {
    return methods.cast(this, dtype);
  }
  contiguous(): Tensor {
    return methods.contiguous(this);
  }
  clone(): Tensor {
    return methods.clone(this);
  }

  toString(): string {
    return `Tensor([${this.shape}], ${this.dtype}, ${this.device}${this.disposed ? ", disposed" : ""})`;
  }
}

/** Where a parameter's values live. */
export type ParameterTier = "device" | "host";

/** A leaf that an optimizer trains: belongs to no scope. */
export class Parameter extends Tensor {
  #tier: ParameterTier;
  #lent: Tensor | null = null;
  #packed: Packed | null = null;
  /** The layer of a model that it was made for; -1: none. */
  readonly layer = layerAtWork();

  /** Takes over the tensor's bytes; of an outline there are none. tier: where these lie. */
  constructor(from: Tensor | Outline, requiresGrad = true, tier: ParameterTier = "device") {
    const whole = from instanceof Tensor;
    if (!whole && !Array.isArray((from as Outline | undefined)?.shape))
      throw new ArgumentError(`Parameter: expected a tensor, got ${typeof from}`);
    super(
      whole ? binding.view(from.native(), from.shape, from.strides, 0) : null,
      from.shape,
      whole ? from.strides : contiguousStrides(from.shape),
      from.dtype,
      from.device,
      whole ? from.category : "params",
    );
    if (whole) from.dispose();
    this.keep();
    this.requiresGrad = requiresGrad;
    this.#tier = tier;
  }

  /** spread: it gets no bytes, since ranks hold shares of it (lib/parallel/zero). */
  static override empty(shape: readonly number[], options: TensorOptions & { spread?: boolean } = {}): Parameter {
    const { tier, spread = false, requiresGrad = true } = options;
    if (tier === "disk") throw new ArgumentError("Parameter: tier is disk, expected device or host");
    if (!spread) return new Parameter(Tensor.empty(shape, { category: "params", ...options }), requiresGrad, tier);
    const { dtype = "float32", device = "cpu" } = options;
    return new Parameter({ shape: [...shape], dtype, device: openDevice(device) }, requiresGrad, tier);
  }

  get tier(): ParameterTier {
    return this.#tier;
  }

  /** How the values are stored, where not as they are read: ops find a copy that is lent. */
  get packed(): Packed | null {
    return this.#packed;
  }

  /** Stores the values in `packed`, which is this parameter's from now on; it has no others. */
  pack(packed: Packed): void {
    this.#packed = packed;
  }

  /** What holds the values: itself, or what they are packed in. */
  get storage(): Parameter {
    return this.#packed?.values ?? this;
  }

  /** Gives an outline bytes of its own. */
  allocate(): void {
    if (this.readable) return;
    const { shape, dtype, device } = this;
    this.takeOver(untracked(() => Tensor.empty(shape, { dtype, device, category: "params", tier: this.#tier })));
  }

  override dispose(): void {
    this.#packed?.values.dispose();
    super.dispose();
  }

  /** Moves the values. Those on the host are read by the ops of a model while it lends a copy (lib/sequence/states). */
  moveTo(tier: ParameterTier): void {
    if (tier === this.#tier) return;
    const { shape, dtype, device, category } = this;
    const moved = untracked(() => Tensor.empty(shape, { dtype, device, category, tier }));
    binding.ops.copy(this.native(), moved.native());
    this.takeOver(moved);
    this.#tier = tier;
  }

  /** What ops read until `lend(null)`: a copy on the device, of the same layout. It stays the lender's. */
  lend(copy: Tensor | null): void {
    this.#lent = copy;
  }

  override native(): NativeTensor {
    return this.#lent === null ? super.native() : this.#lent.native();
  }

  /** Whether ops can read it now: it has bytes of its own, or is lent some. */
  get readable(): boolean {
    return this.#lent !== null || !this.disposed;
  }
}

/** A parameter's values in blocks of 8 bits (lib/ops/quantize). */
export interface Packed {
  /** uint8 */
  readonly values: Parameter;
  readonly format: "int8" | "float8";
}

/** A tensor that is to have no bytes of its own. */
interface Outline {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
}
