// A step with checkpoints, tiles and host offload beside transformers + PyTorch, without and with gradient checkpointing:
// time, and peak resident memory of the whole process, load and save included.
//
//   npx tsx bench/memory_step.ts [--tokens 8192] [--steps 2] [--rounds 1] [--threads N] [--json]
//
// Asked for: 0.2 of the memory and 0.9 of the time of PyTorch without checkpointing, 0.7 of the time of PyTorch with it.
import { checkpoint, flags, GB, ours, pytorch, type Side, table, threadsHere } from "./side_by_side.js";

const options = flags({ tokens: 8192, steps: 2, rounds: 1, threads: threadsHere, json: 0 });
const { tokens, steps, rounds, threads } = options;
const memory = { tile_mlp: 1024, tile_loss: 512, checkpoint: { every: 1, keep_attention: true, offload: "host" } };

const data = await checkpoint(tokens, steps);
const sides = new Map<string, Side[]>();
const add = (side: Side) => {
  sides.set(side.name, [...(sides.get(side.name) ?? []), side]);
  console.error(`${side.name}: ${Math.min(...side.seconds).toFixed(2)} s, ${(side.rssPeakBytes / GB).toFixed(2)} GB`);
};
for (let round = 0; round < rounds; round++) {
  add(await ours({ ...data, tokens, steps, threads, extra: { memory } }));
  add(await pytorch({ ...data, tokens, steps, threads }));
  add(await pytorch({ ...data, tokens, steps, threads }, true));
}
const summary = [...sides].map(([name, runs]) => ({
  name,
  seconds: Math.min(...runs.flatMap((run) => run.seconds)),
  rssPeakBytes: Math.max(...runs.map((run) => run.rssPeakBytes)),
  loss: runs[0]?.loss ?? [],
  gradNorm: runs[0]?.gradNorm ?? [],
}));
const [us, ...them] = summary as [(typeof summary)[0], ...typeof summary];
// A figure without equal numbers is worth nothing.
const difference = Math.max(
  ...them.flatMap((side) => [
    ...us.loss.map((loss, i) => Math.abs(loss / (side.loss[i] as number) - 1)),
    ...us.gradNorm.map((norm, i) => Math.abs(norm / (side.gradNorm[i] as number) - 1)),
  ]),
);
const ratios = them.map((side) => ({
  to: side.name,
  time: us.seconds / side.seconds,
  memory: us.rssPeakBytes / side.rssPeakBytes,
}));
if (options.json) {
  console.log(JSON.stringify({ tokens, steps, rounds, threads, sides: summary, ratios, difference }));
} else {
  console.log(
    `one AdamW step, Llama 56M float32, T = ${tokens}, ${threads} threads, best of ${rounds * steps} steps\n`,
  );
  console.log(
    table(
      ["", "step s", "peak GB", "time to it", "memory to it", "loss", "grad norm"],
      summary.map((side, i) => [
        side.name,
        side.seconds.toFixed(2),
        (side.rssPeakBytes / GB).toFixed(2),
        ratios[i - 1]?.time.toFixed(3) ?? "",
        ratios[i - 1]?.memory.toFixed(3) ?? "",
        side.loss.map((loss) => loss.toFixed(6)).join(" "),
        side.gradNorm.map((norm) => norm.toFixed(5)).join(" "),
      ]),
    ),
  );
  console.log(`\nlargest relative difference of losses and norms ${difference.toExponential(1)}`);
}
