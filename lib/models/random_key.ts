// Keys of random numbers by name.

import { createHash } from "node:crypto";

/**
 * Philox key of what is random in a run, by its name: equal whatever else there is, so that a change elsewhere changes
 * nothing.
 */
export function randomKey(name: string, seed: number): number {
  return createHash("sha256").update(`${seed} ${name}`).digest().readUIntBE(0, 6);
}
