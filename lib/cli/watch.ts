// `longseq watch`: serves the page of runs until a signal comes, and says where it is.

import { existsSync, statSync } from "node:fs";
import { constants } from "node:os";
import type { Readable } from "node:stream";
import { WatchServer } from "../watch/server.js";
import { openBrowser } from "./open_browser.js";
import { type Output, UsageError } from "./output.js";
import type { WatchCommandOptions } from "./watch_options.js";

/** Serves until SIGINT or SIGTERM comes; returns 130 or 143. Throws ConfigError for a port or folder that will not do. */
export async function watch(
  dirs: readonly string[],
  options: WatchCommandOptions,
  output: Output,
  stdin: Readable = process.stdin,
): Promise<number> {
  for (const dir of dirs)
    if (existsSync(dir) && !statSync(dir).isDirectory())
      throw new UsageError(`${dir} is no folder; give run folders, or folders that hold them`);
  const folders = dirs.length > 0 ? dirs : [existsSync("runs") ? "runs" : "."];
  const server = await WatchServer.open({ folders, port: options.port });
  try {
    await server.hub.find();
    output.record({ event: "watch", url: server.url, port: server.port, folders: server.hub.folders });
    if (!output.json) output.line(server.url);
    for (const note of server.hub.notes) output.note(note);
    if (server.hub.runs === 0) output.note("waiting: a run is shown as soon as it begins");
    if (!output.json) output.note("Ctrl-C ends it; the address is a key to the page, so keep it to yourself");
    const closeBrowser = options.open ? openBrowser(server.url, process.env) : null;
    const code = await ended(options.untilStdinEnds === true ? stdin : null);
    closeBrowser?.();
    return code;
  } finally {
    await server.close();
  }
}

/** The exit code that a signal asks for; 0 when `stdin` has ended. */
function ended(stdin: Readable | null): Promise<number> {
  return new Promise((resolve) => {
    // Once: a second signal ends the process as if there were no handler.
    for (const signal of ["SIGINT", "SIGTERM"] as const)
      process.once(signal, () => resolve(128 + constants.signals[signal]));
    stdin?.on("end", () => resolve(0)).on("error", () => resolve(0));
    stdin?.resume();
  });
}
