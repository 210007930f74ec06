// What is chosen before the first step: row tiles, checkpoints and where they wait, and how much memory may be used.

import { readFileSync } from "node:fs";
import { totalmem } from "node:os";
import { dirname, join } from "node:path";
import type { Config } from "../config/index.js";
import { ConfigError } from "../errors.js";
import type { ModelConfig } from "../models/config.js";
import { nearestDivisor } from "../models/decoder.js";

/** Chosen once, stored in the checkpoint and used again on resume: tiles decide the order of sums, so the bits. */
export interface MemoryPlan {
  /** Rows of an MLP tile; 0 for one tile of all rows. */
  tileMlp: number;
  /** Rows of a tile of logits; 0 for one tile of all rows. */
  tileLoss: number;
  /** Layers in a checkpoint; 0 for none. */
  checkpointEvery: number;
  /** Whether checkpoints of one layer keep attention's results. */
  keepAttention: boolean;
  /** Where checkpoints beyond deviceBytes wait. */
  offload: "none" | "host" | "disk";
  /** Bytes of checkpoints that stay on the device when others go out. */
  deviceBytes: number;
  /** How checkpoints that went out are stored. */
  format: "native" | "int8" | "float8";
  /** Folder of the disk tier. */
  directory: string | null;
  /** Chunks of query heads, a divisor of their number. */
  headChunks: number;
  /** What of the states lives on the host. */
  states: { optimizer: "none" | "host"; params: "none" | "host"; gradients: "none" | "host" };
}

/** A tile of float32 logits on the CPU holds at most this much. */
const LOGITS_TILE_BYTES = 64 * 2 ** 20;
const MLP_TILE_ROWS = 2048;

/** Tiles of at most `most` rows, made equal, so that the last one is not a sliver. */
export function evenRows(tokens: number, most: number): number {
  const rows = Math.max(1, most);
  return Math.ceil(tokens / Math.ceil(tokens / rows));
}

/** What a plan depends on of a model. */
export type ModelSizes = Pick<ModelConfig, "vocabSize" | "numHeads">;

/**
 * What `memory` says, `auto` resolved. Checkpoints are off unless one of their keys asks for them.
 * `tokens`: of the largest micro-batch; `before`: what was chosen when the run began.
 * Throws ConfigError for keys that contradict each other.
 */
export function chooseMemory(config: Config, tokens: number, model: ModelSizes, before?: MemoryPlan): MemoryPlan {
  const { tileMlp, tileLoss, headChunks, checkpoint, offload: states } = config.memory;
  // A key the user sets is fixed; what was left to us stays as it was chosen.
  const rows = (setting: "auto" | "off" | number, most: number, chosen: number | undefined) =>
    setting === "off" ? 0 : setting === "auto" ? (chosen ?? evenRows(tokens, most)) : setting;
  const offload = checkpoint.offload === "auto" ? "none" : checkpoint.offload;
  const asked =
    states.params === "host" ||
    offload !== "none" ||
    checkpoint.keepAttention === true ||
    Number(checkpoint.deviceBytes) > 0;
  const checkpointEvery = checkpoint.every === "auto" ? (asked ? 1 : 0) : checkpoint.every;
  if (checkpointEvery === 0 && offload !== "none")
    throw new ConfigError(
      `memory.checkpoint.offload: ${offload} has nothing to move while memory.checkpoint.every is 0; set every to 1 or more, or offload to none`,
    );
  if (checkpointEvery === 0 && states.params === "host")
    throw new ConfigError(
      "memory.offload.params: host needs memory.checkpoint.every of 1 or more, since without checkpoints a backward " +
        "holds every layer's parameters on the device; set every to 1 or auto, or params to none",
    );
  return {
    tileMlp: rows(tileMlp, MLP_TILE_ROWS, before?.tileMlp),
    tileLoss: rows(tileLoss, Math.floor(LOGITS_TILE_BYTES / (4 * model.vocabSize)), before?.tileLoss),
    checkpointEvery,
    keepAttention: checkpoint.keepAttention === "auto" ? checkpointEvery > 0 : checkpoint.keepAttention,
    offload,
    deviceBytes: checkpoint.deviceBytes === "auto" ? 0 : checkpoint.deviceBytes,
    format: checkpoint.format,
    directory: offload === "disk" ? (checkpoint.directory ?? join(config.output.dir, "offload")) : null,
    headChunks: headChunks === "auto" ? (before?.headChunks ?? 1) : nearestDivisor(model.numHeads, headChunks),
    states,
  };
}

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

/** Bytes that the device may reserve: the setting, or 80% of the memory there is. */
export function deviceLimit(config: Config): number {
  const { deviceLimit: limit } = config.memory;
  return limit === "auto" ? Math.floor(0.8 * availableMemory()) : limit;
}

/** Bytes that the host tier may reserve. */
export function hostLimit(config: Config): number {
  const { hostLimit: limit } = config.memory;
  return limit === "auto" ? Math.floor(0.8 * availableMemory()) : limit;
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
