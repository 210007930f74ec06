// `longseq watch` and `train --watch` as processes of their own: the address, Ctrl-C, bad arguments, and how a page beside a run ends.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { join } from "node:path";
import t from "tap";
import { get, lines, step } from "../watch/helpers.js";

const mainUrl = new URL("../../lib/cli/main.ts", import.meta.url).href;

/** The command line in `cwd`; `trainer` is the body of a generator that stands for the trainer's run. */
function start(cwd: string, argv: string[], trainer = "") {
  const program = join(cwd, "program.mts");
  writeFileSync(
    program,
    `import { main } from ${JSON.stringify(mainUrl)};
const createTrainer = () => ({ run: async function* ({ signal }) { ${trainer} } });
process.exitCode = await main(process.argv.slice(2), { parts: { createTrainer } });
`,
  );
  const { DISPLAY: _, WAYLAND_DISPLAY: __, ...env } = process.env;
  const child = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), program, ...argv], {
    cwd,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...env, NODE_OPTIONS: "" },
  });
  const text = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (part) => (text.stdout += part));
  child.stderr.setEncoding("utf8").on("data", (part) => (text.stderr += part));
  return { child, text, closed: once(child, "close") };
}

async function says(child: ChildProcess, text: { stdout: string; stderr: string }, pattern: RegExp): Promise<string> {
  for (;;) {
    const found = pattern.exec(text.stdout + text.stderr);
    if (found !== null) return found[0];
    await Promise.race([
      once(child.stdout as NodeJS.ReadableStream, "data"),
      once(child.stderr as NodeJS.ReadableStream, "data"),
      once(child, "close").then(() => {
        if (!pattern.test(text.stdout + text.stderr)) throw new Error(`ended with: ${text.stdout}${text.stderr}`);
      }),
    ]);
  }
}

t.test("the address, runs by default, --json, and both signals", async (t) => {
  const folder = t.testdir({ runs: { first: { "metrics.jsonl": lines(step(1)) } } });
  for (const [signal, code, argv] of [
    ["SIGINT", 130, []],
    ["SIGTERM", 143, ["--json"]],
  ] as const) {
    const { child, text, closed } = start(folder, ["watch", ...argv]);
    const url = new URL(await says(child, text, /http:\/\/127\.0\.0\.1:\d+\/[\w-]{32}\//));
    t.equal((await get(Number(url.port), url.pathname)).status, 200);
    if (argv.length === 0) await says(child, text, /Ctrl-C ends it/);
    child.kill(signal);
    t.same(await closed, [code, null], text.stderr);
    t.notMatch(text.stderr, /waiting/);
    if (argv.length > 0)
      t.match(JSON.parse(text.stdout), { event: "watch", url: url.href, folders: [join(folder, "runs")] });
  }
});

t.test("without a run it says so and waits; what will not do is said", async (t) => {
  const folder = t.testdir({ file: "no folder" });
  const waiting = start(folder, ["watch", "none"]);
  await says(
    waiting.child,
    waiting.text,
    /none: there is no such folder yet\nwaiting: a run is shown as soon as it begins/,
  );
  waiting.child.kill("SIGINT");
  t.same(await waiting.closed, [130, null]);

  const other = createServer().listen(0, "127.0.0.1");
  await once(other, "listening");
  t.teardown(() => other.close());
  const { port } = other.address() as AddressInfo;
  for (const [argv, words] of [
    [["watch", "--port", String(port)], `error: --port: ${port} is taken by another program`],
    [["watch", "--port", "70000"], "Expected a port from 1 to 65535, or 0 for any free one"],
    [["watch", "file"], "error: file is no folder"],
  ] as const) {
    const { text, closed } = start(folder, [...argv]);
    t.same(await closed, [2, null], argv.join(" "));
    t.match(text.stderr, words);
  }
});

const config = `model: {init: {vocab_size: 259}}
data: {train: none.jsonl, sequence_length: 64}
train: {steps: 2}
output: {dir: out}
`;

t.test("train --watch: the page is there while the run goes on, and ends with it", async (t) => {
  const folder = t.testdir({ "run.yaml": config });
  const { child, text, closed } = start(
    folder,
    ["train", "run.yaml", "--watch"],
    `yield { event: "warning", message: "running" };
     const timer = setInterval(() => {}, 1000);
     await new Promise((resolve) => signal.addEventListener("abort", resolve));
     clearInterval(timer);`,
  );
  const url = new URL((await says(child, text, /watch: http:\S+\//)).slice("watch: ".length));
  await says(child, text, /running/);
  t.match((await get(Number(url.port), url.pathname)).body, /longseq watch/);
  child.kill("SIGINT");
  t.equal((await closed)[0], 130, text.stderr);
  t.match(text.stderr, /the page has ended with the run; longseq watch .*out shows it again/);
  // Its process ends in its own time.
  for (let there = true; there; )
    there = await get(Number(url.port), url.pathname).then(
      () => true,
      () => false,
    );
});

t.test("train --watch: a run that is killed takes the page along", async (t) => {
  const folder = t.testdir({ "run.yaml": config });
  const { child, text, closed } = start(folder, ["train", "run.yaml", "--watch"], "for (;;) {}");
  const url = new URL((await says(child, text, /watch: http:\S+\//)).slice("watch: ".length));
  child.kill("SIGKILL");
  t.same(await closed, [null, "SIGKILL"]);
  for (let there = true; there; )
    there = await get(Number(url.port), url.pathname).then(
      () => true,
      () => false,
    );
});
