// Folders that appear complete or not at all: written beside their name, brought to the disk, renamed; and the
// checkpoints of a run (`step-N` folders with a manifest): listed, verified, pruned.

import { readFileSync } from "node:fs";
import * as fs from "node:fs/promises";
import { hostname } from "node:os";
import * as path from "node:path";
import { ArgumentError, FormatError, IoError, LongseqError } from "../errors.js";
import { exchangeNames, type FileDigest, hashFile, syncPath } from "./native_files.js";

export const MANIFEST_NAME = "manifest.json";
const MANIFEST_FORMAT = "longseq-checkpoint";
const MANIFEST_VERSION = 1;

/** Written last into a folder: what every other file of it must look like. Hashes are XXH64 (`xxhsum -H64`). */
export interface Manifest {
  format: typeof MANIFEST_FORMAT;
  version: number;
  hash: "xxh64";
  files: Record<string, FileDigest>;
  /** Whatever the writer wants to say about the folder. */
  info: Record<string, unknown>;
}

/** The folder that `writeFolder` hands out to be filled; it gets its real name when all of it is on the disk. */
export interface FolderDraft {
  readonly path: string;
  /** Absolute path of a file to be written into the draft; `name` may have sub-folders, which are made. */
  file(name: string): Promise<string>;
  /** Size and hash that are known already (a writer's), so that the file is not read again for the manifest. */
  note(name: string, digest: FileDigest): void;
}

export interface WriteFolderOptions {
  /** Write a manifest (default true). Without one the swap is just as atomic, but nothing can be verified later. */
  manifest?: boolean;
  /** `info` of the manifest. */
  info?: Record<string, unknown>;
  /** Gives up between files; the draft is removed. */
  signal?: AbortSignal;
}

export interface WrittenFolder {
  path: string;
  /** Bytes of all files, the manifest's own included. */
  bytes: number;
  files: string[];
}

/** Which steps of a failed save can have changed the old folder: none, up to the swap. */
function saveError(target: string, existed: boolean, cause: unknown): Error {
  const system = cause as NodeJS.ErrnoException;
  const isSystem = cause instanceof Error && typeof system.errno === "number" && typeof system.syscall === "string";
  if (cause instanceof LongseqError && cause.code !== "IO") return cause;
  if (!isSystem && !(cause instanceof LongseqError)) return cause instanceof Error ? cause : new Error(String(cause));
  const untouched = existed ? "what was saved there before is untouched" : "earlier checkpoints are untouched";
  const what = isSystem ? describeSystemError(system) : (cause as Error).message;
  const details = isSystem ? { path: system.path ?? target, errno: system.code } : (cause as LongseqError).details;
  return new IoError(`cannot save ${target}: ${what}; ${untouched}`, { target, ...details }, { cause });
}

function describeSystemError(error: NodeJS.ErrnoException): string {
  // Node's message is "ENOSPC: no space left on device, write 'path'", the path only for some calls.
  return error.path !== undefined && !error.message.includes(error.path)
    ? `${error.message} (${error.path})`
    : error.message;
}

/** True where something has this name. */
async function exists(name: string): Promise<boolean> {
  try {
    await fs.lstat(name);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
    throw error;
  }
}

/** mkdir with all parents. Node's own recursive form never ends where a file system says ENOENT, as /proc does. */
async function makeFolders(folder: string): Promise<void> {
  const make = async (): Promise<boolean> => {
    try {
      await fs.mkdir(folder);
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EEXIST") return true;
      if ((error as NodeJS.ErrnoException).code !== "ENOENT" || path.dirname(folder) === folder) throw error;
      return false;
    }
  };
  if (await make()) return;
  await makeFolders(path.dirname(folder));
  // The second refusal is the answer.
  await fs.mkdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EEXIST") throw error;
  });
}

// ---- temporary names: they tell who made them, so that the leftovers of a killed process can be told apart ----

const TEMPORARY = /^\.(.+)\.(tmp|old)-(\d+)-(\d+)-(\d+)@(.+)$/;
/** Of another machine nothing but the clock tells whether it is still writing. */
const FOREIGN_STALE_MS = 3_600_000;
let temporaries = 0;

/** Clock ticks between boot and the start of a process; "" if there is none. With the id it names a process for good. */
function startTime(pid: number | string): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The second field, the program's name, may hold spaces and parentheses.
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
  } catch {
    return "";
  }
}

function temporaryName(target: string, kind: "tmp" | "old"): string {
  const host = hostname().replace(/[^A-Za-z0-9_-]/g, "_") || "host";
  const who = `${process.pid}-${startTime(process.pid) || "0"}-${temporaries++}@${host}`;
  return path.join(path.dirname(target), `.${path.basename(target)}.${kind}-${who}`);
}

