// quantize, dequantize: int8 and float8 e4m3 in blocks of 64 with one bfloat16 scale, against a search through all codes.
import { binding } from "../../lib/binding.js";
import { dequantize, packedShape, quantize } from "../../lib/ops/quantize.js";
import { tensor } from "../../lib/tensor/create.js";
import { device } from "../../lib/tensor/device.js";
import { type Bench, type Case, count, opTests, refusesBadArguments, rounded, storages } from "./helpers.js";
import type { Storage } from "./strided.js";

const BLOCK = 64;
const formats = ["int8", "float8"] as const;
type Format = (typeof formats)[number];

/** Of e4m3 without its sign: 3 bits of mantissa, bias 7; 127 is no number. */
const float8 = (code: number): number => (code < 8 ? code * 2 ** -9 : 2 ** ((code >> 3) - 7) * (1 + (code & 7) / 8));
const float8Values = Float64Array.from({ length: 127 }, (_, code) => float8(code));

/** The nearest code, of two the even one. */
function encode8(value: number, format: Format): number {
  if (format === "int8") {
    const low = Math.floor(value);
    const rest = value - low;
    const whole = rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
    return whole & 0xff;
  }
  const size = Math.abs(value);
  let code = 0;
  for (let other = 1; other < 127; other++) {
    const [a, b] = [Math.abs((float8Values[code] as number) - size), Math.abs((float8Values[other] as number) - size)];
    if (b < a || (b === a && other % 2 === 0)) code = other;
  }
  return code | (value < 0 || Object.is(value, -0) ? 0x80 : 0);
}

const decode8 = (code: number, format: Format): number =>
  format === "int8" ? (code << 24) >> 24 : (code & 0x80 ? -1 : 1) * (float8Values[code & 0x7f] as number);

const bits = new Uint32Array(1);
const asFloat = new Float32Array(bits.buffer);
/** The smallest bfloat16 that is not below x, as its 16 bits. */
function scaleBits(x: number): number {
  asFloat[0] = x;
  return ((bits[0] as number) + 0xffff) >>> 16;
}
function fromBits(half: number): number {
  bits[0] = half << 16;
  return asFloat[0] as number;
}

/** Packed bytes, and the values that come back. */
function reference(values: Float64Array, rows: number, width: number, format: Format, dtype: Storage) {
  const blocks = Math.ceil(width / BLOCK);
  const packed = new Float64Array(rows * (width + 2 * blocks));
  const back = new Float64Array(rows * width);
  const most = dtype === "float32" ? 3.4028234663852886e38 : 3.3895313892515355e38;
  for (let row = 0; row < rows; row++)
    for (let block = 0; block < blocks; block++) {
      const from = row * width + block * BLOCK;
      const part = values.subarray(from, Math.min(from + BLOCK, (row + 1) * width));
      const largest = part.reduce((top, v) => Math.max(top, Math.abs(v)), 0);
      const broken = !part.every(Number.isFinite);
      const half = broken ? 0x7fc0 : scaleBits(Math.fround(largest / (format === "int8" ? 127 : 448)));
      const scale = fromBits(half);
      const at = row * (width + 2 * blocks);
      part.forEach((v, i) => {
        const code = broken || half === 0 ? 0 : encode8(Math.fround(v / scale), format);
        packed[at + block * BLOCK + i] = code;
        const product = Math.fround(decode8(code, format) * scale);
        back[from + i] = rounded(broken ? Number.NaN : Math.max(-most, Math.min(most, product)), dtype);
      });
      packed[at + width + 2 * block] = half & 0xff;
      packed[at + width + 2 * block + 1] = half >> 8;
    }
  return { packed, back };
}

const place = (format: Format): number => formats.indexOf(format);

/** Both ways; `numbers` or random ones of very different sizes. */
const one = (
  shape: number[],
  dtype: Storage,
  format: Format,
  lie: "rows" | "gaps" = "rows",
  numbers?: (i: number) => number,
): Case => ({
  name: `[${shape}] ${dtype} ${format} ${lie}${numbers ? ", special" : ""}`,
  body(bench: Bench) {
    const width = shape[shape.length - 1] as number;
    const rows = count(shape.slice(0, -1));
    const random = (i: number): number =>
      (bench.random.next() * 2 - 1) * 2 ** ((i % 40) - 20 + 3 * bench.random.below(5));
    const x = bench.given(
      shape,
      Array.from({ length: count(shape) }, (_, i) => (numbers ?? random)(i)),
      dtype,
      lie,
    );
    const bytes = packedShape(shape);
    const packed = bench.plain(bytes, "uint8", new Float64Array(count(bytes)).fill(0xab));
    const y = bench.output(shape, dtype, lie);
    binding.ops.quantize(x.native, packed.native, place(format));
    binding.ops.dequantize(packed.native, y.native, place(format));
    const expected = () => reference(x.values, rows, width, format, dtype);
    bench.expectExactly(packed, "packed", () => expected().packed);
    bench.expectExactly(y, "y", () => expected().back);
  },
});

