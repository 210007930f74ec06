// `longseq doctor`: what this machine offers to longseq, and what stands in its way.

import { readFileSync, statfsSync } from "node:fs";
import { availableParallelism, cpus, freemem, release, totalmem } from "node:os";
import { formatBytes } from "../report/format.js";
import { tryCuda, tryInChild } from "../tensor/trial.js";
import { exitCode, type Output } from "./output.js";

/** Everything that `doctor` found; with --json it is one line. */
export interface Diagnosis {
  /** False if longseq cannot train here. */
  ok: boolean;
  version: string;
  node: string;
  platform: string;
  kernel: string;
  glibc: string | null;
  addon: string | null;
  backends: BackendDiagnosis[];
  cpus: { model: string; logical: number; usable: number };
  /** Bytes. `limit` is the control group's, null where there is none. */
  memory: { total: number; free: number; limit: number | null };
  /** Soft limits of this process in bytes (files: a number); null is unlimited. */
  limits: {
    addressSpace: number | null;
    lockedMemory: number | null;
    fileSize: number | null;
    openFiles: number | null;
  };
  /** Of the working directory, bytes. */
  disk: { free: number };
  /** What stands in the way, and what to do. */
  problems: string[];
}

export interface BackendDiagnosis {
  name: string;
  available: boolean;
  /** What it runs on, or what is missing. */
  detail: string;
}

/** Soft limits by their names in /proc/self/limits. */
export function parseLimits(text: string): Diagnosis["limits"] {
  const soft = (name: string): number | null => {
    const line = text.split("\n").find((candidate) => candidate.startsWith(name));
    const value = line === undefined ? undefined : /^\s*(\S+)/.exec(line.slice(name.length))?.[1];
    return value === undefined || value === "unlimited" ? null : Number(value);
  };
  return {
    addressSpace: soft("Max address space"),
    lockedMemory: soft("Max locked memory"),
    fileSize: soft("Max file size"),
    openFiles: soft("Max open files"),
  };
}

const readText = (file: string): string => {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
};

/** The memory limit of the control group that this process is in, the tightest of its parents, or null. */
export function memoryLimit(total: number): number | null {
  const limit = process.constrainedMemory();
  // Where there is no limit libuv gives 0, or a number beyond what the machine has.
  return limit > 0 && limit < total ? limit : null;
}

/** What there is of CUDA: the devices that the backend opens, or what it lacks. */
function diagnoseCuda(): BackendDiagnosis {
  const version = /NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s/.exec(readText("/proc/driver/nvidia/version"))?.[1];
  const driver = version === undefined ? "" : `, NVIDIA driver ${version}`;
  const result = tryCuda(true);
  if ("trouble" in result) return { name: "cuda", available: false, detail: result.trouble + driver };
  const names = JSON.parse(result.printed) as string[];
  return { name: "cuda", available: true, detail: names.map((name, i) => `cuda:${i} ${name}`).join(", ") + driver };
}

export async function diagnose(version: string): Promise<Diagnosis> {
  const problems: string[] = [];
  const backends: BackendDiagnosis[] = [];
  let addon: string | null = null;

  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major < 20 || (major === 20 && minor < 19))
    problems.push(`Node ${process.versions.node} is too old; longseq needs 20.19 or newer`);
  const supported = process.platform === "linux" && process.arch === "x64";
  if (!supported)
    problems.push(
      `longseq is built for linux-x64; this is ${process.platform}-${process.arch}: use WSL 2 or a container`,
    );

  const tried = tryInChild('addon.binding.openDevice("cpu", "cpu", 0, 1);');
  if ("trouble" in tried) {
    problems.push(`the addon cannot be used: ${tried.trouble}`);
    backends.push({ name: "cpu", available: false, detail: tried.trouble });
  } else {
    const { addonPath, binding } = await import("../binding.js");
    const { Device } = await import("../tensor/device.js");
    addon = addonPath;
    for (const name of binding.backends().filter((name) => name !== "cuda")) {
      try {
        const { info } = new Device(name);
        const detail =
          name === "cpu"
            ? `${binding.cpuIsa()}, ${info.threads} ${info.threads === 1 ? "thread" : "threads"}`
            : "shapes and memory only, nothing is computed";
        backends.push({ name, available: true, detail });
      } catch (error) {
        const detail = error instanceof Error ? error.message : String(error);
        backends.push({ name, available: false, detail });
        if (name === "cpu") problems.push(`the CPU backend cannot be used: ${detail}`);
      }
    }
    backends.push(diagnoseCuda());
  }

  const limits = parseLimits(readText("/proc/self/limits"));
  if (limits.addressSpace !== null)
    problems.push(
      `the address space is limited to ${formatBytes(limits.addressSpace)}, but longseq reserves more than it uses; ` +
        "lift it with: ulimit -v unlimited",
    );
  const header = (process.report.getReport() as { header?: { glibcVersionRuntime?: string } }).header;
  let free = 0;
  try {
    const disk = statfsSync(".");
    free = disk.bavail * disk.bsize;
  } catch (error) {
    problems.push(`the working directory cannot be read: ${(error as Error).message}`);
  }
  const total = totalmem();
  return {
    ok: problems.length === 0,
    version,
    node: process.versions.node,
    platform: `${process.platform}-${process.arch}`,
    kernel: release(),
    glibc: header?.glibcVersionRuntime ?? null,
    addon,
    backends,
    cpus: { model: cpus()[0]?.model.trim() ?? "unknown", logical: cpus().length, usable: availableParallelism() },
    memory: { total, free: freemem(), limit: memoryLimit(total) },
    limits,
    disk: { free },
    problems,
  };
}

/** The diagnosis for people. */
export function diagnosisLines(found: Diagnosis): string[] {
  const limit = (value: number | null) => (value === null ? "unlimited" : formatBytes(value));
  const rows: [string, string][] = [
    ["longseq", found.version],
    ["node", found.node],
    ["platform", `${found.platform}, Linux ${found.kernel}${found.glibc ? `, glibc ${found.glibc}` : ""}`],
    ["addon", found.addon ?? "none"],
    ...found.backends.map(({ name, available, detail }): [string, string] => [
      name,
      `${available ? "available" : "not available"}: ${detail}`,
    ]),
    ["processor", `${found.cpus.model}, ${found.cpus.usable} of ${found.cpus.logical} logical processors usable`],
    [
      "memory",
      `${formatBytes(found.memory.total)}, ${formatBytes(found.memory.free)} free` +
        (found.memory.limit === null ? "" : `; this control group may use ${formatBytes(found.memory.limit)}`),
    ],
    [
      "limits",
      `address space ${limit(found.limits.addressSpace)}, locked memory ${limit(found.limits.lockedMemory)}, ` +
        `file size ${limit(found.limits.fileSize)}, open files ${found.limits.openFiles ?? "unlimited"}`,
    ],
    ["disk", `${formatBytes(found.disk.free)} free in the working directory`],
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return [
    ...rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`),
    "",
    ...(found.ok ? ["Ready to train."] : found.problems.map((problem) => `problem: ${problem}`)),
  ];
}

export async function doctor(version: string, output: Output): Promise<number> {
  const found = await diagnose(version);
  output.record({ event: "doctor", ...found });
  if (!output.json) for (const line of diagnosisLines(found)) output.line(line);
  return found.ok ? exitCode.done : exitCode.failed;
}
