// Queues: order, sticky failures, cancelling and resuming, ends in the middle of work, counters, the recorder.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import t from "tap";
import { addonPath, binding, type NativeDevice, type NativeTensor } from "../../lib/binding.js";
import { ArgumentError, CancelledError } from "../../lib/errors.js";

const open = (threads = 2) => binding.openDevice("cpu", "cpu", 0, threads);
const empty = (device: NativeDevice, shape: number[], dtype = 0) => binding.empty(device, shape, dtype, 4, 0);
const numbers = async (tensor: NativeTensor) => [...new Float32Array(await binding.read(tensor))];
/** About so many milliseconds of work, in kernels of a few each. */
function work(device: NativeDevice, milliseconds: number): void {
  const [a, b] = [empty(device, [768, 768]), empty(device, [768, 768])];
  binding.ops.fill(a, 1);
  for (let i = 0; i < milliseconds / 4; i++) binding.ops.matmul(a, a, b, null, 1, false);
  for (const tensor of [a, b]) binding.release(tensor);
}

t.test("work runs in the order in which it was enqueued, and reads see what came before them alone", async (t) => {
  const device = open();
  const x = empty(device, [3]);
  binding.ops.fill(x, 1);
  const reads: Promise<number[]>[] = [];
  for (let i = 0; i < 300; i++) {
    reads.push(numbers(x));
    binding.ops.axpby(x, x, null, 1, i % 2 ? -0.5 : 1);
  }
  let expected = 1;
  for (const [i, read] of reads.entries()) {
    const got = await read;
    if (got[0] !== expected || got[2] !== expected) t.fail(`read ${i} is ${got}, expected ${expected}`);
    expected *= i % 2 ? 0.5 : 2;
  }
  // Numbers are taken at once: the array may be changed afterwards.
  const data = Float32Array.of(1, 2, 3);
  work(device, 20);
  binding.write(x, data, false);
  data.fill(-1);
  t.same(await numbers(x), [1, 2, 3]);
  // A tensor may be released while work on it is queued; its place is reused only after that.
  for (let i = 0; i < 200; i++) {
    const temporary = empty(device, [1000]);
    binding.ops.fill(temporary, i);
    const part = binding.view(temporary, [3], [300], 0);
    binding.ops.copy(part, x);
    for (const tensor of [part, temporary]) binding.release(tensor);
  }
  t.same(await numbers(x), [199, 199, 199]);
  binding.release(x);
});

t.test("other queues: a copy waits for the compute queue, and compute waits before it reuses the place", async (t) => {
  const device = open();
  const kept = empty(device, [100_000]);
  for (let i = 0; i < 30; i++) {
    const source = empty(device, [100_000]);
    binding.ops.fill(source, i);
    binding.ops.copy(source, kept, 1);
    binding.release(source);
    const reused = empty(device, [100_000]);
    binding.ops.fill(reused, -1);
    binding.release(reused);
    await binding.synchronize(device);
    const got = await numbers(kept);
    if (got[0] !== i || got[99_999] !== i) t.fail(`copy ${i} gave ${got[0]}, ${got[99_999]}`);
  }
  t.throws(() => binding.ops.copy(kept, kept, 6), ArgumentError);
  t.throws(() => binding.ops.copy(kept, kept, Number.NaN), ArgumentError);
  // A source that stays is changed only after the copy, where waitQueue says so.
  const source = empty(device, [100_000]);
  for (let i = 0; i < 30; i++) {
    binding.ops.fill(source, i);
    binding.ops.copy(source, kept, 1);
    binding.waitQueue(device, 0, 1);
    binding.ops.fill(source, -1);
    const got = await numbers(kept);
    if (got[0] !== i || got[99_999] !== i) t.fail(`copy ${i} gave ${got[0]}, ${got[99_999]}`);
  }
  binding.waitQueue(device, 2, 3);
  binding.waitQueue(device, 0, 0);
  for (const wrong of [6, -1, Number.NaN, 0.5]) {
    t.throws(() => binding.waitQueue(device, wrong, 0), ArgumentError);
    t.throws(() => binding.waitQueue(device, 0, wrong), ArgumentError);
  }
  for (const tensor of [kept, source]) binding.release(tensor);
});

