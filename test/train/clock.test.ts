// The time of a step by the log of its queues: hand-made programs whose seconds are known, and files of rates.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import { binding } from "../../lib/binding.js";
import { Tensor } from "../../lib/index.js";
import { Communicator } from "../../lib/parallel/communicator.js";
import { Device } from "../../lib/tensor/device.js";
import { queues } from "../../lib/tensor/tiers.js";
import { calibrate } from "../../lib/train/calibrate.js";
import { ratesOf, readRates, secondsByPart, timingOf, totalSeconds } from "../../lib/train/rates.js";

const device = new Device("meta");
const { native } = device;
const ELEMENTS = 1024;
const tensor = (tier: "device" | "host" = "device"): Tensor => Tensor.empty([ELEMENTS], { device, tier });
/** An op on compute that takes a second. */
const compute = (x: Tensor): void => binding.ops.axpby(x.native(), x.native(), null, 1, 0);
/** However much one call does, it takes so many seconds. */
const always = (seconds: number): number[] => [1e12, seconds];
const curves: Record<string, number[]> = { axpby: always(1), copy_out: always(2), copy_in: always(3) };

/** What a program takes. */
function play(program: () => void, rates = curves, overlap = 1) {
  binding.startLog(native, rates, overlap);
  try {
    device.resetOpCounts();
    program();
    binding.logCounted(native);
    const found = binding.logAccounts(native, 0, 1, 0);
    if (found === null) throw new Error("nothing is put in, so nothing can be unknown");
    return found;
  } finally {
    binding.stopLog(native);
  }
}

const near = (t: Test, found: number | undefined, wanted: number, what: string) =>
  t.ok(Math.abs((found ?? Number.NaN) - wanted) < 1e-6, `${what}: ${found}, expected ${wanted}`);

t.test("compute waits for what it needs of other queues, and for no more", (t) => {
  const [x, y, host] = [tensor(), tensor(), tensor("host")];
  // Two seconds of copying from the beginning on, one second of compute beside it: the release waits one more.
  let found = play(() => {
    const gone = tensor();
    binding.ops.copy(gone.native(), host.native(), queues.copyOut);
    compute(y);
    gone.dispose();
  });
  near(t, found.elapsed.seconds, 2, "seconds");
  near(t, found.elapsed.busy[queues.compute], 1, "compute's work");
  near(t, found.elapsed.busy[queues.copyOut], 2, "copying");
  near(t, found.elapsed.exposed[queues.copyOut], 1, "what nothing hides");
  near(t, found.ops.axpby?.seconds, 1, "seconds of axpby");

  // Nobody waits for it: all is hidden.
  found = play(() => {
    binding.ops.copy(x.native(), host.native(), queues.copyOut);
    for (let i = 0; i < 3; i++) compute(y);
  });
  near(t, found.elapsed.seconds, 3, "seconds of hidden copies");
  near(t, found.elapsed.exposed[queues.copyOut], 0, "hidden copies");

  // Out (2 s), back behind it (3 s), and needed at once.
  found = play(() => {
    const back = tensor();
    binding.ops.copy(x.native(), host.native(), queues.copyOut);
    binding.ops.copy(host.native(), back.native(), queues.copyIn);
    compute(back);
    back.dispose();
  });
  near(t, found.elapsed.seconds, 6, "out, back and compute");
  near(t, found.elapsed.exposed[queues.copyIn], 5, "what waits for the way back");

  // A copy begins behind the compute that was there before it.
  found = play(() => {
    compute(x);
    binding.ops.copy(x.native(), host.native(), queues.copyOut);
    binding.waitQueue(native, queues.compute, queues.copyOut);
  });
  near(t, found.elapsed.seconds, 3, "one behind the other");
  t.end();
});

t.test("queues that share what compute needs slow it down", (t) => {
  const [x, y, host] = [tensor(), tensor(), tensor("host")];
  const { elapsed } = play(
    () => {
      binding.ops.copy(x.native(), host.native(), queues.copyOut);
      for (let i = 0; i < 4; i++) compute(y);
    },
    curves,
    0.75,
  );
  near(t, elapsed.seconds, 4.5, "seconds");
  near(t, elapsed.exposed[queues.copyOut], 0.5, "what is not hidden");
  t.end();
});

