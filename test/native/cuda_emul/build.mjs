// Builds the emulated CUDA backend into build/cuda_emul and prints its path; ninja sees what is current.
//
// node test/native/cuda_emul/build.mjs            the libraries
// node test/native/cuda_emul/build.mjs --sanitize   builds and runs the driver under the sanitizers
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { root } from "../../../scripts/hash.mjs";
import { takeLock } from "../../../scripts/lock.mjs";

function run(command, args) {
  const result = spawnSync(command, args, { cwd: root, encoding: "utf8" });
  if (result.error) throw new Error(`${command} could not be started: ${result.error.message}`);
  if (result.status !== 0) throw new Error(`${command} ${args.join(" ")} failed:\n${result.stdout}${result.stderr}`);
}

/** Brings a target up to date, one process at a time, and gives the path of what was built. */
async function build(target) {
  const path = "build/cuda_emul";
  mkdirSync(join(root, path), { recursive: true });
  const release = await takeLock(join(root, path, "lock"));
  try {
    if (!existsSync(join(root, path, "build.ninja")))
      run("cmake", ["-S", "test/native/cuda_emul", "-B", path, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]);
    run("ninja", ["-C", path, "-j", String(availableParallelism()), target]);
  } finally {
    release();
  }
  return path;
}

/** The path of the backend's library, for `binding.openBackend`. */
export const buildEmulator = async () => join(root, await build("cuda_emul"), "cuda_emul.so");

/**
 * The folder with cuda_host.so and cuda_whole.so, backends of real host files, and libcuda.so.1 and libnccl.so.2, which
 * they run over. Only where CUDA's headers are.
 */
export const buildStandIns = async () => join(root, await build("stand_ins"));

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (process.argv.includes("--sanitize")) {
    const path = join(root, await build("emul_sanitize"), "emul_sanitize");
    process.exitCode = spawnSync(path, { stdio: "inherit" }).status ?? 1;
  } else {
    console.log(await buildEmulator());
    if (/stand_ins/.test(readFileSync(join(root, "build/cuda_emul/build.ninja"), "utf8")))
      console.log(await buildStandIns());
  }
}
