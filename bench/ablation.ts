// The ablation of ALST's paper on one rank, for the 56M Llama: what each setting adds to the longest sequence under a
// device limit, and what it costs.
//
//   npx tsx bench/ablation.ts [--parts length,time,real,full] [--gib 2] [--tokens 4096] [--steps 2] [--rows 1024]
//     [--real 16384] [--full 32768] [--threads N] [--write docs/ablation.md]
//
// length: the longest T whose whole training step (AdamW included) fits by `meta`, with the states on the device and with
//   the optimizer's on the host, and bytes a token there. Seconds.
// time: a step at --tokens, the fastest of --steps, each setting in turn.
// real: one real step at --real for each setting; its peaks must be those that `meta` says, to the byte. Minutes.
// full: the same at --full with everything on.
import { parseArgs } from "node:util";
import { formatBytes } from "../lib/report/format.js";
import type { MemoryPlan } from "../lib/train/memory_plan.js";
import { threadsHere } from "./side_by_side.js";
import { ablation, markdown, onMeta, publish, Runner, realSteps } from "./steps.js";

const { values } = parseArgs({
  options: {
    parts: { type: "string", default: "length,time" },
    gib: { type: "string", default: "2" },
    tokens: { type: "string", default: "4096" },
    steps: { type: "string", default: "2" },
    rows: { type: "string", default: "1024" },
    real: { type: "string", default: "16384" },
    full: { type: "string", default: "32768" },
    threads: { type: "string", default: String(threadsHere) },
    write: { type: "string" },
  },
});
const parts = new Set(values.parts.split(","));
for (const part of parts)
  if (!["length", "time", "real", "full"].includes(part)) throw new Error(`--parts ${part}: length, time, real, full`);
const settings = ablation(Number(values.rows));
const threads = Number(values.threads);
const limit = Number(values.gib) * 2 ** 30;
const text: string[] = [];
let wrong = 0;
const check = (what: string, good: boolean) => {
  if (!good) wrong++;
  text.push(`${good ? "holds" : "DOES NOT HOLD"}: ${what}  `);
};
const whole = (value: number) => Math.round(value).toLocaleString("en-US");

/** The longest T, in steps of 64, that fits, and bytes a token over its upper half. */
function longest(plan: MemoryPlan): { tokens: number; bytesPerToken: number } {
  const peak = (tokens: number) => onMeta(plan, tokens).peaks.device;
  const fits = (tokens: number) => peak(tokens) <= limit;
  let low = 64;
  if (!fits(low)) return { tokens: 0, bytesPerToken: 0 };
  let high = 2 * low;
  while (fits(high)) {
    low = high;
    high *= 2;
  }
  while (high - low > 64) {
    const middle = low + Math.floor((high - low) / 128) * 64;
    if (fits(middle)) low = middle;
    else high = middle;
  }
  const half = Math.floor(low / 2);
  return { tokens: low, bytesPerToken: (peak(low) - peak(half)) / (low - half) };
}

if (parts.has("length")) {
  const rows = settings.map(({ name, plan }) => {
    const device = longest(plan);
    const host = longest({ ...plan, states: { ...plan.states, optimizer: "host" } });
    console.error(`${name}: ${device.tokens} and ${host.tokens} tokens`);
    return { name, device, host };
  });
  const [baseline, all] = [rows[0], rows.at(-1)] as [(typeof rows)[0], (typeof rows)[0]];
  text.push(
    `## Longest sequence within ${values.gib} GiB of device memory`,
    "",
    "A whole training step with AdamW by the `meta` backend, whose peaks are those of the CPU to the byte. KB a token (1,024 bytes): " +
      "what the device's peak grows by, over the upper half of the sequence.",
    "",
    markdown(
      ["setting", "T, states on the device", "to baseline", "KB a token", "T, optimizer on the host", "KB a token"],
      rows.map(({ name, device, host }) => [
        name,
        whole(device.tokens),
        `${(device.tokens / baseline.device.tokens).toFixed(1)} x`,
        (device.bytesPerToken / 1024).toFixed(1),
        whole(host.tokens),
        (host.bytesPerToken / 1024).toFixed(1),
      ]),
    ),
    "",
  );
  check("everything on, states on the device: at least 120,000 tokens", all.device.tokens >= 120_000);
  check("everything on, optimizer on the host: at least 165,000 tokens", all.host.tokens >= 165_000);
  check("everything on: at least 24 times the baseline", all.device.tokens >= 24 * baseline.device.tokens);
  check("the baseline saves at most 300 KB a token", baseline.device.bytesPerToken <= 300 * 1024);
  text.push("");
}

