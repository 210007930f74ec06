// What the tests of single ops share: cases that run on any number of threads, and the sweep over wrong arguments.
import { createHash } from "node:crypto";
import type { Test } from "tap";
import { binding, type NativeDevice, type NativeOps, type NativeTensor } from "../../lib/binding.js";
import { ArgumentError } from "../../lib/errors.js";
import { arrayOver, type DType, dtypeCode, encode } from "../../lib/tensor/dtype.js";
import {
  backend,
  contiguous,
  deviceWith,
  distance,
  type Layout,
  layout,
  openDevice,
  Random,
  randomValues,
  type Storage,
  Strided,
  tolerance,
} from "./strided.js";

/** How a tensor lies in memory. rows: contiguous; gaps: unused elements between the rows; steps: eight of them, so that
 * rows of eights begin at whole vectors; columns: the first dim changes fastest; spread: every third element. */
export type Lie = "rows" | "gaps" | "steps" | "columns" | "spread";

export function lie(shape: readonly number[], kind: Lie | Layout): Layout {
  if (typeof kind === "object") return kind;
  const order = shape.map((_, i) => i);
  if (kind === "rows") return contiguous(shape);
  if (kind === "gaps") return layout(shape, order, 3);
  if (kind === "steps") return layout(shape, order, 8);
  if (kind === "columns") return layout(shape, order.reverse(), 2);
  return layout(shape, order, 1, 3);
}

export const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** A contiguous tensor of any dtype, read back as numbers. */
export class Plain {
  readonly native: NativeTensor;
  constructor(
    device: NativeDevice,
    readonly shape: readonly number[],
    readonly dtype: DType,
    values: ArrayLike<number | bigint>,
  ) {
    this.native = binding.empty(device, shape, dtypeCode(dtype), 4, 0);
    binding.write(this.native, encode(values, dtype), true);
  }
  async raw() {
    return arrayOver(await binding.read(this.native), this.dtype);
  }
  async values(): Promise<Float64Array> {
    const raw = await this.raw();
    if (this.dtype !== "bfloat16") return Float64Array.from(raw, Number);
    return Float64Array.from(new Float32Array(Uint32Array.from(raw as Uint16Array, (half) => half << 16).buffer));
  }
  free(): void {
    binding.release(this.native);
  }
}

type Readable = Strided | Plain;

interface Expectation {
  tensor: Readable;
  name: string;
  /** Computed only where values are compared, not where bits are. */
  reference: () => ArrayLike<number>;
  depth: number;
  least: number;
  exact: boolean;
}

/** What a case works with: a device, reproducible numbers, and tensors that are freed when the case is over. */
export class Bench {
  readonly expectations: Expectation[] = [];
  readonly #tensors: Readable[] = [];
  readonly #views: NativeTensor[] = [];
  constructor(
    readonly device: NativeDevice,
    readonly random: Random,
  ) {}

