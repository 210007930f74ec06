// What it costs to send every checkpoint to host memory: step time with offload host and device_bytes 0 against none, in
// one run, alternating, with the bytes that were copied.
//
//   npx tsx bench/offload.ts [--tokens 8192] [--rounds 3] [--keep 1] [--disk 0] [--threads N]
//
// --keep 0: without keep_attention, so that a layer's input alone travels. --disk 1: also the disk tier.
import { binding } from "../lib/binding.js";
import { formatBytes } from "../lib/report/format.js";
import { flags, threadsHere } from "./side_by_side.js";
import { ablation, llama56M, markdown, median, Runner } from "./steps.js";

const options = flags({ tokens: 8192, rounds: 3, keep: 1, disk: 0, threads: threadsHere });
const { tokens, rounds, threads } = options;
const base = ablation(1024).find(({ name }) => name.includes("checkpoint"))?.plan;
if (base === undefined) throw new Error("the ablation has no checkpoint");
const keepAttention = options.keep !== 0;
const tiers = ["none", "host", ...(options.disk ? ["disk" as const] : [])] as const;
const sides = tiers.map((offload) => ({
  offload,
  runner: new Runner({ ...base, offload, keepAttention }, tokens, threads),
  seconds: [] as number[],
}));
for (let round = 0; round <= rounds; round++)
  for (const side of sides) {
    const seconds = await side.runner.step();
    // The first of each touches every page for the first time.
    if (round > 0) side.seconds.push(seconds);
    console.error(`offload ${side.offload}: ${seconds.toFixed(2)} s`);
  }
const [none] = sides as [(typeof sides)[0]];
// Out and back, each copy reading and writing: x [T, H], and with keep_attention o [T, N D] and lse [N, T].
const { hidden_size: H, num_attention_heads: N, num_hidden_layers: layers } = llama56M;
const expected = 4 * layers * tokens * 4 * (H + (keepAttention ? H + N : 0));
const rows = sides.map(({ offload, runner, seconds }) => {
  const { result, device } = runner;
  const copied = result.copied - none.runner.result.copied;
  if (offload !== "none" && copied !== expected)
    throw new Error(`offload ${offload}: ${copied} bytes more were copied, ${expected} are those of all layers`);
  const counts = binding.opCounts(device.native);
  return [
    offload,
    median(seconds).toFixed(2),
    (median(seconds) / median(none.seconds)).toFixed(3),
    formatBytes(copied / 4),
    formatBytes((counts.disk_write?.bytes ?? 0) + (counts.disk_read?.bytes ?? 0)),
    formatBytes(result.peaks.device),
    formatBytes(result.peaks.host),
    formatBytes(result.peaks.disk),
  ];
});
console.log(
  `Step of the 56M Llama at T = ${tokens}, checkpoints of every layer${keepAttention ? " with attention" : ""}, ` +
    `${threads} threads, median of ${rounds} alternating rounds\n`,
);
console.log(
  markdown(
    ["offload", "s", "to none", "out, and back", "disk written and read", "device peak", "host peak", "disk peak"],
    rows,
  ),
);
for (const { runner } of sides) await runner.dispose();
