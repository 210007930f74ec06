// Writing safetensors: the bytes, what is refused, full disks, and that nothing half-written stays behind.

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import t from "tap";
import { binding, type NativeTensor } from "../../lib/binding.js";
import { hashFile } from "../../lib/checkpoint/native_files.js";
import { SafetensorsFile, SafetensorsWriter, type TensorDeclaration } from "../../lib/checkpoint/safetensors.js";
import { ArgumentError, IoError } from "../../lib/errors.js";
import { golden, nearestBfloat16, runChild } from "./helpers.js";

const F32 = 0;
const BF16 = 1;
const dir = t.testdir({});
const bytesOf = (view: ArrayBufferView) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const f32 = (name: string, shape: number[]): TensorDeclaration => ({ name, dtype: "F32", shape });

t.test(
  "a file that Python reads (checked by test/golden/safetensors_golden.py --check), the same bytes each time",
  async (t) => {
    const tensors: [TensorDeclaration, ArrayBufferView][] = [
      [{ name: "f64", dtype: "F64", shape: [2] }, Float64Array.of(0.5, -1e300)],
      [{ name: "i64", dtype: "I64", shape: [2, 1] }, BigInt64Array.of(-(2n ** 63n), 2n ** 63n - 1n)],
      [f32("f32", [2, 3]), Float32Array.of(0, 1, 2, 3, 4, 5)],
      [{ name: 'a "b"\n🙂', dtype: "BF16", shape: [2] }, Uint16Array.of(0x3f80, 0xc000)],
      [{ name: "empty", dtype: "F16", shape: [0, 3] }, new Uint16Array(0)],
      [{ name: "scalar", dtype: "I16", shape: [] }, Int16Array.of(7)],
      [{ name: "u8", dtype: "U8", shape: [3] }, Uint8Array.of(1, 2, 3)],
    ];
    const file = path.join(dir, "ours.safetensors");
    const writer = await SafetensorsWriter.create(
      file,
      tensors.map(([declaration]) => declaration),
      {
        format: "pt",
        ü: 'say "hi" \\ \n',
      },
    );
    for (const [declaration, values] of tensors) await writer.write(declaration.name, values);
    t.same(
      readdirSync(dir).filter((name) => name === "ours.safetensors"),
      [],
      "not there before it is complete",
    );
    const digest = await writer.finish();
    const bytes = readFileSync(file);
    t.equal(digest.bytes, bytes.length);
    t.equal(writer.bytes, bytes.length);
    t.same(await hashFile(file), digest, "the running hash is that of the file");
    t.equal(bytes.readBigUInt64LE(0) % 8n, 0n, "the data is aligned");
    if (process.env.LONGSEQ_WRITE_GOLDEN) writeFileSync(path.join(golden, "ours.safetensors"), bytes);
    t.ok(bytes.equals(readFileSync(path.join(golden, "ours.safetensors"))), "equal to the file that Python has read");
    using opened = await SafetensorsFile.open(file);
    for (const [declaration, values] of tensors) {
      t.same(opened.entries.get(declaration.name)?.shape, declaration.shape);
      const view = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
      t.same(new Uint8Array(await opened.readBytes(declaration.name)), view, declaration.name);
    }
  },
);

t.test("hashes are those of xxhsum -H64", async (t) => {
  const file = path.join(dir, "text");
  for (const [text, hash] of [
    ["", "ef46db3751d8e999"],
    ["abc", "44bc2cf5ad770999"],
    ["Nobody inspects the spammish repetition", "fbcea83c8a378bf1"],
  ] as const) {
    writeFileSync(file, text);
    t.same(await hashFile(file), { bytes: text.length, hash });
  }
});

t.test("tensors of a device, whole and in pieces, as they are at that point of the queue", async (t) => {
  const device = binding.openDevice("cpu", "cpu", 0, 1);
  const wrap = (tensor: NativeTensor) => ({ native: () => tensor });
  const values = Float32Array.from({ length: 700_001 }, (_, i) => (i - 350_000) / 3);
  const tensor = binding.empty(device, [values.length], F32, 0, 0);
  binding.write(tensor, values, false);
  const file = path.join(dir, "device.safetensors");
  const writer = await SafetensorsWriter.create(file, [
    f32("a", [values.length]),
    { name: "b", dtype: "BF16", shape: [values.length] },
    f32("pieces", [2, values.length]),
  ]);
  const writing = writer.write("a", wrap(tensor));
  binding.write(tensor, new Float32Array(values.length), false);
  await writing;
  binding.write(tensor, values, false);
  await writer.write("b", wrap(tensor));
  await writer.write("pieces", wrap(tensor));
  await writer.write("pieces", values.subarray(0, 1000));
  await writer.write("pieces", values.subarray(1000));
  await writer.finish();
  using opened = await SafetensorsFile.open(file);
  t.same(opened.metadata.format, "pt");
  const equal = (got: ArrayBufferView, want: ArrayBufferView) => Buffer.compare(bytesOf(got), bytesOf(want)) === 0;
  t.ok(equal(new Uint8Array(await opened.readBytes("a")), values), "before what was enqueued later");
  const rounded = new Uint16Array(await opened.readBytes("b"));
  t.ok(rounded.every((bits, i) => bits === nearestBfloat16(values[i] as number)));
  const pieces = new Float32Array(await opened.readBytes("pieces"));
  t.ok(equal(pieces.subarray(0, values.length), values));
  t.ok(equal(pieces.subarray(values.length), values));

  const other = await SafetensorsWriter.create(path.join(dir, "refused.safetensors"), [f32("a", [4, 2])]);
  const square = binding.empty(device, [2, 4], F32, 0, 0);
  await t.rejects(other.write("a", wrap(binding.view(square, [4, 2], [1, 4], 0))), {
    constructor: ArgumentError,
    message: /"a" is not contiguous/,
  });
  const meta = binding.openDevice("meta", "meta", 0, 1);
  await t.rejects(other.write("a", wrap(binding.empty(meta, [4, 2], F32, 0, 0))), {
    message: /meta device: it has no values/,
  });
  const bf16 = binding.empty(device, [8], BF16, 0, 0);
  await t.rejects(other.write("a", wrap(binding.empty(device, [8], 3, 0, 0))), {
    message: /values of I32 cannot be written as F32/,
  });
  await t.rejects(other.write("a", wrap(bf16)), { message: /finished or has failed/ }, "a failed writer stays failed");
});

