// npm run check:gpu: what only a GPU can say, in parts of at most 8 minutes, each of its programs in a process of its own.
//
//   npm run check:gpu [-- --part 1,3] [--call first|second] [--out FOLDER] [--seed N] [--budget SECONDS] [--patience X] [--list]
//
// Ends with `N passed, N failed` (and `N not run`) whatever happens to a program; build/gpu/check.json has all results so far at
// any moment, check.log what was printed. docs/gpu.md says what the parts are. --device, --library and --small try the
// programs themselves elsewhere.
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import {
  Budget,
  type Ended,
  ending,
  endOnSignals,
  type Job,
  type Options,
  options as parse,
  probe,
  Results,
  runJob,
} from "./suite.js";

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
];
const opJob = (op: string, seconds = 120): Job => ({ name: `ops/${op}`, file: `test/ops/${op}.test`, seconds });
const engines = ["native", "cudnn"] as const;

const sanitizer = [...(process.env.PATH ?? "").split(delimiter), "/usr/local/cuda/bin", "/opt/cuda/bin"]
  .map((folder) => join(folder, "compute-sanitizer"))
  .find(existsSync);
/** A job under compute-sanitizer; it cannot be run where that is not found. */
const sanitized = (tool: string, job: Job): Job => ({
  ...job,
  // A call of the driver that is meant to fail, when libraries are looked for, is no error of a kernel.
  wrap: [
    sanitizer ?? "compute-sanitizer",
    ...["--tool", tool, "--error-exitcode", "77", "--report-api-errors", "no", "--target-processes", "all"],
  ],
  ...(sanitizer === undefined && { cannot: "compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin" }),
});
const sanitizedOp = (tool: string, op: string, seconds: number): Job =>
  sanitized(tool, { ...opJob(op, seconds), name: `${tool}/${op}` });
const attentionJob = (name: string, tokens: number, seconds: number): Job => ({
  name: `attention/${name}`,
  file: "test/gpu/attention_long",
  args: [String(tokens)],
  seconds,
  // cuDNN may take the process with it.
  otherwise: {
    name: `attention/${name}, our own kernels`,
    file: "test/gpu/attention_long",
    args: [String(tokens), "native"],
    seconds,
  },
});
/** Tensors of gigabytes: nothing that is not a GPU takes them in a trial. */
const huge = options.small ? { cannot: "its sizes cannot be made small; npm run test:large runs it on the CPU" } : {};

interface Part {
  name: string;
  jobs: Job[];
  /** For a loan of a few minutes: what a first run can break, or what is left. */
  call: Options["call"];
  /** Several of its jobs may run at a time: they take little memory, and most of their time is the processor's. */
  together?: boolean;
}
/** Seconds of a part's limits add up to at most 480, should one follow the other. */
const parts: Part[] = [
  {
    name: "ranks that share the GPU",
    call: "first",
    jobs: [
      {
        name: "ranks/collectives",
        file: "test/parallel/collectives.test",
        env: { NCCL_MULTI_RANK_GPU_ENABLE: "1", NCCL_NVLS_ENABLE: "0" },
        seconds: 60,
      },
      ...["2", "killed", "4"].map((what) => ({
        name: `ranks/${what}`,
        file: "test/gpu/ranks",
        args: [what],
        seconds: 120,
      })),
    ],
  },
  // The first thing on a GPU: whether both engines run at all, at lengths that matter.
  {
    name: "attention at 32K and 128K, both engines",
    call: "first",
    jobs: [attentionJob("32K", 32_768, 120), attentionJob("128K", 131_072, 240)],
  },
  {
    name: "attention above 524,288 tokens",
    call: "second",
    // Ours alone: cuDNN does not take this backward (docs/cudnn.md).
    jobs: [{ name: "attention/above 512K", file: "test/gpu/attention_long", args: ["524800", "native"], seconds: 240 }],
  },
  { name: "ops against float64", call: "first", together: true, jobs: plainOps.map((op) => opJob(op, 25)) },
  {
    name: "matrix products and attention against float64",
    call: "first",
    together: true,
    jobs: [
      opJob("matmul", 150),
      opJob("attention", 150),
      { ...opJob("attention", 150), name: "ops/attention, our own kernels", env: { LONGSEQ_ATTENTION: "native" } },
    ],
  },
  {
    name: "training",
    call: "first",
    together: true,
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
    call: "first",
    jobs: [{ name: "memory/meta, counters, tiers", file: "test/gpu/memory", seconds: 300 }],
  },
  {
    name: "tensors of more than 2^31 elements",
    call: "second",
    jobs: [
      { ...opJob("large", 150), name: "2^31/large" },
      { name: "2^31/beyond", file: "test/ops/beyond", seconds: 330, ...huge },
    ],
  },
  {
    name: "compute-sanitizer on attention and products",
    call: "first",
    together: true,
    jobs: ["memcheck", "racecheck"].map((tool) =>
      sanitized(tool, {
        name: `${tool}/attention, products`,
        file: "test/gpu/small_cases",
        env: { LONGSEQ_ATTENTION: "native" },
        seconds: 240,
      }),
    ),
  },
  {
    name: "compute-sanitizer memcheck",
    call: "second",
    together: true,
    jobs: ["fill", "copy", "rms_norm", "rope", "swiglu", "embedding", "cross_entropy", "adamw"].map((op) =>
      sanitizedOp("memcheck", op, 60),
    ),
  },
  {
    name: "compute-sanitizer racecheck",
    call: "second",
    together: true,
    jobs: ["sum", "rms_norm", "layer_norm", "cross_entropy", "argmax", "norm_squared"].map((op) =>
      sanitizedOp("racecheck", op, 80),
    ),
  },
];