t.test("a failure rejects every later read with op, shapes and cause, and stays; other devices go on", async (t) => {
  const unhandled: unknown[] = [];
  const note = (reason: unknown) => unhandled.push(reason);
  process.on("unhandledRejection", note);
  const [device, other] = [open(), open()];
  const [ids, table, y] = [empty(device, [4], 3), empty(device, [10, 6]), empty(device, [4, 6])];
  binding.write(ids, Int32Array.of(1, 2, 77, 3), false);
  binding.ops.fill(table, 1);
  const early = binding.read(table);
  binding.ops.embedding(ids, table, y);
  const message =
    /embedding failed on rank 0 with ids int32\[4\], table float32\[10, 6\], y float32\[4, 6\]: .*id 77 at index 2/;
  await t.rejects(binding.read(y), { name: "ArgumentError", code: "INVALID_ARGUMENT", message });
  await early;
  await t.rejects(binding.read(table), { message });
  await t.rejects(binding.synchronize(device), { message });
  t.match(binding.failure(device), message);
  // A second failure does not hide the first; enqueuing goes on without a throw; nothing is run.
  binding.write(ids, Int32Array.of(-5, 0, 0, 0), false);
  binding.ops.embedding(ids, table, y);
  binding.marker(device, 99);
  await t.rejects(binding.read(y), { message });
  t.not(binding.lastMarker(device), 99);
  await binding.resume(device);
  await t.rejects(binding.read(y), { message }, "resume() lifts a cancel, not a failure");
  for (const tensor of [ids, table, y]) binding.release(tensor);
  t.equal(binding.memoryStats(device, 0).live, 0, "memory still goes back");
  const x = empty(other, [2]);
  binding.ops.fill(x, 5);
  t.same(await numbers(x), [5, 5]);
  t.equal(binding.failure(other), null);
  binding.release(x);
  await new Promise((resolve) => setImmediate(resolve));
  process.off("unhandledRejection", note);
  t.same(unhandled, []);
});

t.test("a cancel rejects what waits, drops what has not begun, and resume() lets work in again", async (t) => {
  const device = open();
  const x = empty(device, [2]);
  binding.ops.fill(x, 1);
  t.same(await numbers(x), [1, 1]);
  for (let round = 0; round < 3; round++) {
    work(device, 4000);
    binding.ops.fill(x, 2);
    const read = binding.read(x);
    const sync = binding.synchronize(device);
    binding.cancel(device);
    await t.rejects(read, { name: "CancelledError", code: "CANCELLED" });
    await t.rejects(sync, CancelledError);
    await t.rejects(binding.read(x), CancelledError, "until resume()");
    await binding.resume(device);
    t.same(await numbers(x), [1, 1], "the fill was dropped");
    t.equal(binding.failure(device), null);
    binding.ops.fill(x, 3);
    t.same(await numbers(x), [3, 3]);
    binding.ops.fill(x, 1);
    await binding.synchronize(device);
  }
  binding.release(x);
  t.equal(binding.memoryStats(device, 0).live, 0);
});

t.test("an optimizer update that has begun ends in spite of a cancel; one that has not is dropped whole", async (t) => {
  const device = open();
  const parts = Array.from({ length: 20 }, () => empty(device, [4]));
  for (const part of parts) binding.ops.fill(part, 0);
  const update = (value: number) => {
    binding.beginUpdate(device);
    binding.marker(device, value);
    for (const part of parts) {
      work(device, 8);
      binding.ops.fill(part, value);
    }
    binding.endUpdate(device);
  };
  update(1);
  work(device, 2000);
  update(2);
  while (binding.lastMarker(device) !== 1) await new Promise((resolve) => setImmediate(resolve));
  binding.cancel(device);
  await binding.resume(device);
  t.equal(binding.stepsFinished(device), 1);
  t.equal(binding.lastMarker(device), 1);
  for (const part of parts) t.same(await numbers(part), [1, 1, 1, 1]);
  update(3);
  binding.limitSteps(device, 0);
  t.equal(binding.stepsFinished(device), 2, "limitSteps(0) returns when all updates are over");
  for (const part of parts) {
    t.same(await numbers(part), [3, 3, 3, 3]);
    binding.release(part);
  }
});

t.test("markers pass in order", async (t) => {
  const device = open();
  for (let i = 1; i <= 50; i++) binding.marker(device, i);
  await binding.synchronize(device);
  t.equal(binding.lastMarker(device), 50);
  t.throws(() => binding.marker(device, -1), ArgumentError);
  t.throws(() => binding.marker(device, Number.NaN), ArgumentError);
});

