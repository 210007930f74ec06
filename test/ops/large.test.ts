// Both sides of 2^31 elements: every op on rows that far apart, runs across that element, and counts beyond it.
import t from "tap";
import { binding, type NativeTensor } from "../../lib/binding.js";
import { type DType, dtypeCode } from "../../lib/tensor/dtype.js";
import { count, Plain } from "./helpers.js";
import { deviceWith, Random } from "./strided.js";

const device = deviceWith(2);
const random = new Random(31);
const boundary = 2 ** 31;
const { ops } = binding;

interface Operand {
  shape: number[];
  dtype?: DType;
  /** Integer tensors: what they hold. Everything else is random. */
  values?: number[];
  /** Stays where it is: it must be contiguous, or is small by nature. */
  near?: boolean;
  /** Compared afterwards. */
  out?: boolean;
  /** Only the whole may be moved: it must be contiguous, and so lies across the boundary. */
  whole?: boolean;
}

type T = NativeTensor;
/** As many as the op has operands. */
type Tensors = [T, T, T, T, T, T, T, T, T];

interface Far {
  name: string;
  operands: Operand[];
  run: (tensors: Tensors) => void;
}

/**
 * Elements from one row of the first dim to the next: row 4 begins at element 2^31. Pages that nobody touches cost
 * nothing on the CPU. On a GPU eight operands take 103 GB; where there is less only row 6 of 7 lies beyond, for 69 GB.
 */
const { memoryFreeBytes, capability } = binding.deviceInfo(device);
const step = capability === 0 || memoryFreeBytes > 110e9 ? 2 ** 29 : 357_913_984;
/** The row stride of the tensors that are being run. */
let rowStride = 0;

/** Values of `near` at a far place: its view, and what to release. */
function moved(near: Plain, operand: Operand): { view: NativeTensor; memory: NativeTensor } {
  const { shape } = operand;
  const strides = shape.map((_, d) => count(shape.slice(d + 1)));
  const length = count(shape);
  const rows = shape[0] as number;
  const size = operand.whole ? boundary + length : step * (rows - 1) + length;
  const memory = binding.empty(device, [size], dtypeCode(near.dtype), 4, 0);
  const view = operand.whole
    ? binding.view(memory, shape, strides, boundary - Math.floor(length / 2))
    : binding.view(memory, shape, [step, ...strides.slice(1)], 0);
  ops.copy(near.native, view);
  return { view, memory };
}

const x = (width = 40, more: Partial<Operand> = {}): Operand => ({ shape: [7, width], ...more });
const weight: Operand = { shape: [40], near: true };
const scalar = (dtype: DType, value: number, out = false): Operand => ({
  shape: [],
  dtype,
  values: [value],
  near: true,
  out,
});
const ids: Operand = { shape: [7], dtype: "int32", values: [6, 0, 3, 3, 5, 4, 1], near: true };
const heads = (out = false): Operand => ({ shape: [7, 2, 16], out });
const vector = (more: Partial<Operand> = {}): Operand => ({ shape: [1001], whole: true, ...more });

