// Peak device bytes of a rank by category at P = 1, 2, 4, 8 (Ulysses and ZeRO 3): by `longseq plan`, and of real steps.
//
//   npx tsx bench/ranks_memory.ts [--tokens 8192] [--steps 1] [--ranks 1,2,4,8]
//
// The 56M Llama with checkpoints of every layer and without tiles, so that all that a rank makes of its tokens shows. Exits
// with 1 where a real peak is not the planned one to the byte, or activations, checkpoints or logits are more than 3%
// above 1/P of one rank's.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { root, table } from "./side_by_side.js";
import { llama56M } from "./steps.js";

const { values } = parseArgs({
  options: {
    tokens: { type: "string", default: "8192" },
    steps: { type: "string", default: "1" },
    ranks: { type: "string", default: "1,2,4,8" },
  },
});
const tokens = Number(values.tokens);
const bin = join(root, "bin/longseq.mjs");
const folder = mkdtempSync(join(tmpdir(), "longseq-ranks-memory-"));
const file = join(folder, "config.yaml");
const ids = Array.from({ length: tokens }, (_, i) => (Math.imul(i + 1, 0x9e3779b1) >>> 8) % llama56M.vocab_size);
writeFileSync(join(folder, "rows.jsonl"), `${JSON.stringify({ input_ids: ids })}\n`);
writeFileSync(
  file,
  JSON.stringify({
    model: { init: llama56M, dtype: "float32" },
    data: { train: [join(folder, "rows.jsonl")], sequence_length: tokens, packing: false },
    train: { steps: Number(values.steps), learning_rate: 1e-4 },
    device: "cpu",
    threads: 1,
    memory: { checkpoint: { every: 1 }, tile_mlp: "off", tile_loss: "off" },
    output: { dir: join(folder, "run"), resume: "never" },
  }),
);
// A user's script: rank 0 tells what its device held when most was reserved.
const script = join(folder, "rank.mjs");
writeFileSync(
  script,
  `import { Device, loadConfig, parallel, Trainer } from ${JSON.stringify(join(root, "dist/lib/index.js"))};
   const job = await parallel.init();
   const device = new Device("cpu", { threads: 1 });
   let peak;
   const config = loadConfig(${JSON.stringify(file)}, ["output.dir=" + process.argv[2]]);
   for await (const item of new Trainer(config, { device }).run())
     if (item.event === undefined) peak = { peak: item.devicePeakBytes, by: device.memory().categoryAtPeak };
   if (job.rank === 0) console.log(JSON.stringify(peak));`,
);

interface Peak {
  peak: number;
  by: Record<string, number>;
}

function output(args: string[]): string[] {
  const ended = spawnSync(process.execPath, [bin, ...args], { encoding: "utf8" });
  if (ended.status !== 0) throw new Error(`longseq ${args.join(" ")}: ${ended.stderr}`);
  return ended.stdout.trim().split("\n");
}

function planned(ranks: number): Peak {
  const lines = output(["plan", file, "--json", `parallel.sequence=${ranks}`]).map((line) => JSON.parse(line));
  const plan = lines.find(({ event }) => event === "plan");
  return { peak: plan.device_peak_bytes, by: plan.device_categories };
}

const real = (ranks: number): Peak =>
  JSON.parse(
    output([
      ...["launch", "--nproc", String(ranks), "-q", "--logs", folder],
      ...["--", script, join(folder, `run-${ranks}`)],
    ]).at(-1) as string,
  );

let wrong = 0;
const all = new Map<number, Peak>();
try {
  for (const ranks of values.ranks.split(",").map(Number)) {
    const [plan, run] = [planned(ranks), real(ranks)];
    const same = plan.peak === run.peak && Object.keys(run.by).every((key) => (plan.by[key] ?? 0) === run.by[key]);
    if (!same) wrong++;
    console.error(`${ranks}: ${same ? "as planned" : `planned ${JSON.stringify(plan)}, real ${JSON.stringify(run)}`}`);
    all.set(ranks, run);
  }
} finally {
  rmSync(folder, { recursive: true });
}
const MiB = (bytes: number) => (bytes / 2 ** 20).toFixed(2);
const one = all.get(1) as Peak;
const categories = Object.keys(one.by).filter((key) => [...all.values()].some(({ by }) => (by[key] ?? 0) > 0));
console.log(`MiB of rank 0 at its peak, Llama 56M float32, T = ${tokens}; in brackets times P, to one rank's\n`);
console.log(
  table(
    ["P", "reserved", ...categories],
    [...all].map(([ranks, { peak, by }]) => [
      String(ranks),
      MiB(peak),
      ...categories.map((key) => {
        const ratio = ((by[key] ?? 0) * ranks) / (one.by[key] || 1);
        if (["activations", "checkpoints", "logits"].includes(key) && ratio > 1.03) wrong++;
        return `${MiB(by[key] ?? 0)} (${one.by[key] ? ratio.toFixed(3) : "-"})`;
      }),
    ]),
  ),
);
console.log(wrong === 0 ? "\nall as planned, and within 3% of 1/P" : `\n${wrong} not as they should be`);
process.exitCode = wrong === 0 ? 0 : 1;