  keep<T extends Readable>(tensor: T): T {
    this.#tensors.push(tensor);
    return tensor;
  }
  /** Random numbers in [-1, 1) times scale plus shift, as the storage holds them, and their tensor. */
  input(shape: readonly number[], dtype: Storage = "float32", kind: Lie | Layout = "rows", scale = 1, shift = 0) {
    const uniform = randomValues(this.random, count(shape), "float32").map((x) => x * scale + shift);
    return this.given(shape, uniform, dtype, kind);
  }
  given(shape: readonly number[], numbers: ArrayLike<number>, dtype: Storage = "float32", kind: Lie | Layout = "rows") {
    const values = Float64Array.from(numbers, dtype === "float32" ? Math.fround : roundBfloat16);
    const tensor = this.keep(Strided.from(this.device, shape, values, dtype, lie(shape, kind)));
    return { values, tensor, native: tensor.native };
  }
  /** Full of NaN. */
  output(shape: readonly number[], dtype: Storage = "float32", kind: Lie | Layout = "rows"): Strided {
    return this.keep(Strided.poisoned(this.device, shape, dtype, lie(shape, kind)));
  }
  plain(shape: readonly number[], dtype: DType, values: ArrayLike<number | bigint>): Plain {
    return this.keep(new Plain(this.device, shape, dtype, values));
  }
  /** The tensor must be the reference within the project's tolerance for sums of `depth` terms. `least`: a lower bound
   * of the root mean square that errors are measured by. */
  expect(tensor: Readable, name: string, reference: () => ArrayLike<number>, depth = 1, least = 0): void {
    this.expectations.push({ tensor, name, reference, depth, least, exact: false });
  }
  expectExactly(tensor: Readable, name: string, reference: () => ArrayLike<number>): void {
    this.expectations.push({ tensor, name, reference, depth: 1, least: 0, exact: true });
  }
  view(tensor: NativeTensor, shape: readonly number[], strides: readonly number[], offset = 0): NativeTensor {
    const view = binding.view(tensor, shape, strides, offset);
    this.#views.push(view);
    return view;
  }
  /** As `given` for a shape with ones, broadcast to `shape` by strides of 0. */
  broadcast(from: readonly number[], shape: readonly number[], dtype: Storage = "float32") {
    const { values, tensor } = this.input(from, dtype);
    const strides = from.map((size, d) => (size === 1 ? 0 : count(from.slice(d + 1))));
    const all = Float64Array.from({ length: count(shape) }, (_, index) => {
      let rest = index;
      let at = 0;
      for (let d = shape.length - 1; d >= 0; d--) {
        at += (rest % (shape[d] as number)) * (strides[d] as number);
        rest = Math.floor(rest / (shape[d] as number));
      }
      return values[at] as number;
    });
    return { values: all, tensor, native: this.view(tensor.native, shape, strides) };
  }
  free(): void {
    for (const view of this.#views) binding.release(view);
    for (const tensor of this.#tensors) tensor.free();
  }
}

const roundBfloat16 = (x: number): number => {
  const half = encode([x], "bfloat16")[0] as number;
  return new Float32Array(new Uint32Array([half << 16]).buffer)[0] as number;
};
/** The number as a storage type holds it. */
export const rounded = (x: number, dtype: Storage): number => (dtype === "float32" ? Math.fround(x) : roundBfloat16(x));

export interface Case {
  name: string;
  /** Makes inputs, runs the op, and says what is expected. */
  body(bench: Bench): void | Promise<void>;
}

async function runCase(each: Case, seed: number, threads: number) {
  const bench = new Bench(deviceWith(threads), new Random(seed));
  await each.body(bench);
  const raw = await Promise.all(bench.expectations.map((one) => one.tensor.raw()));
  return { bench, raw };
}

const sameBits = (a: ArrayBufferView, b: ArrayBufferView) =>
  Buffer.compare(Buffer.from(a.buffer as ArrayBuffer), Buffer.from(b.buffer as ArrayBuffer)) === 0;

async function checkCase(t: Test, each: Case, seed: number): Promise<void> {
  const first = await runCase(each, seed, 1);
  if (first.bench.expectations.length === 0) t.fail(`${each.name} expects nothing`);
  for (const one of first.bench.expectations) {
    const got = await one.tensor.values();
    const expected = Float64Array.from(one.reference());
    if (got.length !== expected.length) t.fail(`${each.name}: ${one.name} has another size than its reference`);
    if (one.exact) {
      const wrong = got.findIndex((value, i) => !Object.is(value + 0, (expected[i] as number) + 0));
      t.equal(wrong, -1, `${each.name}: ${one.name}[${wrong}] is ${got[wrong]}, expected ${expected[wrong]}`);
      continue;
    }
    const storage: Storage = one.tensor.dtype === "bfloat16" ? "bfloat16" : "float32";
    const error = distance(got, expected, storage, one.least);
    t.ok(error <= tolerance(one.depth, storage), `${each.name}: ${one.name} is off by ${error}`);
  }
  first.bench.free();
  // An emulated GPU shares its blocks out among threads in one way alone, and is slow.
  for (const threads of backend === "cpu" ? [2, 3, 8] : [3]) {
    const other = await runCase(each, seed, threads);
    const same = first.raw.every((raw, i) => sameBits(raw, other.raw[i] as ArrayBufferView));
    if (!same) t.fail(`${each.name}: other bits with ${threads} threads`);
    other.bench.free();
  }
}

/** One hash over all results of the cases: what isa_child.ts prints. */
export async function hashOf(cases: readonly Case[]): Promise<string> {
  const hash = createHash("sha256");
  for (const [i, each] of cases.entries()) {
    const run = await runCase(each, i + 1, 2);
    for (const raw of run.raw) hash.update(raw);
    run.bench.free();
  }
  return hash.digest("hex");
}

/** Set where a test file is loaded for its cases alone, by isa_child.ts. */
const casesOnly = process.env.LONGSEQ_TEST_CASES_ONLY === "1";

/** The tests of one op: every case against its reference and with other thread counts, then what `more` adds. */
export async function opTests(op: string, cases: readonly Case[], more: (t: Test) => void): Promise<void> {
  if (casesOnly) return;
  const t = (await import("tap")).default;
  t.test(`${op}: within the tolerance, and the same bits for 1, 2, 3 and 8 threads`, async (t) => {
    for (const [i, each] of cases.entries()) await checkCase(t, each, i + 1);
  });
  more(t);
}

/** As openDevice of strided.ts, with two threads. */
export const ownDevice = (): NativeDevice => openDevice(2);

/** Runs f with tensors of its own, on two threads. */
export async function withBench(f: (bench: Bench) => Promise<void>): Promise<void> {
  const bench = new Bench(deviceWith(2), new Random(7));
  await f(bench);
  bench.free();
}

/** One argument of an op's good call, and how it can go wrong. */
export type Argument =
  | { name: string; shape: number[]; dtype?: DType; optional?: boolean; anyShape?: boolean; anyDtype?: boolean }
  | { name: string; integer: number; bad?: number[] }
  | { name: string; number: number; bad?: number[] };

/** Calls the op rightly, then with every argument wrong in turn: each is an ArgumentError that names it, nothing is
 * allocated for it, and the device still works. `values` of integer tensors are all `fill`. */
export async function refusesBadArguments(
  t: Test,
  op: keyof NativeOps,
  args: readonly Argument[],
  fill = 1,
): Promise<void> {
  const device = deviceWith(2);
  const snake = op.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const run = (values: unknown[]) => (binding.ops[op] as (...values: unknown[]) => void)(...values);
  const tensor = (shape: readonly number[], dtype: DType) =>
    new Plain(device, shape, dtype, new Float64Array(count(shape)).fill(fill));
  const good = args.map((arg) => ("shape" in arg ? tensor(arg.shape, arg.dtype ?? "float32") : null));
  const values = args.map((arg, i): unknown =>
    "shape" in arg ? good[i]?.native : "integer" in arg ? arg.integer : arg.number,
  );
  run(values);
  await binding.synchronize(device);
  const before = binding.memoryStats(device, 0).live;
  const foreign = new Plain(ownDevice(), [1], "float32", [0]);

  const problems: string[] = [];
  const refused = (i: number, value: unknown, what: string) => {
    const name = (args[i] as Argument).name;
    const call = [...values];
    call[i] = value;
    try {
      run(call);
    } catch (error) {
      if (!(error instanceof ArgumentError) || !error.message.includes(snake))
        problems.push(`${name} ${what}: ${(error as Error).name} ${(error as Error).message}`);
      return;
    }
    problems.push(`${name} ${what} was taken`);
  };
  for (const [i, arg] of args.entries()) {
    if ("shape" in arg) {
      const dtype = arg.dtype ?? "float32";
      const disposed = tensor(arg.shape, dtype);
      disposed.free();
      refused(i, disposed.native, "disposed");
      refused(i, {}, "an object");
      refused(i, device, "a device");
      refused(i, 3, "a number");
      if (!arg.optional) refused(i, null, "null");
      if (!arg.optional) refused(i, undefined, "undefined");
      // The first tensor sets the device: one argument from elsewhere is what is refused.
      if (args.filter((other) => "shape" in other).length > 1) refused(i, foreign.native, "of another device");
      if (!arg.anyDtype) {
        const other = tensor(arg.shape, "uint8");
        refused(i, other.native, "uint8");
        other.free();
      }
      if (!arg.anyShape) {
        const longer = arg.shape.length
          ? arg.shape.map((size, d) => (d === arg.shape.length - 1 ? size + 1 : size))
          : [2];
        const bigger = tensor(longer, dtype);
        refused(i, bigger.native, `of shape [${longer}]`);
        bigger.free();
        const deeper = tensor([2, ...arg.shape], dtype);
        refused(i, deeper.native, "with another dim");
        deeper.free();
      }
    } else if ("integer" in arg) {
      for (const bad of [Number.NaN, 0.5, 2 ** 60, Number.POSITIVE_INFINITY, "1", null, {}, 1n, ...(arg.bad ?? [])])
        refused(i, bad, `= ${String(bad)}`);
    } else {
      for (const bad of ["1", null, undefined, {}, 1n, ...(arg.bad ?? [])]) refused(i, bad, `= ${String(bad)}`);
    }
  }
  foreign.free();
  t.same(problems, [], `${op}: every wrong argument is refused`);
  t.equal(binding.memoryStats(device, 0).live, before, `${op}: refused calls allocate nothing`);
  run(values);
  await binding.synchronize(device);
  t.equal(binding.failure(device), null, `${op} works after the refused calls`);
  for (const each of good) each?.free();
}

/** x[row * width + column] by rows: calls f(row, i) for every element. */
export function byRows(rows: number, width: number, f: (row: number, i: number) => void): void {
  for (let row = 0; row < rows; row++) for (let i = 0; i < width; i++) f(row, row * width + i);
}

export const lies: readonly Lie[] = ["rows", "gaps", "columns", "spread"];
export const storages: readonly Storage[] = ["float32", "bfloat16"];