if (parts.has("time")) {
  const tokens = Number(values.tokens);
  const best: number[] = settings.map(() => Number.POSITIVE_INFINITY);
  const peaks: { device: number; host: number }[] = [];
  let losses: number[] = [];
  const steps = Number(values.steps);
  for (const [i, { name, plan }] of settings.entries()) {
    const runner = new Runner(plan, tokens, threads);
    // The first step also touches every page for the first time.
    for (let step = 0; step <= steps; step++) {
      const seconds = await runner.step();
      if (step > 0) best[i] = Math.min(best[i] as number, seconds);
    }
    await runner.dispose();
    peaks.push(runner.result.peaks);
    if (i === 0) losses = runner.result.losses;
    for (const [step, loss] of runner.result.losses.entries())
      if (Math.abs(loss / (losses[step] as number) - 1) > 1e-4) throw new Error(`${name}: loss ${loss} is another one`);
    console.error(`${name}: ${(best[i] as number).toFixed(2)} s`);
  }
  text.push(
    `## Step time at T = ${whole(tokens)}`,
    "",
    `Fastest of ${steps} steps, ${threads} threads; the losses of all settings agree.`,
    "",
    markdown(
      ["setting", "seconds", "to baseline", "device peak", "host peak"],
      settings.map(({ name }, i) => [
        name,
        (best[i] as number).toFixed(2),
        `${((best[i] as number) / (best[0] as number)).toFixed(2)} x`,
        formatBytes(peaks[i]?.device as number),
        formatBytes(peaks[i]?.host as number),
      ]),
    ),
    "",
  );
}

async function against(tokens: number, chosen: typeof settings): Promise<void> {
  const rows: string[][] = [];
  for (const { name, plan } of chosen) {
    const said = onMeta(plan, tokens).peaks;
    const { seconds, peaks, losses } = await realSteps(plan, tokens, threads, 1);
    const equal = (["device", "host", "disk"] as const).every((tier) => said[tier] === peaks[tier]);
    if (!equal) wrong++;
    rows.push([
      name,
      (seconds[0] as number).toFixed(1),
      (losses[0] as number).toFixed(6),
      whole(peaks.device),
      whole(said.device),
      whole(peaks.host),
      whole(said.host),
      equal ? "yes" : "NO",
    ]);
    console.error(rows.at(-1)?.join("  "));
  }
  text.push(
    `## One real step at T = ${whole(tokens)}`,
    "",
    markdown(
      ["setting", "seconds", "loss", "device peak, bytes", "by `meta`", "host peak, bytes", "by `meta`", "equal"],
      rows,
    ),
    "",
  );
}
if (parts.has("real")) await against(Number(values.real), settings);
if (parts.has("full")) await against(Number(values.full), settings.slice(-1));

publish(
  [
    "# Ablation",
    "",
    "The 56M Llama (H 512, 8 layers, 8/4 heads, F 1408, V 32000), float32, one sequence a step, one rank on the CPU. " +
      `Each setting adds to the one before; MLP tiles of at most ${values.rows} rows, logits tiles of 64 MiB. Made by ` +
      "`npx tsx bench/ablation.ts`.",
    "",
    ...text,
  ].join("\n"),
  values.write,
);
process.exitCode = wrong > 0 ? 1 : 0;
