// Attention once, forward and backward, on the device of test/ops/strided.ts; prints the error that reading dq met, or
// "none".
//
//   node attention_program.ts TYPE HEAD_SIZE
import { binding } from "../../lib/binding.js";
import { deviceWith, type Storage, Strided } from "../ops/strided.js";

const [type, size] = [process.argv[2] as Storage, Number(process.argv[3])];
const device = deviceWith(1);
const shape = [70, 2, size];
const make = () => Strided.from(device, shape, new Float64Array(140 * size).fill(0.5), type).native;
const [q, k, v, o] = [make(), make(), make(), make()];
const [dout, dq, dk, dv] = [make(), make(), make(), make()];
const lse = Strided.from(device, [2, 70], new Float64Array(140)).native;
const mask = [0.1, true, 0, 0, 0] as const;
try {
  binding.ops.attention(q, k, v, o, lse, null, ...mask);
  binding.ops.attentionBackward(q, k, v, o, lse, dout, null, dq, dk, dv, null, ...mask, false, false, true);
  await binding.read(dq);
  console.log("none");
} catch (error) {
  console.log((error as Error).message);
}
