// Reading safetensors: what Python wrote, conversions, parts, files over 4 GiB, tensors on devices, files that change.

import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import t from "tap";
import { binding, type NativeTensor } from "../../lib/binding.js";
import { SafetensorsFile } from "../../lib/checkpoint/safetensors.js";
import { ArgumentError, CancelledError, IoError, ModelError } from "../../lib/errors.js";
import {
  bitsOfFloat32,
  float16Value,
  float32OfBits,
  golden,
  nearestBfloat16,
  safetensorsBytes,
  writeSafetensors,
  writeSparse,
} from "./helpers.js";

const F32 = 0;
const BF16 = 1;
const dir = t.testdir({});
const hex = (buffer: ArrayBuffer) => Buffer.from(buffer).toString("hex");

t.test("a file of the Python library, every dtype byte for byte", async (t) => {
  const values = JSON.parse(readFileSync(path.join(golden, "values.json"), "utf8"));
  using file = await SafetensorsFile.open(path.join(golden, "python.safetensors"));
  t.same({ ...file.metadata }, values.metadata);
  t.same([...file.entries.keys()].sort(), Object.keys(values.tensors).sort());
  for (const [name, expected] of Object.entries<{ shape: number[]; bytes: string; as_f32?: string; as_bf16?: string }>(
    values.tensors,
  )) {
    const entry = file.entries.get(name);
    t.same(entry?.shape, expected.shape, `shape of ${name}`);
    t.equal(entry?.bytes, expected.bytes.length / 2, `bytes of ${name}`);
    t.equal(hex(await file.readBytes(name)), expected.bytes, `values of ${name}`);
    for (const [dtype, want] of [
      ["F32", expected.as_f32],
      ["BF16", expected.as_bf16],
    ] as const) {
      if (want === undefined) continue;
      const got = await file.readBytes(name, { dtype });
      if (dtype === "F32") {
        const wanted = new Float32Array(Uint8Array.from(Buffer.from(want, "hex")).buffer);
        t.same([...new Float32Array(got)], [...wanted], `${name} as F32`);
        t.same(
          [...new Float32Array(got)].map((x) => Object.is(x, -0)),
          [...wanted].map((x) => Object.is(x, -0)),
          "signs of zero",
        );
      } else {
        const wanted = new Uint16Array(Uint8Array.from(Buffer.from(want, "hex")).buffer);
        const isNan = (bits: number) => (bits & 0x7fff) > 0x7f80;
        t.same(
          [...new Uint16Array(got)].map((bits) => (isNan(bits) ? "nan" : bits)),
          [...wanted].map((bits) => (isNan(bits) ? "nan" : bits)),
          `${name} as BF16`,
        );
      }
    }
  }
});

