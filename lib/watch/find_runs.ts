// Which run folders there are: those named, and those that lie in the folders named.

import type { Dirent } from "node:fs";
import { lstat, readdir } from "node:fs/promises";
import { basename, join } from "node:path";

/** More than a page can show together; of more the first by name are left out. */
export const MOST_RUNS = 100;

export interface Found {
  /** By folder, what to call it. */
  runs: Map<string, string>;
  /** What is to be said, such as that a folder holds no run yet. */
  notes: string[];
}

const errno = (error: unknown) => (error as NodeJS.ErrnoException).code ?? String(error);

/** Whether metrics.jsonl is there, as a file of its own: a link could lead anywhere. */
async function isRun(folder: string): Promise<boolean> {
  try {
    return (await lstat(join(folder, "metrics.jsonl"))).isFile();
  } catch {
    return false;
  }
}

/**
 * Looks through folders: one with a metrics.jsonl is a run, of any other those directly inside are. Links inside are not
 * followed; a folder named may be one. Never throws: what cannot be looked through is a note.
 */
export async function findRuns(folders: readonly string[]): Promise<Found> {
  const runs = new Map<string, string>();
  const notes: string[] = [];
  for (const folder of folders) {
    if (await isRun(folder)) {
      runs.set(folder, basename(folder));
      continue;
    }
    let entries: Dirent[];
    try {
      entries = await readdir(folder, { withFileTypes: true });
    } catch (error) {
      const code = errno(error);
      notes.push(
        code === "ENOENT" ? `${folder}: there is no such folder yet` : `${folder}: cannot be looked into (${code})`,
      );
      continue;
    }
    let count = 0;
    entries.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const entry of entries) {
      const path = join(folder, entry.name);
      if (entry.isSymbolicLink()) notes.push(`${path} is a link, which is not followed; name it to watch it`);
      if (!entry.isDirectory() || !(await isRun(path))) continue;
      count++;
      runs.set(path, entry.name);
    }
    if (count === 0) notes.push(`${folder}: no run yet (a run writes metrics.jsonl with its first line)`);
  }
  // Equal names would not tell runs apart.
  const times = new Map<string, number>();
  for (const name of runs.values()) times.set(name, (times.get(name) ?? 0) + 1);
  for (const [path, name] of runs) if ((times.get(name) as number) > 1) runs.set(path, path);
  if (runs.size > MOST_RUNS) {
    notes.push(`${runs.size} runs are more than can be shown; the last ${MOST_RUNS} by name are`);
    for (const path of [...runs.keys()].slice(0, runs.size - MOST_RUNS)) runs.delete(path);
  }
  return { runs, notes: notes.slice(0, 20) };
}