async function newestChange(name: string): Promise<number> {
  const info = await fs.lstat(name);
  let newest = info.mtimeMs;
  if (info.isDirectory()) {
    for (const child of await fs.readdir(name)) newest = Math.max(newest, await newestChange(path.join(name, child)));
  }
  return newest;
}

/**
 * Removes what killed processes left in `dir` (the folder that holds the targets of `writeFolder`), and puts a folder
 * back that was moved aside by a swap which never ended. Call it before looking for checkpoints. What a living process
 * of this machine writes is left alone. Returns the names removed or put back.
 */
export async function cleanStale(dir: string): Promise<string[]> {
  let names: string[];
  try {
    names = await fs.readdir(dir);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw new IoError(`cannot look into ${dir}: ${(error as Error).message}`, { path: dir }, { cause: error });
  }
  const host = hostname().replace(/[^A-Za-z0-9_-]/g, "_") || "host";
  const handled: string[] = [];
  for (const name of names) {
    const match = TEMPORARY.exec(name);
    if (match === null) continue;
    const [, target, kind, pid, start, , owner] = match as unknown as [
      string,
      string,
      string,
      string,
      string,
      string,
      string,
    ];
    const full = path.join(dir, name);
    try {
      if (owner === host) {
        const running = startTime(pid);
        if (running !== "" && (running === start || start === "0")) continue;
      } else if (Date.now() - (await newestChange(full)) < FOREIGN_STALE_MS) {
        continue;
      }
      if (kind === "old" && !(await exists(path.join(dir, target)))) {
        await fs.rename(full, path.join(dir, target));
        await syncPath(dir);
      } else {
        await fs.rm(full, { recursive: true, force: true });
      }
      handled.push(name);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") continue; // another process was quicker
      throw new IoError(`cannot clean up ${full}: ${(error as Error).message}`, { path: full }, { cause: error });
    }
  }
  return handled;
}

/** Relative paths of the files below a folder, sorted, and of its folders, inner ones first. */
async function walk(root: string): Promise<{ files: string[]; folders: string[] }> {
  const files: string[] = [];
  const folders: string[] = [];
  const visit = async (relative: string): Promise<void> => {
    for (const entry of await fs.readdir(path.join(root, relative), { withFileTypes: true })) {
      const name = relative === "" ? entry.name : `${relative}/${entry.name}`;
      if (entry.isDirectory()) await visit(name);
      else if (entry.isFile()) files.push(name);
      else throw new ArgumentError(`${path.join(root, name)} is neither a file nor a folder: it cannot be saved`);
    }
    folders.push(relative);
  };
  await visit("");
  return { files: files.sort(), folders };
}

function checkRelative(name: string): void {
  if (
    name === "" ||
    path.isAbsolute(name) ||
    name.includes("\0") ||
    name.split("/").some((part) => part === "" || part === "." || part === "..")
  ) {
    throw new ArgumentError(`${JSON.stringify(name)} is not a relative file name inside the folder`);
  }
}

/**
 * Makes the folder `target` hold exactly what `fill` writes into the draft, or leaves everything as it was: the files
 * are written into a hidden folder beside it and brought to the disk with it, the manifest (sizes and hashes) last;
 * then the two names are swapped in one step. An existing folder `target` is replaced.
 *
 * Throws IoError with path and errno when the disk is full, read-only or failing; the draft is removed and what was
 * there before is untouched. Whatever `fill` itself throws is passed on.
 */
