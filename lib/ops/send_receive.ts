// send_receive: bytes to one rank, and from one.
import { binding } from "../binding.js";
import type { Communicator } from "../parallel/communicator.js";
import type { Tensor } from "../tensor/tensor.js";
import { queues } from "../tensor/tiers.js";

/**
 * x goes to rank `to`, y comes from rank `from`; contiguous, of any size, an empty one for nothing. What one rank sends,
 * the other receives at the same place of its program. On the comm queue. No graph.
 */
export function sendReceiveInto(x: Tensor, to: number, y: Tensor, from: number, group: Communicator): void {
  binding.ops.sendReceive(x.native(), y.native(), group.number, to, from, queues.comm);
}
