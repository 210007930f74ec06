// A whole AdamW step of a 56M-parameter Llama at one sequence: longseq beside transformers + PyTorch, time and memory.
//
//   npx tsx bench/train_step.ts [--tokens 8192] [--steps 2] [--rounds 1] [--threads N] [--checkpointing] [--json]
//
// The sides alternate, each in a fresh process that loads the checkpoint, takes the steps and saves the model. Time is the
// fastest step of all rounds; memory the peak resident size of the whole process.
import { checkpoint, flags, GB, ours, pytorch, type Side, table, threadsHere } from "./side_by_side.js";

const options = flags({ tokens: 8192, steps: 2, rounds: 1, threads: threadsHere, checkpointing: 0, json: 0 });
const { tokens, steps, rounds, threads } = options;

const data = await checkpoint(tokens, steps);
const sides = new Map<string, Side[]>();
const add = (side: Side) => sides.set(side.name, [...(sides.get(side.name) ?? []), side]);
for (let round = 0; round < rounds; round++) {
  add(await ours({ ...data, tokens, steps, threads }));
  add(await pytorch({ ...data, tokens, steps, threads }));
  if (options.checkpointing) add(await pytorch({ ...data, tokens, steps, threads }, true));
}

const summary = [...sides].map(([name, runs]) => ({
  name,
  stepSeconds: Math.min(...runs.flatMap((r) => r.seconds)),
  firstStepSeconds: Math.min(...runs.map((r) => r.seconds[0] as number)),
  rssPeakBytes: Math.max(...runs.map((r) => r.rssPeakBytes)),
  wallSeconds: Math.min(...runs.map((r) => r.wallSeconds)),
  loss: runs[0]?.loss ?? [],
  gradNorm: runs[0]?.gradNorm ?? [],
}));
const [us, them] = [summary.find((s) => s.name === "longseq"), summary.find((s) => s.name === "pytorch")];
if (!us || !them) throw new Error("one of the two sides did not run");
// A figure without equal numbers is worth nothing.
const difference = Math.max(
  ...us.loss.map((l, i) => Math.abs(l / (them.loss[i] as number) - 1)),
  ...us.gradNorm.map((g, i) => Math.abs(g / (them.gradNorm[i] as number) - 1)),
);
const ratios = {
  time: us.stepSeconds / them.stepSeconds,
  firstStep: us.firstStepSeconds / them.firstStepSeconds,
  memory: us.rssPeakBytes / them.rssPeakBytes,
};

if (options.json) {
  console.log(JSON.stringify({ tokens, steps, rounds, threads, sides: summary, ratios, difference }));
} else {
  console.log(
    `one AdamW step, Llama 56M float32, T = ${tokens}, ${threads} threads, best of ${rounds * steps} steps\n`,
  );
  console.log(
    table(
      ["", "step s", "first step s", "process s", "peak GB", "loss", "grad norm"],
      summary.map((s) => [
        s.name,
        s.stepSeconds.toFixed(2),
        s.firstStepSeconds.toFixed(2),
        s.wallSeconds.toFixed(1),
        (s.rssPeakBytes / GB).toFixed(2),
        s.loss.map((l) => l.toFixed(6)).join(" "),
        s.gradNorm.map((g) => g.toFixed(5)).join(" "),
      ]),
    ),
  );
  console.log(
    `\nlongseq / pytorch: time ${ratios.time.toFixed(3)} (first step ${ratios.firstStep.toFixed(3)}), ` +
      `memory ${ratios.memory.toFixed(3)}; largest relative difference of losses and norms ${difference.toExponential(1)}`,
  );
}
