// Runs the tests: brings the build up to date, then tap over what was asked for, and prints the counts on one line.
//
// node scripts/test.mjs                 all of test/ but test/package
// node scripts/test.mjs --package       test/package alone, after making the prebuild if it is not current
// node scripts/test.mjs FILE...         these files or folders
//
// test/package packs and installs the tarball. It is slow and wants a current prebuild, so a plain run takes it along
// only when there is one; .ci/run always runs it.
import { spawn, spawnSync } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
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

step("setup.mjs", "--quiet");
if (packageOnly && !prebuildCurrent()) step("prebuild.mjs");

let files;
if (packageOnly) files = testFiles("test/package");
else if (named.length > 0) files = named.flatMap(testFiles);
else files = testFiles("test").filter((file) => !file.startsWith("test/package/") || prebuildCurrent());

const tap = spawn(process.execPath, [join(root, "node_modules/tap/dist/esm/run.mjs"), "run", ...files], {
  cwd: root,
  stdio: ["ignore", "pipe", "inherit"],
});
let tail = "";
tap.stdout.on("data", (chunk) => {
  process.stdout.write(chunk);
  tail = (tail + chunk).slice(-4000);
});
tap.on("close", (code) => {
  // tap ends with `# { total: 12, pass: 11, fail: 1 }`.
  const count = (name) => Number(new RegExp(`${name}: ([0-9_,]+)`).exec(tail.split("# {").at(-1))?.[1] ?? 0);
  const [passed, failed] = [count("pass"), count("fail") + count("todo") + count("skip")];
  const broken = code !== 0 && failed === 0 ? 1 : 0;
  console.log(`${passed} passed, ${failed + broken} failed`);
  process.exitCode = code !== 0 || failed + broken > 0 || passed === 0 ? 1 : 0;
});
