// Rates of matmul beside PyTorch's, in alternating runs on the same machine: the shapes of a Llama layer and its
// gradients.
import { binding } from "../lib/binding.js";
import { device } from "../lib/tensor/device.js";
import { dtypeCode } from "../lib/tensor/dtype.js";
import { alternate, pytorchRate, timed } from "./alternate.js";
import { flags, table, threadsHere } from "./side_by_side.js";

const options = flags({ threads: threadsHere, rounds: 3, reps: 7 });
const cpu = device("cpu", { threads: options.threads });

// nt: a linear layer's product x . W^T; nn: the gradient of x; tn: the gradient of W, with the tokens as its depth.
const shapes: [m: number, n: number, k: number, layout: "nt" | "nn" | "tn"][] = [
  [4096, 1024, 1024, "nt"],
  [8192, 2816, 1024, "nt"],
  [8192, 1024, 2816, "nn"],
  [1024, 2816, 8192, "tn"],
  [512, 32000, 512, "nt"],
  [16, 4096, 4096, "nt"],
  [1, 4096, 4096, "nt"],
];

const make = (rows: number, columns: number) => {
  const tensor = binding.empty(cpu.native, [rows, columns], dtypeCode("float32"), 4, 0);
  binding.ops.random(tensor, 0, 1, rows, columns, true);
  return tensor;
};

const lines: string[][] = [];
for (const [m, n, k, layout] of shapes) {
  const a = layout === "tn" ? make(k, m) : make(m, k);
  const b = layout === "nt" ? make(n, k) : make(k, n);
  const c = make(m, n);
  const left = layout === "tn" ? binding.view(a, [m, k], [1, m], 0) : a;
  const right = layout === "nt" ? binding.view(b, [k, n], [1, k], 0) : b;
  const seconds = await alternate(
    options.rounds,
    () => timed(cpu, options.reps, () => binding.ops.matmul(left, right, c, null, 1, false)),
    async () => (await pytorchRate("gemm.py", [m, n, k, options.reps, options.threads, layout])).seconds as number[],
  );
  const rate = (time: number) => (2 * m * n * k) / time / 1e9;
  lines.push([
    `${m} x ${n} x ${k} ${layout}`,
    rate(seconds.ours).toFixed(0),
    rate(seconds.pytorch).toFixed(0),
    (seconds.pytorch / seconds.ours).toFixed(2),
  ]);
  for (const tensor of new Set([left, right, a, b, c])) binding.release(tensor);
}
console.log(
  `float32 matrix products on ${cpu.info.name}, GFLOP/s at the median of ${options.rounds} alternating rounds`,
);
console.log(table(["M x N x K", "longseq", "pytorch", "ratio"], lines));
