// The caching allocator by its figures: peaks, categories, limits, views, and meta equal to cpu to the byte.
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import t from "tap";
import { binding, type NativeDevice, type NativeTensor } from "../../lib/binding.js";
import { ArgumentError, OutOfMemoryError } from "../../lib/errors.js";
import { Random } from "../ops/strided.js";

const open = (type: string, threads = 1) => binding.openDevice(type, type, 0, threads);
const stats = (device: NativeDevice, tier = 0) => binding.memoryStats(device, tier);
const bytes = (device: NativeDevice, size: number, category = 4, tier = 0) =>
  binding.empty(device, [size], 5, category, tier);
const up = (value: number, multiple: number) => Math.ceil(value / multiple) * multiple;
const MiB = 1 << 20;

for (const type of ["cpu", "meta"]) {
  t.test(
    `${type}: with large tensors the reserved peak is the peak of live bytes, whatever order they come in`,
    async (t) => {
      const device = open(type);
      const page = binding.deviceInfo(device).pageBytes;
      const random = new Random(5);
      const held: [NativeTensor, number][] = [];
      let live = 0;
      let peak = 0;
      for (let step = 0; step < 2000; step++) {
        if (held.length > 0 && (held.length > 40 || random.chance(0.45))) {
          const [[tensor, size]] = held.splice(random.below(held.length), 1) as [[NativeTensor, number]];
          binding.release(tensor);
          live -= size;
        } else {
          const size = 256 * 1024 + 1 + random.below(random.chance(0.1) ? 60 * MiB : 3 * MiB);
          held.push([bytes(device, size), up(size, page)]);
          live += up(size, page);
          peak = Math.max(peak, live);
        }
        const now = stats(device);
        const wrong = now.live !== live || now.peakLive !== peak || now.peak !== peak || now.reserved > peak;
        if (wrong) t.same(now, { live, peak }, `after step ${step}`);
        if (wrong) break;
      }
      for (const [tensor] of held) binding.release(tensor);
      t.equal(stats(device).live, 0);
      t.equal(stats(device).peak, peak);
      binding.trim(device, 0);
      t.equal(stats(device).reserved, 0, "trim gives every page back");
      await binding.synchronize(device);
    },
  );

  t.test(`${type}: small tensors share chunks, scalars cost nothing`, async (t) => {
    const device = open(type);
    const scalars = Array.from({ length: 5000 }, () => binding.empty(device, [], 2, 4, 0));
    t.equal(stats(device).live, 0);
    t.equal(stats(device).reserved, 0);
    const small = Array.from({ length: 1000 }, (_, i) => bytes(device, 65 + i));
    const expected = small.reduce((sum, _, i) => sum + up(65 + i, 256), 0);
    t.equal(stats(device).live, expected);
    t.ok(stats(device).reserved <= expected + 2 * MiB, `${stats(device).reserved} reserved for ${expected}`);
    for (const [i, tensor] of small.entries()) if (i % 2) binding.release(tensor);
    const before = stats(device).reserved;
    const again = small.filter((_, i) => i % 2).map(() => bytes(device, 256));
    t.equal(stats(device).reserved, before, "freed places are found again");
    for (const tensor of [...scalars, ...again, ...small.filter((_, i) => i % 2 === 0)]) binding.release(tensor);
    t.equal(stats(device).live, 0);
    binding.trim(device, 0);
    t.equal(stats(device).reserved, 0);
  });

  t.test(`${type}: categories and tiers are told apart`, async (t) => {
    const device = open(type);
    const page = binding.deviceInfo(device).pageBytes;
    const params = bytes(device, 10 * MiB, 0);
    const grads = bytes(device, 5 * MiB, 1);
    binding.release(grads);
    const logits = bytes(device, 3 * MiB, 5);
    const host = bytes(device, 7 * MiB, 3, 1);
    const now = stats(device);
    t.equal(now.categoryLive.params, 10 * MiB);
    t.equal(now.categoryLive.grads, 0);
    t.equal(now.categoryPeak.grads, 5 * MiB);
    t.equal(now.categoryLive.logits, 3 * MiB);
    t.same([now.categoryAtPeak.params, now.categoryAtPeak.grads, now.categoryAtPeak.logits], [10 * MiB, 5 * MiB, 0]);
    t.equal(now.peak, up(15 * MiB, page));
    t.equal(stats(device, 1).live, 7 * MiB);
    t.equal(stats(device, 1).categoryLive.checkpoints, 7 * MiB);
    for (const tensor of [params, logits]) binding.release(tensor);
    binding.resetPeaks(device, 0);
    t.equal(stats(device).peakLive, 0);
    t.equal(stats(device).categoryPeak.params, 0);
    t.equal(stats(device, 1).peak, 7 * MiB, "the other tier's peak stays");
    binding.release(host);
  });

  t.test(`${type}: beyond the limit an OutOfMemoryError says what is held, and the process goes on`, async (t) => {
    const device = open(type);
    binding.setLimit(device, 0, 32 * MiB);
    const params = bytes(device, 20 * MiB, 0);
    const activations = bytes(device, 8 * MiB, 4);
    const before = stats(device);
    for (const size of [4 * MiB + 1, 100 * MiB, 2 ** 40]) {
      try {
        bytes(device, size, 5);
        t.fail(`${size} bytes were handed out`);
      } catch (error) {
        if (!(error instanceof OutOfMemoryError)) throw error;
        t.equal(error.code, "OUT_OF_MEMORY");
        t.match(error.message, /params 20\.0+ MiB, activations 8\.0+ MiB/);
        t.match(error.message, /limit is 32\.0+ MiB/);
        t.match(error.message, /memory\.device_limit/);
        t.equal(error.details.params, 20 * MiB);
        t.equal(error.details.activations, 8 * MiB);
        t.equal(error.details.limit, 32 * MiB);
        t.ok((error.details.requested as number) >= size);
      }
    }
    t.same({ ...stats(device), allocations: before.allocations }, before, "a refused request leaves no trace");
    binding.release(activations);
    const next = bytes(device, 12 * MiB, 4);
    t.equal(stats(device).live, 32 * MiB, "up to the limit itself");
    t.equal(stats(device).peak, 32 * MiB);
    // An op's workspace counts, and its refusal leaves the queue in order.
    const x = binding.empty(device, [2, 2], 0, 4, 0);
    t.throws(() => bytes(device, 4 * MiB), { name: "OutOfMemoryError" });
    binding.write(x, Float32Array.of(1, 2, 3, 4), false);
    await binding.read(x);
    for (const tensor of [params, next, x]) binding.release(tensor);
    // Small tensors take chunks, which count as well.
    binding.setLimit(device, 0, 3 * MiB);
    const many: NativeTensor[] = [];
    t.throws(
      () => {
        for (;;) many.push(bytes(device, 1000));
      },
      { name: "OutOfMemoryError" },
    );
    t.ok(many.length > 2500 && stats(device).peak <= 32 * MiB && stats(device).reserved <= 3 * MiB);
    for (const tensor of many) binding.release(tensor);
    t.equal(stats(device).live, 0);
  });
}

