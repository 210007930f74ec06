// How much memory a run may use: what the configuration says, or a share of what the machine has.

import { readFileSync } from "node:fs";
import { totalmem } from "node:os";
import { dirname, join } from "node:path";
import type { Config } from "../config/index.js";

/** The least memory limit of the control groups that this process is in; Infinity without one. */
function controlGroupLimit(): number {
  let least = Number.POSITIVE_INFINITY;
  const look = (file: string) => {
    try {
      const value = Number(readFileSync(file, "utf8").trim());
      // Version 1 writes a huge number where there is no limit, version 2 "max", which is no number.
      if (Number.isFinite(value) && value > 0) least = Math.min(least, value);
    } catch {
      // No such group or no such version.
    }
  };
  let groups = "";
  try {
    groups = readFileSync("/proc/self/cgroup", "utf8");
  } catch {
    // Not Linux: only the machine's memory counts.
  }
  for (const line of groups.split("\n")) {
    const match = /^\d+:([^:]*):(\/.*)$/.exec(line);
    if (match === null) continue;
    const [, controllers, path] = match as unknown as [string, string, string];
    const [root, file] =
      controllers === ""
        ? ["/sys/fs/cgroup", "memory.max"]
        : controllers.split(",").includes("memory")
          ? ["/sys/fs/cgroup/memory", "memory.limit_in_bytes"]
          : [undefined, ""];
    if (root === undefined) continue;
    // A limit of any group above holds too.
    for (let at = path; ; at = dirname(at)) {
      look(join(root, at, file));
      if (at === "/" || at === ".") break;
    }
  }
  return least;
}

/** Memory that this process may use, in bytes: the machine's, or what its control groups leave of it. */
export function availableMemory(): number {
  return Math.min(totalmem(), controlGroupLimit());
}

/** Reserved bytes at their highest, of a run or of the plan of one. */
export interface Peaks {
  device: number;
  host: number;
}

/**
 * What a run may reserve. On the CPU both tiers are the same memory: what is left to us shares 80% of it. A GPU has its
 * own, of which all that is free may be used; the host then has its 80% for itself.
 */
export class Limits {
  /** memory.device_limit, where given; else the GPU's free memory, if there is one. */
  readonly device: number | undefined;
  /** memory.host_limit, where given; beside a GPU else 80% of the host's memory. */
  readonly host: number | undefined;
  /** Limits that follow from the machine. */
  readonly auto: { readonly device: boolean; readonly host: boolean };
  /** Of device and host together, for the limits that are not given. */
  readonly total: number;

  /** gpuFree: bytes that are free on the run's GPU; undefined: it runs on the CPU. */
  constructor(
    memory: Pick<Config["memory"], "deviceLimit" | "hostLimit">,
    available = availableMemory(),
    gpuFree?: number,
  ) {
    this.auto = { device: memory.deviceLimit === "auto", host: memory.hostLimit === "auto" };
    this.total = Math.floor(0.8 * available);
    this.device = memory.deviceLimit === "auto" ? gpuFree : memory.deviceLimit;
    this.host = memory.hostLimit !== "auto" ? memory.hostLimit : gpuFree === undefined ? undefined : this.total;
  }

  /** Bytes that `peaks` exceed each tier's limit by; 0 where they fit. */
  excess(peaks: Peaks): Peaks {
    const over = (used: number, limit: number) => Math.max(0, used - limit);
    // A device limit is the user's word, also beyond 80%; the host then has what is left, if it needs any.
    return {
      device: over(peaks.device, this.device ?? this.total - peaks.host),
      host: over(peaks.host, this.host ?? Math.max(0, this.total - peaks.device)),
    };
  }

  /** Bytes that `peaks` leave of a tier, below 0 where they do not fit; of the one that has less left where none is named. */
  slack(peaks: Peaks, tier?: keyof Peaks): number {
    const device = (this.device ?? this.total - peaks.host) - peaks.device;
    const host = (this.host ?? Math.max(0, this.total - peaks.device)) - peaks.host;
    return tier === undefined ? Math.min(device, host) : { device, host }[tier];
  }

  fits(peaks: Peaks): boolean {
    return this.slack(peaks) >= 0;
  }

  /** What the allocators are told, for a run that is to reach `peaks`: spare memory is shared as the needs are. */
  shares(peaks: Peaks): Peaks {
    const needs = Math.max(1, peaks.device + peaks.host);
    const hostShare = Math.max(peaks.host, Math.floor((this.total * peaks.host) / needs));
    const host = this.host ?? (this.device === undefined ? hostShare : Math.max(hostShare, this.total - this.device));
    const device = this.device ?? Math.max(peaks.device, this.total - Math.min(host, this.total));
    // 0 would lift the limit.
    return { device: Math.max(1, device), host: Math.max(1, host) };
  }
}

/** The highest resident memory of this process so far, in bytes; 0 where /proc does not say. */
export function rssPeak(): number {
  try {
    const match = /^VmHWM:\s*(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"));
    return match === null ? 0 : Number(match[1]) * 1024;
  } catch {
    return process.resourceUsage().maxRSS * 1024;
  }
}
