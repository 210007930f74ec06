// Ranks that are wrong, killed or stopped: clear ends, nothing left behind, nothing lost.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { bin, type Ended, file, folder, run, steps, weights } from "./cli_runs.js";

t.test("wrong numbers of ranks", async (t) => {
  for (const [args, message] of [
    [["--nproc", "3", "parallel.ring=1"], /parallel: 8 query heads do not divide among 3 ranks .*no ring/],
    [["--nproc", "2", "parallel.ring=3"], /parallel\.ring: 3 does not divide the 2 ranks of a sequence/],
    [["--nproc", "2", "parallel.sequence=4"], /sequence 4 x data 1 is for 4 ranks, but this run has 2/],
    [["parallel.sequence=2"], /is for 2 ranks, but this run has 1; start it with --nproc 2/],
    [["--nproc", "0"], /Expected a whole number of at least 1/],
    [["--nproc", "2", "train.steps=none"], /train\.steps/],
  ] as const) {
    const { code, stderr } = await run("wrong", ...args);
    t.equal(code, 2, stderr);
    t.match(stderr, message);
  }
});

/** Starts a long run and calls `act` with its ranks' process ids after its first step. */
function disturbed(name: string, act: (pids: number[], launcher: number) => void, more: string[] = []): Promise<Ended> {
  const dir = join(folder, name);
  return new Promise((resolve) => {
    const child = spawn(
      process.execPath,
      [bin, "train", file, `output.dir=${dir}`, "--nproc", "2", "train.steps=100000", "train.eval_every=0", ...more],
      { stdio: ["ignore", "ignore", "pipe"] },
    );
    let stderr = "";
    let acted = false;
    child.stderr.on("data", (bytes) => {
      stderr += bytes;
      if (acted || !stderr.includes("step 3/")) return;
      acted = true;
      const children = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8");
      act(children.trim().split(" ").map(Number), child.pid as number);
    });
    child.once("close", (code) => resolve({ code: code ?? -1, stderr, dir }));
  });
}

const gone = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return false;
  } catch {
    return true;
  }
};

t.test("a rank that is killed ends the job, which says so", async (t) => {
  for (const victim of [0, 1]) {
    let pids: number[] = [];
    const { code, stderr } = await disturbed(`killed ${victim}`, (all) => {
      pids = all;
      process.kill(all[victim] as number, "SIGKILL");
    });
    t.equal(code, 1, stderr);
    t.match(stderr, `rank ${victim} ended first, killed by SIGKILL`);
    if (victim === 1) t.match(stderr, /rank 1 (has ended|was lost)/);
    t.ok(pids.every(gone), "no process is left");
  }
});

t.test("a job that fails goes on from its newest checkpoint, to the same bits", async (t) => {
  const unbroken = await run(
    "unbroken",
    "--nproc",
    "2",
    "train.steps=150",
    "train.eval_every=0",
    "output.save_every=5",
  );
  const dir = join(folder, "restarted");
  const options = [
    "train.steps=150",
    "train.eval_every=0",
    "output.save_every=5",
    "--nproc",
    "2",
    "--max-restarts",
    "1",
  ];
  const child = spawn(process.execPath, [bin, "train", file, `output.dir=${dir}`, ...options], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr = "";
  let killed = false;
  child.stderr.on("data", (bytes) => {
    stderr += bytes;
    if (killed || !stderr.includes("step 7/")) return;
    killed = true;
    const ranks = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ");
    process.kill(Number(ranks[1]), "SIGKILL");
  });
  const code = await new Promise((resolve) => child.once("close", resolve));
  t.equal(code, 0, stderr);
  t.match(stderr, /the job failed; it is started again \(1 of 1 times\)/);
  t.same([...weights(dir)], [...weights(unbroken.dir)]);
});

t.test("a signal to any rank stops all of them in good order, and nothing is started again", async (t) => {
  for (const victim of [0, 1]) {
    const { code, stderr, dir } = await disturbed(
      `asked ${victim}`,
      (all) => process.kill(all[victim] as number, "SIGTERM"),
      ["--max-restarts", "1"],
    );
    t.equal(code, 143, stderr);
    t.notMatch(stderr, /started again|error:/);
    const last = steps(dir).at(-1)?.step as number;
    t.ok(readdirSync(join(dir, "checkpoints")).includes(`step-${last}`), `step ${last} is saved`);
    t.match(stderr, victim === 0 ? "stopped by SIGTERM" : "stopped with the rank that a signal reached");
  }
});

t.test("a folder that cannot be made, and one in use", async (t) => {
  const nowhere = await run("nowhere", "--nproc", "2", "output.dir=/proc/nothing");
  t.equal(nowhere.code, 1);
  t.match(nowhere.stderr, /output\.dir: cannot write \/proc\/nothing\/ranks\/1\.log: ENOENT/);
  const dir = join(folder, "shared");
  let second: Promise<Ended> | undefined;
  const first = await disturbed("shared", (_, launcher) => {
    const before = readFileSync(join(dir, "ranks/1.log"), "utf8");
    second = run("shared", "--nproc", "2", "train.steps=100000", "train.eval_every=0").then((ended) => {
      t.ok(readFileSync(join(dir, "ranks/1.log"), "utf8").startsWith(before), "the words of the first job stay");
      process.kill(launcher, "SIGTERM");
      return ended;
    });
  });
  t.equal(first.code, 143);
  t.match((await second)?.stderr, /another run is training into/);
});

t.test("Ctrl-C: the state is saved once, and the run goes on from there", async (t) => {
  const { code, stderr, dir } = await disturbed("stopped", (_, launcher) => process.kill(launcher, "SIGINT"));
  t.equal(code, 130, stderr);
  const last = steps(dir).at(-1)?.step as number;
  t.ok(readdirSync(join(dir, "checkpoints")).includes(`step-${last}`), `step ${last} is saved`);
});
