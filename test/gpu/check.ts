// npm run check:gpu: what only a GPU can say, in parts of at most 8 minutes, each of its programs in a process of its own.
//
//   npm run check:gpu [-- --part 1,3] [--out FOLDER] [--seed N] [--patience X]
//
// Ends with `N passed, N failed`; build/gpu/check.jsonl has a line a program, check.log all that was printed. docs/gpu.md
// says what the parts are. --device, --library and --small try the programs themselves elsewhere.
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { ending, type Job, options as parse, probe, Results, runJob } from "./suite.js";

const options = parse(process.argv.slice(2), "check:gpu");

/** Of test/ops, in the order of how much a failure says about the others. */
const plainOps = [
  "fill",
  "copy",
  "random",
  "unary",
  "binary",
  "axpby",
  "sum",
  "norm_squared",
  "clip_factor",
  "rms_norm",
  "layer_norm",
  "rope",
  "swiglu",
  "embedding",
  "cross_entropy",
  "argmax",
  "quantize",
  "adamw",
  "large",
];
const opJob = (op: string, seconds = 120): Job => ({ name: `ops/${op}`, file: `test/ops/${op}.test`, seconds });
const engines = ["native", "cudnn"] as const;

const sanitizer = [...(process.env.PATH ?? "").split(delimiter), "/usr/local/cuda/bin"]
  .map((folder) => join(folder, "compute-sanitizer"))
  .find(existsSync);
const sanitized = (tool: string, op: string, seconds: number): Job => ({
  ...opJob(op, seconds),
  name: `${tool}/${op}`,
  // A call of the driver that is meant to fail, when libraries are looked for, is no error of a kernel.
  wrap: [
    sanitizer ?? "",
    "--tool",
    tool,
    "--error-exitcode",
    "77",
    "--report-api-errors",
    "no",
    "--target-processes",
    "all",
  ],
});
const attentionJob = (name: string, tokens: number, seconds: number): Job => ({
  name: `attention/${name}`,
  file: "test/gpu/attention_long",
  args: [String(tokens)],
  seconds,
});

interface Part {
  name: string;
  jobs: Job[];
}
/** Seconds of a part's limits add up to at most 480. */
const parts: Part[] = [
  // The first thing on a GPU: whether both engines run at all, at lengths that matter.
  {
    name: "attention at 32K and 128K, both engines",
    jobs: [attentionJob("32K", 32_768, 180), attentionJob("128K", 131_072, 300)],
  },
  { name: "ops against float64", jobs: plainOps.map((op) => opJob(op, 25)) },
  {
    name: "matrix products and attention against float64",
    jobs: [
      opJob("matmul", 120),
      ...["auto", "native"].map((engine) => ({
        ...opJob("attention", 150),
        name: `ops/attention ${engine}`,
        env: { LONGSEQ_ATTENTION: engine },
      })),
    ],
  },
  { name: "attention above 524,288 tokens, both engines", jobs: [attentionJob("above 512K", 524_800, 480)] },
  {
    name: "tensors of more than 2^31 elements",
    jobs: [{ name: "beyond 2^31", file: "test/ops/beyond", seconds: 480 }],
  },
  {
    name: "training",
    jobs: [
      { name: "training/golden and memory settings", file: "test/gpu/training", seconds: 240 },
      ...engines.map((engine) => ({
        name: `training/loss curve, ${engine}`,
        file: "test/gpu/loss_curve",
        // Where cuDNN cannot take a call, as on float32, auto runs our own kernels.
        env: { LONGSEQ_ATTENTION: engine === "cudnn" ? "auto" : engine },
        seconds: 120,
      })),
    ],
  },
  {
    name: "memory, offload, disk",
    jobs: [{ name: "memory/meta, counters, tiers", file: "test/gpu/memory", seconds: 300 }],
  },
  {
    name: "compute-sanitizer memcheck",
    jobs: ["fill", "copy", "rms_norm", "rope", "swiglu", "embedding", "cross_entropy", "adamw"].map((op) =>
      sanitized("memcheck", op, 60),
    ),
  },
  {
    name: "compute-sanitizer racecheck",
    jobs: ["sum", "rms_norm", "layer_norm", "cross_entropy", "argmax", "norm_squared"].map((op) =>
      sanitized("racecheck", op, 80),
    ),
  },
  {
    name: "compute-sanitizer on attention and products",
    jobs: (["memcheck", "racecheck"] as const).map((tool) => ({
      name: `${tool}/attention, products`,
      file: "test/gpu/small_cases",
      env: { LONGSEQ_ATTENTION: "native" },
      seconds: 240,
      wrap: sanitized(tool, "", 1).wrap as string[],
    })),
  },
];

