// The command line as a process of its own: signals that reach native code, closed pipes, and the doctor.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";

const folder = mkdtempSync(join(tmpdir(), "longseq-process-"));
t.teardown(() => rmSync(folder, { recursive: true }));
const mainUrl = new URL("../../lib/cli/main.ts", import.meta.url).href;
const errorsUrl = new URL("../../lib/errors.ts", import.meta.url).href;
const config = join(folder, "run.yaml");
writeFileSync(
  config,
  `model: {init: {vocab_size: 259}}
data: {train: none.jsonl, sequence_length: 64}
train: {steps: 2}
output: {dir: ${join(folder, "out")}}
`,
);

/** Starts the command line; `trainer` is the body of a generator that stands for the trainer's run. */
function start(argv: string[], trainer = "") {
  const program = join(folder, `${Math.random().toString(36).slice(2)}.mts`);
  writeFileSync(
    program,
    `import { main } from ${JSON.stringify(mainUrl)};
import { CancelledError } from ${JSON.stringify(errorsUrl)};
const createTrainer = () => ({ run: async function* ({ signal }) { ${trainer} } });
process.exitCode = await main(process.argv.slice(2), { parts: { createTrainer } });
`,
  );
  const child = spawn(process.execPath, ["--import=tsx", program, ...argv], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, NODE_OPTIONS: "" },
  });
  const text = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (part) => (text.stdout += part));
  child.stderr.setEncoding("utf8").on("data", (part) => (text.stderr += part));
  return { child, text };
}

/** Resolves when the process has written this to stderr. */
async function says(child: ChildProcess, text: { stderr: string }, words: string) {
  while (!text.stderr.includes(words)) await once(child.stderr as NodeJS.ReadableStream, "data");
}

// Waits for the signal, saves for a moment, and ends as a cancelled run does.
const waiting = `
  const timer = setInterval(() => {}, 1000);
  yield { event: "warning", message: "running" };
  await new Promise((resolve) => signal.addEventListener("abort", resolve));
  clearInterval(timer);
  yield { event: "save", step: 1, path: "step-1" };
  throw new CancelledError("stopped");
`;

t.test("the first signal stops in good order", async (t) => {
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const) {
    const { child, text } = start(["train", config], waiting);
    await says(child, text, "running");
    child.kill(signal);
    const [exit, by] = await once(child, "close");
    t.same([exit, by], [code, null], text.stderr);
    t.match(
      text.stderr,
      new RegExp(`${signal}: stopping.*saved step-1\nstopped by ${signal}; the state is saved in`, "s"),
    );
  }
});

t.test("a second signal ends the process at once, even while JavaScript is busy", async (t) => {
  const { child, text } = start(
    ["train", config],
    `yield { event: "warning", message: "running" };
     process.stderr.write("busy\\n");
     for (;;) {}`,
  );
  await says(child, text, "busy");
  child.kill("SIGINT");
  // The watcher takes one signal at a time; two equal pending signals of the kernel would be one.
  await new Promise((resolve) => setTimeout(resolve, 200));
  child.kill("SIGTERM");
  const [exit] = await once(child, "close");
  t.equal(exit, 143);
});

t.test("a reader that goes away does not end the run", async (t) => {
  const { child, text } = start(
    ["train", config, "--json"],
    `for (let step = 1; step <= 3000; step++) {
       yield { event: "progress", step, fraction: 0.5, filler: "x".repeat(1000) };
       await new Promise(setImmediate);
     }
     process.stderr.write("all of it\\n");
     yield { event: "done", step: 3000 };`,
  );
  await once(child.stdout, "data");
  child.stdout.destroy();
  const [exit] = await once(child, "close");
  t.equal(exit, 0, text.stderr);
  t.match(text.stderr, /all of it/);
});

t.test("doctor", async (t) => {
  const { child, text } = start(["doctor", "--json"]);
  const [exit] = await once(child, "close");
  t.equal(exit, 0, text.stdout + text.stderr);
  const found = JSON.parse(text.stdout);
  t.match(found, {
    event: "doctor",
    ok: true,
    node: process.versions.node,
    platform: "linux-x64",
    addon: /longseq.*\.node$/,
    problems: [],
  });
  const cpu = found.backends.find(({ name }: { name: string }) => name === "cpu");
  t.match(cpu, { available: true, detail: /^\S+, \d+ threads?$/ });
  const cuda = found.backends.find(({ name }: { name: string }) => name === "cuda");
  // A device, or one line on what is missing.
  if (cuda.available) t.match(cuda.detail, /^cuda:0 \S/);
  else t.match(cuda.detail, /liblongseq_cuda\.so (is missing|cannot be used: .*(driver|lib))/);
  t.ok(found.memory.total > 0 && found.memory.free > 0 && found.disk.free > 0);
  const people = start(["doctor"]);
  await once(people.child, "close");
  t.match(people.text.stdout, /^longseq +\S+\nnode .*\nReady to train\.\n$/s);
});
