// Rates of causal attention, forward and backward, beside PyTorch's scaled_dot_product_attention, in alternating runs.
import { binding } from "../lib/binding.js";
import { device } from "../lib/tensor/device.js";
import { dtypeCode } from "../lib/tensor/dtype.js";
import { alternate, pytorchRate, timed } from "./alternate.js";
import { flags, table, threadsHere } from "./side_by_side.js";

const options = flags({ threads: threadsHere, rounds: 3, reps: 3, tokens: 8192 });
const cpu = device("cpu", { threads: options.threads });

const shapes: [heads: number, kvHeads: number, size: number][] = [
  [8, 8, 64],
  [8, 8, 128],
  [8, 4, 64],
];

const make = (...shape: number[]) => {
  const tensor = binding.empty(cpu.native, shape, dtypeCode("float32"), 4, 0);
  binding.ops.random(tensor, 0, 1, shape.length, 0, true);
  return tensor;
};

const tokens = options.tokens;
const lines: string[][] = [];
for (const [heads, kvHeads, size] of shapes) {
  const [q, dout, o, dq] = [1, 2, 3, 4].map(() => make(tokens, heads, size)) as [never, never, never, never];
  const [k, v, dk, dv] = [1, 2, 3, 4].map(() => make(tokens, kvHeads, size)) as [never, never, never, never];
  const lse = make(heads, tokens);
  const scale = 1 / Math.sqrt(size);
  const forward = () => binding.ops.attention(q, k, v, o, lse, null, scale, true, 0, 0, 0);
  const backward = () =>
    binding.ops.attentionBackward(q, k, v, o, lse, dout, null, dq, dk, dv, null, scale, true, 0, 0, 0, 0, 0, true);
  const python = async (pass: "forward" | "backward") => {
    const line = await pytorchRate("attention.py", [tokens, heads, size, kvHeads, options.reps, options.threads]);
    return (line[pass] as { seconds: number[] }).seconds;
  };
  for (const [pass, run, flops] of [
    ["forward", forward, 4],
    ["backward", backward, 8],
  ] as const) {
    const seconds = await alternate(
      options.rounds,
      () => timed(cpu, options.reps, run),
      () => python(pass),
    );
    const rate = (time: number) => (flops * heads * size * ((tokens * (tokens + 1)) / 2)) / time / 1e9;
    lines.push([
      `${heads}/${kvHeads} heads of ${size}, ${pass}`,
      rate(seconds.ours).toFixed(0),
      rate(seconds.pytorch).toFixed(0),
      (seconds.pytorch / seconds.ours).toFixed(2),
    ]);
  }
  for (const tensor of [q, k, v, o, dout, dq, dk, dv, lse]) binding.release(tensor);
}
console.log(
  `causal attention, float32, T = ${tokens}, on ${cpu.info.name}: GFLOP/s at the median of ${options.rounds} alternating rounds`,
);
console.log("(4 N D per attended pair forward, twice that backward)");
console.log(table(["", "longseq", "pytorch", "ratio"], lines));