export async function writeFolder(
  target: string,
  fill: (draft: FolderDraft) => Promise<void> | void,
  options: WriteFolderOptions = {},
): Promise<WrittenFolder> {
  const parent = path.dirname(path.resolve(target));
  const place = path.join(parent, path.basename(path.resolve(target)));
  const known = new Map<string, FileDigest>();
  let existed = false;
  let draftPath = "";
  try {
    existed = await exists(place);
    await makeFolders(parent);
    draftPath = temporaryName(place, "tmp");
    await fs.mkdir(draftPath);
    const draft: FolderDraft = {
      path: draftPath,
      async file(name) {
        checkRelative(name);
        const full = path.join(draftPath, name);
        await makeFolders(path.dirname(full));
        return full;
      },
      note(name, digest) {
        checkRelative(name);
        known.set(name, digest);
      },
    };
    await fill(draft);

    const { files, folders } = await walk(draftPath);
    let bytes = 0;
    const listed: Record<string, FileDigest> = {};
    for (const name of files) {
      options.signal?.throwIfAborted();
      const full = path.join(draftPath, name);
      await syncPath(full);
      const size = (await fs.stat(full)).size;
      bytes += size;
      if (options.manifest === false) continue;
      if (name === MANIFEST_NAME) throw new ArgumentError(`${MANIFEST_NAME} is written by the save itself`);
      const digest = known.get(name) ?? (await hashFile(full));
      if (digest.bytes !== size) {
        throw new FormatError(`${full} has ${size} bytes where its writer counted ${digest.bytes}`, { path: full });
      }
      listed[name] = { bytes: digest.bytes, hash: digest.hash };
    }
    for (const name of known.keys()) {
      if (!files.includes(name)) throw new ArgumentError(`${name} was noted, but is not in ${draftPath}`);
    }
    if (options.manifest !== false) {
      const manifest: Manifest = {
        format: MANIFEST_FORMAT,
        version: MANIFEST_VERSION,
        hash: "xxh64",
        files: listed,
        info: options.info ?? {},
      };
      const text = `${JSON.stringify(manifest, null, 2)}\n`;
      await writeAndSync(path.join(draftPath, MANIFEST_NAME), text);
      bytes += Buffer.byteLength(text);
      files.push(MANIFEST_NAME);
    }
    for (const folder of folders) await syncPath(path.join(draftPath, folder));
    options.signal?.throwIfAborted();

    existed = await exists(place);
    if (existed) {
      draftPath = await replaceFolder(draftPath, place);
    } else {
      await fs.rename(draftPath, place);
      draftPath = "";
    }
    await syncPath(parent);
    if (draftPath !== "") await removeQuietly(draftPath);
    return { path: place, bytes, files };
  } catch (error) {
    if (draftPath !== "") await removeQuietly(draftPath);
    throw saveError(target, existed, error);
  }
}

/**
 * Puts the folder `draft` in the place of the folder `place`; returns the name that the old one has now. In one step
 * where the file system can swap names (`exchange`). Elsewhere the name is missing between two renames, and cleanStale
 * puts the old folder back if the process dies there.
 */
export async function replaceFolder(draft: string, place: string, exchange = exchangeNames): Promise<string> {
  if (await exchange(draft, place)) return draft;
  const aside = temporaryName(place, "old");
  await fs.rename(place, aside);
  try {
    await fs.rename(draft, place);
  } catch (error) {
    await fs.rename(aside, place);
    throw error;
  }
  return aside;
}

/** What is left is hidden and found by cleanStale: no reason to fail a save that is done, or to hide why one was not. */
async function removeQuietly(name: string): Promise<void> {
  await fs.rm(name, { recursive: true, force: true }).catch(() => {});
}

