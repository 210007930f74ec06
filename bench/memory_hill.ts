// Memory through a training step: the hill that checkpoints, tiles and offload flatten, as a table and a picture.
//
//   npx tsx bench/memory_hill.ts [--tokens 8192] [--threads N] [--write docs/memory_hill]
//
// The 56M Llama on the CPU; the second step of each setting is recorded. Live bytes of the device tier by category.
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { formatBytes } from "../lib/report/format.js";
import { hills, parseTrace } from "../lib/report/html_trace.js";
import { picture } from "./picture.js";
import { threadsHere } from "./side_by_side.js";
import { ablation, markdown, publish, Runner } from "./steps.js";

const { values } = parseArgs({
  options: {
    tokens: { type: "string", default: "8192" },
    threads: { type: "string", default: String(threadsHere) },
    write: { type: "string" },
  },
});
const [tokens, threads] = [Number(values.tokens), Number(values.threads)];
const all = ablation(1024);
const chosen = ["baseline", "+ checkpoint", "+ head chunks"].map((name) => {
  const found = all.find((one) => one.name === name);
  if (found === undefined) throw new Error(`no setting ${name}`);
  return found;
});
const words: Record<string, string> = {
  baseline: "plain training",
  "+ checkpoint": "tiled loss and MLP, a checkpoint of every layer",
  "+ head chunks": "all of it: checkpoints in host memory, attention kept, head chunks",
};

const found = [];
for (const { name, plan } of chosen) {
  const runner = new Runner(plan, tokens, threads);
  await runner.step();
  await runner.step(true);
  const { trace, peaks, losses } = { trace: runner.trace, ...runner.result };
  const hill = hills(parseTrace(2, trace, name)).find(({ tier }) => tier === "device");
  await runner.dispose();
  if (hill === undefined) throw new Error(`${name}: nothing was allocated`);
  found.push({ name: words[name] as string, hill, peaks, loss: losses[1] as number });
  console.error(`${name}: ${formatBytes(hill.peak)}`);
}

const svg = picture({
  title: `Live bytes on the device through a step of ${tokens.toLocaleString("en-US")} tokens (56M Llama, CPU)`,
  x: "share of the step",
  formatX: (value) => `${Math.round(100 * value)}%`,
  formatY: (value) => formatBytes(value),
  bytes: true,
  panels: found.map(({ name, hill }) => {
    const end = hill.at.at(-1) as number;
    return {
      title: `${name}: at most ${formatBytes(hill.peak)}`,
      areas: { names: hill.categories, at: hill.at.map((at) => at / end), values: hill.live },
    };
  }),
});
const base = found[0] as (typeof found)[number];
const text = [
  "# Memory through a step",
  "",
  `The 56M Llama (H 512, 8 layers, vocabulary 32,000), float32, one sequence of ${tokens.toLocaleString("en-US")} tokens on the CPU, recorded in its ` +
    "second step. Live bytes: what tensors take; the reserved peak is that of the allocator, in pages. Made by " +
    "`npx tsx bench/memory_hill.ts --write docs/memory_hill`.",
  "",
  markdown(
    ["setting", "live at most", "to plain", "lowest", "reserved", "host", "loss"],
    found.map(({ name, hill, peaks, loss }) => {
      const totals = hill.at.map((_, i) => hill.live.reduce((sum, one) => sum + (one[i] as number), 0));
      return [
        name,
        formatBytes(hill.peak),
        (hill.peak / base.hill.peak).toFixed(2),
        formatBytes(Math.min(...totals)),
        formatBytes(peaks.device),
        formatBytes(peaks.host),
        loss.toFixed(6),
      ];
    }),
  ),
  "",
  "![live bytes through a step](memory_hill.svg)",
].join("\n");
publish(text, values.write && `${values.write}.md`);
if (values.write) writeFileSync(`${values.write}.svg`, svg);
