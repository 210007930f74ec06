// Communicators of ranks that are all in this one process: transports do not mind whose they are.
import { binding } from "../../lib/binding.js";
import { Communicator } from "../../lib/parallel/communicator.js";
import { Device } from "../../lib/tensor/device.js";

// LONGSEQ_TEST_DEVICE names another device than cpu, LONGSEQ_TEST_BACKEND the library that it comes from.
if (process.env.LONGSEQ_TEST_BACKEND !== undefined) binding.openBackend(process.env.LONGSEQ_TEST_BACKEND);

/** A device under test. */
export const openDevice = (): Device => new Device(process.env.LONGSEQ_TEST_DEVICE ?? "cpu", { threads: 1 });

/** Gives each of `size` callers the texts of all. */
export function meeting(size: number): (rank: number, own: string) => Promise<string[]> {
  const given: string[] = [];
  let all: (texts: string[]) => void = () => {};
  const together = new Promise<string[]>((resolve) => {
    all = resolve;
  });
  return (rank, own) => {
    given[rank] = own;
    if (given.filter((one) => one !== undefined).length === size) all(given);
    return together;
  };
}

/**
 * Those of P ranks, in their order. devices: whose memory they reach beside the host's. before: done by each when it
 * knows the addresses of all.
 */
export async function connect(
  size: number,
  devices: readonly Device[],
  {
    transport = "shm",
    before = async () => {},
    timeout = 60_000,
  }: {
    transport?: "shm" | "tcp";
    before?: (rank: number, addresses: readonly string[]) => Promise<void>;
    timeout?: number;
  } = {},
): Promise<Communicator[]> {
  const [first, second] = [meeting(size), meeting(size)];
  return Promise.all(
    Array.from({ length: size }, async (_, rank) => {
      const swap = async (own: string): Promise<string[]> => {
        // In one process nobody leaves while others come.
        if (own === "") return [];
        const addresses = await first(rank, own);
        await before(rank, addresses);
        return addresses;
      };
      const comm = await Communicator.open(transport, rank, size, swap, { timeout });
      const device = devices[rank];
      if (device?.isGpu) await comm.openDevice(device, (own) => second(rank, own));
      return comm;
    }),
  );
}

/** The parts of them that the ranks of each of these lists form, in the order of the ranks. */
export function split(
  whole: readonly Communicator[],
  devices: readonly Device[],
  groups: readonly (readonly number[])[],
): Promise<Communicator[]> {
  const meetings = groups.map((members) => [meeting(members.length), meeting(members.length)] as const);
  return Promise.all(
    whole.map(async (of, rank) => {
      const color = groups.findIndex((members) => members.includes(rank));
      const members = groups[color] as readonly number[];
      const own = members.indexOf(rank);
      const [first, second] = meetings[color] as (typeof meetings)[0];
      const comm = await Communicator.open("shm", own, members.length, async (text) =>
        text === "" ? [] : first(own, text),
      );
      const device = devices[rank] as Device;
      if (device.isGpu) await comm.openDevice(device, (text) => second(own, text), { of, color });
      return comm;
    }),
  );
}
