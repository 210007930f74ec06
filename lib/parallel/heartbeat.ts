// A thread that tells the meeting place every second that its process is alive, also while JavaScript is busy for long.
// A process that is stopped, or a machine that hangs, is silent.

import { connect } from "node:net";
import { createInterface } from "node:readline";
import { workerData } from "node:worker_threads";
import { BEAT_INTERVAL, type HeartbeatPlace, helloOf } from "./rendezvous.js";

const { host, port, secret, rank, world } = workerData as HeartbeatPlace;
const socket = connect({ host, port });
// Who has lost the meeting place hears of it on its own connection.
socket.on("error", () => {});
createInterface({ input: socket })
  .on("error", () => {})
  .once("line", (line) => {
    const { nonce } = JSON.parse(line) as { nonce: string };
    socket.write(`${JSON.stringify({ ...helloOf(secret, nonce, rank, world), beats: true })}\n`);
    const timer = setInterval(() => socket.write("{}\n"), BEAT_INTERVAL);
    socket.once("close", () => clearInterval(timer));
  });
