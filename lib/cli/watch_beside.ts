// `longseq train --watch`: the page of the run, from a process of its own beside it.

import { spawn } from "node:child_process";
import { setPriority } from "node:os";
import { createInterface } from "node:readline";
import { placeOf } from "../parallel/environment.js";
import type { Output } from "./output.js";

/** Below what trains: it takes the time that is left over. */
const NICE = 10;
/** How long the run waits for the page's address. Milliseconds. */
const PATIENCE = 10_000;

/**
 * Serves the page of a run folder while `run` goes on, and says on stderr where. It is a process of its own, so that
 * reading files and answering browsers never holds up the event loop that gives the device its work; in a process group
 * of its own, so that Ctrl-C reaches the run alone. It ends when this process does, however that ends. Where the page
 * cannot be served, that is said and the run goes on.
 */
export async function watchBeside<T>(folder: string, output: Output, run: () => Promise<T>): Promise<T> {
  const place = placeOf(process.env);
  // Of several ranks that another program started, the first has the terminal.
  if (place !== undefined && place.rank !== 0) return run();
  const argv = [...process.execArgv, process.argv[1] as string];
  const child = spawn(process.execPath, [...argv, "watch", folder, "--json", "--open", "--until-stdin-ends"], {
    detached: true,
    stdio: ["pipe", "pipe", "pipe"],
  });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    complaint = (complaint + text).slice(-2000);
  });
  child.stdin.on("error", () => {});
  const address = new Promise<string | null>((resolve) => {
    const timer = setTimeout(resolve, PATIENCE, null);
    const tell = (url: string | null) => {
      clearTimeout(timer);
      resolve(url);
    };
    createInterface({ input: child.stdout }).once("line", (line) => tell(urlOf(line)));
    child.once("error", (error) => {
      complaint = error.message;
      tell(null);
    });
    child.once("close", () => tell(null));
  });
  try {
    if (child.pid !== undefined) setPriority(child.pid, NICE);
  } catch {
    // It has ended already, which `address` says.
  }
  const url = await address;
  const last = complaint.trim().split("\n").at(-1);
  output.note(
    url === null
      ? `--watch: the page cannot be served (${last || "no address came"}); the run goes on without it`
      : `watch: ${url}`,
  );
  // It must not keep this process.
  child.unref();
  for (const stream of [child.stdin, child.stdout, child.stderr]) (stream as unknown as { unref?(): void }).unref?.();
  try {
    return await run();
  } finally {
    child.stdin.end();
    if (url !== null) output.note(`the page has ended with the run; longseq watch ${folder} shows it again`);
  }
}

function urlOf(line: string): string | null {
  try {
    const { url } = JSON.parse(line) as { url?: unknown };
    return typeof url === "string" ? url : null;
  } catch {
    return null;
  }
}
