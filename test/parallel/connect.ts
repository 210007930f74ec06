// Communicators of ranks that are all in this one process: channels do not mind whose they are.
import { Communicator } from "../../lib/parallel/communicator.js";

/** Those of P ranks, in their order. before: done by each when it knows the addresses of all. */
export async function connect(
  size: number,
  transport: "shm" | "tcp" = "shm",
  before: (rank: number, addresses: readonly string[]) => Promise<void> = async () => {},
): Promise<Communicator[]> {
  const given: string[] = [];
  let all: (addresses: string[]) => void = () => {};
  const together = new Promise<string[]>((resolve) => {
    all = resolve;
  });
  return Promise.all(
    Array.from({ length: size }, (_, rank) =>
      Communicator.open(transport, rank, size, async (own) => {
        given[rank] = own;
        if (given.filter((one) => one !== undefined).length === size) all(given);
        const addresses = await together;
        await before(rank, addresses);
        return addresses;
      }),
    ),
  );
}
