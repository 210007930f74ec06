// What npm run bundle:gpu packs, made as a folder of links: every program of the checks and benches is in it, none needs a
// file from outside, and they run with the folder's own Node and nothing on PATH, on the CPU, whatever becomes of one of them.
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import t from "tap";
import { packageRoot } from "../../lib/binding.js";

t.setTimeout(0);
const work = realpathSync(mkdtempSync(join(tmpdir(), "longseq-bundle-")));
t.teardown(() => rmSync(work, { recursive: true, force: true }));
const folder = join(work, "longseq_gpu");
const out = join(work, "out");

interface Job {
  name: string;
  file: string;
  seconds: number;
  otherwise?: Job;
}
interface Summary {
  complete: boolean;
  machine: { name: string | null };
  failure?: string;
  passed?: number;
  failed?: number;
  notRun?: number;
  results: { job?: string; part: string; passed?: number; failed?: number; notRun?: string; why?: string }[];
}

/** run.sh with nothing in its environment but what is given. */
function run(args: string[], env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync("/bin/sh", [join(folder, "run.sh"), ...args], {
    cwd: work,
    encoding: "utf8",
    env: { PATH: join(work, "empty"), ...env },
  });
  return { status, stdout, text: stdout + stderr };
}
const small = ["--device", "cpu", "--small", "--patience", "20", "--workers", "1", "--out", out];
const summary = (name: string) => JSON.parse(readFileSync(join(out, `${name}.json`), "utf8")) as Summary;

const made = spawnSync(process.execPath, [join(packageRoot, "scripts/bundle_gpu.mjs"), "--trial", folder], {
  encoding: "utf8",
});
t.equal(made.status, 0, `the folder is made ${made.stderr}`);

/** All JavaScript of ours in it. */
const scripts = (readdirSync(join(folder, "dist"), { recursive: true }) as string[])
  .filter((path) => path.endsWith(".js"))
  .map((path) => join(folder, "dist", path));

t.test("no program needs a file that is not in it", async (t) => {
  t.ok(scripts.length > 100, `${scripts.length} files`);
  const packages = createRequire(pathToFileURL(join(folder, "dist/index.js")));
  for (const file of scripts) {
    const text = readFileSync(file, "utf8");
    for (const [, name] of text.matchAll(/(?:\bfrom|\bimport\(?)\s*"([^"\n]+)"/g)) {
      const wanted = name as string;
      if (wanted.startsWith("node:")) continue;
      let there: boolean;
      try {
        there = wanted.startsWith(".")
          ? existsSync(resolve(dirname(file), wanted))
          : packages.resolve(wanted).startsWith(folder);
      } catch {
        there = existsSync(join(folder, "node_modules", wanted, "package.json"));
      }
      if (!there) t.fail(`${file} imports ${wanted}`);
    }
  }
  for (const path of ["run.sh", "node", "bin/longseq.mjs", "dist/bench/pytorch/gpu.py", "dist/test/golden/models"])
    t.ok(existsSync(join(folder, path)), path);
});

t.test("the parts: their programs are there, and none may take longer than 8 minutes", async (t) => {
  const listed = run(["check", "--list"]);
  t.equal(listed.status, 0, listed.text);
  const parts = JSON.parse(listed.stdout) as { name: string; jobs: Job[] }[];
  for (const { name, jobs } of parts) {
    const total = jobs.reduce((sum, job) => sum + job.seconds, 0);
    t.ok(total <= 480, `${name}: ${total} s`);
    for (const job of jobs.flatMap((job) => [job, ...(job.otherwise ? [job.otherwise] : [])]))
      t.ok(existsSync(join(folder, "dist", `${job.file}.js`)), job.file);
  }
  const benches = JSON.parse(run(["bench", "--list"]).stdout) as { args: string[]; seconds: number }[];
  const areas = readFileSync(join(folder, "dist/bench/gpu/area.js"), "utf8");
  for (const { args, seconds } of benches) {
    t.match(areas, new RegExp(`\\b${args[0]}\\b`));
    t.ok(seconds <= 570, `${args.join(" ")}: ${seconds} s`);
  }
});

