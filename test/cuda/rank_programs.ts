// What test/cuda/ranks.test.ts runs in processes of their own: two ranks on stand-ins that are at odds.
import { binding } from "../../lib/binding.js";
import { Tensor } from "../../lib/index.js";
import type { Communicator } from "../../lib/parallel/communicator.js";
import type { Device } from "../../lib/tensor/device.js";
import { queues } from "../../lib/tensor/tiers.js";
import { connect, openDevice } from "../parallel/connect.js";

const devices = [openDevice(), openDevice()] as const;
const fill = (rank: number, size: number): Tensor => Tensor.full([size], 1, { device: devices[rank] as Device });
const all = ([one, other]: Communicator[], call: (rank: number, comm: Communicator) => void): void => {
  call(0, one as Communicator);
  call(1, other as Communicator);
};

const programs: Record<string, () => Promise<unknown>> = {
  /** The stand-in ends the process. */
  async sizes() {
    const xs = [fill(0, 4), fill(1, 6)] as const;
    all(await connect(2, devices), (rank, comm) =>
      binding.ops.allReduce((xs[rank as 0 | 1] as Tensor).native(), comm.number, 0, queues.comm),
    );
    await xs[0].data();
  },

  async order() {
    const xs = [fill(0, 4), fill(1, 4)] as const;
    all(await connect(2, devices), (rank, comm) => {
      const x = (xs[rank as 0 | 1] as Tensor).native();
      if (rank === 0) binding.ops.allReduce(x, comm.number, 0, queues.comm);
      else binding.ops.broadcast(x, comm.number, 0, queues.comm);
    });
    await xs[0].data();
  },

  /** A rank takes no part; the others are told when the time is over. */
  async timeout() {
    const [comm] = await connect(2, devices, { timeout: 700 });
    const x = fill(0, 4);
    binding.ops.allReduce(x.native(), (comm as Communicator).number, 0, queues.comm);
    return x.data().then(
      () => "no failure",
      (error: Error) => error.message,
    );
  },
};

console.log(JSON.stringify(await (programs[process.argv[2] as string] as () => Promise<unknown>)()));
process.exit(0);
