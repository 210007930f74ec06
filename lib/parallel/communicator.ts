// A communicator: a group of ranks that this process belongs to, whose number the collectives take.
import { binding } from "../binding.js";
import type { Device } from "../tensor/device.js";

/** How bytes of the host go: through memory that the ranks of one machine share, over the network, or nowhere (plans). */
export type Transport = "shm" | "tcp" | "meta";

/** A collective may wait so long for its slowest rank. Milliseconds. */
const COLLECTIVE_TIMEOUT = 30 * 60_000;

/** Every rank's text for this rank's, in the order of a communicator's ranks. */
type Swap = (own: string) => Promise<string[]>;

const joined = (addresses: readonly string[]): Buffer =>
  Buffer.concat(addresses.map((text) => Buffer.from(text, "base64")));

export interface CommunicatorOptions {
  host?: string | undefined;
  timeout?: number;
  name?: string;
}

export class Communicator {
  #open = true;

  private constructor(
    /** What binding.ops' collectives take. */
    readonly number: number,
    readonly rank: number,
    readonly size: number,
  ) {}

  /**
   * Opens this rank's end and connects it to the others. host: where the others reach this machine. timeout: of a
   * collective, in milliseconds. name: of the group, for messages. Throws DeviceError where another rank cannot be
   * reached.
   */
  static async open(
    transport: Transport,
    rank: number,
    size: number,
    swap: Swap,
    { host = "127.0.0.1", timeout = COLLECTIVE_TIMEOUT, name = "world" }: CommunicatorOptions = {},
  ): Promise<Communicator> {
    const { comm, address } = binding.commOpen(transport, rank, size, timeout, host, name);
    try {
      const addresses = await swap(address.toString("base64"));
      await binding.commConnect(comm, joined(addresses));
      // Nobody goes on, and maybe leaves, while others are still on their way to its memory.
      await swap("");
    } catch (error) {
      binding.commClose(comm);
      throw error;
    }
    return new Communicator(comm, rank, size);
  }

  /**
   * Opens it for a GPU's own memory too, by NCCL. part: it is one of those that the ranks of a larger communicator open
   * now, each with a number of its own (`color`). Throws UnsupportedError where there is no NCCL, DeviceError where it
   * fails.
   */
  async openDevice(device: Device, swap: Swap, part?: { of: Communicator; color: number }): Promise<void> {
    const own = binding.commOpenDevice(this.number, device.native, part?.of.number ?? 0, part?.color ?? 0);
    await binding.commConnectDevice(this.number, joined(await swap(own.toString("base64"))));
  }

  /** One of `meta`: `size` ranks of which none but this is there. link: what joins them, for estimates of time. */
  static ofMeta(rank: number, size: number, link = "node"): Communicator {
    return new Communicator(binding.commOpen("meta", rank, size, COLLECTIVE_TIMEOUT, "", link).comm, rank, size);
  }

  /**
   * From here on all ranks compare each collective before they do it: where one does another, all fail by a message that
   * names both. Costs a small exchange each.
   */
  compare(device: Device, on: boolean): void {
    binding.commCompare(device.native, this.number, on);
  }

  /** An exchange may wait so long for its slowest rank, one that is under way too; at least half an hour. Seconds. */
  setPatience(seconds: number): void {
    binding.commSetTimeout(this.number, Math.ceil(Math.max(COLLECTIVE_TIMEOUT, 1000 * Math.min(seconds, 1e9))));
  }

  /** What runs ends as cancelled here and fails on the other ranks. */
  abort(): void {
    if (this.#open) binding.commAbort(this.number);
  }

  /** When nothing of it is queued any more. */
  close(): void {
    if (this.#open) binding.commClose(this.number);
    this.#open = false;
  }
}