t.test("meta gives cpu's figures to the byte, for small and large tensors, workspaces, trims and limits", async (t) => {
  const devices = [open("cpu", 3), open("meta")] as const;
  const random = new Random(11);
  const held: [NativeTensor, NativeTensor][] = [];
  const both = <T>(f: (device: NativeDevice) => T): [T, T] => [f(devices[0]), f(devices[1])];
  for (let step = 0; step < 3000; step++) {
    const choice = random.next();
    if (choice < 0.45 && held.length > 0) {
      for (const tensor of held.splice(random.below(held.length), 1)[0] ?? []) binding.release(tensor);
    } else if (choice < 0.9) {
      const size = random.chance(0.7) ? 1 + random.below(400_000) : 1 + random.below(20 * MiB);
      const category = random.below(8);
      held.push(both((device) => bytes(device, size, category)));
    } else if (choice < 0.98) {
      // A backward with a workspace.
      const [rows, width] = [1 + random.below(300), 1 + random.below(700)];
      both((device) => {
        const make = (shape: number[]) => binding.empty(device, shape, 0, 4, 0);
        const [x, w, dx, dw] = [make([rows, width]), make([width]), make([rows, width]), make([width])];
        binding.ops.rmsNormBackward(x, w, x, dx, dw, 1e-5, true);
        for (const tensor of [x, w, dx, dw]) binding.release(tensor);
      });
    } else if (choice < 0.99) {
      both((device) => binding.trim(device, 0));
    } else {
      both((device) => binding.resetPeaks(device, 0));
    }
    const [cpu, meta] = both((device) => JSON.stringify(stats(device)));
    if (cpu !== meta) {
      t.same(JSON.parse(meta), JSON.parse(cpu), `after step ${step}`);
      break;
    }
  }
  t.equal(JSON.stringify(stats(devices[1])), JSON.stringify(stats(devices[0])));
  t.ok(stats(devices[0]).peak > 20 * MiB);
  t.same(binding.opCounts(devices[1]), binding.opCounts(devices[0]));
  for (const pair of held) for (const tensor of pair) binding.release(tensor);
  t.equal(stats(devices[0]).live, 0);
  await binding.synchronize(devices[0]);
});

