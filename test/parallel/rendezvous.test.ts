// The meeting place: who is let in, what is passed on, and what the others hear when one is lost.
import { connect } from "node:net";
import t from "tap";
import { placeOf } from "../../lib/parallel/environment.js";
import { Rendezvous, RendezvousServer } from "../../lib/parallel/rendezvous.js";

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

t.test("nobody is there", async (t) => {
  const server = await RendezvousServer.open(2, secret);
  const { port } = server;
  server.close();
  await t.rejects(Rendezvous.join({ rank: 1, world: 2, host: "127.0.0.1", port }, secret, 300), {
    code: "DEVICE",
    message: new RegExp(`nobody is at the meeting place 127.0.0.1:${port}`),
  });
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
  t.throws(() => placeOf({ RANK: "2", WORLD_SIZE: "2", MASTER_PORT: "1" }), { message: /RANK is "2"; .* from 0 to 1/ });
  t.throws(() => placeOf({ RANK: "x", WORLD_SIZE: "2" }), { message: /RANK is "x"/ });
  t.throws(() => placeOf({ RANK: "0", WORLD_SIZE: "2" }), { message: /MASTER_PORT is missing/ });
});