t.test("conversions are correctly rounded", async (t) => {
  const f16 = Uint16Array.from({ length: 65536 }, (_, i) => i);
  // Halfway points of bfloat16, their neighbours in float64, the edges of the ranges, and a spread of others.
  const f64: number[] = [0, -0, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 5e-324, -5e-324, 1e300, -1e300];
  for (const bits of [0, 1, 2, 0x7f, 0x80, 0x81, 0x3f80, 0x3f81, 0x4049, 0x7f7e, 0x7f7f]) {
    const low = float32OfBits(bits * 65536);
    const high = bits === 0x7f7f ? 2 ** 128 : float32OfBits((bits + 1) * 65536);
    const half = (low + high) / 2;
    for (const value of [low, half, half * (1 + 2 ** -52), half * (1 - 2 ** -52), half * (1 + 2 ** -30)])
      f64.push(value, -value);
  }
  for (let i = 0, x = 1e-42; x < 1e39; i++, x *= 1.037) f64.push(i % 2 === 0 ? x : -x);
  const f32 = Float32Array.from(f64);
  const file = path.join(dir, "convert.safetensors");
  const parts: [string, string, ArrayBufferView, number][] = [
    ["f16", "F16", f16, f16.length],
    ["f32", "F32", f32, f32.length],
    ["f64", "F64", Float64Array.from(f64), f64.length],
  ];
  const header: Record<string, unknown> = {};
  const chunks: Buffer[] = [];
  let at = 0;
  for (const [name, dtype, array, length] of parts) {
    header[name] = { dtype, shape: [length], data_offsets: [at, at + array.byteLength] };
    chunks.push(Buffer.from(array.buffer, array.byteOffset, array.byteLength));
    at += array.byteLength;
  }
  writeSafetensors(file, header, Buffer.concat(chunks));
  using opened = await SafetensorsFile.open(file);
  const wrong = (got: ArrayLike<number>, want: (i: number) => number) => {
    const found: string[] = [];
    for (let i = 0; i < got.length && found.length < 5; i++) {
      if (!Object.is(got[i], want(i))) found.push(`[${i}] ${got[i]} for ${want(i)}`);
    }
    return found;
  };
  const nan = (bits: number) => ((bits & 0x7fff) > 0x7f80 ? Number.NaN : bits);
  const asBf16 = (x: number) => (Number.isNaN(x) ? Number.NaN : nearestBfloat16(x));
  const bf16 = async (name: string) => [...new Uint16Array(await opened.readBytes(name, { dtype: "BF16" }))].map(nan);
  t.same(
    wrong(new Float32Array(await opened.readBytes("f16", { dtype: "F32" })), (i) => float16Value(i)),
    [],
  );
  t.same(
    wrong(await bf16("f16"), (i) => asBf16(float16Value(i))),
    [],
  );
  t.same(
    wrong(await bf16("f32"), (i) => asBf16(f32[i] as number)),
    [],
  );
  t.same(
    wrong(new Float32Array(await opened.readBytes("f64", { dtype: "F32" })), (i) => Math.fround(f64[i] as number)),
    [],
  );
  t.same(
    wrong(await bf16("f64"), (i) => asBf16(f64[i] as number)),
    [],
    "one rounding, not two",
  );
});

t.test("parts of a tensor, larger than one piece, with and without conversion", async (t) => {
  const length = 3_000_001;
  const values = Uint16Array.from({ length }, (_, i) => i * 40503);
  const file = path.join(dir, "parts.safetensors");
  // An odd number of bytes before it: nothing is aligned.
  writeSafetensors(
    file,
    {
      odd: { dtype: "U8", shape: [1], data_offsets: [0, 1] },
      w: { dtype: "BF16", shape: [length], data_offsets: [1, 1 + 2 * length] },
    },
    Buffer.concat([Buffer.from([7]), Buffer.from(values.buffer)]),
  );
  using opened = await SafetensorsFile.open(file);
  t.ok(Buffer.from(await opened.readBytes("w")).equals(Buffer.from(values.buffer)));
  const begin = 12_345;
  const count = 1_500_000;
  const part = new Uint16Array(await opened.readBytes("w", { begin, count }));
  t.ok(part.every((bits, i) => bits === values[begin + i]));
  const wide = new Uint32Array(await opened.readBytes("w", { begin, count, dtype: "F32" }));
  t.ok(wide.length === count && wide.every((bits, i) => bits === (values[begin + i] as number) * 65536));
  t.equal((await opened.readBytes("w", { begin: length })).byteLength, 0);
  await t.rejects(opened.readBytes("w", { begin: length - 1, count: 2 }), {
    constructor: ArgumentError,
    message: /tensor "w": elements 3000000 to 3000002 were asked for, but it has 3000001/,
  });
  await t.rejects(opened.readBytes("w", { dtype: "I32" }), { message: /"w": its dtype BF16 cannot be read as I32/ });
  await t.rejects(opened.readBytes("odd", { dtype: "F32" }), { message: /its dtype U8 cannot be read as F32/ });
  await t.rejects(opened.readBytes("w", { begin: Number.NaN }), ArgumentError);
  await t.rejects(opened.readBytes("v"), { constructor: ModelError, message: /parts\.safetensors has no tensor "v"/ });
  const many = await Promise.all(
    Array.from({ length: 16 }, (_, i) => opened.readBytes("w", { begin: i, count: 1000 })),
  );
  t.ok(
    many.every((buffer, i) => new Uint16Array(buffer).every((bits, j) => bits === values[i + j])),
    "reads side by side",
  );
});

