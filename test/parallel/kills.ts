// Forty kills in a row, each of a rank or of the launcher at any moment of a run: it goes on each time, and ends with the
// bits of a run that nobody disturbed. Part of npm run test:full.
//
//   node --import=tsx test/parallel/kills.ts [KILLS] [SEED]
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { bin, file, folder, run, steps, weights } from "./cli_runs.js";

t.setTimeout(0);
const [kills = 40, seed = 1 + Math.floor(Math.random() * 1e6)] = process.argv.slice(2).map(Number);
// xorshift: the same kills for the same seed, as far as the machine's timing lets them be.
let state = seed;
const random = (): number => {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) / 2 ** 32;
};
const options = ["--nproc", "2", "train.steps=400", "train.eval_every=50", "output.save_every=4", "output.keep=2"];

t.test(`${kills} kills, seed ${seed}`, { timeout: 0 }, async (t) => {
  const unbroken = await run("unbroken", ...options);
  t.equal(unbroken.code, 0, unbroken.stderr.slice(-300));
  const dir = join(folder, "killed");
  let [done, refused] = [0, 0];
  for (; done < kills; done++) {
    const child = spawn(process.execPath, [bin, "train", file, `output.dir=${dir}`, ...options], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    let stderr = "";
    child.stderr.on("data", (bytes) => {
      stderr += bytes;
    });
    const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
    // From before the ranks have met to some steps and saves.
    await new Promise((wait) => setTimeout(wait, 100 + random() * 2200));
    const pids = [child.pid as number];
    try {
      pids.push(
        ...readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8")
          .trim()
          .split(" ")
          .map(Number)
          .filter(Boolean),
      );
    } catch {
      // It is over.
    }
    const who = Math.floor(random() * pids.length);
    const victim = pids[who];
    try {
      if (victim) process.kill(victim, "SIGKILL");
    } catch {
      // It ended by itself.
    }
    const began = performance.now();
    const code = await ended;
    // Without its launcher a rank ends by itself; the next run waits for its lock.
    for (const pid of pids.slice(1)) while (alive(pid)) await new Promise((wait) => setTimeout(wait, 20));
    const seconds = (performance.now() - began) / 1000;
    const whom = who === 0 ? "the launcher" : `rank ${who - 1} of ${pids.length - 1}`;
    t.ok(seconds < 30, `kill ${done + 1}, of ${whom}: over after ${seconds.toFixed(1)} s`);
    if (code === 2) {
      refused++;
      t.comment(stderr.trim().split("\n").at(-1));
    }
    if (code === 0) break;
  }
  t.comment(`${done} kills, the last step ${steps(dir).at(-1)?.step}`);
  t.equal(refused, 0, "nothing that was left behind is refused");
  const last = await run("killed", ...options);
  t.equal(last.code, 0, last.stderr.slice(-300));
  t.same([...weights(dir)], [...weights(unbroken.dir)], "the same bits");
  t.same(
    steps(dir).map(({ step, loss }) => [step, loss]),
    steps(unbroken.dir).map(({ step, loss }) => [step, loss]),
    "the same losses, each step once",
  );
});

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
