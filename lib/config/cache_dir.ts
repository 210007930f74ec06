// Where tokens are kept between runs.

import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";

/**
 * The folder of the token cache: LONGSEQ_CACHE_DIR, else longseq in XDG_CACHE_HOME or ~/.cache. It is shared by all
 * runs, whose entries are keyed by content, and lies outside the run's folder, which stays as it was when data is only
 * looked at.
 */
export function tokenCacheDir(env: NodeJS.ProcessEnv = process.env): string {
  if (env.LONGSEQ_CACHE_DIR) return env.LONGSEQ_CACHE_DIR;
  // The XDG rules: a relative path is to be ignored.
  const base =
    env.XDG_CACHE_HOME && isAbsolute(env.XDG_CACHE_HOME) ? env.XDG_CACHE_HOME : join(env.HOME || homedir(), ".cache");
  return join(base, "longseq");
}
