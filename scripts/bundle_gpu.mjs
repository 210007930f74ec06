// npm run bundle:gpu: packs what check:gpu and bench:gpu need into one archive for a machine with a GPU, but without network
// and Node: build/gpu_bundle/longseq_gpu.tar.xz. In it: this Node, the addon, the CUDA library, lib, tests and benches as
// plain JavaScript, runtime dependencies, golden models, run.sh. docs/gpu.md says how it is used.
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { root } from "./hash.mjs";

const MOST_BYTES = 45e6;
const folder = join(root, "build/gpu_bundle");
const made = join(folder, "longseq_gpu");
const archive = join(folder, "longseq_gpu.tar.xz");

function fail(message) {
  console.error(`bundle:gpu: ${message}`);
  process.exit(1);
}

function run(command, args) {
  const result = spawnSync(command, args, { cwd: root, encoding: "utf8" });
  if (result.error) fail(`${command} could not be started: ${result.error.message}`);
  if (result.status !== 0) fail(`${command} ${args.join(" ")} failed:\n${result.stdout}${result.stderr}`);
}

/** Copies a file or folder to the same place in the bundle, or to another; links become what they point to. */
function take(path, to = path) {
  const from = join(root, path);
  if (!existsSync(from)) fail(`${path} is missing; run node scripts/setup.mjs --cuda`);
  mkdirSync(dirname(join(made, to)), { recursive: true });
  cpSync(from, join(made, to), { recursive: true, dereference: true });
}

rmSync(folder, { recursive: true, force: true });
mkdirSync(made, { recursive: true });

// Programs: symbols are of no use there.
const binaries = ["build/Release/longseq.node", "build/Release/liblongseq_cuda.so"];
for (const binary of binaries) take(binary);
cpSync(process.execPath, join(made, "node"), { dereference: true });
for (const binary of [...binaries, "node"]) run("strip", ["--strip-unneeded", join(made, binary)]);

run(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", "scripts/gpu_bundle/tsconfig.json"]);
for (const path of ["package.json", "bin/longseq.mjs", "native/runtime/rates", "scripts/gpu_bundle/run.sh"])
  take(path, path.endsWith("run.sh") ? "run.sh" : path);
take("test/golden/models", "dist/test/golden/models");
if (existsSync(join(root, "bench/pytorch"))) take("bench/pytorch", "dist/bench/pytorch");

const { packages } = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
for (const [path, { dev, devOptional }] of Object.entries(packages)) if (path && !dev && !devOptional) take(path);
take("scripts/gpu_bundle/tap.mjs", "node_modules/tap/index.mjs");
writeFileSync(
  join(made, "node_modules/tap/package.json"),
  JSON.stringify({ name: "tap", version: "0.0.0", type: "module", main: "./index.mjs", exports: "./index.mjs" }),
);

// -T1: the same bytes on any machine.
run("tar", [
  "-C",
  folder,
  "--sort=name",
  "--owner=0",
  "--group=0",
  "--numeric-owner",
  "-I",
  "xz -6 -T1",
  "-cf",
  archive,
  "longseq_gpu",
]);
const { size } = statSync(archive);
console.log(`${archive}: ${(size / 1e6).toFixed(1)} MB`);
if (size > MOST_BYTES) fail(`the archive is larger than ${MOST_BYTES / 1e6} MB`);
