// Fetches NVIDIA's libraries as Python wheels into .cache/cuda: headers for the build, libraries for a clone's tests.
//
// node scripts/fetch_cuda.mjs       what is missing; done at once if nothing is
//
// They come from the indexes that pip is configured with. A machine that only runs longseq needs none of this: there the
// backend finds what the toolkit, Python or LONGSEQ_CUDA_LIBS offer.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { root } from "./hash.mjs";

/** The folder that the wheels are unpacked in; never packed, never cleaned with build/. */
export const cudaFolder = join(root, ".cache/cuda");

/** Wheel: a file that shows it is there, and whether the build can do without. nvrtc is what cuDNN compiles with. */
const wheels = {
  "nvidia-cublas": { requirement: "nvidia-cublas>=13,<14", header: "cublasLt.h", needed: true },
  "nvidia-cudnn-cu13": { requirement: "nvidia-cudnn-cu13>=9.21,<10", header: "cudnn.h", needed: false },
  "nvidia-nccl-cu13": { requirement: "nvidia-nccl-cu13>=2.27,<3", header: "nccl.h", needed: false },
  "nvidia-cuda-nvrtc": { requirement: "nvidia-cuda-nvrtc>=13,<14", header: "nvrtc.h", needed: false },
};

/** The folders of headers that the wheels brought. */
function includeFolders() {
  const base = join(cudaFolder, "nvidia");
  if (!existsSync(base)) return [];
  return readdirSync(base).map((name) => join(base, name, "include"));
}

/** Those of `names` whose headers are in none of `folders`. */
const lacking = (names, folders) =>
  names.filter((name) => !folders.some((folder) => existsSync(join(folder, wheels[name].header))));

/** The indexes that pip was told to look into beside the default one: [] if there are none. */
function configuredIndexes() {
  const listed = spawnSync("python3", ["-m", "pip", "config", "list"], { encoding: "utf8" });
  const indexes = [];
  for (const [, values] of (listed.stdout ?? "").matchAll(/^\S*extra-index-url='(.*)'$/gm))
    indexes.push(...values.split(/\s+/).filter(Boolean));
  return indexes;
}

function pip(args) {
  return spawnSync("python3", ["-m", "pip", "install", "-q", "--disable-pip-version-check", ...args], {
    cwd: root,
    stdio: ["ignore", 2, 2],
  });
}

/**
 * Brings the wheels whose headers neither the toolkit (its folder `include`) nor .cache/cuda has. Returns those that
 * could not be had; `needed` tells the ones that the build cannot do without.
 */
export function fetchCuda(toolkitInclude, say) {
  const wanted = lacking(Object.keys(wheels), [...(toolkitInclude ? [toolkitInclude] : []), "/usr/include"]);
  let missing = lacking(wanted, includeFolders());
  if (missing.length > 0) {
    say(`fetching ${missing.join(" ")}`);
    mkdirSync(cudaFolder, { recursive: true });
    const [first, ...others] = configuredIndexes();
    const indexes = [[]];
    // The configured indexes alone come first: where the default one is out of reach, pip would retry it for minutes.
    if (first !== undefined)
      indexes.unshift(["--index-url", first, ...others.flatMap((url) => ["--extra-index-url", url])]);
    // All in one go: the wheels share the folder nvidia, which pip replaces as a whole.
    const attempts = [wanted, wanted.filter((name) => wheels[name].needed)].filter((names) => names.length > 0);
    const target = ["--no-deps", "--no-compile", "--upgrade", "--target", cudaFolder];
    attempts.some((names) =>
      indexes.some((from) => pip([...from, ...target, ...names.map((name) => wheels[name].requirement)]).status === 0),
    );
    missing = lacking(wanted, includeFolders());
  }
  return { missing, needed: missing.filter((name) => wheels[name].needed) };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { missing } = fetchCuda(undefined, (message) => console.error(`longseq: ${message}`));
  if (missing.length > 0) {
    console.error(`Not to be had: ${missing.join(", ")}. Is there a python3 with pip, and an index within its reach?`);
    process.exitCode = 1;
  } else {
    console.log(`NVIDIA's libraries are in ${cudaFolder}`);
  }
}
