// The meeting place: who is let in, what is passed on, and what the others hear when one is lost.
import { connect } from "node:net";
import t from "tap";
import { placeOf } from "../../lib/parallel/environment.js";
import { helloOf, Rendezvous, RendezvousServer } from "../../lib/parallel/rendezvous.js";

const secret = "a secret";
const at = (server: RendezvousServer, rank: number, world = server.world) => ({
  rank,
  world,
  host: "127.0.0.1",
  port: server.port,
});

t.test("every rank gets every rank's values, in their order", async (t) => {
  const server = await RendezvousServer.open(3, secret);
  const ranks = await Promise.all([2, 0, 1].map((rank) => Rendezvous.join(at(server, rank), secret, 5000)));
  // Two questions at once, answered in another order by each.
  const answers = await Promise.all(
    ranks.flatMap((one, i) =>
      (i % 2 === 0 ? ["a", "b"] : ["b", "a"]).map((key) => one.swap(key, `${key} of ${[2, 0, 1][i]}`)),
    ),
  );
  for (const values of answers) {
    const key = (values[0] as string)[0];
    t.same(
      values,
      [0, 1, 2].map((rank) => `${key} of ${rank}`),
    );
  }
  for (const one of ranks) one.close();
  server.close();
});

t.test("strangers are sent away, and harm nobody", async (t) => {
  const server = await RendezvousServer.open(2, secret);
  const first = await Rendezvous.join(at(server, 0), secret, 5000);
  await t.rejects(Rendezvous.join(at(server, 1), "another", 5000), { code: "CONFIG", message: /the secret is wrong/ });
  await t.rejects(Rendezvous.join(at(server, 0), secret, 5000), { code: "CONFIG", message: /rank 0 is there already/ });
  await t.rejects(Rendezvous.join(at(server, 1, 3), secret, 5000), { code: "CONFIG", message: /the job has 2 ranks/ });
  for (const text of ["GET / HTTP/1.1\r\n\r\n", "{}\n", "null\n", `${"x".repeat(3 << 20)}`, "\0\n"]) {
    const socket = connect(server.port, "127.0.0.1");
    // What it has not read when it hangs up comes back as a reset.
    socket.on("error", () => {});
    socket.resume();
    socket.write(text);
    await new Promise((resolve) => socket.once("close", resolve));
  }
  const second = await Rendezvous.join(at(server, 1), secret, 5000);
  t.same(await Promise.all([first.swap("x", "0"), second.swap("x", "1")]), [
    ["0", "1"],
    ["0", "1"],
  ]);
  first.close();
  second.close();
  server.close();
});

t.test("a lost rank is named to those that wait", async (t) => {
  const server = await RendezvousServer.open(2, secret);
  const [first, second] = await Promise.all([0, 1].map((rank) => Rendezvous.join(at(server, rank), secret, 5000)));
  const lost = new Promise<Error>((resolve) => {
    (first as Rendezvous).onLost = resolve;
  });
  const waiting = (first as Rendezvous).swap("x", "0");
  // As a killed process does.
  (second as Rendezvous).drop();
  await t.rejects(waiting, { code: "DEVICE", message: /rank 1 was lost/ });
  t.match((await lost).message, /rank 1 was lost/);
  server.close();
});

t.test("a rank that falls silent is lost, though its connection holds", async (t) => {
  const server = await RendezvousServer.open(2, secret);
  server.silence = 100;
  const [first, second] = await Promise.all([0, 1].map((rank) => Rendezvous.join(at(server, rank), secret, 5000)));
  const waiting = (first as Rendezvous).swap("x", "0");
  // A thread's second connection, which says that it is there and then nothing more.
  const silent = connect(server.port, "127.0.0.1");
  silent.once("data", (bytes) => {
    const { nonce } = JSON.parse(bytes.toString()) as { nonce: string };
    silent.write(`${JSON.stringify({ ...helloOf(secret, nonce, 1, 2), beats: true })}\n`);
  });
  await t.rejects(waiting, { code: "DEVICE", message: /rank 1 was lost: it has not been heard of for 0\.1 s/ });
  silent.destroy();
  (second as Rendezvous).drop();
  server.close();
});

t.test("a rank that never comes is named", async (t) => {
  const server = await RendezvousServer.open(3, secret);
  server.expectAll(200);
  const first = await Rendezvous.join(at(server, 1), secret, 5000);
  await t.rejects(first.swap("x", "1"), { message: /ranks 0, 2 of 3 have not come within 0\.2 s$/ });
  server.close();
  // Whoever waits learns that one came and was no rank of the job.
  const other = await RendezvousServer.open(2, secret);
  other.expectAll(300);
  const waits = await Rendezvous.join(at(other, 0), secret, 5000);
  await t.rejects(Rendezvous.join(at(other, 1), "another", 5000), { code: "CONFIG" });
  await t.rejects(waits.swap("x", "1"), {
    message: /rank 1 of 2 has not come within 0\.3 s; a process that came was refused: the secret is wrong/,
  });
  await t.rejects(RendezvousServer.open(2, secret, "127.0.0.1", other.port), {
    code: "DEVICE",
    message: /give a port that is free/,
  });
  other.close();
});