if (options.list) {
  console.log(JSON.stringify(parts));
  process.exit(0);
}
const chosen = parts.filter(
  (part, i) =>
    (options.call === null || options.call === part.call) &&
    (options.parts.length === 0 ||
      options.parts.some((one) => (/^\d+$/.test(one) ? one === String(i + 1) : part.name.includes(one)))),
);
if (chosen.length === 0) {
  console.error(`check:gpu: there is no part ${options.parts.join(",")}; they are:`);
  for (const [i, part] of parts.entries()) console.error(`  ${i + 1}  ${part.name}`);
  process.exit(2);
}

endOnSignals();
const budget = new Budget(options);
const results = new Results(options, "check");
const found = await probe(options, "check:gpu", results);
const real = options.device.startsWith("cuda") && options.library === null;
results.write({ gpu: real });
console.log(`${found.name}, seed ${options.seed}; cuDNN: ${found.cudnn}`);
if (!real) console.log(`tried on ${options.device}: no GPU is checked by this run`);

const total = { passed: 0, failed: 0, notRun: 0 };

/** What a program printed, as counts and lines. */
function judge(ended: Ended) {
  // A subtest's own line carries its time; the others are single checks.
  const checks = ended.stdout.split("\n").filter((line) => /^ *(not )?ok \d+/.test(line) && !/# time=/.test(line));
  const failures = checks.filter((line) => /^ *not ok/.test(line)).map((line) => line.trim());
  const notes = (ended.stdout.match(/^ *# (?!Subtest|time=|\{)(.*)$/gm) ?? []).map((line) => line.trim());
  let why = "";
  if (ended.timedOut || ended.code === null || (ended.code !== 0 && failures.length === 0)) why = ending(ended);
  else if (checks.length === 0) why = "it checked nothing";
  const failed = failures.length + (why ? 1 : 0);
  const errors = ended.text
    .split("\n")
    .filter((line) => /Error: |ERROR SUMMARY|^========= (?:Invalid|Race|Error|Warning)|CUDA error/.test(line))
    .slice(0, failed > 0 ? 5 : 0);
  return { passed: checks.length - failures.length, failed, why, failures, errors, notes };
}

async function run(part: Part, job: Job): Promise<void> {
  const named = { part: part.name, job: job.name };
  const limit = job.cannot ?? budget.limit(job.seconds);
  if (typeof limit === "string") {
    // Not a pass: what was asked for has not been looked at.
    total.notRun++;
    console.log(`  not run ${job.name}: ${limit}`);
    results.add({ ...named, passed: 0, failed: 0, notRun: limit });
    return;
  }
  const ended = await runJob(job, options, limit);
  results.note(job.name, ended.text);
  const { passed, failed, why, failures, errors, notes } = judge(ended);
  total.passed += passed;
  total.failed += failed;
  console.log(
    `  ${failed ? "not ok " : "ok     "} ${job.name}: ${passed} passed, ${failed} failed, ` +
      `${ended.seconds.toFixed(1)} s${why ? ` (${why})` : ""}`,
  );
  for (const line of [...failures.slice(0, 12), ...errors, ...notes])
    console.log(`          ${line.trim().slice(0, 400)}`);
  results.add({ ...named, passed, failed, why, seconds: ended.seconds, limit, failures, errors, notes });
  if (why && job.otherwise !== undefined) await run(part, job.otherwise);
}

for (const part of chosen) {
  console.log(`\npart ${parts.indexOf(part) + 1}: ${part.name}`);
  const waiting = [...part.jobs];
  const worker = async () => {
    for (let job = waiting.shift(); job !== undefined; job = waiting.shift()) await run(part, job);
  };
  await Promise.all(Array.from({ length: part.together ? options.workers : 1 }, worker));
}
results.write({ ...total, seconds: budget.seconds, complete: total.notRun === 0 });
console.log(`\n${results.json}\n${results.log}\n${budget.seconds.toFixed(0)} s`);
console.log(`${total.passed} passed, ${total.failed} failed${total.notRun > 0 ? `, ${total.notRun} not run` : ""}`);
process.exitCode = total.failed + total.notRun > 0 || total.passed === 0 ? 1 : 0;
