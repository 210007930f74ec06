// The ladder of memory settings, ordered by added work, and what of it the configuration fixes.

import type { Config } from "../config/index.js";
import { ConfigError } from "../errors.js";
import type { ModelConfig } from "../models/config.js";
import { formatBytes } from "../report/format.js";
import { nearestDivisor } from "../sequence/attention_chunks.js";
import { spares } from "./bounds.js";
import type { Setting } from "./memory_plan.js";

/** A place on the ladder. */
export interface Rung extends Setting {
  name: string;
}

/** Keys of the ladder that the configuration fixes. */
export type Fixed = Partial<Setting>;

/** Throws ConfigError for keys of `memory` that contradict each other. */
export function checkKeys({ checkpoint, offload: states }: Config["memory"]): void {
  const { every, keepAttention, offload, deviceBytes, format, directory } = checkpoint;
  const refuse = (key: string, value: string, other: string, remedy: string): never => {
    throw new ConfigError(`memory.checkpoint.${key}: ${value}, but memory.checkpoint.${other}; ${remedy}`);
  };
  const away = offload === "host" || offload === "disk";
  if (every === 0) {
    const remedy = "set every to 1 or more, or leave this key out";
    if (away) refuse("offload", offload, "every is 0, so there is nothing to move", remedy);
    if (keepAttention === true) refuse("keep_attention", "true", "every is 0, so there are no checkpoints", remedy);
    if (Number(deviceBytes) > 0)
      refuse("device_bytes", formatBytes(Number(deviceBytes)), "every is 0, so there are no checkpoints", remedy);
    if (format !== "native") refuse("format", format, "every is 0, so there are no checkpoints", remedy);
    if (states.params === "host")
      throw new ConfigError(
        "memory.offload.params: host, but memory.checkpoint.every is 0, so that a backward would hold every layer's " +
          "parameters on the device; set every to 1 or more, or leave one of the keys out",
      );
  }
  if (directory !== null && (offload === "none" || offload === "host"))
    refuse("directory", directory, `offload is ${offload}`, "set offload to disk, or leave this key out");
}

export function fixedKeys({ checkpoint, headChunks }: Config["memory"], heads: number): Fixed {
  const { every, keepAttention, offload, deviceBytes } = checkpoint;
  return {
    ...(every !== "auto" && { checkpointEvery: every }),
    ...(keepAttention !== "auto" && { keepAttention }),
    ...(offload !== "auto" && { offload }),
    ...(deviceBytes !== "auto" && { deviceBytes }),
    ...(headChunks !== "auto" && { headChunks: nearestDivisor(heads, headChunks) }),
  };
}

/** What of a model decides which settings there are. */
type Layers = Pick<ModelConfig, "numHeads" | "numLayers" | "adapter">;

/** Whether what the configuration fixes asks for checkpoints. */
const needsCheckpoints = (memory: Config["memory"], fixed: Fixed, { adapter }: Layers): boolean =>
  (adapter?.baseFormat ?? null) !== null ||
  (fixed.offload ?? "none") !== "none" ||
  fixed.keepAttention === true ||
  (fixed.deviceBytes ?? 0) > 0 ||
  memory.checkpoint.format !== "native" ||
  memory.checkpoint.directory !== null ||
  memory.offload.params === "host";

/** Segment lengths worth trying: each saves checkpoints over the one before. */
function everyChoices(layers: number): number[] {
  const choices: number[] = [];
  for (let k = 2; k < layers; k += k < 4 ? 1 : k < 8 ? 2 : k < 16 ? 4 : k < 32 ? 8 : 16) choices.push(k);
  return layers > 1 ? [...choices, layers] : choices;
}

export const divisors = (number: number): number[] =>
  Array.from({ length: number }, (_, i) => i + 1).filter((divisor) => number % divisor === 0);

/** The ladder, in the order of added work; keys that are fixed keep their value on every rung. */
export function ladder(memory: Config["memory"], model: Layers): Rung[] {
  const fixed = fixedKeys(memory, model.numHeads);
  const start: Setting = {
    checkpointEvery: 0,
    keepAttention: true,
    offload: "none",
    deviceBytes: 0,
    prefetch: true,
    headChunks: 1,
  };
  const rungs: Rung[] = [];
  const seen = new Set<string>();
  let last = start;
  const step = (name: string, change: Partial<Setting>) => {
    last = { ...last, ...change };
    const setting = { ...last, ...fixed };
    if (setting.checkpointEvery === 0) {
      if (fixed.checkpointEvery === undefined && needsCheckpoints(memory, fixed, model)) return;
      Object.assign(setting, { keepAttention: false, offload: "none", deviceBytes: 0, prefetch: true });
    }
    // Only a checkpoint of one layer has a choice.
    if (setting.checkpointEvery > 1 && fixed.keepAttention === undefined) setting.keepAttention = false;
    if (setting.offload === "none") setting.prefetch = true;
    const key = JSON.stringify(setting);
    if (seen.has(key)) return;
    seen.add(key);
    rungs.push({ name, ...setting });
  };
  step("tiles", {});
  step("checkpoint", { checkpointEvery: 1 });
  step("offload", { offload: "host" });
  for (const headChunks of divisors(model.numHeads)) if (headChunks > 1) step("head chunks", { headChunks });
  step("no prefetch", { prefetch: false });
  step("no kept attention", { keepAttention: false });
  for (const checkpointEvery of everyChoices(model.numLayers)) step("every", { checkpointEvery });
  step("disk", { offload: "disk", checkpointEvery: 1 });
  for (const checkpointEvery of everyChoices(model.numLayers)) step("disk", { checkpointEvery });
  return rungs;
}

/** Whether fixed keys and those chosen before still go together. */
export const isRung = (setting: Setting, fixed: Fixed, memory: Config["memory"], model: Layers): boolean =>
  setting.checkpointEvery > 0 || (setting.offload === "none" && !needsCheckpoints(memory, fixed, model));

/** The rungs that no other spares more than: where none of these fits, none does. */
export const leading = (rungs: readonly Rung[], { numLayers }: Pick<ModelConfig, "numLayers">): Rung[] =>
  rungs.filter((rung) => !rungs.some((other) => other !== rung && spares(other, rung, numLayers)));