const child = (how: string) =>
  new Promise<{ code: number | null; signal: string | null; stdout: string; stderr: string }>((resolve) => {
    const started = spawn(
      process.execPath,
      ["--import=tsx", fileURLToPath(new URL("queue_child.ts", import.meta.url)), how],
      { stdio: ["ignore", "pipe", "pipe"] },
    );
    const text = { stdout: "", stderr: "" };
    started.stdout.on("data", (chunk) => {
      text.stdout += chunk;
    });
    started.stderr.on("data", (chunk) => {
      text.stderr += chunk;
    });
    started.on("close", (code, signal) => resolve({ code, signal, ...text }));
  });

t.test("the process ends in the middle of minutes of work: exit, exit with reads pending, an exception", async (t) => {
  const ways = [
    ["exit", 7],
    ["exit later", 7],
    ["copies", 7],
    ["throw", 1],
    ["cancel", 0],
  ] as const;
  const all = await Promise.all(ways.map(async ([how, code]) => ({ how, code, ended: await child(how) })));
  for (const { how, code, ended } of all) {
    t.equal(ended.signal, null, `${how}: no signal`);
    t.equal(ended.code, code, `${how}: ${ended.stderr}`);
    t.match(ended.stdout, /^enqueued/);
    if (how === "throw") t.match(ended.stderr, /thrown on purpose/);
    if (how === "cancel") t.equal(ended.stdout, "enqueued\nrejected\nrejected\n");
  }
});

t.test("a worker is terminated in the middle of work, and this thread goes on", async (t) => {
  const device = open();
  const x = empty(device, [3]);
  const source = `
    const { parentPort } = require("node:worker_threads");
    const native = require(${JSON.stringify(addonPath)});
    native.setErrorFactory((code, message) => Object.assign(new Error(message), { code }));
    const device = native.openDevice("cpu", "cpu", 0, 2);
    const make = () => native.empty(device, [1024, 1024], 0, 4, 0);
    const [a, b] = [make(), make()];
    native.ops.fill(a, 1);
    for (let i = 0; i < 5000; i++) native.ops.matmul(a, a, b, null, 1, 0);
    native.read(b).catch(() => {});
    parentPort.postMessage("enqueued");
  `;
  for (let round = 0; round < 4; round++) {
    const worker = new Worker(source, { eval: true });
    await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
    t.equal(await worker.terminate(), 1);
    binding.ops.fill(x, round);
    t.same(await numbers(x), [round, round, round]);
  }
  binding.release(x);
});

t.test("counters: calls, FLOPs of matrix products, bytes", async (t) => {
  const device = open();
  binding.resetOpCounts(device);
  const [a, b, c] = [empty(device, [5, 3, 7]), empty(device, [5, 7, 11], 1), empty(device, [5, 3, 11])];
  binding.ops.fill(a, 1);
  binding.ops.fill(b, 1);
  binding.ops.matmul(a, b, c, null, 1, false);
  binding.ops.matmul(a, b, c, null, 1, true);
  const counts = binding.opCounts(device);
  t.same(Object.keys(counts).sort(), ["fill", "matmul"]);
  t.same(counts.matmul, {
    calls: 2,
    flops: 2 * 2 * 5 * 3 * 7 * 11,
    bytes: 2 * (5 * 3 * 7 * 4 + 5 * 7 * 11 * 2) + 3 * (5 * 3 * 11 * 4),
    // Of logs with durations alone.
    seconds: 0,
  });
  t.same(counts.fill, { calls: 2, flops: 0, bytes: 5 * 3 * 7 * 4 + 5 * 7 * 11 * 2, seconds: 0 });
  t.equal(binding.totalFlops(device), 2 * 2 * 5 * 3 * 7 * 11);
  // Causal attention: the pairs really attended, 4 N D each; the backward twice that.
  const [T, N, D] = [10, 2, 8];
  const [q, lse] = [empty(device, [T, N, D]), empty(device, [N, T])];
  binding.ops.fill(q, 1);
  binding.ops.attention(q, q, q, q, lse, null, 1, true, 0, 0, 0);
  t.equal(binding.opCounts(device).attention?.flops, 4 * N * D * ((T * (T + 1)) / 2));
  binding.ops.attention(q, q, q, q, lse, null, 1, true, 3, 0, 0);
  t.equal(binding.opCounts(device).attention?.flops, 4 * N * D * (55 + 1 + 2 + 8 * 3));
  // Windows, offsets and documents against a count of the pairs one by one.
  const bounds = [0, 3, 3, 9, 16];
  const cu = empty(device, [bounds.length], 4);
  binding.write(cu, BigInt64Array.from(bounds, BigInt), true);
  const document = (position: number) => bounds.findLastIndex((begin) => begin <= position);
  for (const causal of [true, false]) {
    for (const window of [0, 1, 4]) {
      for (const [qOffset, kOffset] of [
        [0, 0],
        [5, 0],
        [2, 6],
      ] as const) {
        for (const documents of [false, true]) {
          let pairs = 0;
          for (let i = qOffset; i < qOffset + T; i++) {
            for (let j = kOffset; j < kOffset + T; j++) {
              const near = window === 0 || Math.abs(i - j) < window;
              const together = !documents || (document(i) === document(j) && Math.max(i, j) < 16);
              if (near && together && (j <= i || !causal)) pairs++;
            }
          }
          const sofar = binding.opCounts(device).attention?.flops as number;
          binding.ops.attention(q, q, q, q, lse, documents ? cu : null, 1, causal, window, qOffset, kOffset);
          const flops = (binding.opCounts(device).attention?.flops as number) - sofar;
          const what = `causal ${causal}, window ${window}, from ${qOffset} and ${kOffset}, documents ${documents}`;
          t.equal(flops, 4 * N * D * pairs, what);
        }
      }
    }
  }
  binding.release(cu);
  t.throws(() => binding.ops.fill(a, "1" as never), ArgumentError);
  t.equal(binding.opCounts(device).fill?.calls, 3, "a refused call is not counted");
  binding.resetOpCounts(device);
  t.same(binding.opCounts(device), {});
  t.equal(binding.totalFlops(device), 0);
  await binding.synchronize(device);
  for (const tensor of [a, b, c, q, lse]) binding.release(tensor);
});

