// Where ranks meet before they have a communicator: a server that every rank holds a connection to, and one question,
// "what has each of you under this key?". A connection that is lost is a rank that is lost, and all others are told.
//
// Messages are lines of JSON. The server opens with a nonce; a rank answers with its place and an HMAC of both under the
// job's secret. The secret authenticates, it does not encrypt: collectives and this server belong on a private network.

import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { createServer, connect as openSocket, type Server, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { ConfigError, DeviceError } from "../errors.js";

/** Raised whenever the messages change. */
const PROTOCOL = 3;

/** A living process says so as often. Milliseconds. */
export const BEAT_INTERVAL = 1000;

/** A rank that has said nothing for so long is lost. Milliseconds. */
const SILENCE = 8000;

/** A line is no longer; who sends more is no rank. Bytes. */
const MOST_LINE = 1 << 20;

/** A stranger that says nothing is sent away. Milliseconds. */
const HELLO_TIMEOUT = 10_000;

interface Hello {
  protocol: number;
  rank: number;
  world: number;
  proof: string;
  /** A second connection of a rank, whose every line says that it is alive. */
  beats?: boolean;
}

/** Where the heartbeat of a rank goes. */
export interface HeartbeatPlace {
  host: string;
  port: number;
  secret: string;
  rank: number;
  world: number;
}

type FromRank = { key: string; value: string } | { bye: true } | { stop: true };
type FromServer =
  | { nonce: string }
  | { welcome: true }
  | { key: string; values: string[] }
  | { refused: string }
  | { stop: true };

const proofOf = (secret: string, nonce: string, rank: number, world: number): string =>
  createHmac("sha256", secret).update(`${PROTOCOL} ${nonce} ${rank} ${world}`).digest("hex");

/** How a rank answers the server's nonce. */
export const helloOf = (secret: string, nonce: string, rank: number, world: number): Hello => ({
  protocol: PROTOCOL,
  rank,
  world,
  proof: proofOf(secret, nonce, rank, world),
});

const same = (a: string, b: string): boolean => {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
};

const send = (socket: Socket, message: FromRank | FromServer | Hello): void => {
  if (socket.writable) socket.write(`${JSON.stringify(message)}\n`);
};

/** Calls `use` with each line of JSON; whatever else comes ends the connection. */
function readLines(socket: Socket, use: (message: unknown) => void): void {
  let pending = 0;
  socket.on("data", (bytes) => {
    const end = bytes.lastIndexOf(10);
    pending = end < 0 ? pending + bytes.length : bytes.length - end;
    if (pending > MOST_LINE) socket.destroy();
  });
  createInterface({ input: socket })
    // It repeats the socket's own, which ends the connection.
    .on("error", () => {})
    .on("line", (line) => {
      try {
        use(JSON.parse(line));
      } catch {
        socket.destroy();
      }
    });
}

/** The meeting place of one job. */
export class RendezvousServer {
  readonly #server: Server;
  readonly #ranks = new Map<number, Socket>();
  readonly #came = new Set<number>();
  readonly #left = new Set<number>();
  readonly #answers = new Map<string, Map<number, string>>();
  /** A rank that beats and has said nothing for so long is lost. Milliseconds. */
  silence = SILENCE;
  readonly #heard = new Map<number, number>();
  #looked = performance.now();
  readonly #watch: NodeJS.Timeout;
  #late: NodeJS.Timeout | undefined;
  #stopping = false;
  #lost: string | undefined;
  #firstLost: number | undefined;
  /** Why one that is no rank of the job was last sent away. */
  #sentAway: string | undefined;

  /** The rank whose loss ended the job for the others; undefined: there is none. */
  get firstLost(): number | undefined {
    return this.#firstLost;
  }

  private constructor(
    server: Server,
    readonly world: number,
    readonly secret: string,
  ) {
    this.#server = server;
    this.#watch = setInterval(() => this.#look(), BEAT_INTERVAL).unref();
  }

  /** Ranks that have been silent for too long are lost. */
  #look(): void {
    const now = performance.now();
    // Whoever was kept from listening himself has heard nothing.
    const deaf = now - this.#looked > 2 * BEAT_INTERVAL;
    this.#looked = now;
    for (const [rank, last] of this.#heard)
      if (deaf) this.#heard.set(rank, now);
      else if (now - last > this.silence && this.#ranks.has(rank)) {
        this.#ranks.delete(rank);
        this.#lose(
          rank,
          `it has not been heard of for ${this.silence / 1000} s (is its process stopped, or its machine down?)`,
        );
      }
  }

  /** After so many milliseconds the ranks that are there hear which are not. */
  expectAll(timeout: number): void {
    this.#late = setTimeout(() => {
      const missing = Array.from({ length: this.world }, (_, rank) => rank).filter((rank) => !this.#came.has(rank));
      if (missing.length === 0) return;
      const [names, have] = missing.length === 1 ? ["rank", "has"] : ["ranks", "have"];
      this.#refuseAll(
        `${names} ${missing.slice(0, 8).join(", ")}${missing.length > 8 ? ", ..." : ""} of ${this.world} ${have} not come within ${timeout / 1000} s` +
          (this.#sentAway === undefined ? "" : `; a process that came was refused: ${this.#sentAway}`),
      );
    }, timeout).unref();
  }

  /** Listens on a port of the host; 0: any that is free. Throws DeviceError. */
  static async open(world: number, secret: string, host = "127.0.0.1", port = 0): Promise<RendezvousServer> {
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error: NodeJS.ErrnoException) => {
        const advice =
          error.code === "EADDRINUSE"
            ? "; give a port that is free on all machines (is another job, or another first machine, at work there?)"
            : error.code === "EADDRNOTAVAIL"
              ? "; the address must be one of the first machine's own"
              : "";
        reject(new DeviceError(`the ranks cannot meet at ${host}:${port}: ${error.message}${advice}`, { host, port }));
      });
      server.listen(port, host, resolve);
    });
    const own = new RendezvousServer(server, world, secret);
    server.on("connection", (socket) => own.#welcome(socket));
    // Nobody waits for it alone.
    server.unref();
    return own;
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  #welcome(socket: Socket): void {
    const nonce = randomBytes(16).toString("hex");
    let rank: number | undefined;
    socket.setNoDelay(true);
    socket.on("error", () => {});
    const stranger = setTimeout(() => socket.destroy(), HELLO_TIMEOUT);
    socket.on("close", () => {
      clearTimeout(stranger);
      if (rank !== undefined && this.#ranks.get(rank) === socket) {
        this.#ranks.delete(rank);
        this.#lose(rank, "its process has ended, or its connection broke");
      }
    });
    let beating: number | undefined;
    readLines(socket, (message) => {
      if (beating !== undefined) return void this.#heard.set(beating, performance.now());
      if (rank !== undefined) return this.#take(rank, message as FromRank);
      const hello = message as Hello;
      if (hello.beats === true && this.#refusal(hello, nonce, true) === undefined) {
        clearTimeout(stranger);
        this.#heard.set(hello.rank, performance.now());
        beating = hello.rank;
        // Nobody waits for it.
        socket.unref();
        return;
      }
      const refused = this.#refusal(hello, nonce);
      if (refused !== undefined) {
        this.#sentAway = refused;
        send(socket, { refused });
        socket.end();
        return;
      }
      clearTimeout(stranger);
      rank = hello.rank;
      this.#ranks.set(rank, socket);
      this.#came.add(rank);
      send(socket, { welcome: true });
    });
    send(socket, { nonce });
  }

  /** Why this is no rank of the job. */
  #refusal({ protocol, rank, world, proof }: Hello, nonce: string, again = false): string | undefined {
    if (protocol !== PROTOCOL)
      return `another version of longseq is at work there (protocol ${PROTOCOL}, here ${protocol})`;
    if (world !== this.world) return `the job has ${this.world} ranks, this process was told ${world}`;
    if (!Number.isInteger(rank) || rank < 0 || rank >= world) return `there is no rank ${rank}`;
    if (typeof proof !== "string" || !same(proof, proofOf(this.secret, nonce, rank, world)))
      return "the secret is wrong (LONGSEQ_SECRET must be the same for all ranks)";
    if (!again && this.#ranks.has(rank)) return `rank ${rank} is there already`;
    if (this.#lost !== undefined) return this.#lost;
    return undefined;
  }

  #take(rank: number, message: FromRank): void {
    if ("bye" in message) {
      this.#ranks.delete(rank);
      this.#left.add(rank);
      // What is still asked is never answered.
      if ([...this.#answers.values()].some((answers) => !answers.has(rank)))
        this.#refuseAll(`rank ${rank} has left the job`);
      return;
    }
    if ("stop" in message) {
      if (!this.#stopping) for (const socket of this.#ranks.values()) send(socket, { stop: true });
      this.#stopping = true;
      return;
    }
    const { key, value } = message;
    if (typeof key !== "string" || typeof value !== "string") throw new Error("no message of ours");
    const answers = this.#answers.get(key) ?? new Map<number, string>();
    this.#answers.set(key, answers);
    answers.set(rank, value);
    for (const left of this.#left) if (!answers.has(left)) this.#refuseAll(`rank ${left} has left the job`);
    if (answers.size < this.world) return;
    this.#answers.delete(key);
    const values = Array.from({ length: this.world }, (_, r) => answers.get(r) as string);
    for (const socket of this.#ranks.values()) send(socket, { key, values });
  }

  /** The process of a rank has ended, says who started it. */
  ended(rank: number): void {
    this.#ranks.delete(rank);
    if (this.#left.has(rank)) return;
    this.#lose(rank, `its process has ended${this.#came.has(rank) ? "" : " before it came to the others"}`);
  }

  #lose(rank: number, why: string): void {
    this.#heard.delete(rank);
    this.#firstLost ??= rank;
    this.#refuseAll(`rank ${rank} was lost: ${why}`);
  }

  /** The job is over for all ranks. */
  #refuseAll(reason: string): void {
    this.#lost ??= reason;
    for (const socket of this.#ranks.values()) {
      send(socket, { refused: reason });
      socket.end();
    }
  }

  /** Nobody else may come; who is there may finish. */
  end(): void {
    clearInterval(this.#watch);
    clearTimeout(this.#late);
    this.#server.close();
  }

  close(): void {
    this.end();
    for (const socket of this.#ranks.values()) socket.destroy();
  }
}

/** A rank's connection to the meeting place. */
export class Rendezvous {
  readonly #socket: Socket;
  readonly #waiting = new Map<string, { resolve: (values: string[]) => void; reject: (error: Error) => void }>();
  #failure: Error | undefined;
  /** Whether all ranks were asked to stop, and this one has not heard of it yet. */
  #asked = false;
  /** Called once when another rank, or the server, is lost. */
  onLost: ((error: Error) => void) | undefined;
  /** Called once when some rank, maybe this one, asked all to stop. */
  onStop: (() => void) | undefined;
  /** Whether that was so. */
  stopAsked = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
  }

  /** Throws ConfigError where the server refuses this rank, DeviceError where it cannot be reached within `timeout` ms. */
  static async join(
    { rank, world, host, port }: { rank: number; world: number; host: string; port: number },
    secret: string,
    timeout: number,
    orphaned: () => boolean = () => false,
    signal?: AbortSignal,
  ): Promise<Rendezvous> {
    const until = performance.now() + timeout;
    const socket = await reach(host, port, until, () => {
      if (orphaned()) throw new DeviceError(LAUNCHER_GONE);
      signal?.throwIfAborted();
    });
    const abort = () => socket.destroy();
    signal?.addEventListener("abort", abort, { once: true });
    socket.setNoDelay(true);
    const own = new Rendezvous(socket);
    const welcomed = new Promise<void>((resolve, reject) => {
      const late = setTimeout(
        () => reject(new DeviceError(`${host}:${port} does not answer as the meeting place of a job does`)),
        Math.max(1, until - performance.now()),
      );
      socket.on("error", () => {});
      socket.on("close", () => {
        clearTimeout(late);
        const error = new DeviceError(`rank ${rank}: the connection to the meeting place ${host}:${port} was lost`);
        reject(error);
        own.#fail(error);
      });
      readLines(socket, (message) => {
        const from = message as FromServer;
        if ("nonce" in from) {
          send(socket, helloOf(secret, from.nonce, rank, world));
        } else if ("welcome" in from) {
          clearTimeout(late);
          resolve();
        } else if ("refused" in from) {
          reject(new ConfigError(`rank ${rank} cannot join the job at ${host}:${port}: ${from.refused}`));
          own.#fail(new DeviceError(from.refused));
        } else if ("stop" in from) {
          own.stopAsked = true;
          own.onStop?.();
          own.#asked = false;
          own.#hold();
        } else {
          own.#waiting.get(from.key)?.resolve(from.values);
          own.#waiting.delete(from.key);
          own.#hold();
        }
      });
    });
    try {
      // It may have come while the connection was made.
      if (signal?.aborted) abort();
      await welcomed;
    } catch (error) {
      // Whoever is there may never close it.
      socket.destroy();
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
    // Alone it keeps no process alive.
    socket.unref();
    return own;
  }

  /** The launcher of this rank has ended: so does the rank. */
  loseLauncher(): void {
    this.#fail(new DeviceError(LAUNCHER_GONE));
    this.drop();
  }

  /** Where this machine is reached from where the ranks meet. */
  get localHost(): string {
    return (this.#socket.localAddress ?? "127.0.0.1").replace(/^::ffff:/, "");
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    this.onLost?.(error);
  }

  /** Every rank's value for this key, in the order of the ranks, once all have given theirs. */
  async swap(key: string, value: string): Promise<string[]> {
    if (this.#failure !== undefined) throw this.#failure;
    const answer = new Promise<string[]>((resolve, reject) => this.#waiting.set(key, { resolve, reject }));
    send(this.#socket, { key, value });
    this.#hold();
    return answer;
  }

  /** Only while something is waited for does the connection keep the process alive. */
  #hold(): void {
    if (this.#asked || this.#waiting.size > 0) this.#socket.ref();
    else this.#socket.unref();
  }

  /** Asks all ranks to stop. */
  requestStop(): void {
    send(this.#socket, { stop: true });
    this.#asked = true;
    this.#hold();
  }

  /** Open questions are not answered any more. */
  giveUp(error: Error): void {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
    this.#hold();
  }

  /** Asks all ranks to stop and leaves; they need not have met. */
  stopAndLeave(): void {
    send(this.#socket, { stop: true });
    this.#socket.destroySoon();
    this.#fail(new DeviceError("this rank was asked to stop"));
  }

  /** Leaves without a word: the others take this rank for lost. */
  drop(): void {
    // Its last word may be on its way.
    if (!this.#socket.writableEnded) this.#socket.destroy();
  }

  close(): void {
    this.#failure ??= new DeviceError("the job is over for this rank");
    send(this.#socket, { bye: true });
    this.#socket.end();
  }
}

/** Why a rank ends whose launcher was killed. */
const LAUNCHER_GONE = "the launcher that started this rank has ended";

/** A socket to a server that may not be there yet. check: throws where it is of no use any more. */
async function reach(host: string, port: number, until: number, check: () => void): Promise<Socket> {
  for (;;) {
    const { socket, error } = await new Promise<{ socket?: Socket; error?: Error }>((resolve) => {
      const socket = openSocket({ host, port });
      socket.once("connect", () => resolve({ socket }));
      socket.once("error", (error) => resolve({ error }));
    });
    if (socket !== undefined) return socket;
    check();
    if (performance.now() > until)
      throw new DeviceError(`nobody is at the meeting place ${host}:${port}: ${error?.message}`, { host, port });
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