const chosen = parts.filter(
  (part, i) =>
    options.parts.length === 0 ||
    options.parts.some((one) => (/^\d+$/.test(one) ? one === String(i + 1) : part.name.includes(one))),
);
if (chosen.length === 0) {
  console.error(`check:gpu: there is no part ${options.parts.join(",")}; they are:`);
  for (const [i, part] of parts.entries()) console.error(`  ${i + 1}  ${part.name}`);
  process.exit(2);
}

const found = await probe(options, "check:gpu");
const results = new Results(options.out, "check");
const real = options.device.startsWith("cuda") && options.library === null;
results.add({ device: found, seed: options.seed, small: options.small, gpu: real });
console.log(`${found.name}, seed ${options.seed}`);
if (!real) console.log(`tried on ${options.device}: no GPU is checked by this run`);

let passed = 0;
let failed = 0;
for (const part of chosen) {
  console.log(`\npart ${parts.indexOf(part) + 1}: ${part.name}`);
  for (const job of part.jobs) {
    if (job.wrap !== undefined && (sanitizer === undefined || !real)) {
      // Not a pass: what was asked for has not been looked at.
      failed++;
      console.log(
        `  not ok  ${job.name}: compute-sanitizer ${real ? "is not on PATH or in /usr/local/cuda/bin" : "needs a GPU"}`,
      );
      results.add({ part: part.name, job: job.name, passed: 0, failed: 1, why: "no compute-sanitizer" });
      continue;
    }
    const ended = await runJob(job, options);
    results.note(job.name, ended.text);
    // A subtest's own line carries its time; the others are single checks.
    const checks = ended.stdout.split("\n").filter((line) => /^ *(not )?ok \d+/.test(line) && !/# time=/.test(line));
    const bad = checks.filter((line) => /^ *not ok/.test(line));
    const good = checks.length - bad.length;
    const comments = ended.stdout.match(/^ *# (?!Subtest|time=|\{)(.*)$/gm) ?? [];
    let why = "";
    if (ended.code !== 0 && (bad.length === 0 || ended.timedOut || ended.code === null)) why = ending(ended);
    else if (checks.length === 0) why = "it checked nothing";
    const errors = ended.text
      .split("\n")
      .filter((line) => /Error: |ERROR SUMMARY|^========= (?:Invalid|Race|Error|Warning)|CUDA error/.test(line))
      .slice(0, 5);
    const failures = bad.length + (why ? 1 : 0);
    passed += good;
    failed += failures;
    console.log(
      `  ${failures ? "not ok" : "ok    "}  ${job.name}: ${good} passed, ${failures} failed, ${ended.seconds.toFixed(1)} s` +
        `${why ? ` (${why})` : ""}`,
    );
    for (const line of [...bad.slice(0, 12), ...(failures ? errors : []), ...comments])
      console.log(`          ${line.trim()}`);
    results.add({
      part: part.name,
      job: job.name,
      passed: good,
      failed: failures,
      why,
      seconds: ended.seconds,
      failures: bad.map((line) => line.trim()),
      errors: failures ? errors : [],
      notes: comments.map((line) => line.trim()),
    });
  }
}
results.add({ passed, failed });
console.log(`\n${results.lines}\n${results.log}\n${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
