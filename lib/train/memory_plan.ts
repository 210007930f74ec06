// What was chosen for the memory of a run: row tiles, checkpoints and where they wait, head chunks, states on the host.

import { formatBytes } from "../report/format.js";

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
  /** Whether a checkpoint is fetched while the layer behind it is still in its backward. */
  prefetch: boolean;
  /** Chunks of query heads, a divisor of their number. */
  headChunks: number;
  /** What of the states lives on the host. */
  states: { optimizer: "none" | "host"; params: "none" | "host"; gradients: "none" | "host" };
}

/** Where checkpoints wait, and what is run again: what the ladder moves. */
export type Setting = Pick<
  MemoryPlan,
  "checkpointEvery" | "keepAttention" | "offload" | "deviceBytes" | "prefetch" | "headChunks"
>;

/** A plan from what the ladder moves and what it does not. */
export function complete(base: Omit<MemoryPlan, keyof Setting>, setting: Setting): MemoryPlan {
  const { checkpointEvery, keepAttention, offload, deviceBytes, prefetch, headChunks } = setting;
  return {
    ...base,
    checkpointEvery,
    keepAttention,
    offload,
    deviceBytes,
    prefetch,
    headChunks,
    directory: offload === "disk" ? base.directory : null,
  };
}

/** The other way round; of plans of earlier versions too. */
export const settingOf = (plan: MemoryPlan): Setting => ({
  checkpointEvery: plan.checkpointEvery,
  keepAttention: plan.keepAttention,
  offload: plan.offload,
  deviceBytes: plan.deviceBytes,
  prefetch: plan.prefetch ?? true,
  headChunks: plan.headChunks ?? 1,
});

/** What a plan does, in a few words. */
export function describeSetting(plan: MemoryPlan): string {
  const { tileMlp, tileLoss, checkpointEvery: every, offload, deviceBytes, headChunks, prefetch, states } = plan;
  const tile = (rows: number, what: string) => `${what} ${rows === 0 ? "whole" : `in tiles of ${rows}`}`;
  const parts = [`${tile(tileMlp, "MLP")}, ${tile(tileLoss, "loss")}`];
  if (every === 0) parts.push("no checkpoints");
  else {
    const where =
      offload === "none"
        ? "on the device"
        : deviceBytes >= Number.MAX_SAFE_INTEGER
          ? `all on the device (offload to the ${offload} is not needed)`
          : `on the ${offload}${deviceBytes > 0 ? ` but for ${formatBytes(deviceBytes)}` : ""}`;
    parts.push(
      `checkpoints every ${every === 1 ? "layer" : `${every} layers`} ${where}` +
        `${plan.keepAttention && every === 1 ? " with attention kept" : ""}` +
        `${plan.format === "native" || deviceBytes >= Number.MAX_SAFE_INTEGER ? "" : `, as ${plan.format}`}${prefetch ? "" : ", not prefetched"}`,
    );
  }
  if (headChunks > 1) parts.push(`${headChunks} head chunks`);
  const away = Object.entries(states).filter(([, where]) => where === "host");
  if (away.length > 0) parts.push(`${away.map(([what]) => what).join(", ")} on the host`);
  return parts.join("; ");
}
