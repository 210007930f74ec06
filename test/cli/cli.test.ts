// The command line: words in any order, what goes where, messages and exit codes.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { diagnosisLines, parseLimits } from "../../lib/cli/doctor.js";
import { main, splitWords } from "../../lib/cli/main.js";
import type { Stop } from "../../lib/cli/signals.js";
import type { Config } from "../../lib/config/index.js";
import { CancelledError, ConfigError, DataError, UnsupportedError } from "../../lib/errors.js";
import type { RunItem, StepMetrics } from "../../lib/report/events.js";

const folder = mkdtempSync(join(tmpdir(), "longseq-cli-"));
t.teardown(() => rmSync(folder, { recursive: true }));
const rows = join(folder, "rows.jsonl");
writeFileSync(rows, '{"prompt":"2+2=","completion":"4"}\n{"input_ids":[7,8,9,10],"labels":[-100,-100,9,10]}\n');
const file = join(folder, "run.yaml");
writeFileSync(
  file,
  `model: {init: {vocab_size: 259}}
data: {train: "${rows}", tokenizer: bytes, sequence_length: 64, shuffle: false, packing: false}
train: {steps: 2}
output: {dir: ${join(folder, "out")}}
`,
);

const metrics = (step: number): StepMetrics => ({
  step,
  epoch: 1,
  loss: 2.5,
  gradNorm: 1,
  learningRate: 1e-5,
  tokens: 64,
  validTokens: 63,
  seconds: 1,
  tokensPerSecond: 64,
  modelTflops: 1,
  hardwareTflops: 1,
  mfu: null,
  devicePeakBytes: 1024,
  deviceLiveBytes: 512,
  hostPeakBytes: 0,
  rssPeakBytes: 2048,
  skipped: false,
});

interface Script {
  /** What the trainer gives; an Error is thrown, a number is a signal that comes. */
  items?: readonly (RunItem | Error | number)[];
  env?: NodeJS.ProcessEnv;
  /** What making the trainer throws. */
  refuse?: unknown;
}

/** Runs the command line with a trainer that follows a script. */
async function run(argv: string[], script: Script = {}) {
  const seen = { stdout: "", stderr: "", configs: [] as Config[] };
  let received: number | null = null;
  const controller = new AbortController();
  const stop: Stop = { signal: controller.signal, received: () => received };
  const code = await main(argv, {
    stdout: { write: (text) => (seen.stdout += text) },
    stderr: { write: (text) => (seen.stderr += text) },
    env: script.env ?? {},
    parts: {
      installSignals: async () => stop,
      createTrainer: (config) => {
        if (script.refuse !== undefined) throw script.refuse;
        seen.configs.push(config);
        return {
          async *run({ signal }) {
            for (const item of script.items ?? []) {
              if (item instanceof Error) throw item;
              if (typeof item === "number") {
                received = item;
                controller.abort();
                if (!signal.aborted) throw new Error("the trainer got another signal");
              } else yield item;
            }
          },
        };
      },
    },
  });
  return { code, ...seen };
}

const finished: RunItem[] = [
  { event: "plan", steps: 2, parameters: 1_500_000 },
  metrics(1),
  { event: "save", step: 1, path: "step-1" },
  metrics(2),
  { event: "done", step: 2, path: "out/model" },
];

t.test("help and version", async (t) => {
  const help = await run(["--help"]);
  t.equal(help.code, 0);
  t.match(help.stdout, /train CONFIG \[key\.sub=value \.\.\.\]/);
  t.match(help.stdout, /\n {2}data CONFIG/);
  t.match(help.stdout, /\n {2}doctor/);
  t.match(help.stdout, /Example:\n {2}longseq doctor/);
  t.equal(help.stderr, "");
  for (const command of ["train", "data", "report", "doctor"]) {
    const { code, stdout } = await run([command, "--help"]);
    t.equal(code, 0);
    t.match(stdout, /Example:\n {2}longseq /, command);
    t.match(stdout, /--json/, `${command} names --json`);
    t.equal((await run(["help", command])).stdout, stdout);
  }
  const version = await run(["--version"]);
  t.equal(version.stdout, `${JSON.parse(readFileSync("package.json", "utf8")).version}\n`);
  t.equal(version.code, 0);
});

