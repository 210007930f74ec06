// Trying what could end a process in another one: the addon on this processor, the driver of a GPU.

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { cudaLibrary } from "../binding.js";

/** What a trial printed, or what went wrong, in one line. */
export type Trial = { printed: string } | { trouble: string };

/** Runs a program that uses lib/binding.ts (as `addon`) in a child process. */
export function tryInChild(program: string): Trial {
  const script = `try {
    const addon = await import(${JSON.stringify(new URL("../binding.js", import.meta.url).href)});
    ${program}
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }`;
  const child = spawnSync(process.execPath, [...process.execArgv, "--input-type=module", "-e", script], {
    encoding: "utf8",
    timeout: 60_000,
  });
  if (child.error) return { trouble: `it could not be tried in a child process: ${child.error.message}` };
  if (child.signal) return { trouble: `it ended a process with ${child.signal} as it was tried` };
  if (child.status === 0) return { printed: child.stdout };
  return { trouble: child.stderr.trim().split("\n").at(-1) || `exit status ${child.status}` };
}

/**
 * Names of the CUDA devices that the backend opens, a JSON list, or what it lacks. engines: each with what its attention
 * runs on and what its ranks would use, which takes a second more.
 */
export const tryCuda = (engines = false): Trial =>
  tryInChild(`addon.openCuda();
    const open = (index, options) => addon.binding.openDevice("cuda:" + index, "cuda", index, 1, options);
    const ranks = (device) => {
      if (!${engines}) return "";
      try {
        return ", ranks by " + addon.binding.commLibrary(device);
      } catch (error) {
        return ", no several ranks (" + error.message + ")";
      }
    };
    const engine = (index) => {
      if (!${engines}) return "";
      try {
        open(index, { attention: "cudnn" });
        return ", attention on cuDNN";
      } catch (error) {
        return ", attention on longseq's own kernels (" + error.message + ")";
      }
    };
    const names = [];
    for (let index = 0; ; index++) {
      try {
        const device = open(index, {});
        names.push(addon.binding.deviceInfo(device).name + engine(index) + ranks(device));
      } catch (error) {
        // The first index that no device has.
        if (error.code === "INVALID_ARGUMENT" && index > 0) break;
        throw error;
      }
    }
    console.log(JSON.stringify(names));`);

/** What a driver of NVIDIA's leaves: on Linux, in a container, in the Windows Subsystem for Linux. */
const DRIVER_TRACES = ["/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"];

let tried: { usable: boolean; trouble?: string } | undefined;

/**
 * Whether `device: auto` is a GPU. Where there is no driver the answer costs nothing; else a child process opens the
 * devices, once. `trouble`: there is a driver, but it cannot be used.
 */
export function cudaUsable(): { usable: boolean; trouble?: string } {
  if (tried !== undefined) return tried;
  if (!DRIVER_TRACES.some((file) => existsSync(file))) tried = { usable: false };
  else if (!existsSync(cudaLibrary))
    tried = { usable: false, trouble: `this longseq has no CUDA backend: ${cudaLibrary} is missing` };
  else {
    const trial = tryCuda();
    tried = "printed" in trial ? { usable: true } : { usable: false, trouble: trial.trouble };
  }
  return tried;
}