t.test("no two live tensors share a byte, however places are reused", async (t) => {
  const device = open("cpu", 2);
  const random = new Random(23);
  const held: { tensor: NativeTensor; value: number; size: number }[] = [];
  let wrong = 0;
  const check = async ({ tensor, value, size }: (typeof held)[0]) => {
    const data = new Float32Array(await binding.read(tensor));
    binding.release(tensor);
    if (data.length !== size || data.some((x) => x !== value)) wrong++;
  };
  for (let step = 0; step < 600; step++) {
    if (held.length > 25 || (held.length > 0 && random.chance(0.4))) {
      await check(held.splice(random.below(held.length), 1)[0] as (typeof held)[0]);
    } else {
      const size = random.chance(0.7) ? random.below(2000) : random.below(300_000);
      const tensor = binding.empty(device, [size], 0, 4, 0);
      binding.ops.fill(tensor, step);
      held.push({ tensor, value: step, size });
      if (step % 50 === 0) binding.trim(device, 0);
    }
  }
  for (const one of held) await check(one);
  t.equal(wrong, 0);
  t.equal(stats(device).live, 0);
});

t.test("pages go back to the system", async (t) => {
  const device = open("cpu");
  const size = 64 * MiB;
  const large = binding.empty(device, [size], 0, 4, 0);
  binding.ops.fill(large, 1);
  await binding.synchronize(device);
  const full = process.memoryUsage.rss();
  binding.release(large);
  binding.trim(device, 0);
  await binding.synchronize(device);
  const after = process.memoryUsage.rss();
  t.ok(full - after > 200 * MiB, `${full} bytes resident, then ${after}`);
});

