// Two ranks of one thread each beside two ranks of PyTorch over Gloo: step time, and peak resident memory of the largest
// process, load included.
//
//   npx tsx bench/ranks_pytorch.ts [--tokens 8192] [--steps 2] [--rounds 1] [--ranks 2]
//
// PyTorch's sides are Ulysses around transformers' attention, without and with gradient checkpointing, and ranks that
// take half of the row each, as data parallelism would: less attention, so a bound that sequence parallelism need not reach.
import { checkpoint, flags, GB, ours, pytorchRanks, type Side, table } from "./side_by_side.js";

const { tokens, steps, rounds, ranks } = flags({ tokens: 8192, steps: 2, rounds: 1, ranks: 2 });
const memory = { tile_mlp: 1024, tile_loss: 512, checkpoint: { every: 1, keep_attention: true, offload: "host" } };
const data = await checkpoint(tokens, steps);
const options = { ...data, tokens, steps, ranks, threads: 1 };

const sides = new Map<string, Side[]>();
const add = (side: Side, name = side.name) => {
  sides.set(name, [...(sides.get(name) ?? []), side]);
  console.error(`${name}: ${Math.min(...side.seconds).toFixed(2)} s, ${(side.rssPeakBytes / GB).toFixed(2)} GB`);
};
for (let round = 0; round < rounds; round++) {
  // As it comes: ZeRO 3, no tiles, no checkpoints.
  add(await ours(options), "longseq");
  add(await ours({ ...options, extra: { memory } }), "longseq, checkpoints and tiles");
  add(await pytorchRanks(options, "ulysses"));
  add(await pytorchRanks(options, "ulysses", true));
  add(await pytorchRanks(options, "halves"));
}
const best = [...sides].map(([name, runs]) => ({
  name,
  seconds: Math.min(...runs.flatMap((run) => run.seconds)),
  bytes: Math.max(...runs.map((run) => run.rssPeakBytes)),
  loss: runs[0]?.loss ?? [],
  gradNorm: runs[0]?.gradNorm ?? [],
}));
const reference = best.find(({ name }) => name === "pytorch, ulysses") as (typeof best)[0];
console.log(
  `one AdamW step, Llama 56M float32, T = ${tokens}, ${ranks} ranks of 1 thread, best of ${rounds * steps} steps\n`,
);
console.log(
  table(
    ["", "step s", "peak GB", "time to Ulysses", "memory to it", "loss", "grad norm"],
    best.map((side) => [
      side.name,
      side.seconds.toFixed(2),
      (side.bytes / GB).toFixed(2),
      (side.seconds / reference.seconds).toFixed(3),
      (side.bytes / reference.bytes).toFixed(3),
      side.loss.map((loss) => loss.toFixed(6)).join(" "),
      side.gradNorm.map((norm) => norm.toFixed(5)).join(" "),
    ]),
  ),
);
