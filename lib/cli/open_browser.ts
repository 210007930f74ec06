// Opening a page in the user's browser, where there is a display.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/**
 * Opens `url` by xdg-open; without a display it does nothing, and what fails is nobody's loss: the address was printed.
 * The address goes through a file that this user alone can read, since all users can see the arguments of a process.
 * Returns how to remove that file, or null.
 */
export function openBrowser(url: string, env: NodeJS.ProcessEnv): (() => void) | null {
  if (!env.DISPLAY && !env.WAYLAND_DISPLAY) return null;
  const folder = mkdtempSync(join(tmpdir(), "longseq-watch-"));
  const remove = () => rmSync(folder, { recursive: true, force: true });
  try {
    const file = join(folder, "open.html");
    writeFileSync(file, `<!doctype html><meta http-equiv="refresh" content="0; url=${url}">\n`, { mode: 0o600 });
    const child = spawn("xdg-open", [pathToFileURL(file).href], { stdio: "ignore", detached: true, env });
    child.once("error", () => {});
    child.unref();
    return remove;
  } catch {
    remove();
    return null;
  }
}
