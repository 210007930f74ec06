#!/usr/bin/env node
// Makes a clone ready to run: system packages, npm packages, longseq.node and dist/. Safe to repeat; fast when done.
//
// Uses nothing but node: modules and files of this folder, because it runs before `npm ci`.
//
// Options: --native (only up to longseq.node), --tests (also the libraries that tests open), --cuda (also the CUDA
// backend), --quiet (no closing line).
import { spawnSync } from "node:child_process";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { delimiter, join } from "node:path";
import { writeCommonjs } from "./commonjs.mjs";
import { cudaHash, hashOf, nativeHash, readStamp, root, typescriptHash } from "./hash.mjs";
import { takeLock } from "./lock.mjs";

const known = new Set(["--native", "--tests", "--cuda", "--quiet"]);
const options = new Set(process.argv.slice(2));
for (const option of options) {
  if (!known.has(option)) fail(`Unknown option ${option}; there are ${[...known].join(", ")}.`, 2);
}

const addon = "build/Release/longseq.node";
const lockfileStamp = "node_modules/.longseq-lockfile";
const nativeStamp = "build/longseq.hash";
const testStamp = "build/longseq_test.hash";
const typescriptStamp = "dist/longseq.hash";
const cudaLibrary = "build/Release/liblongseq_cuda.so";
const cudaStamp = "build/longseq_cuda.hash";
/** Debian package: the command that shows it is there, however it was installed. */
const packages = { cmake: "cmake", "ninja-build": "ninja", "g++": "g++" };

function fail(message, code = 1) {
  console.error(message);
  process.exit(code);
}

function say(message) {
  console.error(`longseq: ${message}`);
}

/** Runs a command with its output shown; ends the set-up with `advice` if it fails. */
function run(command, args, advice, env = process.env) {
  const result = spawnSync(command, args, { cwd: root, stdio: ["ignore", 2, 2], env });
  if (result.error) fail(`${command} could not be started (${result.error.message}). ${advice}`);
  if (result.status !== 0) fail(`${[command, ...args].join(" ")} failed. ${advice}`);
}

