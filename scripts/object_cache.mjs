// Stands before the compilers of the CUDA backend: an object whose source, headers and command are those of an earlier
// one is copied instead of compiled. A fresh clone's or an emptied build folder costs seconds then, not minutes.
//
// node scripts/object_cache.mjs FOLDER COMPILER ARGUMENTS...      (as CMAKE_<LANG>_COMPILER_LAUNCHER)
//
// FOLDER holds, by the hash of command and source, a list of the headers that the compiler named and their hashes, and
// by the hash of that list the object.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  copyFileSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { root } from "./hash.mjs";

const [folder, compiler, ...args] = process.argv.slice(2);
const after = (flag) => args[args.indexOf(flag) + 1];

function compile() {
  const result = spawnSync(compiler, args, { stdio: "inherit" });
  if (result.error) console.error(`${compiler} could not be started: ${result.error.message}`);
  return result.status ?? 1;
}

const source = args.includes("-c") ? after("-c") : undefined;
const object = args.includes("-o") ? after("-o") : undefined;
const dependencies = args.includes("-MF") ? after("-MF") : undefined;
// A link, or a question of CMake's.
if (source === undefined || object === undefined || dependencies === undefined) process.exit(compile());

const sha = (...parts) => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex");
};
/** The hash of a file, or "" if it is gone. */
const hashFile = (path) => {
  try {
    return sha(readFileSync(path));
  } catch {
    return "";
  }
};
/** What tells one installed compiler from another; its own headers count as part of it. */
function identity(path) {
  const real = realpathSync(path);
  const { size, mtimeMs } = statSync(real);
  return `${real} ${size} ${mtimeMs}`;
}
/** Writes a file as a whole: several compilers run side by side. */
function put(path, write) {
  const draft = `${path}.${process.pid}`;
  write(draft);
  renameSync(draft, path);
}
/** Our own files among those that a compiler's list of dependencies names. */
function ownFiles(list) {
  return [
    ...new Set(
      list
        .replace(/\\\n/g, " ")
        .split(/\s+/)
        .filter((path) => path.startsWith(`${root}/native/`)),
    ),
  ].sort();
}

mkdirSync(folder, { recursive: true });
const key = sha(identity(compiler), process.cwd(), ...args, readFileSync(source));
const manifestPath = join(folder, `${key}.json`);
let manifest;
try {
  manifest = JSON.parse(readFileSync(manifestPath, "utf8"));
} catch {
  manifest = { list: "", files: {} };
}
const objectPath = (files) => join(folder, `${sha(key, JSON.stringify(files))}.o`);
const current = manifest.list !== "" && Object.entries(manifest.files).every(([path, hash]) => hashFile(path) === hash);
if (current) {
  const kept = objectPath(manifest.files);
  try {
    copyFileSync(kept, object);
    writeFileSync(dependencies, manifest.list);
    const now = new Date();
    for (const used of [kept, manifestPath]) utimesSync(used, now, now);
    process.exit(0);
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
}
const status = compile();
if (status === 0) {
  const list = readFileSync(dependencies, "utf8");
  const files = Object.fromEntries(ownFiles(list).map((path) => [path, hashFile(path)]));
  put(objectPath(files), (draft) => copyFileSync(object, draft));
  put(manifestPath, (draft) => writeFileSync(draft, JSON.stringify({ list, files })));
}
process.exit(status);