/** Zeros, subnormals, ties, the largest numbers, and what is not finite, each in blocks of its own. */
const special = (i: number): number => {
  const block = Math.floor(i / BLOCK);
  const at = i % BLOCK;
  if (block === 0) return at % 2 === 0 ? 0 : -0;
  if (block === 1) return at * 2 ** -149;
  // A scale of exactly 1 (int8) and halves between the codes.
  if (block === 2) return at === 0 ? 127 : at - 32.5;
  if (block === 3) return at === 0 ? 448 : (at - 31) * 2 ** -10;
  if (block === 4) return at % 3 === 0 ? 3.4028234663852886e38 : -at;
  if (block === 5) return at === 40 ? Number.NaN : at;
  if (block === 6) return at === 63 ? Number.NEGATIVE_INFINITY : at;
  if (block === 7) return at === 0 ? -127 : at * 1e-30;
  return at < 9 ? -at : Number.POSITIVE_INFINITY;
};

export const cases: Case[] = formats.flatMap((format) => [
  ...storages.flatMap((dtype) => [
    one([3, 64], dtype, format),
    one([5, 1], dtype, format),
    one([4, 17], dtype, format, "gaps"),
    one([2, 3, 130], dtype, format),
    one([300, 200], dtype, format),
    one([2, 700], dtype, format, "gaps"),
    one([1, 8 * BLOCK + 11], dtype, format, "rows", special),
  ]),
  one([0, 5], "float32", format),
  // Every float32 near the codes of one block: each code, the middle to the next, and just beside it.
  one([127, 64], "float32", format, "rows", (i) => {
    const code = Math.floor(i / 64) % 127;
    const value = format === "int8" ? code : float8(code);
    const next = format === "int8" ? code + 1 : float8(Math.min(126, code + 1));
    if (i % 64 === 0) return format === "int8" ? 127 : 448;
    return (i % 2 === 0 ? 1 : -1) * (value + ((i % 5) / 4) * (next - value)) * (i % 7 === 0 ? 1 + 2 ** -23 : 1);
  }),
]);

await opTests("quantize", cases, (t) => {
  t.test("the error of a value is bounded by its block", async (t) => {
    const width = 256;
    const values = Float32Array.from({ length: 8 * width }, (_, i) => Math.sin(i * 12.9898) * Math.exp(Math.cos(i)));
    for (const format of formats) {
      const x = tensor(values, { shape: [8, width], device: device("cpu") });
      const packed = quantize(x, format);
      const y = dequantize(packed, format, [8, width], "float32");
      const back = (await y.data()) as Float32Array;
      values.forEach((value, i) => {
        const from = i - (i % BLOCK);
        const largest = values.subarray(from, from + BLOCK).reduce((top, v) => Math.max(top, Math.abs(v)), 0);
        // Half a step of int8, or of three bits of mantissa; the scale was rounded up by less than 1/128.
        const bound = format === "int8" ? largest / 254 : Math.max(Math.abs(value) / 16, largest / 448 / 2 ** 10);
        const error = Math.abs((back[i] as number) - value);
        if (!(error <= bound * (1 + 1 / 127) + 1e-30)) t.fail(`${format}: ${value} came back as ${back[i]}`);
      });
      for (const each of [x, packed, y]) each.dispose();
    }
    t.pass();
  });

  t.test("wrong arguments are refused", async (t) => {
    const format = { name: "format", integer: 0, bad: [-1, 2] };
    const packed = { name: "packed", shape: [3, 72], dtype: "uint8" as const, anyDtype: true };
    await refusesBadArguments(t, "quantize", [
      { name: "x", shape: [3, 70], anyShape: false },
      { ...packed, shape: [3, 74] },
      format,
    ]);
    await refusesBadArguments(t, "dequantize", [{ ...packed, shape: [3, 74] }, { name: "y", shape: [3, 70] }, format]);
  });
});
