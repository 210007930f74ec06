// npm run bundle:gpu: packs what check:gpu and bench:gpu need into one archive for a machine with a GPU, but without network
// and Node: build/gpu_bundle/longseq_gpu.tar.xz. In it: this Node, the addon, the CUDA library, lib, tests and benches as
// plain JavaScript, runtime dependencies, golden models, run.sh. docs/gpu.md says how it is used.
//
//   node scripts/bundle_gpu.mjs
//   node scripts/bundle_gpu.mjs --cudnn            build/gpu_bundle/longseq_cudnn.tar.xz: those of the fetched cuDNN's
//                                                  libraries that attention loads, for a machine whose own is too old
//   node scripts/bundle_gpu.mjs --trial FOLDER     the bundle's files there, not packed, Node and binaries as links
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { root } from "./hash.mjs";

/** Of the archive: what travels with it has its limits. */
const MOST_BYTES = 45e6;
const cudnn = process.argv[2] === "--cudnn";
const trial = process.argv[2] === "--trial" ? resolve(process.argv[3] ?? "") : null;
const folder = join(root, "build/gpu_bundle");
const made = trial ?? join(folder, "longseq_gpu");
const archive = join(folder, `longseq_${cudnn ? "cudnn" : "gpu"}.tar.xz`);

function fail(message) {
  console.error(`bundle:gpu: ${message}`);
  process.exit(1);
}

function run(command, args) {
  const result = spawnSync(command, args, { cwd: root, encoding: "utf8" });
  if (result.error) fail(`${command} could not be started: ${result.error.message}`);
  if (result.status !== 0) fail(`${command} ${args.join(" ")} failed:\n${result.stdout}${result.stderr}`);
}

/** What nothing reads at run time. */
const idle = (path) =>
  /\.(map|md|d\.ts|d\.mts|d\.cts)$|^(test|tests|benchmarks|docs|__pycache__)$/.test(basename(path)) ||
  path.endsWith("node_modules/zod/src");

/** Copies a file or folder to the same place in the bundle, or to another; links become what they point to. */
function take(path, to = path) {
  const from = join(root, path);
  if (!existsSync(from)) fail(`${path} is missing; run node scripts/setup.mjs --cuda`);
  mkdirSync(dirname(join(made, to)), { recursive: true });
  cpSync(from, join(made, to), { recursive: true, dereference: true, filter: (source) => !idle(source) });
}

/** A binary without its symbols, which are of no use there; in a trial a link. */
function program(from, to) {
  if (!existsSync(from)) fail(`${from} is missing; run node scripts/setup.mjs --cuda`);
  mkdirSync(dirname(join(made, to)), { recursive: true });
  if (trial !== null) return symlinkSync(from, join(made, to));
  cpSync(from, join(made, to), { dereference: true });
  run("strip", ["--strip-unneeded", join(made, to)]);
}

/** Packs folders below `from`. -T1: the same bytes on any machine. The filter for x86 code is worth a tenth. */
function pack(from, names, preset) {
  const owner = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner"];
  run("tar", ["-C", from, ...owner, "-I", `xz -T1 --x86 --lzma2=preset=${preset}`, "-cf", archive, ...names]);
  const { size } = statSync(archive);
  console.log(`${archive}: ${(size / 1e6).toFixed(1)} MB`);
  return size;
}

if (cudnn) {
  // Without the engines that come compiled, and without the heuristics for convolutions, plans are the same ones
  // (test/cuda/cudnn_plans.test.ts makes them from the whole).
  const from = join(root, ".cache/cuda");
  const names = ["libcudnn.so.9", "libcudnn_graph.so.9", "libcudnn_engines_runtime_compiled.so.9"];
  const libraries = names.map((name) => join("nvidia/cudnn/lib", name));
  for (const name of libraries)
    if (!existsSync(join(from, name))) fail(`${join(from, name)} is missing; run node scripts/fetch_cuda.mjs`);
  mkdirSync(folder, { recursive: true });
  pack(from, libraries, 9);
  process.exit(0);
}

rmSync(made, { recursive: true, force: true });
mkdirSync(made, { recursive: true });

program(process.execPath, "node");
for (const name of ["longseq.node", "liblongseq_cuda.so"])
  if (trial === null || existsSync(join(root, "build/Release", name)))
    program(join(root, "build/Release", name), join("build/Release", name));

const compiler = join(root, "node_modules/typescript/bin/tsc");
run(process.execPath, [compiler, "-p", "scripts/gpu_bundle/tsconfig.json", "--outDir", join(made, "dist")]);
for (const path of ["package.json", "bin/longseq.mjs", "native/runtime/rates"]) take(path);
take("scripts/gpu_bundle/run.sh", "run.sh");
chmodSync(join(made, "run.sh"), 0o755);
take("test/golden/models", "dist/test/golden/models");
take("bench/pytorch", "dist/bench/pytorch");

const { packages } = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
for (const [path, { dev, devOptional }] of Object.entries(packages)) if (path && !dev && !devOptional) take(path);
take("scripts/gpu_bundle/tap.mjs", "node_modules/tap/index.mjs");
writeFileSync(
  join(made, "node_modules/tap/package.json"),
  JSON.stringify({ name: "tap", version: "0.0.0", type: "module", main: "./index.mjs", exports: "./index.mjs" }),
);

if (trial === null) {
  const size = pack(folder, ["longseq_gpu"], 6);
  if (size > MOST_BYTES) fail(`the archive is larger than ${MOST_BYTES / 1e6} MB`);
}
