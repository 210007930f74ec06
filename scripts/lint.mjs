// Style and types in one go: Biome, tsc over everything it does not emit, clang-format. --format rewrites C++ sources.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { root } from "./hash.mjs";

const format = process.argv.includes("--format");

/** C and C++ sources under a folder of the clone. */
function sources(folder) {
  if (!existsSync(join(root, folder))) return [];
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return ["build", "node_modules"].includes(entry.name) ? [] : sources(path);
    return /\.(c|cc|h|cu|cuh)$/.test(entry.name) ? [path] : [];
  });
}

let failed = false;
function check(name, command, args) {
  const result = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (result.error) console.error(`${name} could not be started: ${result.error.message}`);
  if (result.error || result.status !== 0) {
    failed = true;
    console.error(`lint: ${name} found something to change`);
  }
}

mkdirSync(join(root, ".setup"), { recursive: true });
if (!format) {
  check("Biome", join(root, "node_modules/.bin/biome"), ["check", "."]);
  check("tsc", join(root, "node_modules/.bin/tsc"), ["-p", "tsconfig.check.json"]);
  // What runs in a browser, with a browser's types.
  for (const folder of ["lib/watch/page", "test/watch/page"])
    check("tsc", join(root, "node_modules/.bin/tsc"), ["-p", folder, "--noEmit"]);
}
const cSources = ["native", "test/native", "examples/native"].flatMap(sources);
check("clang-format", "clang-format", [...(format ? ["-i"] : ["--dry-run", "-Werror"]), ...cSources]);
process.exitCode = failed ? 1 : 0;