t.test("all hear that one asks to stop", async (t) => {
  const server = await RendezvousServer.open(2, secret);
  const ranks = await Promise.all([0, 1].map((rank) => Rendezvous.join(at(server, rank), secret, 5000)));
  const heard = ranks.map(
    (rank) =>
      new Promise<void>((resolve) => {
        rank.onStop = resolve;
      }),
  );
  ranks[1]?.requestStop();
  t.equal((await Promise.all(heard)).length, 2);
  for (const rank of ranks) rank.close();
  server.close();
});

t.test("nobody is there", async (t) => {
  const server = await RendezvousServer.open(2, secret);
  const { port } = server;
  server.close();
  await t.rejects(Rendezvous.join({ rank: 1, world: 2, host: "127.0.0.1", port }, secret, 300), {
    code: "DEVICE",
    message: new RegExp(`nobody is at the meeting place 127.0.0.1:${port}`),
  });
});

t.test("whoever waits for a meeting place can be stopped", async (t) => {
  const server = await RendezvousServer.open(2, secret);
  const { port } = server;
  server.close();
  const stop = AbortSignal.timeout(150);
  const place = { rank: 1, world: 2, host: "127.0.0.1", port };
  await t.rejects(
    Rendezvous.join(place, secret, 60_000, () => false, stop),
    { name: "TimeoutError" },
  );
});

t.test("a port in use", async (t) => {
  const server = await RendezvousServer.open(2, secret);
  await t.rejects(RendezvousServer.open(2, secret, "127.0.0.1", server.port), { message: /EADDRINUSE/ });
  server.close();
});

t.test("the environment's variables", async (t) => {
  t.equal(placeOf({}), undefined);
  t.equal(placeOf({ RANK: "0", WORLD_SIZE: "1" }), undefined, "one rank is alone");
  t.match(
    placeOf({
      RANK: "1",
      WORLD_SIZE: "2",
      LOCAL_RANK: "1",
      LOCAL_WORLD_SIZE: "2",
      MASTER_ADDR: "localhost",
      MASTER_PORT: "29500",
    }),
    { rank: 1, world: 2, localRank: 1, localWorld: 2, host: "localhost", port: 29500, hosted: false },
  );
  const torchrun = { RANK: "1", WORLD_SIZE: "2", MASTER_PORT: "29500", TORCHELASTIC_USE_AGENT_STORE: "True" };
  t.match(placeOf(torchrun), { host: "127.0.0.1", port: 29501 }, "torchrun itself listens at its port");
  t.match(
    placeOf({
      OMPI_COMM_WORLD_RANK: "3",
      OMPI_COMM_WORLD_SIZE: "4",
      OMPI_COMM_WORLD_LOCAL_RANK: "1",
      OMPI_COMM_WORLD_LOCAL_SIZE: "2",
    }),
    { rank: 3, world: 4, localRank: 1, localWorld: 2, host: "127.0.0.1", port: 29500 },
  );
  t.match(
    placeOf({
      SLURM_PROCID: "5",
      SLURM_STEP_NUM_TASKS: "8",
      SLURM_LOCALID: "1",
      SLURM_STEP_TASKS_PER_NODE: "4(x2)",
      SLURM_LAUNCH_NODE_IPADDR: "10.0.0.7",
    }),
    { rank: 5, world: 8, localRank: 1, localWorld: 4, host: "10.0.0.7", port: 29500 },
  );
  t.equal(placeOf({ SLURM_PROCID: "0", SLURM_NTASKS: "8" }), undefined, "a batch script starts no ranks");
  t.throws(() => placeOf({ RANK: "2", WORLD_SIZE: "2", MASTER_PORT: "1" }), { message: /RANK is "2"; .* from 0 to 1/ });
  t.throws(() => placeOf({ RANK: "x", WORLD_SIZE: "2" }), { message: /RANK is "x"/ });
  t.throws(() => placeOf({ RANK: "0", WORLD_SIZE: "2" }), { message: /MASTER_PORT is missing/ });
  t.equal(placeOf({ WORLD_SIZE: "1" }), undefined, "alone");
  t.throws(() => placeOf({ WORLD_SIZE: "2" }), { code: "CONFIG", message: /WORLD_SIZE=2 but no RANK; set both/ });
  t.throws(() => placeOf({ RANK: "1" }), { code: "CONFIG", message: /RANK=1 but no WORLD_SIZE/ });
  t.throws(() => placeOf({ LONGSEQ_RANK: "1" }), { code: "CONFIG", message: /no LONGSEQ_WORLD_SIZE/ });
});
