// What the recorder costs: steps of the 56M Llama with it on and off, alternating, and the medians of both.
//
//   npx tsx bench/recorder.ts [--tokens 512] [--rounds 15] [--threads N]
//
// At most 1% is asked for. A short sequence has the most ops for its time. Off twice, so that the machine's own noise
// stands beside.
import { flags, threadsHere } from "./side_by_side.js";
import { ablation, markdown, median, Runner } from "./steps.js";

const { tokens, rounds, threads } = flags({ tokens: 512, rounds: 15, threads: threadsHere });
const plan = ablation(128).at(-1)?.plan;
if (plan === undefined) throw new Error("the ablation is empty");
const runner = new Runner(plan, tokens, threads);
await runner.step();
await runner.step(true);
const seconds: Record<"off" | "on" | "off again", number[]> = { off: [], on: [], "off again": [] };
/** Of the process, all threads; noise from elsewhere shows less in it. Printing the trace is not in it. */
const busy: typeof seconds = { off: [], on: [], "off again": [] };
for (let round = 0; round < rounds; round++)
  for (const side of Object.keys(seconds) as (keyof typeof seconds)[]) {
    seconds[side].push(await runner.step(side === "on"));
    busy[side].push(runner.result.cpuSeconds.at(-1) as number);
  }
const ops = Object.values(runner.device.opCounts()).reduce((sum, { calls }) => sum + calls, 0);
await runner.dispose();
const off = median([...seconds.off, ...seconds["off again"]]);
const busyOff = median([...busy.off, ...busy["off again"]]);
console.log(`Step at T = ${tokens}, ${ops} ops, ${threads} threads, ${rounds} alternating rounds\n`);
console.log(
  markdown(
    ["recorder", "median, ms", "fastest, ms", "to off", "CPU time, ms", "to off"],
    (Object.keys(seconds) as (keyof typeof seconds)[]).map((side) => [
      side,
      (1000 * median(seconds[side])).toFixed(2),
      (1000 * Math.min(...seconds[side])).toFixed(2),
      (median(seconds[side]) / off).toFixed(4),
      (1000 * median(busy[side])).toFixed(2),
      (median(busy[side]) / busyOff).toFixed(4),
    ]),
  ),
);