t.test("views hold the bytes, stay inside them, and are counted", async (t) => {
  const device = open("cpu");
  const base = binding.empty(device, [100, 1000], 0, 4, 0);
  binding.ops.fill(base, 3);
  const view = binding.view(base, [10, 5], [1000, 2], 7);
  t.equal(binding.references(view), 2);
  t.ok(binding.sameStorage(base, view));
  binding.release(base);
  t.equal(stats(device).live, up(400_000, binding.deviceInfo(device).pageBytes));
  const copy = binding.empty(device, [10, 5], 0, 4, 0);
  binding.ops.copy(view, copy);
  t.same([...new Float32Array(await binding.read(copy))], Array(50).fill(3));
  const refusals: [number[], number[], number][] = [
    [[100_001], [1], 0],
    [[2], [1], 99_999],
    [[2], [2 ** 53 - 1], 0],
    [[3, 3], [2 ** 52, 2 ** 52], 2 ** 52],
    [[1], [1], 100_000],
    // One beyond the end.
    [[99_994], [1], 0],
    [[1], [1], 99_993],
    [[2, 3], [99_990, 2], 0],
    [[2 ** 40, 2 ** 40], [0, 0], 0],
  ];
  const whole = binding.view(view, [100_000 - 7], [1], 0);
  for (const [shape, strides, offset] of refusals)
    t.throws(
      () => binding.view(whole, shape, strides, offset),
      { name: "ArgumentError" },
      `${shape} ${strides} ${offset}`,
    );
  binding.release(binding.view(whole, [2, 3], [99_988, 2], 0));
  t.throws(() => binding.view(whole, [2], [-1], 5), { name: "ArgumentError" });
  t.throws(() => binding.view(whole, [2], [1, 1], 0), { name: "ArgumentError" });
  t.throws(() => binding.view(whole, [2], [1], Number.NaN), { name: "ArgumentError" });
  for (const tensor of [view, whole, copy]) binding.release(tensor);
  t.throws(() => binding.release(view), ArgumentError, "a second release");
  t.equal(stats(device).live, 0);
});

t.test("wrong sizes are refused and nothing is taken", async (t) => {
  const device = open("cpu");
  const shapes: unknown[] = [
    [Number.NaN],
    [-1],
    [1.5],
    [2 ** 53],
    [2 ** 40, 2 ** 40],
    [2 ** 31, 2 ** 31, 2 ** 31],
    [Number.POSITIVE_INFINITY],
    ["3"],
    [null],
    [3n],
    [[3]],
    [1, 1, 1, 1, 1, 1, 1],
    3,
    null,
    undefined,
    "3",
    { length: 1 },
  ];
  for (const shape of shapes)
    t.throws(() => binding.empty(device, shape as number[], 0, 4, 0), { name: "ArgumentError" }, String(shape));
  for (const [dtype, category, tier] of [
    [6, 4, 0],
    [-1, 4, 0],
    [0.5, 4, 0],
    [0, 8, 0],
    [0, -1, 0],
    [0, 4, 3],
    [0, 4, -1],
  ])
    t.throws(() => binding.empty(device, [2], dtype as number, category as number, tier as number), ArgumentError);
  for (const wrong of [null, undefined, {}, 3, "cpu", [device]])
    t.throws(() => binding.empty(wrong as never, [2], 0, 4, 0), ArgumentError);
  t.throws(() => binding.setLimit(device, 0, Number.NaN), ArgumentError);
  t.throws(() => binding.setLimit(device, 0, -1), ArgumentError);
  t.equal(stats(device).live, 0);
  // More than any address space, but a size that could be meant.
  t.throws(() => binding.empty(device, [2 ** 48], 0, 4, 0), { name: "OutOfMemoryError" });
  t.equal(stats(device).reserved, 0);
  const x = binding.empty(device, [3], 0, 4, 0);
  binding.ops.fill(x, 2);
  t.same([...new Float32Array(await binding.read(x))], [2, 2, 2]);
  binding.release(x);
  const none = binding.empty(device, [0, 2 ** 40], 0, 4, 0);
  t.equal((await binding.read(none)).byteLength, 0);
  binding.release(none);
});

t.test("a forgotten tensor is given back by the garbage collector, and counted", async (t) => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const device = open("cpu");
  const before = binding.liveHandles();
  (() => {
    for (let i = 0; i < 10; i++) {
      const forgotten = bytes(device, MiB);
      const view = binding.view(forgotten, [5], [1], 3);
      if (i % 2) binding.release(view);
    }
  })();
  t.equal(stats(device).live, 10 * MiB);
  for (let i = 0; i < 50 && stats(device).live > 0; i++) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
  }
  t.equal(stats(device).live, 0);
  const after = binding.liveHandles();
  t.equal(after.live, before.live);
  t.equal(after.leaked - before.leaked, 10, "tensors, not handles");
  t.equal(after.leakedBytes - before.leakedBytes, 10 * MiB);
});
