// Ranks beside one rank: the same run of the 56M Llama through the command line, by as many threads in all.
//
//   npx tsx bench/ranks.ts [--tokens 8192] [--rounds 3] [--steps 3] [--only NAME,...]
//
// Rounds alternate between the sides; each gives the median seconds of its steps but the first. Prints the median of the
// rounds, its ratio to one rank's, and peak bytes of the device for rank 0 as planned and as they were.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { formatBytes } from "../lib/report/format.js";
import { llama56M } from "./steps.js";

const { values } = parseArgs({
  options: {
    tokens: { type: "string", default: "8192" },
    rounds: { type: "string", default: "3" },
    steps: { type: "string", default: "3" },
    only: { type: "string" },
  },
});
const [tokens, rounds, steps] = [values.tokens, values.rounds, values.steps].map(Number) as [number, number, number];

const sides: Record<string, { ranks: number; args: string[] }> = {
  "1 rank x 2 threads": { ranks: 1, args: ["threads=2"] },
  "2 ranks x 1, Ulysses": { ranks: 2, args: ["threads=1", "parallel.zero=0"] },
  "2 ranks x 1, Ulysses, ZeRO 3": { ranks: 2, args: ["threads=1", "parallel.zero=3"] },
  "2 ranks x 1, ring": { ranks: 2, args: ["threads=1", "parallel.zero=0", "parallel.ring=2"] },
  "4 ranks on 2 cores, Ulysses": { ranks: 4, args: ["threads=1", "parallel.zero=0"] },
  "4 ranks on 2 cores, ZeRO 3": { ranks: 4, args: ["threads=1", "parallel.zero=3"] },
};

const folder = mkdtempSync(join(tmpdir(), "longseq-ranks-"));
const ids = Array.from({ length: tokens }, (_, i) => (Math.imul(i + 1, 0x9e3779b1) >>> 8) % llama56M.vocab_size);
writeFileSync(join(folder, "rows.jsonl"), `${JSON.stringify({ input_ids: ids })}\n`);
const config = {
  model: { init: llama56M, dtype: "float32" },
  data: { train: [join(folder, "rows.jsonl")], sequence_length: tokens, packing: false },
  train: { steps, learning_rate: 1e-4 },
  device: "cpu",
  memory: { checkpoint: { every: 1 } },
  output: { resume: "never" },
};
writeFileSync(join(folder, "config.yaml"), JSON.stringify(config));

interface Run {
  seconds: number;
  loss: number;
  peak: number;
  planned: number;
}

function run(name: string, round: number): Run {
  const { ranks, args } = sides[name] as (typeof sides)[string];
  const dir = join(folder, `${name.replace(/\W+/g, "-")}-${round}`);
  const bin = fileURLToPath(new URL("../bin/longseq.mjs", import.meta.url));
  const line = [bin, "train", join(folder, "config.yaml"), "-q", `output.dir=${dir}`, ...args];
  if (ranks > 1) line.push("--nproc", String(ranks));
  const ended = spawnSync(process.execPath, line, { encoding: "utf8" });
  if (ended.status !== 0) throw new Error(`${name}: ${ended.stderr}`);
  const lines = readFileSync(join(dir, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((text) => JSON.parse(text) as Record<string, number | string>);
  rmSync(dir, { recursive: true });
  const done = lines.filter(({ event }) => event === undefined);
  return {
    seconds: median(done.slice(1).map((one) => Number(one.seconds))),
    loss: Number(done.at(-1)?.loss),
    peak: Math.max(...done.map((one) => Number(one.device_peak_bytes))),
    planned: Number(lines.find(({ event }) => event === "plan")?.device_peak_bytes),
  };
}

function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] as number;
}

const names = Object.keys(sides).filter((name, i) => i === 0 || !values.only || values.only.split(",").includes(name));
const runs = new Map<string, Run[]>(names.map((name) => [name, []]));
try {
  for (let round = 0; round < rounds; round++)
    for (const name of names) {
      const one = run(name, round);
      runs.get(name)?.push(one);
      console.log(`round ${round + 1}: ${name}: ${one.seconds.toFixed(2)} s, loss ${one.loss}`);
    }
} finally {
  rmSync(folder, { recursive: true });
}
const base = median((runs.get(names[0] as string) as Run[]).map(({ seconds }) => seconds));
console.log(`\n${tokens} tokens, median of ${rounds} rounds of ${steps - 1} steps`);
for (const [name, all] of runs) {
  const seconds = median(all.map((one) => one.seconds));
  const { peak, planned, loss } = all[0] as Run;
  console.log(
    `${name.padEnd(30)} ${seconds.toFixed(2)} s  ${(seconds / base).toFixed(3)}  loss ${loss.toFixed(6)}  ` +
      `${formatBytes(peak)} (planned ${formatBytes(planned)}${peak === planned ? ", the same" : `, ${peak - planned} off`})`,
  );
}
