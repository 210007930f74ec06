// What ranks print that have no terminal: DIR/ranks/N.log.

import { appendFileSync } from "node:fs";
import { join } from "node:path";
import { IoError } from "../errors.js";
import { makeFolders } from "../folders.js";

/** Of a run of several ranks: what each but the first printed. */
export const RANKS = "ranks";

/** The file of a rank, which is there from now on; what it has already stays. Throws IoError. */
export function openRankLog(folder: string, rank: number): string {
  const file = join(folder, RANKS, `${rank}.log`);
  try {
    makeFolders(join(folder, RANKS));
    appendFileSync(file, "");
  } catch (error) {
    throw new IoError(
      `output.dir: cannot write ${file}: ${(error as Error).message}; give the path of a folder that can be written to`,
      { path: file, errno: (error as NodeJS.ErrnoException).code },
      { cause: error },
    );
  }
  return file;
}
