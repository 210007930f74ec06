// The job that this process is a rank of: its place, its meeting place, and the communicator of all ranks.

import { availableParallelism } from "node:os";
import { binding } from "../binding.js";
import { CancelledError, ConfigError, DeviceError } from "../errors.js";
import type { Device } from "../tensor/device.js";
import { startThread } from "../thread.js";
import { Communicator, type Transport } from "./communicator.js";
import { type Place, placeOf } from "./environment.js";
import { Mesh, type MeshSizes } from "./mesh.js";
import { Rendezvous, RendezvousServer } from "./rendezvous.js";

/** How long an exchange may go on when the run is to stop. Milliseconds. */
const PATIENCE = 500;

/** How long a rank waits for the others to come, where nobody says. Seconds. */
export const RENDEZVOUS_TIMEOUT = 300;

/** The same as the environment has it, in milliseconds. Throws ConfigError. */
export function timeoutOf({ LONGSEQ_RENDEZVOUS_TIMEOUT: text }: NodeJS.ProcessEnv): number {
  const seconds = Number(text ?? RENDEZVOUS_TIMEOUT);
  if (!(seconds > 0 && seconds <= 1e6))
    throw new ConfigError(`LONGSEQ_RENDEZVOUS_TIMEOUT is ${JSON.stringify(text)}; expected seconds, 0.001 to 1000000`);
  return seconds * 1000;
}

/** With what this rank did last with others, which is where it waits. */
function duringWhat(error: Error): Error {
  const collectives = binding.lastCollectives();
  const last = collectives.at(-1);
  if (last === undefined) return error;
  return new DeviceError(
    `${error.message}; the last exchange of this rank: ${last}`,
    { collectives },
    { cause: error },
  );
}

interface JobParts {
  /** Of all ranks. */
  group: Communicator;
  rendezvous: Rendezvous;
  server: RendezvousServer | null;
  transport: Transport;
}

export class Job {
  readonly rank: number;
  readonly world: number;
  readonly localRank: number;
  readonly localWorld: number;
  /** Its groups; of all ranks alone until `divide`. */
  mesh = Mesh.alone;
  readonly #world: Communicator | null;
  readonly #rendezvous: Rendezvous | null;
  readonly #server: RendezvousServer | null;
  readonly #transport: Transport;
  /** Whose memory the groups reach. */
  #device: Device | undefined;
  /** A group that waits for its ranks. */
  #opening: Communicator | null = null;
  /** When all ranks stop they may be at different questions: none of those is asked any more, and new ones begin. */
  #phase: "run" | "stopping" | "end" = "run";
  #questions = 0;
  #closed = false;
  #onStop: (() => void) | undefined;
  #stopped!: () => void;
  /** Settles when all ranks have stopped, or one is lost. */
  readonly stopping = new Promise<void>((resolve) => {
    this.#stopped = resolve;
  });
  /** Why the job cannot go on: another rank is gone. */
  lost: Error | undefined;