t.test("what is repeated takes its time again", (t) => {
  const [x, y, host] = [tensor(), tensor(), tensor("host")];
  const { elapsed, ops } = play(() => {
    compute(y);
    const mark = binding.markOps(native);
    compute(y);
    binding.ops.copy(x.native(), host.native(), queues.copyOut);
    binding.waitQueue(native, queues.compute, queues.copyOut);
    binding.repeatOps(native, mark, 9);
    binding.dropOps(native, mark);
  });
  near(t, elapsed.seconds, 1 + 10 * 3, "seconds");
  near(t, elapsed.busy[queues.copyOut], 20, "copying");
  near(t, elapsed.exposed[queues.copyOut], 20, "what nothing hides");
  near(t, ops.axpby?.seconds, 11, "seconds of axpby");

  const twice = play(() => {
    compute(y);
    const from = binding.logPosition(native);
    compute(y);
    binding.logRepeat(native, from, 4);
    compute(y);
  });
  near(t, twice.elapsed.seconds, 1 + 5 + 1, "seconds of micro-batches");
  t.end();
});

t.test("exchanges take what leaves the rank, over what joins the ranks", (t) => {
  const bytes = 4 * ELEMENTS;
  // One byte a second.
  const links = { node: [1, 1, 1e9, 1e9], network: [1, 2, 1e9, 2e9], "all_gather:node": [1, 10, 1e9, 1e10] };
  const seconds = (run: () => void) => play(run, links).elapsed.busy[queues.comm] as number;
  const [x, y] = [tensor(), tensor()];
  const [four, far] = [Communicator.ofMeta(0, 4), Communicator.ofMeta(0, 4, "network")];
  const parts = (of: Tensor) => of.viewOf([4, ELEMENTS / 4], [ELEMENTS / 4, 1], 0);
  const own = (of: Tensor) => of.viewOf([ELEMENTS / 4], [1], 0);
  const exchange = (comm: Communicator) => () =>
    binding.ops.allToAll(parts(x).native(), parts(y).native(), comm.number, queues.comm);
  near(t, seconds(exchange(four)), (3 / 4) * bytes, "all_to_all");
  near(t, seconds(exchange(far)), 2 * (3 / 4) * bytes, "all_to_all over the network");
  near(
    t,
    seconds(() => binding.ops.allGather(own(x).native(), parts(y).native(), four.number, queues.comm)),
    10 * (3 / 4) * bytes,
    "all_gather, whose rates are its own",
  );
  for (const comm of [four, far]) comm.close();
  t.end();
});

t.test("time between measured points, and of products by what they read", (t) => {
  const [x, y] = [tensor(), tensor()];
  // axpby reads and writes 3 x 4 KiB where it adds.
  const work = play(() => binding.ops.axpby(x.native(), y.native(), null, 1, 1)).ops.axpby?.bytes as number;
  const time = (points: number[]) =>
    play(() => binding.ops.axpby(x.native(), y.native(), null, 1, 1), { stream: points }).elapsed.seconds;
  near(t, time([work / 4, 1, work * 4, 4]), 2, "between");
  near(t, time([work / 4, 1]), 4, "beyond");
  near(t, time([work * 4, 1]), 1, "below");
  const square = (n: number) => Tensor.empty([n, n], { device });
  const product = (n: number, of: Record<string, number[]>) => {
    const [a, b, c] = [square(n), square(n), square(n)];
    const { elapsed } = play(() => binding.ops.matmul(a.native(), b.native(), c.native(), null, 1, false), of);
    for (const one of [a, b, c]) one.dispose();
    return elapsed.seconds;
  };
  // 2 n^3 FLOPs, 12 n^2 bytes: n / 6 a byte.
  const rates = { "matmul/3": always(5), "matmul/5": always(7), matmul: always(9), products: always(11) };
  near(t, product(48, rates), 5, "eight FLOPs a byte");
  near(t, product(192, rates), 7, "32 FLOPs a byte");
  near(t, product(96, rates), 9, "no rate of its own");
  near(t, product(96, { products: always(11) }), 11, "as all products");
  near(t, product(96, {}), 0, "no rates at all");
  t.end();
});

