// Making folders.

import { mkdirSync } from "node:fs";
import { dirname } from "node:path";

/** mkdir with all parents; Node's recursive form never ends where a file system answers ENOENT, as /proc does. */
export function makeFolders(folder: string): void {
  try {
    mkdirSync(folder);
    return;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return;
    if (code !== "ENOENT" || dirname(folder) === folder) throw error;
  }
  makeFolders(dirname(folder));
  // The second refusal is the answer.
  try {
    mkdirSync(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
}
