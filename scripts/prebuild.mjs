// Fills prebuilds/linux-x64 with what the npm package carries: the stripped addon and, where nvcc is there, the CUDA
// backend beside it (prebuildify takes along what build/Release holds).
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cudaHash, nativeHash, root } from "./hash.mjs";
import { takeLock } from "./lock.mjs";
import { prebuildFile, prebuildFolder, prebuildStamp } from "./prebuild_state.mjs";

function run(script, ...args) {
  const result = spawnSync(process.execPath, [join(root, script), ...args], { cwd: root, stdio: "inherit" });
  if (result.status !== 0) process.exit(result.status ?? 1);
}

run("scripts/setup.mjs", "--cuda", "--quiet");
mkdirSync(join(root, ".setup"), { recursive: true });
process.on("exit", await takeLock(join(root, ".setup/lock")));

mkdirSync(prebuildFolder, { recursive: true });
for (const name of readdirSync(prebuildFolder)) {
  if (name !== "README.md") rmSync(join(prebuildFolder, name), { recursive: true });
}
const hash = nativeHash() + cudaHash();
const shim = join(root, "scripts/cmake_js_shim.mjs");
run("node_modules/prebuildify/bin.js", "--napi", "--strip", "--tag-libc", "--node-gyp", shim);
if (!existsSync(prebuildFile)) {
  console.error(`prebuildify left no ${prebuildFile}; it made ${readdirSync(prebuildFolder).join(", ") || "nothing"}.`);
  process.exit(1);
}
// prebuildify moves the addon away; the clone keeps running from build/Release.
copyFileSync(prebuildFile, join(root, "build/Release/longseq.node"));
writeFileSync(join(root, prebuildStamp), hash);
console.log(`Filled ${prebuildFolder}: ${readdirSync(prebuildFolder).join(", ")}`);
