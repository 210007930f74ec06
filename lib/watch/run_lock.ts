// Whether a process trains into a folder, as the system tells it: a run holds a lock on its folder while it is at work.

import { readFile, stat } from "node:fs/promises";

/**
 * The inodes that some process of this machine holds a lock on (flock), from Linux' /proc/locks; null where the system
 * does not tell. Asking takes no lock, which could get in the way of a run that begins. Runs of other machines, and of
 * containers that this process cannot see into, are missing.
 */
export async function lockedInodes(): Promise<Set<string> | null> {
  let text: string;
  try {
    text = await readFile("/proc/locks", "utf8");
  } catch {
    return null;
  }
  // "1: FLOCK  ADVISORY  WRITE 4242 08:01:1234 0 EOF": the inode is behind the device's two numbers. These differ from
  // those of stat on some file systems, so the inode alone is looked at; a process that waits for a lock has "->".
  return new Set(
    Array.from(
      text.matchAll(/^\d+: FLOCK +\S+ +WRITE +\d+ [\da-f]+:[\da-f]+:(\d+) /gim),
      ([, inode]) => inode as string,
    ),
  );
}

/** The inode of a folder; null where it is gone. */
export async function inodeOf(folder: string): Promise<string | null> {
  try {
    return String((await stat(folder, { bigint: true })).ino);
  } catch {
    return null;
  }
}
