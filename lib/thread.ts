// Starting a thread of this package on one of its own files.

import { Worker } from "node:worker_threads";

/** Starts a thread on `file` (a URL without its extension): JavaScript when built, TypeScript when run from source. */
export function startThread(file: URL, workerData: unknown): Worker {
  // The program's own flags (--input-type, loaders) are not for this thread.
  const common = { workerData, execArgv: [] };
  if (!import.meta.url.endsWith(".ts")) return new Worker(new URL(`${file.href}.js`), common);
  // From source: on Node 20 a thread's first file does not pass through loader hooks, so one line of JavaScript comes
  // first and registers tsx.
  const url = (specifier: string) => JSON.stringify(import.meta.resolve(specifier));
  const code = `import(${url("tsx/esm/api")}).then(({ register }) => { register(); return import(${JSON.stringify(`${file.href}.ts`)}); });`;
  return new Worker(code, { ...common, eval: true });
}
