// Seconds of one AdamW step of the 56M Llama for T = 2K to 32K: cost apart from attention must be linear in T.
//
//   npx tsx bench/length.ts [--from 2048] [--to 32768] [--steps 1] [--threads N] [--pytorch 0] [--json]
//
// The split comes from the step's own trace (output.trace_steps): the time of attention and attention_backward on the
// compute queue; the rest is all else.
// --pytorch N also runs the PyTorch side up to N tokens.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { checkpoint, flags, GB, ours, pytorch, table, threadsHere, workFolder } from "./side_by_side.js";

const options = flags({ from: 2048, to: 32768, steps: 1, threads: threadsHere, pytorch: 0, json: 0 });
const { from, to, steps, threads } = options;

/** Seconds of attention, forward and backward, in the traces of a run (the mean over its steps). */
function attentionSeconds(folder: string): number {
  let microseconds = 0;
  let files = 0;
  for (const file of readdirSync(folder).filter((name) => name.endsWith(".json"))) {
    files++;
    const trace = JSON.parse(readFileSync(join(folder, file), "utf8"));
    for (const event of trace.traceEvents ?? trace) {
      if (event.ph === "X" && /^attention(_backward)?$/.test(event.name)) microseconds += event.dur;
    }
  }
  if (files === 0 || microseconds === 0) throw new Error(`no attention in the traces of ${folder}`);
  return microseconds / 1e6 / files;
}

const lines = [];
for (let tokens = from; tokens <= to; tokens *= 2) {
  const data = await checkpoint(tokens, steps);
  const extra = { output: { dir: join(workFolder, "longseq/run"), trace_steps: steps } };
  const us = await ours({ ...data, tokens, steps, threads, extra });
  const seconds = us.seconds.reduce((a, b) => a + b, 0) / steps;
  const attention = attentionSeconds(join(workFolder, "longseq/run/trace"));
  const them = tokens <= options.pytorch ? await pytorch({ ...data, tokens, steps, threads }) : undefined;
  lines.push({
    tokens,
    seconds,
    attentionSeconds: attention,
    restMicrosecondsPerToken: ((seconds - attention) / tokens) * 1e6,
    rssPeakBytes: us.rssPeakBytes,
    pytorchSeconds: them && Math.min(...them.seconds),
    pytorchRssPeakBytes: them?.rssPeakBytes,
  });
  console.error(`T = ${tokens}: ${seconds.toFixed(2)} s`);
}

if (options.json) {
  console.log(JSON.stringify({ threads, lines }));
} else {
  const first = lines[0];
  console.log(`one AdamW step, Llama 56M float32, ${threads} threads\n`);
  console.log(
    table(
      ["T", "step s", "attention s", "rest s", "rest us/token", "to first", "peak GB", "pytorch s", "pytorch GB"],
      lines.map((l) => [
        String(l.tokens),
        l.seconds.toFixed(2),
        l.attentionSeconds.toFixed(2),
        (l.seconds - l.attentionSeconds).toFixed(2),
        l.restMicrosecondsPerToken.toFixed(0),
        (l.restMicrosecondsPerToken / (first?.restMicrosecondsPerToken ?? 1)).toFixed(2),
        (l.rssPeakBytes / GB).toFixed(2),
        l.pytorchSeconds?.toFixed(2) ?? "",
        l.pytorchRssPeakBytes === undefined ? "" : (l.pytorchRssPeakBytes / GB).toFixed(2),
      ]),
    ),
  );
}