t.test("wrong usage exits 2 with one message", async (t) => {
  const cases: [argv: string[], message: RegExp][] = [
    [["trian"], /^error: unknown command 'trian' \(Did you mean train\?\); see longseq --help\n$/],
    [["train"], /^error: missing configuration file; usage: longseq train CONFIG \[key\.sub=value \.\.\.\]\n$/],
    [["train", "train.steps=3"], /^error: missing configuration file/],
    [["train", "a.yaml", "b.yaml"], /^error: got "a\.yaml" and "b\.yaml"; expected one configuration file/],
    [["train", file, "--jsn"], /^error: unknown option '--jsn'/],
    [["data", file, "--samples", "0"], /^error: option .*'0' is invalid\. Expected a whole number of at least 1; see/],
    [["data", file, "--tokens", "x"], /Expected a whole number of at least 0/],
    [["doctor", "more"], /^error: too many arguments/],
    [["report"], /^error: missing required argument 'dir'; see longseq --help\n$/],
    [["report", "a", "b"], /^error: too many arguments/],
    [["report", "none"], /^error: none: there is no such folder; give the output\.dir of a run\n$/],
    [["train", "none.yaml"], /^error: none\.yaml: there is no such file\n$/],
    [["train", file, "train.stps=3"], /^error: command line: train\.stps: unknown key; did you mean train\.steps\?\n$/],
    [
      ["train", file, "device=cpu", "attention=cudnn"],
      /^error: command line: attention: got cudnn, which runs on NVIDIA's GPUs, but device is cpu; .*\n$/,
    ],
    [
      ["train", file, "train.steps=-1", "threads=x"],
      /^error: command line: train\.steps.*\nerror: command line: threads.*\n$/,
    ],
    [["launch", "--nproc", "2"], /^error: missing what to launch; usage: longseq launch .*\n$/],
    [["launch", "--nnodes", "2", "--", "train", file], /^error: several machines need --rendezvous HOST:PORT.*\n$/],
    [
      ["launch", "--nnodes", "2", "--node-rank", "2", "--rendezvous", "a:1", "--", "train", file],
      /^error: --node-rank is 2, but there are 2 machines \(--nnodes\)\n$/,
    ],
    [["launch", "--rendezvous", "nowhere", "--", "train", file], /^error: .*Expected HOST:PORT.*\n$/],
  ];
  for (const [argv, message] of cases) {
    const { code, stdout, stderr, configs } = await run(argv);
    t.equal(code, 2, argv.join(" "));
    t.match(stderr, message);
    t.equal(stdout, "");
    t.same(configs, [], "nothing was started");
    const json = await run([...argv.slice(0, 1), "--json", ...argv.slice(1)]);
    t.equal(json.code, 2);
    t.match(json.stderr, message, "the message is for people with --json too");
    const lines = json.stdout.trimEnd().split("\n");
    t.equal(lines.length, 1);
    t.match(JSON.parse(lines[0] ?? ""), { event: "error", code: "CONFIG", message: String, details: Object });
  }
  const nothing = await run([]);
  t.equal(nothing.code, 2);
  t.match(nothing.stderr, /^Usage: longseq/);
  t.equal(nothing.stdout, "");
});

t.test("words and options in any order", async (t) => {
  for (const argv of [
    ["train", file, "train.steps=9", "output.dir=o", "--json", "-q"],
    ["train", "train.steps=9", file, "--json", "output.dir=o", "--quiet"],
    ["--json", "train", "-q", "train.steps=9", "output.dir=o", file],
  ]) {
    const { code, configs, stdout, stderr } = await run(argv, { items: finished });
    t.equal(code, 0);
    t.equal(configs[0]?.train.steps, 9);
    t.equal(configs[0]?.output.dir, "o");
    t.equal(stdout.split("\n").length, finished.length + 1);
    t.equal(stderr, "", "quiet");
  }
  t.same(splitWords("train", ["a.b=1", "./x=1.yaml", "c=2"]), { file: "./x=1.yaml", overrides: ["a.b=1", "c=2"] });
});

t.test("train for people: progress on stderr, the result on stdout", async (t) => {
  const { code, stdout, stderr } = await run(["train", file], { items: finished });
  t.equal(code, 0);
  t.match(stdout, /^done: 2 steps in \S+, loss 2\.5000; the model is in out\/model\n$/);
  const lines = stderr.trimEnd().split("\n");
  t.equal(lines.length, 4);
  t.match(lines[0], /^2 steps, parameters 1\.50M$/);
  t.match(lines[1], /^step 1\/2 {2}loss 2\.5000 .* left$/);
  t.match(lines[2], /^saved step-1$/);
  t.match(lines[3], /^step 2\/2 /);
  const again = await run(["train", file], { items: [{ event: "done", step: 2, message: "finished before" }] });
  t.equal(again.stdout, "finished before\n");
  t.equal(again.code, 0);
});

