// Queues of a backend that only gives its work to streams: order, steps, failures, recordings, and ops on host memory.
import { join } from "node:path";
import t from "tap";
import { binding, packageRoot } from "../../lib/binding.js";
import { Device } from "../../lib/tensor/device.js";
import { Tensor } from "../../lib/tensor/tensor.js";

binding.openBackend(join(packageRoot, "build/test/stream_toy.so"));
const compute = 0;
const copyOut = 1;
const copyIn = 2;
const values = async (x: Tensor) => [...new Set((await x.data()) as Float32Array)];

t.test("queues wait for each other on the device", async (t) => {
  const device = new Device("stream_toy");
  const x = Tensor.empty([256], { device });
  const back = Tensor.empty([256], { device });
  const kept = Tensor.empty([256], { device, tier: "host" });
  for (let round = 0; round < 50; round++) {
    // Out, overwritten, back in: each must see the one before it, though the host is far ahead.
    binding.ops.fill(x.native(), round);
    binding.ops.copy(x.native(), kept.native(), copyOut);
    binding.ops.fill(x.native(), 1000);
    binding.waitQueue(device.native, copyIn, copyOut);
    binding.ops.copy(kept.native(), back.native(), copyIn);
    binding.waitQueue(device.native, compute, copyIn);
    if (round % 10 === 9) t.same(await values(back), [round]);
  }
  t.same(await values(kept), [49]);
  t.same(await values(x), [1000]);
});

t.test("a step is finished when the device says so", async (t) => {
  const step = (value: number): Device => {
    const device = new Device("stream_toy");
    const x = Tensor.empty([4], { device });
    binding.beginUpdate(device.native);
    binding.ops.fill(x.native(), value);
    binding.endUpdate(device.native);
    return device;
  };
  const good = step(1);
  await good.synchronize();
  t.equal(binding.stepsFinished(good.native), 1);
  // The host has handed all of it over long before the device fails.
  const failing = step(-1);
  await t.rejects(failing.synchronize(), { code: "DEVICE_FAILURE" });
  t.equal(binding.stepsFinished(failing.native), 0);
});

t.test("a failure on the device rejects the read, and the ones after it", async (t) => {
  const device = new Device("stream_toy");
  const x = Tensor.full([4], -1, { device });
  await t.rejects(x.data(), { code: "DEVICE_FAILURE", message: /toys are not negative/ });
  await t.rejects(device.synchronize(), { code: "DEVICE_FAILURE" });
  // Found between ops as well, when nothing reads.
  const other = new Device("stream_toy");
  const y = Tensor.full([4], -1, { device: other });
  for (let i = 0; i < 100; i++) binding.ops.fill(y.native(), i);
  await t.rejects(other.synchronize(), { code: "DEVICE_FAILURE", message: /fill failed.*toys are not negative/ });
});

t.test("what lies on the host is worked on by the CPU, after the copies before it", async (t) => {
  const device = new Device("stream_toy");
  const x = Tensor.full([64], 3, { device });
  const sum = Tensor.empty([64], { device, tier: "host" });
  const gradient = Tensor.empty([64], { device, tier: "host" });
  binding.ops.fill(sum.native(), 1);
  for (let i = 0; i < 5; i++) {
    binding.ops.copy(x.native(), gradient.native(), copyOut);
    binding.ops.axpby(gradient.native(), sum.native(), null, 1, 1);
  }
  t.same(await values(sum), [16]);
  t.throws(() => binding.ops.axpby(gradient.native(), x.native(), null, 1, 1), { code: "INVALID_ARGUMENT" });
});

t.test("recorded times are the device's", async (t) => {
  const device = new Device("stream_toy");
  const x = Tensor.empty([4], { device });
  device.startTrace();
  for (let i = 0; i < 50; i++) binding.ops.fill(x.native(), i);
  await device.synchronize();
  const { traceEvents } = JSON.parse(device.stopTrace()) as {
    traceEvents: { name: string; ts: number; dur: number }[];
  };
  const fills = traceEvents.filter(({ name }) => name === "fill");
  t.equal(fills.length, 50);
  for (const [i, { ts, dur }] of fills.entries()) {
    // A kernel sleeps 3 ms; launching one takes microseconds.
    t.ok(dur > 2000, `${dur} us`);
    const before = fills[i - 1];
    if (before) t.ok(ts >= before.ts + before.dur - 1, "one after the other");
  }
});

t.test("a refused page says why", async (t) => {
  const device = new Device("stream_toy");
  t.throws(() => Tensor.empty([5 << 20], { device }), {
    code: "OUT_OF_MEMORY",
    message: /the toy box is full; use a shorter sequence/,
  });
});
