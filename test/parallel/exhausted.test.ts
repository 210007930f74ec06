// One rank runs out of memory, cannot write its share of a checkpoint, or is killed while it meets the others or saves with
// them: all end, the message names the rank and what was missing, nothing is left behind, and the run goes on from its
// newest checkpoint to the bits of an unbroken one.
import { execFile } from "node:child_process";
import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { bin, file, folder, run, steps, weights } from "./cli_runs.js";

const library = new URL("../../dist/lib/index.js", import.meta.url).href;
const script = join(folder, "exhausted.mjs");
writeFileSync(
  script,
  `import { execFileSync } from "node:child_process";
   import { watch } from "node:fs";
   import { Device, loadConfig, parallel, Tensor, Trainer } from ${JSON.stringify(library)};
   const [what, dir] = process.argv.slice(2);
   const die = () => process.kill(process.pid, "SIGKILL");
   if (what === "rendezvous" && process.env.LONGSEQ_RANK === "1") die();
   const job = await parallel.init();
   const device = new Device("cpu", { threads: 1 });
   const trainer = new Trainer(loadConfig(${JSON.stringify(file)}, ["output.dir=" + dir]), { device });
   // A write beyond a limit of the file's size fails then, and ends nobody.
   process.on("SIGXFSZ", () => {});
   /** Takes all that is left. */
   function fill(device) {
     const all = [];
     try {
       for (;;) all.push(Tensor.empty([4096], { device }));
     } catch {
       return all;
     }
   }
   let ballast = [];
   for await (const { event, step } of trainer.run()) {
     if (job.rank !== 1 || event !== undefined || step !== 3) continue;
     // As of memory and a disk that others have filled.
     if (what === "memory") {
       device.setLimit(device.memory().reserved);
       ballast = fill(device);
     } else if (what === "save") watch(dir + "/checkpoints", die);
     else execFileSync("prlimit", ["--pid", String(process.pid), "--fsize=8192"]);
   }
   console.log("rank " + job.rank + " is done with " + ballast.length);`,
);

const launch = (what: string, dir: string): Promise<{ code: number; stderr: string }> =>
  new Promise((resolve) => {
    const args = [bin, "launch", "--nproc", "2", "--logs", join(dir, "ranks"), "--", script, what, dir];
    execFile(process.execPath, args, { timeout: 120_000 }, (error, _, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stderr }),
    );
  });

t.test("a rank without memory or disk, or without life", async (t) => {
  const unbroken = await run("undisturbed", "--nproc", "2");
  t.equal(unbroken.code, 0, unbroken.stderr);
  for (const [what, message] of [
    ["memory", /rank 1 ended first, with exit code 1[\s\S]*out of device memory on cpu/],
    ["disk", /cannot save .*step-4: rank 1: .*share-00002-of-00002\.safetensors.*(EFBIG|File too large)/i],
    ["save", /rank 1 (was lost|has ended|ended first)/],
    ["rendezvous", /rank 1 (was lost|has ended|ended first)/],
  ] as const) {
    const dir = join(folder, what);
    const { code, stderr } = await launch(what, dir);
    t.equal(code, 1, stderr);
    t.match(stderr, message);
    const checkpoints = join(dir, "checkpoints");
    const kept = existsSync(checkpoints) ? readdirSync(checkpoints) : [];
    t.ok(
      kept.every((name) => /^step-\d+$/.test(name)),
      `${what}: whole checkpoints alone: ${kept}`,
    );
    t.ok(what === "rendezvous" || kept.includes("step-2"), `${what}: what was saved before is there`);
    const on = await run(what, "--nproc", "2", "output.resume=auto");
    t.equal(on.code, 0, on.stderr);
    t.same([...weights(on.dir)], [...weights(unbroken.dir)], `${what}: the same bits`);
    t.same(
      steps(on.dir).map(({ step, loss }) => [step, loss]),
      steps(unbroken.dir).map(({ step, loss }) => [step, loss]),
    );
  }
});