t.test("checks and benches run on the CPU, and leave their results", async (t) => {
  const checked = run(["check", ...small, "--part", "2,attention above,beyond,fill"]);
  t.match(checked.text, /\d+ passed, 0 failed/);
  const { machine, results, passed } = summary("check");
  t.ok(machine.name, `the machine has a name: ${machine.name}`);
  t.ok((passed ?? 0) > 100, `${passed} passed`);
  t.equal(results.filter(({ passed }) => (passed ?? 0) > 0).length, 3, "three programs");

  // PyTorch's side finds no Python: a line says so, and ours is there.
  const measured = run(["bench", ...small, "--part", "gemm,offload 16384"]);
  t.match(measured.text, /not measured: gemm, PyTorch/);
  t.match(measured.text, /512 x 64 x 64 forward \|/);
  t.match(
    measured.text,
    /T 64, offload host to none \| .* \| (\d+) \| \1 \|/,
    "what went out and came back is all of it",
  );
  t.match(readFileSync(join(out, "bench.md"), "utf8"), /512 x 64 x 64 dW \|/);
});

t.test("compute-sanitizer is used where it is on PATH", async (t) => {
  const bin = join(work, "bin");
  mkdirSync(bin);
  // A fake that notes its flags and runs the program.
  writeFileSync(
    join(bin, "compute-sanitizer"),
    `#!/bin/sh\nfor flag; do case $flag in */node) break ;; esac; echo "$flag"; shift; done >"${work}/flags"\nexec "$@"\n`,
    { mode: 0o755 },
  );
  const checked = run(["check", ...small, "--part", "11"], { PATH: bin });
  t.match(checked.text, /racecheck\/sum: \d+ passed, 0 failed/);
  t.match(readFileSync(join(work, "flags"), "utf8"), /--tool\nracecheck\n--error-exitcode\n77/);
});

t.test("a program that crashes, hangs or finds no time is one line, and the others go on", async (t) => {
  const broken = join(folder, "dist/test/ops");
  writeFileSync(join(broken, "fill.test.js"), "process.kill(process.pid, 'SIGSEGV'); setTimeout(() => {}, 60000);");
  writeFileSync(join(broken, "copy.test.js"), "setInterval(() => {}, 1000);");
  writeFileSync(join(broken, "rope.test.js"), "console.log('TAP version 14');");
  for (const op of ["rms_norm", "swiglu", "embedding", "cross_entropy", "adamw"])
    writeFileSync(join(broken, `${op}.test.js`), "console.log('ok 1 - nothing is the matter');");
  const checked = run(["check", ...small.map((arg) => (arg === "20" ? "0.2" : arg)), "--part", "10"], {
    PATH: join(work, "bin"),
  });
  t.equal(checked.status, 1);
  const of = (job: string) => summary("check").results.find((one) => one.job === `memcheck/${job}`);
  t.match(of("fill")?.why, /SIGSEGV/);
  t.match(of("copy")?.why, /time limit/);
  t.match(of("rope")?.why, /checked nothing/);
  t.equal(of("adamw")?.passed, 1, "the last one still ran");
  t.match(checked.text, /\d+ passed, \d+ failed\n$/);

  const late = run(["check", ...small, "--part", "3,4", "--budget", "1"]);
  t.equal(late.status, 1);
  t.ok((summary("check").notRun ?? 0) > 10, "what has no time is named");
  t.equal(summary("check").complete, false);
  t.match(late.text, /\d+ passed, 0 failed, \d+ not run\n$/);

  const without = run(["check", "--device", "nothing", "--out", out]);
  t.equal(without.status, 2);
  t.match(without.text, /no GPU was used: /);
  t.match(summary("check").failure, /nothing/);
});