t.test("train --json: every line of stdout is one object", async (t) => {
  const { code, stdout, stderr } = await run(["train", file, "--json"], { items: finished });
  t.equal(code, 0);
  const objects = stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  t.same(
    objects.map(({ event, step }) => [event, step]),
    [
      ["plan", undefined],
      [undefined, 1],
      ["save", 1],
      [undefined, 2],
      ["done", 2],
    ],
  );
  t.equal(objects[1].grad_norm, 1);
  t.match(stderr, /step 1\/2/, "progress stays on stderr");
});

t.test("failures", async (t) => {
  const failure = new DataError("a.jsonl:3: the row is no object", { file: "a.jsonl", line: 3 });
  const data = await run(["train", file, "--json"], { items: [metrics(1), failure] });
  t.equal(data.code, 1);
  t.match(data.stderr, /\nerror: a\.jsonl:3: the row is no object\n$/);
  t.same(JSON.parse(data.stdout.trimEnd().split("\n").at(-1) ?? ""), {
    event: "error",
    code: "DATA",
    message: "a.jsonl:3: the row is no object",
    details: { file: "a.jsonl", line: 3 },
  });
  t.equal((await run(["train", file], { items: [new ConfigError("output.dir: not empty")] })).code, 2);
  t.equal((await run(["train", file], { refuse: new UnsupportedError("no addon") })).stderr, "error: no addon\n");
  t.equal((await run(["train", file], { items: [new CancelledError("given up")] })).code, 1, "no signal asked for it");

  const system = Object.assign(new Error("ENOSPC: no space left on device, write"), {
    code: "ENOSPC",
    syscall: "write",
  });
  t.equal((await run(["train", file], { items: [system] })).stderr, `error: ${system.message}\n`);
  const load = Object.assign(new Error("libx.so: not found"), { code: "ERR_DLOPEN_FAILED" });
  t.match(
    (await run(["train", file], { refuse: load })).stderr,
    /^error: the native addon cannot be loaded: libx\.so: /,
  );

  const bug = await run(["train", file, "--json"], { items: [new TypeError("x is undefined")] });
  t.equal(bug.code, 1);
  t.equal(
    bug.stderr,
    "error: unexpected: x is undefined\nThis is a mistake in longseq; LONGSEQ_DEBUG=1 shows where.\n",
  );
  t.match(JSON.parse(bug.stdout), { event: "error", code: "INTERNAL" });
  const debug = await run(["train", file], { items: [new TypeError("x is undefined")], env: { LONGSEQ_DEBUG: "1" } });
  t.match(debug.stderr, /error: unexpected: x is undefined\nTypeError: x is undefined\n {4}at /);
  const odd = await run(["train", file], { refuse: "just a text" });
  t.match(odd.stderr, /^error: unexpected: just a text\n/);
});

t.test("signals", async (t) => {
  for (const [number, code, name] of [
    [2, 130, "SIGINT"],
    [15, 143, "SIGTERM"],
  ] as const) {
    const ways: [string, (RunItem | Error | number)[]][] = [
      ["the run throws", [metrics(1), number, new CancelledError("stopped")]],
      ["the run says that it stopped", [metrics(1), number, { event: "done", step: 1, stopped: true }]],
      ["the run just ends", [metrics(1), number]],
    ];
    for (const [way, items] of ways) {
      const stopped = await run(["train", file, "--json"], { items });
      t.equal(stopped.code, code, `${name}: ${way}`);
      t.match(stopped.stderr, new RegExp(`${name}: stopping; the state is saved first`));
      t.match(
        stopped.stderr,
        new RegExp(`stopped by ${name} after step 1; the state is saved in .*out, and the same command`),
      );
    }
  }
  const broken = await run(["train", file], { items: [15, new DataError("disk")] });
  t.equal(broken.code, 1, "a failure while stopping is a failure");
  const late = await run(["train", file], { items: [...finished, 2] });
  t.equal(late.code, 0, "a signal after the end stops nothing");
});