const all: Far[] = [
  {
    name: "rms_norm",
    operands: [x(), weight, x(40, { out: true }), x(), x(40, { out: true }), { ...weight, out: true }],
    run: ([a, w, y, dy, dx, dw]) => {
      ops.rmsNorm(a, w, y, 1e-5);
      ops.rmsNormBackward(a, w, dy, dx, dw, 1e-5, true);
    },
  },
  {
    name: "layer_norm",
    operands: [
      x(),
      weight,
      x(40, { out: true, dtype: "bfloat16" }),
      x(),
      x(40, { out: true }),
      { ...weight, out: true },
    ],
    run: ([a, w, y, dy, dx, dw]) => {
      ops.layerNorm(a, w, y, w, 1e-5);
      ops.layerNormBackward(a, w, dy, dx, dw, null, 1e-5, true);
    },
  },
  {
    name: "rope",
    operands: [
      heads(),
      { shape: [7], dtype: "int64", values: [0, 1, 2, 3, 4, 5, 6], near: true },
      { shape: [8], near: true },
      heads(true),
    ],
    run: ([a, p, f, y]) => ops.rope(a, p, f, y, 1, false),
  },
  {
    name: "swiglu",
    operands: [x(), x(), x(40, { out: true }), x(40, { out: true }), x(40, { out: true, dtype: "bfloat16" })],
    run: ([g, u, y, dg, du]) => {
      ops.swiglu(g, u, y, 0);
      ops.swigluBackward(g, u, y, dg, du, 0);
    },
  },
  {
    name: "unary",
    operands: [x(), x(40, { out: true }), vector({ out: true })],
    run: ([a, y, v]) => {
      ops.unary(a, y, 1);
      ops.unary(v, v, 5);
    },
  },
  {
    name: "binary",
    operands: [x(), x(40, { dtype: "bfloat16" }), x(40, { out: true }), vector(), vector({ out: true })],
    run: ([a, b, y, v, w]) => {
      ops.binary(a, b, y, 2);
      ops.binary(v, w, w, 0);
    },
  },
  {
    name: "axpby",
    operands: [x(), x(40, { out: true }), vector(), vector({ out: true, dtype: "bfloat16" })],
    run: ([a, y, v, w]) => {
      ops.axpby(a, y, null, 2, 0.5);
      ops.axpby(v, w, null, 2, 0.5);
    },
  },
  {
    name: "copy and fill",
    operands: [
      x(),
      x(40, { out: true, dtype: "bfloat16" }),
      vector({ out: true, dtype: "uint8" }),
      x(40, { out: true }),
    ],
    run: ([a, y, v, z]) => {
      ops.copy(a, y);
      ops.fill(v, 3);
      ops.fill(z, 4);
    },
  },
  {
    name: "embedding",
    operands: [ids, x(), x(40, { out: true }), x(40, { out: true })],
    run: ([i, table, y, dtable]) => {
      ops.embedding(i, table, y);
      ops.embeddingBackward(i, y, dtable);
    },
  },
  {
    name: "cross_entropy",
    operands: [x(), ids, scalar("float64", 0, true), x(40, { out: true })],
    run: ([a, i, loss, d]) => ops.crossEntropy(a, i, loss, d, null, null, 1),
  },
  {
    name: "reductions",
    operands: [
      x(),
      { shape: [7, 1], out: true },
      { shape: [1, 40], out: true },
      scalar("float64", 0, true),
      { ...ids, out: true },
      vector(),
      scalar("float64", 0, true),
    ],
    run: ([a, rows, columns, square, index, v, other]) => {
      ops.sum(a, rows, 1, false);
      ops.sum(a, columns, 1, false);
      ops.normSquared(a, square);
      ops.normSquared(v, other);
      ops.argmax(a, index);
    },
  },
  {
    name: "matmul",
    operands: [
      x(),
      { shape: [40, 9], near: true },
      { shape: [7, 9], out: true },
      { shape: [40, 9], out: true, near: true },
    ],
    run: ([a, b, c, d]) => {
      ops.matmul(a, b, c, null, 1, false);
      const turned = binding.view(a, [40, 7], [1, rowStride], 0);
      ops.matmul(turned, c, d, null, 1, false);
      binding.release(turned);
    },
  },
  {
    name: "attention",
    operands: [
      heads(),
      heads(),
      heads(),
      heads(true),
      { shape: [2, 7], near: true, out: true },
      heads(),
      heads(true),
      heads(true),
      heads(true),
    ],
    run: ([q, k, v, o, lse, dout, dq, dk, dv]) => {
      ops.attention(q, k, v, o, lse, null, 0.25, true, 0, 0, 0);
      ops.attentionBackward(q, k, v, o, lse, dout, null, dq, dk, dv, null, 0.25, true, 0, 0, 0, false, false, true);
    },
  },
  {
    name: "adamw",
    operands: [vector({ out: true }), vector(), vector({ out: true }), vector({ out: true }), scalar("int64", 3)],
    run: ([p, g, m, v, s]) => ops.adamw(p, g, m, v, s, null, null, null, 0.1, 0.9, 0.9, 1, 0.1),
  },
  {
    name: "quantize",
    operands: [
      x(130),
      x(130 + 2 * 3, { dtype: "uint8", out: true, whole: true }),
      x(130, { out: true }),
      x(130, { out: true, dtype: "bfloat16" }),
    ],
    run: ([a, packed, y, z]) => {
      for (const format of [0, 1]) ops.quantize(a, packed, format);
      ops.dequantize(packed, y, 1);
      ops.dequantize(packed, z, 1);
    },
  },
  { name: "random", operands: [vector({ out: true })], run: ([y]) => ops.random(y, 0, 1, 3, 2 ** 33, true) },
];

