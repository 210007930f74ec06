// Collectives against plain loops, with all ranks as devices of this one process. LONGSEQ_TEST_DEVICE: on another device
// than the cpu, by its own transport.
import { connect as netConnect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { binding } from "../../lib/binding.js";
import { Device, type DType, ops, Tensor, tensor } from "../../lib/index.js";
import { Communicator } from "../../lib/parallel/communicator.js";
import { queues } from "../../lib/tensor/tiers.js";
import { connect, meeting, openDevice, split } from "./connect.js";

const devices = Array.from({ length: 4 }, openDevice);
const { isGpu } = devices[0] as Device;

/** Whole numbers, exact in every dtype and in sums of four. */
const value = (rank: number, i: number): number => ((rank * 7 + i * 3) % 31) - 15;

const make = (rank: number, shape: number[], dtype: DType): Tensor => {
  const count = shape.reduce((product, size) => product * size, 1);
  const values = Array.from({ length: count }, (_, i) => value(rank, i));
  const made = tensor(dtype === "int64" ? values.map(BigInt) : values, {
    device: devices[rank] as Device,
    dtype,
    shape,
  });
  return made;
};

const numbers = async (x: Tensor): Promise<number[]> => Array.from(await x.data(), Number);

for (const [size, transport] of [
  [2, "shm"],
  [3, "tcp"],
  [4, "shm"],
] as const) {
  t.test(`${size} ranks, ${transport}`, async (t) => {
    const comms = await connect(size, devices, { transport });
    const ranks = comms.map((_, rank) => rank);
    // Below a slot, odd, and more than all slots of a channel hold.
    for (const count of [1, 7, 1000, 300_001]) {
      for (const dtype of count > 1000
        ? (["float32"] as const)
        : (["float32", "bfloat16", "float64", "int64"] as const)) {
        const where = `${dtype} [${count}]`;
        const xs = ranks.map((rank) => make(rank, [size, count], dtype));
        const ys = ranks.map((rank) => Tensor.empty([size, count], { device: devices[rank] as Device, dtype }));
        for (const rank of ranks)
          binding.ops.allToAll(
            (xs[rank] as Tensor).native(),
            (ys[rank] as Tensor).native(),
            (comms[rank] as Communicator).number,
            queues.comm,
          );
        for (const rank of ranks) {
          const got = await numbers(ys[rank] as Tensor);
          const wrong = got.findIndex((x, i) => x !== value(Math.floor(i / count), rank * count + (i % count)));
          t.equal(wrong, -1, `all_to_all ${where}, rank ${rank}`);
        }

        const parts = ranks.map((rank) => make(rank, [count], dtype));
        for (const rank of ranks)
          binding.ops.allGather(
            (parts[rank] as Tensor).native(),
            (ys[rank] as Tensor).native(),
            (comms[rank] as Communicator).number,
            queues.comm,
          );
        for (const rank of ranks) {
          const got = await numbers(ys[rank] as Tensor);
          const wrong = got.findIndex((x, i) => x !== value(Math.floor(i / count), i % count));
          t.equal(wrong, -1, `all_gather ${where}, rank ${rank}`);
        }

        for (const [kind, reduce] of [
          [0, (values: number[]) => values.reduce((sum, x) => sum + x, 0)],
          [1, (values: number[]) => Math.max(...values)],
        ] as const) {
          const into = ranks.map((rank) => Tensor.empty([count], { device: devices[rank] as Device, dtype }));
          for (const rank of ranks)
            binding.ops.reduceScatter(
              (xs[rank] as Tensor).native(),
              (into[rank] as Tensor).native(),
              (comms[rank] as Communicator).number,
              kind,
              queues.comm,
            );
          for (const rank of ranks) {
            const got = await numbers(into[rank] as Tensor);
            const wrong = got.findIndex((x, i) => x !== reduce(ranks.map((r) => value(r, rank * count + i))));
            t.equal(wrong, -1, `reduce_scatter ${kind} ${where}, rank ${rank}`);
          }
          const whole = ranks.map((rank) => make(rank, [count], dtype));
          for (const rank of ranks)
            binding.ops.allReduce(
              (whole[rank] as Tensor).native(),
              (comms[rank] as Communicator).number,
              kind,
              queues.comm,
            );
          for (const rank of ranks) {
            const got = await numbers(whole[rank] as Tensor);
            const wrong = got.findIndex((x, i) => x !== reduce(ranks.map((r) => value(r, i))));
            t.equal(wrong, -1, `all_reduce ${kind} ${where}, rank ${rank}`);
          }
          for (const one of [...into, ...whole]) one.dispose();
        }

        const root = size - 1;
        for (const rank of ranks)
          binding.ops.broadcast(
            (parts[rank] as Tensor).native(),
            (comms[rank] as Communicator).number,
            root,
            queues.comm,
          );
        for (const rank of ranks) {
          const got = await numbers(parts[rank] as Tensor);
          t.equal(
            got.findIndex((x, i) => x !== value(root, i)),
            -1,
            `broadcast ${where}, rank ${rank}`,
          );
        }
        for (const one of [...xs, ...ys, ...parts]) one.dispose();
      }
    }
    for (const comm of comms) comm.close();
  });
}

t.test("sums of bfloat16 are float32 sums, rounded once", async (t) => {
  const comms = await connect(3, devices);
  // 256 + 1 is 256 in bfloat16: rounding after each addition would give 256.
  const xs = [256, 1, 1].map((x, rank) => tensor([x], { device: devices[rank] as Device, dtype: "bfloat16" }));
  xs.forEach((x, rank) => {
    binding.ops.allReduce(x.native(), (comms[rank] as Communicator).number, 0, queues.comm);
  });
  t.same(await Promise.all(xs.map(async (x) => (await x.data())[0])), [258, 258, 258]);
  for (const comm of comms) comm.close();
});

t.test("all_to_all is its own backward", async (t) => {
  const comms = await connect(2, devices);
  const xs = comms.map((_, rank) => {
    const x = make(rank, [2, 3], "float32");
    x.requiresGrad = true;
    return x;
  });
  const ys = xs.map((x, rank) => ops.allToAll(x, comms[rank] as Communicator));
  ys.forEach((y, rank) => {
    y.backward(make(rank, [2, 3], "float32"));
  });
  for (const [rank, x] of xs.entries()) {
    const got = await numbers(x.grad as Tensor);
    t.same(
      got,
      Array.from({ length: 6 }, (_, i) => value(Math.floor(i / 3), rank * 3 + (i % 3))),
    );
  }
  for (const comm of comms) comm.close();
});

t.test("all_gather and reduce_scatter are each other's backward", async (t) => {
  const comms = await connect(3, devices);
  const ranks = comms.map((_, rank) => rank);
  const given = (rank: number, shape: number[]) => {
    const x = make(rank, shape, "float32");
    x.requiresGrad = true;
    return x;
  };
  const parts = ranks.map((rank) => given(rank, [5]));
  const wholes = ranks.map((rank) => given(rank, [3, 5]));
  const gathered = ranks.map((rank) => ops.allGather(parts[rank] as Tensor, comms[rank] as Communicator));
  const summed = ranks.map((rank) => ops.reduceScatter(wholes[rank] as Tensor, comms[rank] as Communicator));
  const sumOf = (i: number) => ranks.reduce((sum, rank) => sum + value(rank, i), 0);
  for (const rank of ranks) {
    t.same(
      await numbers(gathered[rank] as Tensor),
      Array.from({ length: 15 }, (_, i) => value(Math.floor(i / 5), i % 5)),
    );
    t.same(
      await numbers(summed[rank] as Tensor),
      Array.from({ length: 5 }, (_, i) => sumOf(rank * 5 + i)),
    );
  }
  for (const rank of ranks) {
    gathered[rank]?.backward(make(rank, [3, 5], "float32"));
    summed[rank]?.backward(make(rank, [5], "float32"));
  }
  for (const rank of ranks) {
    t.same(
      await numbers(parts[rank]?.grad as Tensor),
      Array.from({ length: 5 }, (_, i) => sumOf(rank * 5 + i)),
    );
    t.same(
      await numbers(wholes[rank]?.grad as Tensor),
      Array.from({ length: 15 }, (_, i) => value(Math.floor(i / 5), i % 5)),
    );
  }
  for (const comm of comms) comm.close();
});

t.test("send_receive: round a ring, of unequal sizes, and nothing at all", async (t) => {
  const comms = await connect(3, devices);
  const ranks = comms.map((_, rank) => rank);
  const sizes = [4, 0, 300_001];
  const sent = ranks.map((rank) => make(rank, [sizes[rank] as number], "float32"));
  const got = ranks.map((rank) =>
    Tensor.full([sizes[(rank + 2) % 3] as number], 0, { device: devices[rank] as Device }),
  );
  for (const rank of ranks)
    ops.sendReceiveInto(
      sent[rank] as Tensor,
      (rank + 1) % 3,
      got[rank] as Tensor,
      (rank + 2) % 3,
      comms[rank] as Communicator,
    );
  for (const rank of ranks) {
    const from = (rank + 2) % 3;
    const wrong = (await numbers(got[rank] as Tensor)).findIndex((x, i) => x !== value(from, i));
    t.equal(wrong, -1, `rank ${rank}`);
  }
  const [x] = sent as [Tensor];
  t.throws(() => ops.sendReceiveInto(x, 0, x, 1, comms[0] as Communicator), { message: /to is 0, expected another/ });
  for (const comm of comms) comm.close();
});

t.test("ranks that do not do the same are found out, where that is asked for", async (t) => {
  const comms = await connect(2, devices);
  const own = comms.map(openDevice);
  const xs = own.map((device, rank) => Tensor.full([rank === 0 ? 4 : 6], 1, { device }));
  comms.forEach((comm, rank) => {
    comm.compare(own[rank] as Device, true);
    ops.allReduceInto(xs[rank] as Tensor, comm);
  });
  await t.rejects((xs[0] as Tensor).data(), {
    message:
      /number 1 of the world group is all_reduce of float32\[4\], 0 on rank 0 of it, all_reduce of float32\[6\], 0 on rank 1/,
  });
  await t.rejects((xs[1] as Tensor).data(), { message: /the ranks do not do the same/ });
  for (const comm of comms) comm.close();
});

t.test("a rank that leaves as soon as it is connected leaves nobody on the way to it", async (t) => {
  const [addresses, connected] = [meeting(2), meeting(2)];
  await Promise.all(
    [0, 1].map(async (rank) => {
      const swap = async (own: string): Promise<string[]> => {
        if (own === "") return connected(rank, "there");
        const all = await addresses(rank, own);
        // Rank 0 is late.
        if (rank === 0) await sleep(200);
        return all;
      };
      const comm = await Communicator.open("shm", rank, 2, swap);
      t.equal(comm.rank, rank);
      comm.close();
    }),
  );
});

t.test("over the network strangers are sent away, and a rank that cannot be reached is named", async (t) => {
  let sentAway = false;
  const comms = await connect(2, [], {
    transport: "tcp",
    before: async (rank, addresses) => {
      if (rank === 0) return;
      const [, port] = Buffer.from(addresses[0] as string, "base64")
        .toString()
        .split(" ");
      // It greets as no rank does, before rank 1 comes.
      await new Promise((done) => {
        const socket = netConnect(Number(port), "127.0.0.1", () => socket.end("GET / HTTP/1.1\r\n\r\n"));
        socket.on("error", () => {}).once("close", done);
      });
      sentAway = true;
    },
  });
  t.ok(sentAway);
  for (const comm of comms) comm.close();
  const nowhere = Buffer.alloc(256);
  nowhere.write("127.0.0.1 1 5");
  await t.rejects(
    Communicator.open("tcp", 1, 2, async (own) => [nowhere.toString("base64"), own]),
    { message: /rank 0 at 127\.0\.0\.1:1 cannot be reached: Connection refused/ },
  );
});

t.test("what is wrong is said before anything travels", async (t) => {
  const comms = await connect(2, devices);
  const number = (comms[0] as Communicator).number;
  const device = devices[0] as Device;
  const of = (shape: number[], dtype: DType = "float32") => Tensor.full(shape, 0, { device, dtype }).native();
  t.throws(() => binding.ops.allToAll(of([3, 2]), of([3, 2]), number), {
    message: /x has shape \[3, 2\], expected a part for each of the 2 ranks/,
  });
  t.throws(() => binding.ops.allToAll(of([2, 2]), of([2, 3]), number), { message: /y has shape \[2, 3\]/ });
  t.throws(() => binding.ops.allGather(of([3]), of([2, 2]), number), { message: /a part of y/ });
  t.throws(() => binding.ops.reduceScatter(of([2, 2]), of([2]), number, 7), { message: /kind is 7/ });
  t.throws(() => binding.ops.allReduce(of([2], "int32"), number, 0), { message: /x is int32/ });
  t.throws(() => binding.ops.broadcast(of([2]), number, 2), { message: /root is 2/ });
  t.throws(() => binding.ops.allReduce(of([2]), 123_456, 0), { message: /no communicator 123456/ });
  for (const comm of comms) comm.close();
  t.throws(() => binding.ops.allReduce(of([2]), number, 0), { message: /no communicator/ });
});

for (const transport of ["shm", "tcp"] as const) {
  t.test(`a rank that stops ends the others with its name, ${transport}`, async (t) => {
    const comms = await connect(2, [], { transport });
    const device = new Device("cpu", { threads: 1 });
    const x = Tensor.full([4], 1, { device });
    binding.ops.allReduce(x.native(), (comms[1] as Communicator).number, 0, queues.comm);
    (comms[0] as Communicator).abort();
    await t.rejects(x.data(), { code: "DEVICE", message: /all_reduce failed on rank 0 .*: rank 0 has stopped/ });
    for (const comm of comms) comm.close();
  });

  t.test(`what is given up with everything else is no failure, ${transport}`, async (t) => {
    const own = isGpu ? [openDevice(), openDevice()] : [];
    const comms = await connect(2, own, { transport });
    const device = own[0] ?? openDevice();
    const x = Tensor.full([4], 1, { device });
    binding.ops.allReduce(x.native(), (comms[0] as Communicator).number, 0, queues.comm);
    const read = x.data();
    // A stream has it by then.
    await new Promise((done) => setTimeout(done, isGpu ? 300 : 0));
    device.cancel();
    (comms[0] as Communicator).abort();
    await t.rejects(read, { code: "CANCELLED" });
    await device.resume();
    t.equal(binding.failure(device.native), null);
    for (const comm of comms) comm.close();
  });
}

t.test("parts of a communicator, side by side", async (t) => {
  const whole = await connect(4, devices);
  const groups = [
    [0, 2],
    [1, 3],
  ];
  const parts = await split(whole, devices, groups);
  const xs = parts.map((_, rank) => make(rank, [1000], "float32"));
  xs.forEach((x, rank) => {
    ops.allReduceInto(x, parts[rank] as Communicator);
  });
  for (const [rank, x] of xs.entries()) {
    const members = groups[rank % 2] as number[];
    const wrong = (await numbers(x)).findIndex((y, i) => y !== members.reduce((sum, r) => sum + value(r, i), 0));
    t.equal(wrong, -1, `rank ${rank}`);
  }
  for (const comm of [...parts, ...whole]) comm.close();
});

if (isGpu) {
  t.test("what waits on a stream for a rank that is gone fails when it is given up", async (t) => {
    const own = [openDevice(), openDevice()];
    const comms = await connect(2, own);
    const x = Tensor.full([4], 1, { device: own[0] as Device });
    binding.ops.allReduce(x.native(), (comms[0] as Communicator).number, 0, queues.comm);
    const read = x.data();
    await new Promise((done) => setTimeout(done, 300));
    (comms[0] as Communicator).abort();
    await t.rejects(read, { code: "DEVICE", message: /an exchange failed on rank 0: the exchange was given up/ });
    for (const comm of comms) comm.close();
  });

  t.test("device memory is reached by communicators that were opened for it alone", async (t) => {
    const device = openDevice();
    const comms = await connect(2, []);
    const x = Tensor.full([4], 1, { device });
    binding.ops.allReduce(x.native(), (comms[0] as Communicator).number, 0, queues.comm);
    await t.rejects(x.data(), { message: /reaches host memory alone/ });
    for (const comm of comms) comm.close();
  });
}
