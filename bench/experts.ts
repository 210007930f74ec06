// A whole AdamW step of a Mixtral-shaped model (H 512, 4 layers, 8 experts of F 1792, 2 of them a token; 124M parameters)
// at one sequence: longseq with checkpoints and tiles beside transformers + PyTorch, time and peak resident memory.
//
//   npx tsx bench/experts.ts [--tokens 8192] [--steps 2] [--rounds 3] [--threads N] [--json]
//
// Asked for: 0.6 of the time and 0.3 of the memory.
import { checkpoint, flags, GB, ours, pytorch, type Side, table, threadsHere } from "./side_by_side.js";

const options = flags({ tokens: 8192, steps: 2, rounds: 3, threads: threadsHere, json: 0 });
const { tokens, steps, rounds, threads } = options;
const memory = { tile_mlp: 1024, tile_loss: 512, checkpoint: { every: 1, keep_attention: true } };
const data = await checkpoint(tokens, steps, "mixtral");
const runs: { ours: Side[]; theirs: Side[] } = { ours: [], theirs: [] };
const tell = (side: Side) =>
  console.error(`${side.name}: ${Math.min(...side.seconds).toFixed(2)} s, ${(side.rssPeakBytes / GB).toFixed(2)} GB`);
for (let round = 0; round < rounds; round++) {
  runs.ours.push(await ours({ ...data, tokens, steps, threads, extra: { memory } }));
  tell(runs.ours.at(-1) as Side);
  runs.theirs.push(await pytorch({ ...data, tokens, steps, threads }));
  tell(runs.theirs.at(-1) as Side);
}
const median = (values: number[]): number => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;
const summary = Object.values(runs).map((sides) => ({
  name: sides[0]?.name ?? "",
  seconds: median(sides.map((side) => Math.min(...side.seconds))),
  rssPeakBytes: median(sides.map((side) => side.rssPeakBytes)),
  loss: sides[0]?.loss ?? [],
  gradNorm: sides[0]?.gradNorm ?? [],
}));
const [us, them] = summary as [(typeof summary)[0], (typeof summary)[0]];
const ratios = { time: us.seconds / them.seconds, memory: us.rssPeakBytes / them.rssPeakBytes };
// A figure without equal numbers is worth nothing.
const difference = Math.max(
  ...us.loss.map((loss, i) => Math.abs(loss / (them.loss[i] as number) - 1)),
  ...us.gradNorm.map((norm, i) => Math.abs(norm / (them.gradNorm[i] as number) - 1)),
);
if (options.json) console.log(JSON.stringify({ tokens, steps, rounds, threads, sides: summary, ratios, difference }));
else {
  console.log(`one AdamW step, Mixtral-shaped 124M float32, T = ${tokens}, ${threads} threads, medians of ${rounds}\n`);
  console.log(
    table(
      ["", "step s", "peak GB", "loss", "grad norm"],
      summary.map((side) => [
        side.name,
        side.seconds.toFixed(2),
        (side.rssPeakBytes / GB).toFixed(2),
        side.loss.map((loss) => loss.toFixed(6)).join(" "),
        side.gradNorm.map((norm) => norm.toFixed(5)).join(" "),
      ]),
    ),
  );
  console.log(
    `\ntime ${ratios.time.toFixed(3)}, memory ${ratios.memory.toFixed(3)}; figures differ by ${difference.toExponential(1)}`,
  );
}
