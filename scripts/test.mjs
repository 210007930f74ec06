// Runs the tests: brings the build up to date, then tap over what was asked for, and prints the counts on one line.
//
// node scripts/test.mjs                 all of test/ but test/package
// node scripts/test.mjs --package       test/package alone, after making the prebuild if it is not current
// node scripts/test.mjs FILE...         these files or folders
//
// test/package packs and installs the tarball. It is slow and wants a current prebuild, so a plain run takes it along
// only when there is one; .ci/run always runs it. So with test/watch/page, which wants Chromium.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { findChromium } from "./chromium.mjs";
import { root } from "./hash.mjs";
import { prebuildCurrent } from "./prebuild_state.mjs";

const args = process.argv.slice(2);
const packageOnly = args.includes("--package");
const named = args.filter((arg) => !arg.startsWith("--"));

function step(script, ...scriptArgs) {
  const result = spawnSync(process.execPath, [join(root, "scripts", script), ...scriptArgs], {
    cwd: root,
    stdio: "inherit",
  });
  if (result.status !== 0) process.exit(result.status ?? 1);
}

/** The test files under a folder of the clone, in a fixed order. */
function testFiles(path) {
  const full = join(root, path);
  if (!statSync(full).isDirectory()) return [path];
  return readdirSync(full)
    .sort()
    .filter((name) => name !== "node_modules" && !name.startsWith("."))
    .flatMap((name) =>
      statSync(join(full, name)).isDirectory() || name.endsWith(".test.ts") ? [join(path, name)] : [],
    )
    .flatMap(testFiles);
}

step("setup.mjs", "--tests", "--quiet");
if (packageOnly && !prebuildCurrent()) step("prebuild.mjs");

let files;
if (packageOnly) files = testFiles("test/package");
else if (named.length > 0) files = named.flatMap(testFiles);
else {
  const browser = findChromium() !== undefined;
  if (!browser) console.log("test/watch/page is left out: no Chromium (apt-get install chromium, or set CHROMIUM)");
  files = testFiles("test").filter(
    (file) =>
      (!file.startsWith("test/package/") || prebuildCurrent()) && (!file.startsWith("test/watch/page/") || browser),
  );
}

// Built here, so that no test's time limit counts it.
if (files.some((file) => /test\/cuda\/(emul|ranks|host)/.test(file))) step("../test/native/cuda_emul/build.mjs");

// tap as npm installs it has plugins that .taprc takes out; until it is built anew, each test file loads two compilers.
const tapRun = join(root, "node_modules/tap/dist/esm/run.mjs");
if (
  readFileSync(join(root, "node_modules/@tapjs/test/test-built/dist/esm/index.js"), "utf8").includes(
    "@tapjs/typescript",
  )
) {
  const built = spawnSync(process.execPath, [tapRun, "build"], { cwd: root, encoding: "utf8" });
  if (built.status !== 0) console.error(`longseq: tap could not be built, tests take longer: ${built.stderr}`);
}

// All of tap's output goes into a file; the screen gets a line a test file, and every failure whole.
mkdirSync(join(root, ".setup"), { recursive: true });
const logPath = join(root, ".setup/test.tap");
const log = createWriteStream(logPath);
const tap = spawn(process.execPath, [tapRun, "run", "-R", "tap", ...files], {
  cwd: root,
  stdio: ["ignore", "pipe", "inherit"],
});
let inFailure = false;
let summary = "";
for await (const line of createInterface({ input: tap.stdout })) {
  log.write(`${line}\n`);
  if (/^\s*not ok /.test(line)) inFailure = true;
  if (inFailure || /^ok |^Bail out/.test(line)) console.log(line);
  if (/^\s*\.\.\.$/.test(line) || /^\s*ok /.test(line)) inFailure = false;
  // tap ends with `# { total: 12, pass: 11, fail: 1 }`.
  if (line.startsWith("# { total:")) summary = line;
}
const code = tap.exitCode ?? (await once(tap, "exit"))[0];
log.end();
const count = (name) => Number(new RegExp(`${name}: ([0-9_,]*[0-9])`).exec(summary)?.[1]?.replace(/\D/g, "") ?? 0);
const passed = count("pass");
// A skipped test is none: it counts as failed.
let failed = count("fail") + count("todo") + count("skip");
if (failed === 0 && (code !== 0 || passed === 0)) failed = 1;
if (failed > 0) console.log(`All of the output: ${logPath}`);
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