t.test("the recorder notes ops and allocations while it is on, as Chrome trace JSON", async (t) => {
  interface Event {
    name: string;
    cat?: string;
    ph: string;
    ts: number;
    dur: number;
    tid: number;
    args: { name?: string; bytes: number; flops: number; enqueued: number; category: string; tier: string };
  }
  interface Trace {
    traceEvents: Event[];
    otherData: { live: Record<string, Record<string, number>> };
  }
  const device = open();
  const trace = () => JSON.parse(binding.stopTrace(device)) as Trace;
  const before = empty(device, [1000]);
  binding.ops.fill(before, 1);
  await binding.synchronize(device);
  binding.startTrace(device);
  const a = binding.empty(device, [64, 64], 0, 0, 0);
  const b = binding.empty(device, [64, 64], 0, 5, 0);
  const host = binding.empty(device, [1000], 0, 3, 1);
  binding.ops.fill(a, 1);
  binding.ops.matmul(a, a, b, null, 1, false);
  binding.ops.copy(a, b, 1);
  binding.release(b);
  await binding.synchronize(device);
  const { traceEvents: events, otherData } = trace();
  const ops = events.filter((event) => event.cat === "op");
  t.same(Object.keys(otherData.live), ["device", "host", "disk"]);
  t.same(
    Object.entries(otherData.live.device as Record<string, number>).filter(([, bytes]) => bytes > 0),
    [["activations", 4096]],
    "what was live before",
  );
  t.ok(Object.values(otherData.live.host as Record<string, number>).every((bytes) => bytes === 0));
  t.same(
    ops.map((event) => [event.name, event.tid]),
    [
      ["fill", 0],
      ["matmul", 0],
      ["copy", 1],
    ],
  );
  t.equal(ops[1]?.args.flops, 2 * 64 ** 3);
  t.equal(ops[1]?.args.bytes, 3 * 64 * 64 * 4);
  for (const [i, op] of ops.entries()) {
    t.ok(op.ph === "X" && op.ts >= 0 && op.dur >= 0);
    t.ok(op.args.enqueued > 0 && op.args.enqueued <= op.ts, "enqueued, then run");
    t.ok(i === 0 || op.ts >= (ops[i - 1] as Event).ts, "in order");
  }
  const memory = events
    .filter((event) => event.cat === "memory")
    .map(({ args }) => [args.category, args.tier, args.bytes]);
  t.same(memory, [
    ["params", "device", 16_384],
    ["logits", "device", 16_384],
    ["checkpoints", "host", 4096],
    ["logits", "device", -16_384],
  ]);
  const threads = events.filter((event) => event.ph === "M").map((event) => event.args.name);
  t.same(threads, ["compute", "copy_out", "copy_in", "comm", "disk_out", "disk_in"]);
  binding.ops.fill(a, 2);
  await binding.synchronize(device);
  t.same(
    trace().traceEvents.filter((event) => event.cat),
    [],
    "off again: nothing is noted",
  );
  for (const tensor of [before, a, host]) binding.release(tensor);
});