t.test("wrong use is refused, and leaves no file", async (t) => {
  const here = t.testdir({});
  const file = path.join(here, "wrong.safetensors");
  const make = (tensors: TensorDeclaration[], metadata?: Record<string, string>) =>
    SafetensorsWriter.create(file, tensors, metadata);
  const rejected = async (promise: Promise<unknown>, message: RegExp) => {
    await t.rejects(promise, { constructor: ArgumentError, message });
    t.same(readdirSync(here), [], "nothing is left");
  };
  await rejected(make([f32("a", [1]), f32("a", [1])]), /tensor "a": the name occurs twice/);
  await rejected(make([f32("a\0", [1])]), /"a\\x00": the name holds a NUL/);
  await rejected(make([f32("", [1])]), /this name is not allowed/);
  await rejected(make([f32("__metadata__", [1])]), /this name is not allowed/);
  await rejected(make([f32("a", [-1])]), /-1/);
  await rejected(make([f32("a", [1.5])]), /1\.5/);
  await rejected(make([f32("a", [2 ** 40, 2 ** 40])]), /too many elements/);
  await rejected(make([{ name: "a", dtype: "F4", shape: [3] }]), /does not fill whole bytes/);
  await rejected(make([{ name: "a", dtype: "F31" as "F32", shape: [3] }]), /unknown dtype F31/);
  await rejected(make([f32("a", [1])], { "k\0": "v" }), /metadata key "k\\x00" holds a NUL/);

  let writer = await make([f32("a", [2]), f32("b", [2])]);
  await rejected(writer.write("b", Float32Array.of(1, 2)), /tensor "b" was given where "a" is next/);
  writer = await make([f32("a", [2])]);
  await rejected(
    writer.write("a", Float32Array.of(1, 2, 3)),
    /"a": 3 values were given where 2 of shape \[2\] are missing/,
  );
  writer = await make([f32("a", [2])]);
  await writer.write("a", Float32Array.of(1));
  await rejected(writer.finish(), /tensor "a" is declared, but 1 of its values were never written/);
  writer = await make([f32("a", [1])]);
  await writer.write("a", Float32Array.of(1));
  await rejected(writer.write("a", Float32Array.of(1)), /all declared tensors are written/);
  writer = await make([f32("a", [2])]);
  await t.rejects(writer.write("a", Uint8Array.of(1, 2, 3)), { message: /3 bytes are no whole number of F32 values/ });
  await t.rejects(writer.write("c", Uint8Array.of(1, 2, 3)), { message: /"c" was not declared/ });
  await writer.abandon();
  await writer.abandon();
  t.same(readdirSync(here), []);
  await rejected(writer.finish(), /finished or has failed/);
  await t.rejects(SafetensorsWriter.create(path.join(here, "no", "such.safetensors"), [f32("a", [1])]), {
    constructor: IoError,
    message: /cannot create .*no\/such\.safetensors.*No such file or directory \(ENOENT\)/,
  });
});

t.test("an existing file stays until the new one is complete", async (t) => {
  const file = path.join(dir, "again.safetensors");
  for (const [value, finish] of [
    [1, true],
    [2, false],
    [3, true],
  ] as const) {
    const writer = await SafetensorsWriter.create(file, [f32("a", [1])]);
    await writer.write("a", Float32Array.of(value));
    if (finish) await writer.finish();
    else await writer.abandon();
    using opened = await SafetensorsFile.open(file);
    t.equal(new Float32Array(await opened.readBytes("a"))[0], finish ? value : 1);
  }
});

t.test("a disk that is too small is found before anything is written", async (t) => {
  const here = t.testdir({});
  await t.rejects(SafetensorsWriter.create(path.join(here, "huge.safetensors"), [f32("a", [2 ** 50])]), {
    constructor: IoError,
    message:
      /cannot reserve 45\d+ bytes for .*huge\.safetensors.*\(\d+ bytes are free\): No space left on device \(ENOSPC\)/,
    details: { errno: "ENOSPC" },
  });
  t.same(readdirSync(here), []);
});

t.test("a write that fails in the middle names file, byte and cause, and removes what was written", async (t) => {
  const here = t.testdir({});
  const { code, out } = await runChild("write_child.ts", [path.join(here, "limited.safetensors")], 3000);
  t.equal(code, 0);
  const result = JSON.parse(out);
  t.equal(result.name, "IoError");
  t.match(
    result.message,
    /cannot write \d+ bytes at byte 3072000 of .*limited\.safetensors.*: File too large \(EFBIG\)/,
  );
  t.equal(result.errno, "EFBIG");
  t.same(readdirSync(here), []);
});