for (const { name, operands, run } of all) {
  t.test(`${name}: the same bits with rows on both sides of element 2^31, or across it`, async (t) => {
    const values = operands.map(
      (one) =>
        one.values ?? Array.from({ length: count(one.shape) }, () => random.next() * (one.dtype === "uint8" ? 9 : 1)),
    );
    const make = () =>
      operands.map((one, i) => new Plain(device, one.shape, one.dtype ?? "float32", values[i] as number[]));
    const [near, back] = [make(), make()];
    const far = operands.map((one, i) => (one.near ? null : moved(near[i] as Plain, one)));
    rowStride = step;
    const nearOnly = back.map((one) => one.native);
    run(operands.map((_, i) => far[i]?.view ?? nearOnly[i]) as Tensors);
    for (const [i, one] of far.entries()) if (one) ops.copy(one.view, (back[i] as Plain).native);
    rowStride = 40;
    run(near.map((one) => one.native) as Tensors);
    let compared = 0;
    for (const [i, one] of operands.entries()) {
      if (!one.out) continue;
      t.same(await back[i]?.raw(), await near[i]?.raw(), `operand ${i}`);
      compared++;
    }
    t.ok(compared > 0);
    for (const one of [...near, ...back]) one.free();
    for (const one of far) {
      if (!one) continue;
      binding.release(one.view);
      binding.release(one.memory);
    }
    binding.trim(device, 0);
  });
}

t.test("counts beyond 2^31: a sum of squares over that many, and the costs of larger ops", async (t) => {
  const width = 512;
  const rows = boundary / width + 3;
  const row = new Plain(device, [width], "float32", new Float64Array(width).fill(0.5));
  const whole = binding.view(row.native, [rows, width], [0, 1], 0);
  const square = new Plain(device, [], "float64", [0]);
  ops.normSquared(whole, square.native);
  t.equal((await square.values())[0], 0.25 * rows * width);
  binding.release(whole);
  for (const one of [row, square]) one.free();

  const meta = binding.openDevice("meta", "meta", 0, 1);
  const make = (shape: number[]) => binding.empty(meta, shape, dtypeCode("float32"), 4, 0);
  const [rowsMany, inner] = [524_288, 32 * 128 + 1];
  const [a, b, c] = [make([rowsMany, inner]), make([inner, 3]), make([rowsMany, 3])];
  ops.matmul(a, b, c, null, 1, false);
  ops.fill(a, 1);
  const counts = binding.opCounts(meta);
  t.equal(counts.matmul?.flops, 2 * rowsMany * inner * 3);
  t.equal(counts.fill?.bytes, rowsMany * inner * 4);
  t.ok(binding.memoryStats(meta, 0).live >= 4 * rowsMany * inner);
  const q = make([16_000_000, 32, 128]);
  const lse = make([32, 16_000_000]);
  ops.attention(q, q, q, q, lse, null, 1, true, 0, 0, 0);
  t.equal(binding.opCounts(meta).attention?.flops, 4 * 32 * 128 * ((16e6 * (16e6 + 1)) / 2));
  await binding.synchronize(meta);
  for (const tensor of [a, b, c, q, lse]) binding.release(tensor);
});