t.test("a sparse file over 4 GiB", async (t) => {
  const file = path.join(dir, "large.safetensors");
  const rows = 1_200_000_000; // 4.8 GB of float32
  const tail = Float32Array.from({ length: 1000 }, (_, i) => Math.fround(i / 7));
  const header = JSON.stringify({
    large: { dtype: "F32", shape: [rows], data_offsets: [0, 4 * rows] },
    tail: { dtype: "F32", shape: [10, 100], data_offsets: [4 * rows, 4 * rows + 4000] },
  });
  const start = safetensorsBytes(header, Buffer.alloc(0));
  const beyond = 1_100_000_000;
  writeSparse(file, start.length + 4 * rows + 4000, [
    [0, start],
    [start.length + 4 * beyond, Buffer.from(Float32Array.of(1.5, -2.5, 3.5).buffer)],
    [start.length + 4 * rows, Buffer.from(tail.buffer)],
  ]);
  using opened = await SafetensorsFile.open(file);
  t.equal(opened.entries.get("large")?.bytes, 4_800_000_000);
  t.same(new Float32Array(await opened.readBytes("tail")), tail);
  t.same(
    [...new Float32Array(await opened.readBytes("large", { begin: beyond - 1, count: 5 }))],
    [0, 1.5, -2.5, 3.5, 0],
  );
  t.same(
    [...new Uint16Array(await opened.readBytes("large", { begin: beyond, count: 2, dtype: "BF16" }))],
    [0x3fc0, 0xc020],
  );
  await t.rejects(opened.readBytes("large"), {
    constructor: ArgumentError,
    message: /1200000000 values of F32 do not fit a JavaScript buffer/,
  });
  t.equal((await opened.readBytes("large", { begin: 1_000_000_000, count: 2_000_000 })).byteLength, 8_000_000);
});

t.test("into tensors, in order with the queue of the device", async (t) => {
  const file = path.join(dir, "tensors.safetensors");
  const values = Float32Array.from({ length: 24 }, (_, i) => i + 0.25);
  writeSafetensors(file, { w: { dtype: "F32", shape: [4, 6], data_offsets: [0, 96] } }, Buffer.from(values.buffer));
  using opened = await SafetensorsFile.open(file);
  const device = binding.openDevice("cpu", "cpu", 0, 1);
  const wrap = (tensor: NativeTensor) => ({ native: () => tensor });
  const whole = binding.empty(device, [4, 6], F32, 0, 0);
  const before = binding.version(whole);
  const reading = opened.read("w", wrap(whole));
  t.same(new Float32Array(await binding.read(whole)), values, "a later task of the queue sees the values");
  await reading;
  t.equal(binding.version(whole), before + 1, "a read counts as a write to the tensor");
  const part = binding.empty(device, [2, 6], BF16, 0, 0);
  await opened.read("w", wrap(part), { begin: 6 });
  t.same([...new Uint16Array(await binding.read(part))], [...values.subarray(6, 18)].map(nearestBfloat16));
  const rows = binding.view(whole, [2, 6], [6, 1], 12);
  await opened.read("w", wrap(rows), { begin: 0 });
  t.same(
    [...new Float32Array(await binding.read(whole))],
    [...values.subarray(0, 12), ...values.subarray(0, 12)],
    "a view is filled in place",
  );

  const columns = binding.view(whole, [6, 4], [1, 6], 0);
  await t.rejects(opened.read("w", wrap(columns)), {
    constructor: ArgumentError,
    message: /"w" cannot be read into a tensor that is not contiguous/,
  });
  const five = binding.empty(device, [5, 6], F32, 0, 0);
  await t.rejects(opened.read("w", wrap(five)), {
    constructor: ArgumentError,
    message: /elements 0 to 30 were asked for, but it has 24/,
  });
  const integers = binding.empty(device, [4, 6], 3, 0, 0);
  await t.rejects(opened.read("w", wrap(integers)), { message: /dtype F32 cannot be read as I32/ });
  await t.rejects(opened.read("w", { native: () => ({}) }), {
    constructor: ArgumentError,
    message: /expected a longseq tensor/,
  });
  const meta = binding.openDevice("meta", "meta", 0, 1);
  await opened.read("w", wrap(binding.empty(meta, [4, 6], F32, 0, 0)));
  binding.release(five);
  await t.rejects(opened.read("w", wrap(five)), { constructor: ArgumentError, message: /was disposed/ });
});