function onPath(command) {
  return (process.env.PATH ?? "").split(delimiter).some((folder) => {
    try {
      accessSync(join(folder || ".", command), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function checkHost() {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major < 20 || (major === 20 && minor < 19)) {
    fail(`longseq needs Node 20.19 or newer; this is ${process.versions.node} (${process.execPath}).`);
  }
  if (process.platform !== "linux" || process.arch !== "x64") {
    fail(
      `longseq builds on linux-x64 only, this is ${process.platform}-${process.arch}: ` +
        "use a Linux x86-64 machine, a container or a virtual machine of that kind, or WSL 2 on Windows.",
    );
  }
}

/** Names of packages that neither dpkg nor PATH knows. */
function missingPackages() {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query fills these in
  const query = spawnSync("dpkg-query", ["-W", "-f", "${Package} ${db:Status-Abbrev}\\n", ...Object.keys(packages)], {
    encoding: "utf8",
  });
  const installed = new Set(
    (query.stdout ?? "")
      .split("\n")
      .filter((line) => line.trimEnd().endsWith(" ii"))
      .map((line) => line.split(" ")[0]),
  );
  return Object.entries(packages)
    .filter(([name, command]) => !installed.has(name) && !onPath(command))
    .map(([name]) => name);
}

/** Installs what is missing; touches neither apt nor the network if nothing is. */
function installPackages() {
  const missing = missingPackages();
  if (missing.length === 0) return;
  const update = ["apt-get", "-q", "update"];
  const install = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends"];
  const byHand = `sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing.join(" ")}`;
  if (!onPath("apt-get")) {
    fail(`Missing: ${missing.map((name) => packages[name]).join(", ")}. Install them and run this again.`);
  }
  const asRoot = process.getuid() === 0;
  if (!asRoot && !(onPath("sudo") && spawnSync("sudo", ["-n", "true"], { stdio: "ignore" }).status === 0)) {
    fail(`${byHand}\n# longseq needs these packages: run the line above, then this command again.`);
  }
  say(`installing ${missing.join(" ")}`);
  const environment = ["env", "DEBIAN_FRONTEND=noninteractive"];
  for (const command of [update, [...install, ...missing]]) {
    const [program, ...args] = asRoot ? [...environment, ...command] : ["sudo", "-n", ...environment, ...command];
    run(program, args, `Run by hand: ${byHand}`);
  }
}

function npmPackagesCurrent() {
  return readStamp(lockfileStamp) === hashOf(["package-lock.json"]);
}

function installNpmPackages() {
  const wanted = hashOf(["package-lock.json"]);
  if (readStamp(lockfileStamp) === wanted) return;
  if (!onPath("npm")) fail("npm is not on PATH; it comes with Node (on Debian in the package npm).");
  say("installing npm packages");
  run("npm", ["ci", "--include=dev", "--no-audit", "--no-fund"], "Is the npm registry within reach?");
  writeFileSync(join(root, lockfileStamp), wanted);
}

function nativeCurrent() {
  return (
    existsSync(join(root, addon)) &&
    readStamp(nativeStamp) === nativeHash() &&
    (!tests || readStamp(testStamp) === nativeHash())
  );
}

/** CMake keeps absolute paths and its generator: a build folder from elsewhere must go. */
function dropForeignBuildFolder() {
  let cache = "";
  try {
    cache = readFileSync(join(root, "build/CMakeCache.txt"), "utf8");
  } catch {
    return;
  }
  const home = /^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$/m.exec(cache)?.[1];
  const generator = /^CMAKE_GENERATOR:INTERNAL=(.*)$/m.exec(cache)?.[1];
  if (home !== root || generator !== "Ninja") rmSync(join(root, "build"), { recursive: true, force: true });
}

function buildNative() {
  const wanted = nativeHash();
  if (nativeCurrent()) return;
  say(tests ? "building longseq.node and the tests' libraries" : "building longseq.node");
  dropForeignBuildFolder();
  const tool = join(root, "node_modules/cmake-js/bin/cmake-js");
  run(
    process.execPath,
    [tool, "build", "-G", "Ninja", "-l", "warn", "-p", String(availableParallelism())].concat(
      tests ? [] : ["--target", "longseq"],
    ),
    "The compiler's message is above.",
  );
  // Hashed before the compiler read them: a file changed in between is built again next time.
  writeFileSync(join(root, nativeStamp), wanted);
  if (tests) writeFileSync(join(root, testStamp), wanted);
}

function typescriptCurrent() {
  return existsSync(join(root, "dist/lib")) && readStamp(typescriptStamp) === typescriptHash();
}

/** Removes what tsc made of sources that are gone: dist is packed whole. */
function pruneDist(folder = "lib") {
  for (const entry of readdirSync(join(root, "dist", folder), { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      if (existsSync(join(root, path))) pruneDist(path);
      else rmSync(join(root, "dist", path), { recursive: true });
    } else if (!existsSync(join(root, path.replace(/(\.d)?\.[jt]s$/, ".ts")))) {
      rmSync(join(root, "dist", path));
    }
  }
}

function buildTypescript() {
  const wanted = typescriptHash();
  if (typescriptCurrent()) return;
  say("compiling lib/");
  rmSync(join(root, typescriptStamp), { force: true });
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  // The page of `longseq watch` runs in a browser: its types are other ones.
  for (const project of [".", "lib/watch/page"]) run(process.execPath, [tsc, "-p", project], "tsc's message is above.");
  pruneDist();
  writeCommonjs(root);
  writeFileSync(join(root, typescriptStamp), wanted);
}

/** nvcc on PATH, or in the toolkit that CUDA_HOME, CUDA_PATH or /usr/local/cuda names; undefined if there is none. */
function findNvcc() {
  const folders = [
    ...(process.env.PATH ?? "").split(delimiter),
    ...[process.env.CUDA_HOME, process.env.CUDA_PATH, "/usr/local/cuda"]
      .filter(Boolean)
      .map((home) => join(home, "bin")),
  ];
  return folders.map((folder) => join(folder || ".", "nvcc")).find((path) => existsSync(path));
}

/** The toolkit's version as [major, minor] and its headers, as nvcc itself tells them. */
function toolkitOf(nvcc) {
  const version = /release (\d+)\.(\d+)/.exec(spawnSync(nvcc, ["--version"], { encoding: "utf8" }).stdout ?? "");
  const dry = spawnSync(nvcc, ["--dryrun", "-c", "-x", "cu", "/dev/null"], { encoding: "utf8" });
  const top = /^#\$ TOP=(.*)$/m.exec(dry.stderr ?? "")?.[1];
  return {
    version: version ? [Number(version[1]), Number(version[2])] : [0, 0],
    include: top === undefined ? undefined : join(top, "include"),
  };
}

function cudaCurrent() {
  return existsSync(join(root, cudaLibrary)) && readStamp(cudaStamp) === cudaHash();
}

/** Builds the CUDA backend, or says why not: an addon without it is whole. */
async function buildCuda() {
  const nvcc = findNvcc();
  if (nvcc === undefined) {
    // What other sources made must not be packed.
    if (!cudaCurrent()) rmSync(join(root, cudaLibrary), { force: true });
    say("--cuda: nvcc is not found, so the CUDA backend is not built (install the CUDA toolkit 13, or set CUDA_HOME)");
    return;
  }
  const { version, include } = toolkitOf(nvcc);
  if (version[0] < 13) {
    say(`--cuda: ${nvcc} is CUDA ${version.join(".")}, 13.0 or newer is needed: the CUDA backend is not built`);
    return;
  }
  const { fetchCuda } = await import("./fetch_cuda.mjs");
  const { missing, needed } = fetchCuda(include, say);
  if (needed.length > 0) {
    if (!cudaCurrent()) rmSync(join(root, cudaLibrary), { force: true });
    say(
      `--cuda: ${needed.join(", ")} could not be fetched, so the CUDA backend is not built (is there a python3 with pip, ` +
        "and an index within its reach?)",
    );
    return;
  }
  if (missing.length > 0) say(`--cuda: built without ${missing.join(", ")}`);
  const wanted = cudaHash();
  say("building liblongseq_cuda.so");
  const cache = join(root, "build/cuda/CMakeCache.txt");
  const home = existsSync(cache) && /^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$/m.exec(readFileSync(cache, "utf8"))?.[1];
  if (home !== join(root, "native/cuda")) rmSync(join(root, "build/cuda"), { recursive: true, force: true });
  const objects = join(root, ".cache/cuda/objects");
  const launcher = [process.execPath, join(root, "scripts/object_cache.mjs"), objects].join(";");
  const advice = "The message is above.";
  const configure = ["-S", "native/cuda", "-B", "build/cuda", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"];
  const compilers = [`-DCMAKE_CUDA_COMPILER=${nvcc}`].concat(
    ["CXX", "CUDA"].map((language) => `-DCMAKE_${language}_COMPILER_LAUNCHER=${launcher}`),
  );
  run("cmake", [...configure, ...compilers, "--log-level=WARNING"], advice);
  run("cmake", ["--build", "build/cuda", "--parallel", String(availableParallelism())], advice);
  pruneObjects(objects);
  writeFileSync(join(root, cudaStamp), wanted);
}

/** Objects that no build used for a month go. */
function pruneObjects(folder) {
  if (!existsSync(folder)) return;
  const oldest = Date.now() - 30 * 86_400_000;
  for (const name of readdirSync(folder)) {
    const path = join(folder, name);
    if (statSync(path).mtimeMs < oldest) rmSync(path);
  }
}

checkHost();
const nativeOnly = options.has("--native");
const cuda = options.has("--cuda");
const tests = options.has("--tests");
const current = () =>
  npmPackagesCurrent() && nativeCurrent() && (nativeOnly || typescriptCurrent()) && (!cuda || cudaCurrent());
if (!current()) {
  mkdirSync(join(root, ".setup"), { recursive: true });
  const release = await takeLock(join(root, ".setup/lock"), (pid) => say(`waiting for set-up process ${pid}`));
  process.on("exit", release);
  installPackages();
  installNpmPackages();
  buildNative();
  if (!nativeOnly) buildTypescript();
  if (cuda) await buildCuda();
}
if (!options.has("--quiet")) console.log("longseq is ready. Next: npm run demo, or: node bin/longseq.mjs train CONFIG");