t.test("data", async (t) => {
  const env = process.env.LONGSEQ_CACHE_DIR;
  process.env.LONGSEQ_CACHE_DIR = join(folder, "cache");
  t.teardown(() => {
    if (env === undefined) delete process.env.LONGSEQ_CACHE_DIR;
    else process.env.LONGSEQ_CACHE_DIR = env;
  });
  const people = await run(["data", file]);
  t.equal(people.code, 0, people.stderr);
  t.equal(
    people.stdout,
    `1 file, 2 rows, 11 tokens; the longest row has 7; 2 sequences an epoch, of up to 64 tokens

sample 1 of 2: 7 tokens, 2 counted in the loss
  ${rows}:1, tokens 0 to 6
    masked  256 50 43 50 61
            "<|bos|>2+2="
    counted 52 257
            "4<|eos|>"

sample 2 of 2: 4 tokens, 2 counted in the loss
  ${rows}:2, tokens 0 to 3
    masked  7 8
            "<0x07><0x08>"
    counted 9 10
            "<0x09><0x0A>"
`,
  );
  const short = await run(["data", file, "-n", "1", "--tokens", "2"]);
  t.match(short.stdout, /masked {2}256 \.\.\. 3 more \.\.\. 61\n/);
  t.notMatch(short.stdout, /sample 2/);

  const json = await run(["data", file, "--json"]);
  const [summary, first, second, ...more] = json.stdout
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  t.same(summary, { event: "data", files: 1, rows: 2, dropped_rows: 0, tokens: 11, longest: 7, sequences: 2 });
  t.equal(first.valid_tokens, 2);
  t.same(first.documents[0].input_ids, [256, 50, 43, 50, 61, 52, 257]);
  t.same(first.documents[0].masked, [true, true, true, true, true, false, false]);
  t.same(second.documents[0].labels, [-100, -100, 9, 10]);
  t.same(more, []);

  const counted = await run(["data", file, "--stats"]);
  t.match(counted.stdout, /^2 rows, 11 tokens, of which 36\.4% count in the loss\n\nby source:\n/);
  t.match(counted.stdout, /an epoch: 2 sequences of up to 64 tokens, 11 tokens \(8\.6% filled\); \d+ steps?\n$/);
  const figures = JSON.parse((await run(["data", file, "--stats", "--json"])).stdout);
  t.match(figures, { event: "data_statistics", rows: 2, tokens: 11, trained_tokens: 4, sources: [{ file: rows }] });

  t.match(await run(["data", file, "--eval"]), {
    code: 2,
    stderr: `error: ${file}: data.eval: missing; --eval shows it\n`,
  });
  const evaluation = await run(["data", file, "--eval", `data.eval=[${rows}]`]);
  t.equal(evaluation.code, 0, evaluation.stderr);
  t.match(await run(["data", file, "data.train=none.jsonl"]), { code: 2, stderr: /data\.train.*none\.jsonl/ });
  t.match(await run(["data", file, "model.init=null", "model.path=none"]), {
    code: 2,
    stderr: 'error: model.path: there is no folder "none"\n',
  });
  t.match(await run(["data", file, "model.init=null", `model.path=${folder}`]), {
    code: 1,
    stderr: /holds no config\.json/,
  });
  t.match(await run(["data", file, "data.sequence_length=5"]), {
    code: 1,
    stderr: /rows\.jsonl:1: the row has 7 tokens/,
  });
  t.match(await run(["data", file, "data.sequence_length=5", "data.overlong=truncate"]), {
    code: 0,
    stderr: /^warning: data\.train: 1 of 2 rows/,
  });
});

t.test("what the doctor reads and says", async (t) => {
  const limits = parseLimits(`Limit                     Soft Limit           Hard Limit           Units     
Max file size             unlimited            unlimited            bytes     
Max open files            1024                 4096                 files     
Max locked memory         8388608              8388608              bytes     
Max address space         1000000              unlimited            bytes     
`);
  t.same(limits, { addressSpace: 1_000_000, lockedMemory: 8_388_608, fileSize: null, openFiles: 1024 });
  t.same(parseLimits(""), { addressSpace: null, lockedMemory: null, fileSize: null, openFiles: null });
  const lines = diagnosisLines({
    ok: false,
    version: "1",
    node: "20",
    platform: "linux-x64",
    kernel: "6",
    glibc: null,
    addon: null,
    backends: [{ name: "cpu", available: false, detail: "broken" }],
    cpus: { model: "M", logical: 4, usable: 2 },
    memory: { total: 2 ** 33, free: 2 ** 32, limit: 2 ** 31 },
    limits,
    disk: { free: 0 },
    problems: ["one", "two"],
  });
  t.match(lines.join("\n"), /cpu +not available: broken\n/);
  t.match(lines.join("\n"), /8\.00 GiB, 4\.00 GiB free; this control group may use 2\.00 GiB/);
  t.same(lines.slice(-2), ["problem: one", "problem: two"]);
});
