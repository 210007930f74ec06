// A step that trains adapters beside the step that trains the whole model, of a 56M Llama at one sequence; and, with
// --peft, beside PEFT on PyTorch. Time, memory, and the bytes of the optimizer's states.
//
//   npx tsx bench/adapters.ts [--tokens 8192] [--rank 16] [--steps 2] [--rounds 3] [--threads N] [--peft] [--json]
//
// Asked for: 0.75 of the whole model's step, states under 1% of its. The first step's losses agree, for B begins as 0.
import { checkpoint, flags, GB, ours, pytorch, type Side, table, threadsHere } from "./side_by_side.js";

const options = flags({ tokens: 8192, rank: 16, steps: 2, rounds: 3, threads: threadsHere, peft: 0, json: 0 });
const { tokens, rank, steps, rounds, threads } = options;
const data = await checkpoint(tokens, steps);
const sides = new Map<string, Side[]>();
const add = (name: string, side: Side) => {
  sides.set(name, [...(sides.get(name) ?? []), side]);
  console.error(`${name}: ${Math.min(...side.seconds).toFixed(2)} s, ${(side.rssPeakBytes / GB).toFixed(2)} GB`);
};
const step = { ...data, tokens, steps, threads };
const adapter = { r: rank, alpha: rank, target_modules: "all-linear" };
for (let round = 0; round < rounds; round++) {
  add("whole", await ours(step));
  add("adapters", await ours({ ...step, extra: { adapter } }));
  if (options.peft) add("PEFT", await pytorch(step, false, rank));
}
const median = (values: number[]): number => values.sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;
const summary = [...sides].map(([name, runs]) => ({
  name,
  seconds: median(runs.map((run) => Math.min(...run.seconds))),
  rssPeakBytes: median(runs.map((run) => run.rssPeakBytes)),
  liveBytes: runs[0]?.liveBytes ?? 0,
  loss: runs[0]?.loss[0] ?? Number.NaN,
}));
const [whole, adapters, peft] = summary as [(typeof summary)[0], (typeof summary)[0], (typeof summary)[0]?];
// Between steps there are parameters and two moments of those that are trained, all float32.
const parameters = whole.liveBytes / 3;
const states = ((adapters.liveBytes - parameters) * 2) / 3;
const ratios = {
  time: adapters.seconds / whole.seconds,
  memory: adapters.rssPeakBytes / whole.rssPeakBytes,
  states: states / ((whole.liveBytes * 2) / 3),
  ...(peft && { timeToPeft: adapters.seconds / peft.seconds, memoryToPeft: adapters.rssPeakBytes / peft.rssPeakBytes }),
};
const difference = Math.max(...summary.map(({ loss }) => Math.abs(loss / whole.loss - 1)));
if (options.json)
  console.log(JSON.stringify({ tokens, rank, steps, rounds, threads, sides: summary, ratios, difference }));
else {
  console.log(
    `one AdamW step, Llama 56M float32, T = ${tokens}, rank ${rank}, ${threads} threads, medians of ${rounds}\n`,
  );
  console.log(
    table(
      ["", "step s", "peak GB", "live MB", "first loss"],
      summary.map((side) => [
        side.name,
        side.seconds.toFixed(2),
        (side.rssPeakBytes / GB).toFixed(2),
        (side.liveBytes / 1e6).toFixed(1),
        side.loss.toFixed(6),
      ]),
    ),
  );
  console.log(
    `\ntime ${ratios.time.toFixed(3)}, memory ${ratios.memory.toFixed(3)}, states ${(100 * ratios.states).toFixed(2)}%` +
      `${peft ? `; to PEFT: time ${ratios.timeToPeft?.toFixed(3)}, memory ${ratios.memoryToPeft?.toFixed(3)}` : ""}` +
      `; losses differ by ${difference.toExponential(1)}`,
  );
}
