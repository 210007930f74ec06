// SIGINT and SIGTERM of the command line: the first stops the run in good order, the second ends the process at once.

import { constants } from "node:os";

/** What a run needs to know about signals. */
export interface Stop {
  /** Aborted by the first signal. */
  readonly signal: AbortSignal;
  /** The number of the signal that came (2 or 15), or null. */
  readonly received: () => number | null;
}

let installed: Stop | null = null;

/**
 * Installs the handlers, once a process. A native thread catches the signals: it cancels the queues within a kernel's
 * time even while JavaScript is busy, and then aborts the returned signal. A second one exits with 128 + its number.
 */
export async function installSignals(): Promise<Stop> {
  if (installed !== null) return installed;
  const { binding } = await import("../binding.js");
  const controller = new AbortController();
  let number: number | null = null;
  binding.installSignals((which) => {
    number = which;
    controller.abort();
  });
  installed = { signal: controller.signal, received: () => number };
  return installed;
}

/** "SIGINT" of 2. */
export function signalName(number: number): string {
  return Object.entries(constants.signals).find(([, value]) => value === number)?.[0] ?? `signal ${number}`;
}
