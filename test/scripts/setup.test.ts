// The set-up script and the bin entry, in copies of the clone where apt-get, sudo and dpkg-query are stand-ins.
import { type SpawnSyncReturns, spawn, spawnSync } from "node:child_process";
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import t, { type Test } from "tap";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

interface Clone {
  folder: string;
  /** Runs the copy's set-up script, as it were under uid `uid`, with only the stand-ins on PATH. */
  setup(args?: string[], uid?: number): SpawnSyncReturns<string>;
  /** The command lines that stand-ins noted. */
  calls(): string[];
}

/** A copy of what set-up reads, with stand-ins that note their arguments; `installed` is what dpkg-query knows. */
function clone(t: Test, installed: string[], standIns: Record<string, string> = {}): Clone {
  const folder = t.testdir({ bin: {}, clone: {} });
  const copy = join(folder, "clone");
  for (const name of ["scripts", "bin", "package.json", "package-lock.json", "CMakeLists.txt"]) {
    cpSync(join(root, name), join(copy, name), { recursive: true });
  }
  mkdirSync(join(copy, ".setup"));
  const log = join(folder, "calls");
  writeFileSync(log, "");
  const status = installed.map((name) => `echo "${name} ii "`).join("\n");
  const all: Record<string, string> = { "dpkg-query": status, "apt-get": "exit 0", ...standIns };
  for (const [name, body] of Object.entries(all)) {
    const path = join(folder, "bin", name);
    writeFileSync(path, `#!/bin/sh\necho "${name} $*" >> ${log}\n${body}\n`);
    chmodSync(path, 0o755);
  }
  symlinkSync("/usr/bin/env", join(folder, "bin/env"));
  return {
    folder: copy,
    setup: (args = [], uid = 0) =>
      spawnSync(process.execPath, ["--import", asUser(uid), join(copy, "scripts/setup.mjs"), ...args], {
        encoding: "utf8",
        env: { PATH: join(folder, "bin") },
      }),
    calls: () => readFileSync(log, "utf8").trim().split("\n").filter(Boolean),
  };
}

/** A module that makes the script believe in this uid. */
const asUser = (uid: number) => `data:text/javascript,process.getuid = () => ${uid};`;

t.test("without root and sudo, the first line can be copied and nothing is installed", async (t) => {
  const { setup, calls } = clone(t, ["cmake", "g++"], { sudo: "exit 1" });
  const result = setup([], 1000);
  t.equal(result.status, 1);
  t.equal(
    result.stderr.split("\n")[0],
    "sudo apt-get update && sudo apt-get install -y --no-install-recommends ninja-build",
  );
  t.notOk(calls().some((line) => line.startsWith("apt-get")));
});

t.test("missing packages are installed, as root or through sudo -n, and only those", async (t) => {
  for (const uid of [0, 1000]) {
    const { setup, calls } = clone(t, ["cmake"], { sudo: 'shift\n"$@"' });
    const result = setup([], uid);
    t.equal(result.status, 1, "npm is not on this PATH, so it ends there");
    t.match(result.stderr, /npm is not on PATH/);
    const apt = calls().filter((line) => line.startsWith("apt-get"));
    t.equal(apt.length, 2);
    t.match(apt[0], /update/);
    t.match(apt[1], /install -y --no-install-recommends ninja-build g\+\+$/);
    t.equal(calls().filter((line) => line.startsWith("sudo -n ")).length, uid === 0 ? 0 : 3);
  }
});

t.test("with every package there, apt is left alone", async (t) => {
  const { setup, calls } = clone(t, ["cmake", "g++", "ninja-build"]);
  const result = setup();
  t.match(result.stderr, /npm is not on PATH/);
  t.notOk(calls().some((line) => line.startsWith("apt-get")));
});

t.test("a tool on PATH needs no package", async (t) => {
  const { setup, calls } = clone(t, [], { cmake: "", ninja: "", "g++": "" });
  t.match(setup().stderr, /npm is not on PATH/);
  t.notOk(calls().some((line) => line.startsWith("apt-get")));
});

t.test("npm ci runs with the development packages, and a failure says so", async (t) => {
  const { setup, calls } = clone(t, ["cmake", "g++", "ninja-build"], { npm: "exit 7" });
  const result = setup();
  t.equal(result.status, 1);
  t.match(result.stderr, /npm ci .*failed/);
  t.ok(calls().some((line) => line.startsWith("npm ci --include=dev")));
});

t.test("an unknown option is refused", async (t) => {
  const result = clone(t, []).setup(["--fast"]);
  t.equal(result.status, 2);
  t.match(result.stderr, /Unknown option --fast.*--native/);
});

t.test("the lock of a dead process is taken over; a living one's is waited for", async (t) => {
  const { folder, setup } = clone(t, ["cmake", "g++", "ninja-build"]);
  const lock = join(folder, ".setup/lock");
  for (const stale of ["999999999 12345", `${process.pid} 1`, "", "garbage"]) {
    writeFileSync(lock, stale);
    t.match(setup().stderr, /npm is not on PATH/, `a lock that says ${JSON.stringify(stale)}`);
    t.notOk(existsSync(lock), "given back at exit");
  }
  const holder = spawn(process.execPath, [
    "--input-type=module",
    "-e",
    `import { takeLock } from ${JSON.stringify(join(root, "scripts/lock.mjs"))};
     await takeLock(${JSON.stringify(lock)});
     console.log("held");
     setInterval(() => {}, 1000);`,
  ]);
  await new Promise((resolve) => holder.stdout.once("data", resolve));
  const waiting = spawn(process.execPath, [join(folder, "scripts/setup.mjs")], {
    env: { PATH: join(folder, "../bin") },
  });
  let said = "";
  waiting.stderr.on("data", (chunk) => {
    said += chunk;
    if (said.includes("waiting")) holder.kill("SIGKILL");
  });
  const code = await new Promise((resolve) => waiting.once("close", resolve));
  t.equal(code, 1);
  t.match(said, new RegExp(`waiting for set-up process ${holder.pid}`));
  t.match(said, /npm is not on PATH/, "it went on once the holder was killed");
});

t.test("the command of an unbuilt clone exits 2 and names the set-up command", async (t) => {
  const { folder } = clone(t, []);
  const result = spawnSync(process.execPath, [join(folder, "bin/longseq.mjs"), "doctor"], {
    encoding: "utf8",
    cwd: "/",
  });
  t.equal(result.status, 2);
  t.match(result.stderr, `node ${join(folder, "scripts/setup.mjs")}`);
  t.equal(result.stdout, "");
});

t.test("the command names the choices on another platform", async (t) => {
  const preload = join(t.testdir(), "platform.mjs");
  writeFileSync(preload, 'Object.defineProperty(process, "platform", { value: "darwin" });\n');
  const result = spawnSync(process.execPath, ["--import", preload, join(root, "bin/longseq.mjs"), "doctor"], {
    encoding: "utf8",
  });
  t.equal(result.status, 2);
  t.equal(result.stderr.trim().split("\n").length, 1);
  t.match(result.stderr, /darwin.*Linux x86-64.*container.*WSL 2/);
});

t.test("in this clone set-up has nothing to do and says what to run next", async (t) => {
  const result = spawnSync(process.execPath, [join(root, "scripts/setup.mjs")], { encoding: "utf8" });
  t.equal(result.status, 0);
  t.match(result.stdout, /Next: npm run demo/);
});
