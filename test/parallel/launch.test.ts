// longseq launch: scripts, and launchers of several machines.
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import t from "tap";
import { bin, file, folder, run, sameRun } from "./cli_runs.js";

const library = new URL("../../dist/lib/index.js", import.meta.url).href;

/** A script of ranks, for `longseq launch`. */
function rankScript(name: string, body: string): string {
  const script = join(folder, name);
  writeFileSync(script, `import { parallel } from ${JSON.stringify(library)};\n${body}`);
  return script;
}

const launch = (...args: string[]) =>
  new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
    execFile(process.execPath, [bin, "launch", ...args], (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });

t.test("scripts, through longseq launch", async (t) => {
  const script = rankScript(
    "script.mjs",
    `const job = await parallel.init();
     const all = await job.swap(job.rank * 10);
     if (job.rank === 0) console.log(JSON.stringify(all));
     if (process.argv[2] === "fail" && job.rank === 2) throw new Error("out of luck");
     // Rank 1 is done early, without a word of its own.
     if (job.rank !== 1) setTimeout(() => job.close(), 500).ref();`,
  );
  const logs = ["--logs", join(folder, "script")];
  const good = await launch("--nproc", "3", ...logs, "--", script);
  t.same([good.code, good.stdout.trim()], [0, "[0,10,20]"], good.stderr);
  const bad = await launch("--nproc", "3", ...logs, "--", script, "fail");
  t.equal(bad.code, 1);
  t.match(bad.stderr, /rank 2 ended first, with exit code 1[\s\S]*out of luck/);
  for (const [args, message] of [
    [[], /missing what to launch/],
    [["--", "no.mjs"], /cannot launch "no\.mjs"/],
    [["--nproc", "2", "--rendezvous-timeout", "0", "--", script], /Expected seconds/],
  ] as const) {
    const { code, stderr } = await launch(...args);
    t.equal(code, 2, stderr);
    t.match(stderr, message);
  }
});

t.test("the exchanges of ranks are timed", async (t) => {
  const module = new URL("../../dist/lib/train/calibrate_links.js", import.meta.url).href;
  const script = rankScript(
    "links.mjs",
    `import { device } from ${JSON.stringify(library)};
     import { calibrateLinks } from ${JSON.stringify(module)};
     const job = await parallel.init();
     const links = await calibrateLinks(job, device("cpu", { threads: 1 }), [4096, 65536]);
     if (job.rank === 0) console.log(JSON.stringify(links));
     job.close();`,
  );
  const { code, stdout, stderr } = await launch("--nproc", "2", "--logs", join(folder, "links"), "--", script);
  t.equal(code, 0, stderr);
  const links = JSON.parse(stdout) as Record<string, [bytes: number, rate: number][]>;
  // Of two ranks half of what is exchanged leaves each; a sum of all goes out and comes back.
  const bytes = { all_to_all: 0.5, all_gather: 0.5, reduce_scatter: 0.5, all_reduce: 1, send_receive: 1 };
  t.same(Object.keys(links).sort(), [...Object.keys(bytes).map((op) => `${op}:node`), "node"].sort());
  for (const [op, share] of Object.entries(bytes)) {
    const curve = links[`${op}:node`] ?? [];
    t.same(
      curve.map(([size]) => size),
      [4096 * share, 65536 * share],
      op,
    );
    for (const [size, rate] of curve) t.ok(rate > 1e5 && rate < 1e12, `${op} of ${size} bytes: ${rate} B/s`);
  }
});

/** A port where nobody listens. */
const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });

/** The environment that torchrun gives to a rank of two. */
const otherStarter = (rank: number, port: number): NodeJS.ProcessEnv => ({
  ...process.env,
  LONGSEQ_SECRET: "between us",
  RANK: String(rank),
  WORLD_SIZE: "2",
  LOCAL_RANK: String(rank),
  LOCAL_WORLD_SIZE: "2",
  MASTER_ADDR: "127.0.0.1",
  MASTER_PORT: String(port),
});