  constructor(place?: Place, parts?: JobParts) {
    this.rank = place?.rank ?? 0;
    this.world = place?.world ?? 1;
    this.localRank = place?.localRank ?? 0;
    this.localWorld = place?.localWorld ?? 1;
    this.#world = parts?.group ?? null;
    this.#rendezvous = parts?.rendezvous ?? null;
    this.#server = parts?.server ?? null;
    this.#transport = parts?.transport ?? "shm";
    if (this.#rendezvous === null) return;
    this.#rendezvous.onStop = () => void this.#stop();
    this.#rendezvous.onLost = (error) => {
      this.lost = duringWhat(error);
      // What waits for that rank ends.
      this.abort();
      this.#stopped();
    };
    if (this.#rendezvous.stopAsked) void this.#stop();
  }

  /** Puts the ranks into the groups of a mesh, whose sizes all agree on, and which reach the memory of this device. */
  async divide(sizes: MeshSizes, device: Device): Promise<void> {
    const world = this.#world;
    if (world === null) return;
    const { data, ring, ulysses } = this.mesh.sizes;
    const divided = data === sizes.data && ring === sizes.ring && ulysses === sizes.ulysses;
    if (this.mesh.world !== null && divided && this.#device === device) return;
    // Another run of this process may want other groups.
    this.mesh.close();
    this.mesh = Mesh.alone;
    this.#device = device;
    if (device.isGpu) await world.openDevice(device, (own) => this.swap(own));
    const host = this.#rendezvous?.localHost;
    this.mesh = await Mesh.open(sizes, world, async (members, name) => {
      const swap = async (own: string): Promise<string[]> => {
        const all = await this.swap(own);
        return members.map((rank) => all[rank] as string);
      };
      const group = await Communicator.open(this.#transport, members.indexOf(this.rank), members.length, swap, {
        host,
        name,
      });
      if (!device.isGpu) return group;
      this.#opening = group;
      try {
        await group.openDevice(device, swap, { of: world, color: members[0] as number });
      } catch (error) {
        group.close();
        throw error;
      } finally {
        this.#opening = null;
      }
      return group;
    });
  }

  /** Called when any rank asked all to stop. */
  set onStop(listener: (() => void) | undefined) {
    this.#onStop = listener;
    if (this.#phase !== "run") listener?.();
  }

  /** Whether some rank, maybe this one, asked all to stop. */
  get stopAsked(): boolean {
    return this.#rendezvous?.stopAsked ?? false;
  }

  /** Asks all ranks to stop: each hears of it by `onStop`. Alone nobody has to be asked. */
  requestStop(): void {
    if (this.#phase === "run") this.#rendezvous?.requestStop();
  }

  /**
   * Exchanges under way may end by themselves; then they are given up. By then all ranks have closed their queues, so
   * that none takes it for a failure.
   */
  async #stop(): Promise<void> {
    if (this.#phase !== "run") return;
    this.#phase = "stopping";
    this.#rendezvous?.giveUp(new CancelledError("the run was stopped"));
    this.#onStop?.();
    // A lost rank is not waited for.
    await this.#rendezvous?.swap("stopping", "null").catch(() => {});
    this.#stopped();
    setTimeout(() => this.abort(), PATIENCE).unref();
  }

  /** Whether this rank speaks for all: it writes the run's files. */
  get leads(): boolean {
    return this.rank === 0;
  }

  /** Threads of a rank, where nobody says: the machine's cores among its ranks. */
  get threads(): number {
    return Math.max(1, Math.floor(availableParallelism() / this.localWorld));
  }

  /** Waits until all ranks have stopped what they did; what is asked from here on belongs to the end. */
  async enterEnd(): Promise<void> {
    // A process that is alone can begin another run.
    if (this.#rendezvous === null) return;
    this.requestStop();
    await this.stopping;
    this.#phase = "end";
    this.#questions = 0;
  }

  /**
   * Every rank's value, in the order of the ranks. All ranks ask the same questions in the same order. Throws
   * CancelledError where the job was stopped meanwhile.
   */
  async swap<T>(value: T): Promise<T[]> {
    if (this.#rendezvous === null) return [value];
    if (this.#phase === "stopping") throw new CancelledError("the run was stopped");
    const values = await this.#rendezvous.swap(`${this.#phase} ${this.#questions++}`, JSON.stringify(value ?? null));
    return values.map((text) => JSON.parse(text) as T);
  }

  /** What rank 0 finds. Its failure ends the others too. */
  async fromLeader<T>(find: () => Promise<T> | T): Promise<T> {
    const found = this.leads ? await find() : undefined;
    return (await this.swap(found))[0] as T;
  }

  /**
   * Throws ConfigError where a rank has another value: `what` says of what. differ: what differs, in words, where values
   * are too long to be shown whole.
   */
  async agree<T>(
    what: string,
    value: T,
    differ: (other: T, first: T) => string = (other, first) =>
      `${JSON.stringify(other)} against ${JSON.stringify(first)}`,
  ): Promise<void> {
    const values = await this.swap(value);
    const [first] = values as [T];
    const rank = values.findIndex((one) => JSON.stringify(one) !== JSON.stringify(first));
    if (rank < 0) return;
    throw new ConfigError(`rank ${rank} has another ${what} than rank 0: ${differ(values[rank] as T, first)}`, {
      rank,
    });
  }

  /** Gives up what is exchanged: the other ranks end too. */
  abort(): void {
    this.#world?.abort();
    this.mesh.abort();
    this.#opening?.abort();
  }

  /** Leaves the job: the others go on, or take this rank for lost where it `failed`. */
  close({ failed = false } = {}): void {
    if (this.#closed) return;
    this.#closed = true;
    this.mesh.close();
    this.#world?.close();
    if (failed) {
      this.#rendezvous?.drop();
      this.#server?.close();
    } else {
      this.#rendezvous?.close();
      this.#server?.end();
    }
  }
}

let current: Promise<Job> | undefined;

/**
 * Joins the job that the environment names (the launcher's or torchrun's variables); a process without any is a job of
 * its own. The first call does it, later ones give the same. Throws ConfigError, DeviceError, and CancelledError where
 * `signal` was aborted meanwhile.
 */
export function init(env: NodeJS.ProcessEnv = process.env, signal?: AbortSignal): Promise<Job> {
  current ??= join(env, signal);
  return current;
}

/** The job that `init` joined; undefined: none. */
export const joined = async (): Promise<Job | undefined> => current?.catch(() => undefined);

/** Leaves the job that `init` joined, if any, so that the process can end. */
export async function leave(how: { failed: boolean }): Promise<void> {
  (await joined())?.close(how);
}

/** Memory that they share for ranks of one machine, else the network. Throws ConfigError. */
function transportOf({ world, localWorld }: Place, { LONGSEQ_TRANSPORT: wanted }: NodeJS.ProcessEnv): Transport {
  if (wanted !== undefined && wanted !== "shm" && wanted !== "tcp")
    throw new ConfigError(`LONGSEQ_TRANSPORT is ${JSON.stringify(wanted)}; expected shm or tcp`);
  if (wanted === "shm" && localWorld !== world)
    throw new ConfigError(
      `LONGSEQ_TRANSPORT is shm, but ${world - localWorld} of the ${world} ranks are on other machines`,
    );
  return wanted ?? (localWorld === world ? "shm" : "tcp");
}

async function join(env: NodeJS.ProcessEnv, signal?: AbortSignal): Promise<Job> {
  const place = placeOf(env);
  if (place === undefined) return new Job();
  const secret = env.LONGSEQ_SECRET;
  if (secret === undefined || secret === "")
    throw new ConfigError(
      "LONGSEQ_SECRET is not set: the ranks of a job show each other a shared secret; set it to the same random text for all of them",
    );
  const server =
    place.hosted || place.rank !== 0 ? null : await RendezvousServer.open(place.world, secret, place.host, place.port);
  const timeout = timeoutOf(env);
  server?.expectAll(timeout);
  let rendezvous: Rendezvous | undefined;
  const giveUp = (): void => rendezvous?.stopAndLeave();
  signal?.addEventListener("abort", giveUp, { once: true });
  try {
    // A launcher that is killed cannot end its ranks any more: they do it themselves.
    const launcher = Number(env.LONGSEQ_LAUNCHER_PID ?? Number.NaN);
    const orphaned = (): boolean => launcher > 0 && process.ppid !== launcher;
    rendezvous = await Rendezvous.join(place, secret, timeout, orphaned, signal);
    const met = rendezvous;
    signal?.throwIfAborted();
    const watch = setInterval(() => {
      if (!orphaned()) return;
      clearInterval(watch);
      met.loseLauncher();
    }, 1000);
    watch.unref();
    const { rank, world, host, port } = place;
    const heartbeat = startThread(new URL("./heartbeat", import.meta.url), { host, port, secret, rank, world });
    // Without it a stopped process is found out by nobody, and that is all.
    heartbeat.on("error", () => {});
    // Alone it keeps no process alive.
    heartbeat.unref();
    binding.setRank(rank);
    const transport = transportOf(place, env);
    let asked = 0;
    const swap = (own: string) => met.swap(`address ${asked++}`, own);
    const group = await Communicator.open(transport, rank, world, swap, { host: met.localHost });
    const job = new Job(place, { group, rendezvous, server, transport });
    // A process that has nothing more to do leaves in good order; one that fails never comes here.
    process.once("beforeExit", () => job.close());
    return job;
  } catch (error) {
    rendezvous?.drop();
    server?.close();
    const byAnother = rendezvous?.stopAsked ?? false;
    if (signal?.aborted || byAnother)
      throw new CancelledError("the run was stopped before all ranks had come", { byAnother }, { cause: error });
    throw error;
  } finally {
    signal?.removeEventListener("abort", giveUp);
  }
}