t.test("rates for a dtype and threads", (t) => {
  const rates = {
    ...ratesOf("cpu"),
    threads: 2,
    ops: {
      "matmul/4:float32": [[1e6, 1e9]] as [number, number][],
      "matmul/9:bfloat16": [[1e6, 4e9]] as [number, number][],
      stream: [[1e3, 1e9]] as [number, number][],
      "stream:bfloat16": [[1e3, 2e9]] as [number, number][],
    },
  };
  const { durations } = timingOf(rates, "float32", 4);
  t.same(durations["matmul/4"], [1e6, 0.5e-3], "twice the threads, half the time");
  t.same(durations["matmul/11"], [1e6, 0.5e-3], "the nearest that was measured");
  t.same(durations.stream, [1e3, 0.5e-6]);
  const half = timingOf(rates, "bfloat16", 1).durations;
  t.same(half["matmul/4"], [1e6, 0.5e-3]);
  t.same(half.stream, [1e3, 1e-6], "of its own dtype before that of all");
  t.same(half.copy_out?.[1], timingOf(rates, "float32", 4).durations.copy_out?.[1], "copies know no threads");

  const op = (seconds: number, flops = 0) => ({ calls: 10, flops, bytes: 1, seconds });
  const ops = { attention_backward: op(1, 5), matmul: op(2, 5), fill: op(3) };
  const elapsed = { seconds: 7, busy: [6, 0, 0, 0, 0, 0], exposed: [0, 0.25, 0.25, 0.5, 0, 0] };
  const parts = secondsByPart(ops, elapsed, 1e-6);
  t.same(parts, { attention: 1, products: 2, rest: 3, copies: 0.5, exchanges: 0.5 });
  t.equal(totalSeconds(secondsByPart(ops, elapsed, 1)), 30, "a step is not faster than its ops are asked for");
  t.end();
});

t.test("files of rates", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "longseq-rates-"));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, "rates.json");
  const write = (value: unknown) => writeFileSync(path, typeof value === "string" ? value : JSON.stringify(value));
  const good = ratesOf("cpu");
  write(good);
  t.same(readRates(path, "cpu"), good);
  for (const [value, message] of [
    [{ ...good, version: 1 }, /rates\.json has rates of version 1, expected 2; write it again with longseq bench/],
    [[], /has rates of version none, expected 2/],
    ["{", /cannot read the rates in .*rates\.json/],
    [{ ...good, overlap: 2 }, /rates\.json: overlap: /],
    [{ ...good, ops: { stream: [[0, 1]] } }, /rates\.json: ops\.stream\.0\.0: /],
    [{ ...good, speed: 1 }, /speed/],
  ] as const) {
    write(value);
    t.throws(() => readRates(path, "cpu"), { code: "CONFIG", message });
  }
  t.throws(() => readRates(join(folder, "none.json"), "cpu"), { code: "CONFIG", message: /none\.json/ });

  const small = { layers: 2, heads: 2, vocabulary: 64, rows: 16 };
  const found = await calibrate({
    device: "cpu",
    threads: 1,
    samples: [
      { ...small, hidden: 16, tokens: 32 },
      { ...small, hidden: 32, tokens: 64, away: true },
    ],
  });
  write(found);
  t.same(readRates(path, "cpu"), found, "what is measured is a file of rates");
  t.equal(found.threads, 1);
  for (const name of [
    "attention:float32",
    "attention_backward:bfloat16",
    "products:float32",
    "stream",
    "adamw:float32",
  ])
    t.ok((found.ops[name]?.length ?? 0) > 0, name);
  t.ok(
    Object.keys(found.ops).some((name) => /^matmul\/-?\d+:float32$/.test(name)),
    "products by what they read",
  );
  t.notSame(found.copies.copy_out, good.copies.copy_out, "copies were measured");
  t.ok(found.call > 0 && found.call < 0.01, `${found.call} s a call`);
  t.match(JSON.parse(readFileSync(path, "utf8")).measured, /1 thread$/);
});
