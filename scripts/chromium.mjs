// Where a headless Chromium is for the checks that need one: nothing else of longseq does.
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";

/** What CHROMIUM names, or the first of the usual names on PATH and in /usr/bin; undefined where there is none. */
export function findChromium(env = process.env) {
  const folders = [...(env.PATH ?? "").split(delimiter).filter(Boolean), "/usr/bin"];
  const names = ["chromium", "chromium-browser", "google-chrome"];
  const candidates = env.CHROMIUM
    ? [env.CHROMIUM]
    : folders.flatMap((folder) => names.map((name) => join(folder, name)));
  return candidates.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