async function writeAndSync(name: string, data: string | Uint8Array): Promise<void> {
  const file = await fs.open(name, "w");
  try {
    await file.writeFile(data);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Replaces one small file in one step; after it, a crash shows the old or the new bytes. Throws IoError. */
export async function writeFileDurably(target: string, data: string | Uint8Array): Promise<void> {
  const temporary = temporaryName(target, "tmp");
  try {
    await writeAndSync(temporary, data);
    await fs.rename(temporary, target);
    await syncPath(path.dirname(target));
  } catch (error) {
    await removeQuietly(temporary);
    throw saveError(target, true, error);
  }
}

// ---- checkpoints of a run ----

export interface CheckpointFolder {
  step: number;
  path: string;
}

export interface ValidCheckpoint extends CheckpointFolder {
  manifest: Manifest;
}

/** Where the checkpoint of a step lives: `dir/step-N`. */
export function checkpointPath(dir: string, step: number): string {
  if (!Number.isSafeInteger(step) || step < 0) throw new ArgumentError(`${step} is not a step number`);
  return path.join(dir, `step-${step}`);
}

/** The `step-N` folders of `dir`, oldest step first; none if `dir` is missing. Nothing about them is checked. */
export async function listCheckpoints(dir: string): Promise<CheckpointFolder[]> {
  let entries: import("node:fs").Dirent[];
  try {
    entries = await fs.readdir(dir, { withFileTypes: true });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw new IoError(`cannot look into ${dir}: ${(error as Error).message}`, { path: dir }, { cause: error });
  }
  const found: CheckpointFolder[] = [];
  for (const entry of entries) {
    const match = /^step-(0|[1-9]\d{0,14})$/.exec(entry.name);
    if (match !== null && (entry.isDirectory() || entry.isSymbolicLink())) {
      found.push({ step: Number(match[1]), path: path.join(dir, entry.name) });
    }
  }
  return found.sort((a, b) => a.step - b.step);
}

/**
 * Reads and checks the manifest of a folder that `writeFolder` made: every file is there, with its size and, unless
 * `hashes` is false, its hash. Throws FormatError (what is wrong, which file, both values) or IoError.
 */
export async function verifyFolder(folder: string, options: { hashes?: boolean } = {}): Promise<Manifest> {
  const name = path.join(folder, MANIFEST_NAME);
  let text: string;
  try {
    text = await fs.readFile(name, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") {
      throw new FormatError(`${folder} has no ${MANIFEST_NAME}: its save did not finish`, { path: folder });
    }
    throw new IoError(`cannot read ${name}: ${(error as Error).message}`, { path: name }, { cause: error });
  }
  let manifest: Manifest;
  try {
    manifest = JSON.parse(text) as Manifest;
  } catch (error) {
    throw new FormatError(`${name} is not valid JSON (${(error as Error).message}): the save is damaged`, {
      path: name,
    });
  }
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isObject(manifest) || manifest.format !== MANIFEST_FORMAT || !isObject(manifest.files)) {
    throw new FormatError(`${name} is not the manifest of a checkpoint`, { path: name });
  }
  if (manifest.version !== MANIFEST_VERSION || manifest.hash !== "xxh64") {
    throw new FormatError(
      `${name} has version ${String(manifest.version)} and hash ${String(manifest.hash)}; this release reads version ${MANIFEST_VERSION} with xxh64`,
      { path: name },
    );
  }
  for (const [file, digest] of Object.entries(manifest.files)) {
    try {
      checkRelative(file);
    } catch {
      throw new FormatError(`${name} lists ${JSON.stringify(file)}, which is not a name inside the folder`, {
        path: name,
      });
    }
    if (!isObject(digest) || !Number.isSafeInteger(digest.bytes) || typeof digest.hash !== "string") {
      throw new FormatError(`${name} has no size and hash for ${file}`, { path: name });
    }
    const full = path.join(folder, file);
    let size: number;
    try {
      const info = await fs.stat(full);
      if (!info.isFile()) throw new FormatError(`${full} is not a file`, { path: full });
      size = info.size;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") {
        throw new FormatError(`${full} is missing, though the manifest lists it`, { path: full });
      }
      if (error instanceof LongseqError) throw error;
      throw new IoError(`cannot look at ${full}: ${(error as Error).message}`, { path: full }, { cause: error });
    }
    if (size !== digest.bytes) {
      throw new FormatError(`${full} has ${size} bytes where the manifest says ${digest.bytes}`, { path: full });
    }
    if (options.hashes !== false) {
      const actual = await hashFile(full);
      if (actual.hash !== digest.hash) {
        throw new FormatError(
          `${full} has hash ${actual.hash} where the manifest says ${digest.hash}: the file is damaged`,
          { path: full },
        );
      }
    }
  }
  if (!isObject(manifest.info)) manifest.info = {};
  return manifest;
}

export interface NewestValid {
  /** undefined where none is valid. */
  checkpoint: ValidCheckpoint | undefined;
  /** Newer ones that cannot be used, each with a reason for the log. */
  passedOver: { path: string; step: number; reason: string }[];
}

/** The checkpoint of the highest step that verifies in full; damaged or half-written newer ones are passed over. */
export async function newestValid(dir: string, options: { hashes?: boolean } = {}): Promise<NewestValid> {
  const passedOver: NewestValid["passedOver"] = [];
  for (const candidate of (await listCheckpoints(dir)).reverse()) {
    try {
      const manifest = await verifyFolder(candidate.path, options);
      return { checkpoint: { ...candidate, manifest }, passedOver };
    } catch (error) {
      if (!(error instanceof LongseqError)) throw error;
      passedOver.push({ ...candidate, reason: error.message });
    }
  }
  return { checkpoint: undefined, passedOver };
}

/**
 * Removes all but the newest `keep` (at least 1) checkpoints of `dir`. Only folders with a manifest are counted or
 * removed, so a broken newer one never costs a good older one. A folder disappears from its name in one step. Returns
 * the paths removed.
 */
export async function pruneCheckpoints(dir: string, keep: number): Promise<string[]> {
  if (!Number.isSafeInteger(keep) || keep < 1)
    throw new ArgumentError(`keep must be a whole number of at least 1, not ${keep}`);
  const complete: CheckpointFolder[] = [];
  for (const candidate of await listCheckpoints(dir)) {
    if (await exists(path.join(candidate.path, MANIFEST_NAME))) complete.push(candidate);
  }
  const removed: string[] = [];
  for (const old of complete.slice(0, Math.max(0, complete.length - keep))) {
    const hidden = temporaryName(old.path, "tmp");
    try {
      await fs.rename(old.path, hidden);
      await fs.rm(hidden, { recursive: true, force: true });
    } catch (error) {
      throw new IoError(
        `cannot remove the old checkpoint ${old.path}: ${(error as Error).message}`,
        { path: old.path },
        { cause: error },
      );
    }
    removed.push(old.path);
  }
  return removed;
}
