// Content hashes of what a built file was made of, so that set-up, tests and packing agree on what is current.
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

/** The clone's top folder. */
export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** All files under `path` (a file or a folder, relative to the clone), in a fixed order; none if it does not exist. */
function filesUnder(path) {
  const full = join(root, path);
  if (!existsSync(full)) return [];
  let entries;
  try {
    entries = readdirSync(full, { withFileTypes: true });
  } catch {
    return [full];
  }
  return entries
    .filter((entry) => !entry.name.startsWith("."))
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => filesUnder(relative(root, join(full, entry.name))));
}

/** SHA-256 over names and bytes of the files under `paths`. */
export function hashOf(paths) {
  const hash = createHash("sha256");
  for (const path of paths) {
    for (const file of filesUnder(path)) {
      const bytes = readFileSync(file);
      hash.update(`${relative(root, file)}\0${bytes.length}\0`).update(bytes);
    }
  }
  return hash.digest("hex");
}

/** What longseq.node is made of. */
export const nativeHash = () => hashOf(["CMakeLists.txt", "native", "test/native", "package-lock.json"]);
/** What liblongseq_cuda.so is made of. */
export const cudaHash = () =>
  hashOf([
    "native/cuda",
    "native/include",
    "native/compat",
    "native/runtime/ops/matmul_plan.h",
    "scripts/fetch_cuda.mjs",
  ]);
/** What dist/ is made of. */
export const typescriptHash = () => hashOf(["tsconfig.json", "lib", "package-lock.json", "scripts/commonjs.mjs"]);

/** The text of a stamp file, or "" if there is none. */
export function readStamp(path) {
  try {
    return readFileSync(join(root, path), "utf8").trim();
  } catch {
    return "";
  }
}