t.test("a file that is cut off after it was opened is an error, not the end of the process", async (t) => {
  const file = path.join(dir, "cut.safetensors");
  writeSafetensors(file, { w: { dtype: "F32", shape: [1 << 20], data_offsets: [0, 1 << 22] } }, Buffer.alloc(1 << 22));
  using opened = await SafetensorsFile.open(file);
  truncateSync(file, 1 << 21);
  await t.rejects(opened.readBytes("w"), {
    constructor: IoError,
    message:
      /cannot read .*cut\.safetensors: it ends at byte 2097152 where \d+ were expected.*while reading tensor "w"/,
  });
  const device = binding.openDevice("cpu", "cpu", 0, 1);
  const tensor = binding.empty(device, [1 << 20], F32, 0, 0);
  await t.rejects(opened.read("w", { native: () => tensor }), { constructor: IoError, message: /cut\.safetensors/ });
  t.equal(binding.failure(device), null, "the device goes on");
  t.equal((await binding.read(tensor)).byteLength, 1 << 22);
});

t.test("resident memory does not grow with the file", async (t) => {
  const file = path.join(dir, "flat.safetensors");
  const piece = 8 << 20; // 32 MiB of float32
  const pieces = 24;
  const bytes = 4 * piece * pieces;
  const start = safetensorsBytes(
    { w: { dtype: "F32", shape: [pieces, piece], data_offsets: [0, bytes] } },
    Buffer.alloc(0),
  );
  writeSparse(file, start.length + bytes, [[0, start]]);
  using opened = await SafetensorsFile.open(file);
  const device = binding.openDevice("cpu", "cpu", 0, 1);
  const tensor = binding.empty(device, [piece], F32, 0, 0);
  const rounded = binding.empty(device, [piece], BF16, 0, 0);
  const read = async (i: number) => {
    await opened.read("w", { native: () => tensor }, { begin: i * piece });
    await opened.read("w", { native: () => rounded }, { begin: i * piece });
  };
  await read(0);
  const before = process.memoryUsage.rss();
  for (let i = 1; i < pieces; i++) await read(i);
  const grown = process.memoryUsage.rss() - before;
  t.ok(grown < 2 * 4 * piece, `${grown} bytes more after ${2 * bytes} were read`);
});

t.test("cancelling the device gives up what waits in its queue", async (t) => {
  const file = path.join(dir, "cancel.safetensors");
  writeSafetensors(
    file,
    { w: { dtype: "F32", shape: [2], data_offsets: [0, 8] } },
    Buffer.from(Float32Array.of(3, 4).buffer),
  );
  using opened = await SafetensorsFile.open(file);
  const device = binding.openDevice("cpu", "cpu", 0, 1);
  const tensor = binding.empty(device, [2], F32, 0, 0);
  binding.cancel(device);
  await t.rejects(opened.read("w", { native: () => tensor }), CancelledError);
  await binding.resume(device);
  await opened.read("w", { native: () => tensor });
  t.same([...new Float32Array(await binding.read(tensor))], [3, 4]);
});

t.test("a closed file", async (t) => {
  const file = path.join(dir, "closed.safetensors");
  writeFileSync(file, safetensorsBytes({ w: { dtype: "F32", shape: [1], data_offsets: [0, 4] } }, Buffer.alloc(4)));
  const opened = await SafetensorsFile.open(file);
  const reading = opened.readBytes("w");
  opened.close();
  opened.close();
  t.equal((await reading).byteLength, 4, "a read that is under way ends well");
  await t.rejects(opened.readBytes("w"), { constructor: ArgumentError, message: /closed\.safetensors is closed/ });
});

t.test("the references of these tests", async (t) => {
  t.equal(nearestBfloat16(1), 0x3f80);
  t.equal(nearestBfloat16(-2), 0xc000);
  t.equal(nearestBfloat16(float32OfBits(0x3f808000)), 0x3f80, "a tie goes to the even one");
  t.equal(nearestBfloat16(float32OfBits(0x3f818000)), 0x3f82);
  t.equal(bitsOfFloat32(float16Value(0x3c01)), 0x3f802000);
});