/** `longseq train` as torchrun starts it. */
const startedByOther = (rank: number, port: number, ...args: string[]) =>
  new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
    const env = otherStarter(rank, port);
    execFile(process.execPath, [bin, "train", file, ...args], { timeout: 120_000, env }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });

t.test("a rank that another starter started waits as long as --rendezvous-timeout says", async (t) => {
  const dir = join(folder, "late");
  const { code, stderr } = await startedByOther(
    1,
    await freePort(),
    `output.dir=${dir}`,
    "--rendezvous-timeout",
    "0.5",
  );
  t.equal(code, 1, stderr);
  t.match(stderr, /nobody is at the meeting place 127\.0\.0\.1/);
});

t.test("whoever listens there and is no meeting place keeps nobody", async (t) => {
  const server = createServer(() => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  const dir = join(folder, "silence");
  const { code, stderr } = await startedByOther(1, port, `output.dir=${dir}`, "--rendezvous-timeout", "0.5");
  t.equal(code, 1, stderr);
  t.match(stderr, /does not answer as the meeting place of a job does/);
  server.close();
});

t.test("the rank that failed is named, though others that lost it ended before it did", async (t) => {
  const script = rankScript(
    "slow end.mjs",
    `const job = await parallel.init();
     if (job.rank === 1) {
       job.close({ failed: true });
       console.error("the true cause");
       setTimeout(() => process.exit(1), 1500);
     } else await job.swap(0);`,
  );
  const { code, stderr } = await launch("--nproc", "2", "--logs", join(folder, "slow end"), "--", script);
  t.equal(code, 1, stderr);
  t.match(
    stderr,
    /rank 1 was lost[\s\S]*rank 1 ended first, with exit code 1; its last words, from .*:\n {2}the true cause/,
  );
});

t.test("a rank that is done before it came to the others is not waited for", async (t) => {
  const script = rankScript("gone.mjs", 'if (process.env.LONGSEQ_RANK === "0") await parallel.init();');
  const begin = performance.now();
  const { code, stderr } = await launch("--nproc", "2", "--logs", join(folder, "gone"), "--", script);
  t.equal(code, 1, stderr);
  t.match(stderr, /rank 1 was lost: its process has ended before it came to the others/);
  t.ok(performance.now() - begin < 60_000, "the rendezvous timeout is 300 s");
});

t.test("a mistake that all ranks find is told once", async (t) => {
  const { code, stderr } = await run("a mistake", "--nproc", "2", "parallel.ring=3");
  t.equal(code, 2, stderr);
  t.match(stderr, /^error: parallel\.ring: 3 does not divide the 2 ranks of a sequence[^\n]*\n$/);
});

t.test("a rank that is asked to stop before it listens stops the job, which is not started again", async (t) => {
  const script = rankScript(
    "too early.mjs",
    `if (process.env.LONGSEQ_RANK === process.argv[2]) {
       process.kill(process.pid, process.argv[3]);
       setTimeout(() => {}, 60_000);
     } else await parallel.init();`,
  );
  for (const [rank, signal, expected] of [
    ["1", "SIGTERM", 143],
    ["0", "SIGINT", 130],
  ] as const) {
    const logs = ["--logs", join(folder, "too early")];
    const { code, stderr } = await launch("--nproc", "2", "--max-restarts", "1", ...logs, "--", script, rank, signal);
    t.equal(code, expected, stderr);
    t.match(stderr, new RegExp(`rank ${rank} was ended by ${signal} before all ranks could stop together`));
    t.notMatch(stderr, /it is started again/);
  }
});

t.test("a rank that stops before it trains stops those that have begun", async (t) => {
  const dir = join(folder, "unbegun");
  const script = rankScript(
    "unbegun.mjs",
    `import { device as open, loadConfig, Trainer } from ${JSON.stringify(library)};
     const job = await parallel.init();
     const stop = new AbortController();
     const device = open("cpu", { threads: 1 });
     if (job.rank === 1) {
       // Between the last word that ranks exchange before they train, and its model; the other trains meanwhile.
       device.resetPeaks = () => stop.abort();
       job.requestStop = () => setTimeout(() => Object.getPrototypeOf(job).requestStop.call(job), 1000);
     }
     try {
       const trainer = new Trainer(loadConfig(process.argv[2], ["output.dir=" + process.argv[3]]), { device });
       for await (const item of trainer.run({ signal: stop.signal })) if (job.rank === 0) console.error(item.event);
     } catch (error) {
       console.error(error.code, error.message);
     }
     job.close();`,
  );
  const { code, stderr } = await launch("--nproc", "2", "--logs", dir, "--", script, file, dir);
  t.equal(code, 0, stderr);
  t.match(stderr, /plan[\s\S]*CANCELLED stopped before all ranks had begun/);
  t.match(readFileSync(join(dir, "ranks/1.log"), "utf8"), /^CANCELLED /);
});

t.test("a signal ends a rank that waits for the others", async (t) => {
  let child: ChildProcess | undefined;
  // Whoever comes here has its handlers.
  const server = createServer(() => child?.kill("SIGTERM"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  child = spawn(process.execPath, [bin, "train", file, `output.dir=${join(folder, "waits")}`], {
    env: otherStarter(1, port),
  });
  let stderr = "";
  child.stderr?.on("data", (bytes) => {
    stderr += bytes;
  });
  t.equal(await new Promise((resolve) => child?.once("close", resolve)), 143, stderr);
  server.close();
});

t.test("what ranks do not agree on is named", async (t) => {
  const port = await freePort();
  const dir = join(folder, "other settings");
  const ranks = await Promise.all(
    [0, 1].map((rank) => startedByOther(rank, port, `output.dir=${dir}`, `train.learning_rate=${rank + 1}e-3`)),
  );
  t.match(
    ranks[0]?.stderr,
    /error: rank 1 has another configuration than rank 0: train\.learning_rate is 0\.002 against 0\.001\n/,
  );
});

t.test("of ranks that another starter started the first has the terminal, the others a log", async (t) => {
  const one = await run("one of its own");
  const dir = join(folder, "by another");
  const port = await freePort();
  const ranks = await Promise.all([0, 1].map((rank) => startedByOther(rank, port, `output.dir=${dir}`)));
  t.same(
    ranks.map(({ code }) => code),
    [0, 0],
  );
  sameRun(t, one.dir, dir, "by another");
  t.match(ranks[0]?.stdout, /done: /);
  t.match(ranks[0]?.stderr, /step 1/);
  t.same([ranks[1]?.stdout, ranks[1]?.stderr], ["", ""], "rank 1 is silent");
  t.match(readFileSync(join(dir, "ranks/1.log"), "utf8"), /step 1[\s\S]*done: /);
});

t.test("two launchers, as on two machines, over the network", async (t) => {
  const one = await run("one of two machines");
  const dir = join(folder, "two machines");
  const port = await freePort();
  const launch = (node: string, secret: string | undefined) =>
    new Promise<{ code: number; stderr: string }>((resolve) => {
      const args = ["--nproc", "1", "--nnodes", "2", "--node-rank", node, "--rendezvous", `127.0.0.1:${port}`];
      execFile(
        process.execPath,
        [bin, "launch", ...args, "--", "train", file, `output.dir=${dir}`],
        { timeout: 120_000, env: { ...process.env, ...(secret !== undefined && { LONGSEQ_SECRET: secret }) } },
        (error, _, stderr) => resolve({ code: error === null ? 0 : Number(error.code), stderr }),
      );
    });
  const [first, second] = await Promise.all([launch("0", "between us"), launch("1", "between us")]);
  t.same([first?.code, second?.code], [0, 0], `${first?.stderr}${second?.stderr}`);
  sameRun(t, one.dir, dir, "two machines");
  const without = await launch("0", undefined);
  t.equal(without.code, 2);
  t.match(without.stderr, /LONGSEQ_SECRET is not set: on several machines/);
});
