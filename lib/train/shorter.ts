// A model of many layers, most of them alike, costs no more to account for than one of a few: what is asked of the
// allocators for a layer is what was asked for the one before it. So a shorter model is walked, and its log
// (native/runtime/program_log) is drawn out.

import type { ModelConfig } from "../models/config.js";
import type { MemoryPlan } from "./memory_plan.js";

/** A model that stands for a longer one. */
export interface Shorter {
  model: ModelConfig;
  /** Where layers are put in: those before it and those behind it are alike. */
  at: number;
  /** Layers after which the same kinds come again. */
  period: number;
  /** How many times so many layers were left out. */
  copies: number;
}

/** Kinds of layers that come in turn, at most so many. */
const MOST_KINDS = 8;

/** What tells one layer from another in what it takes. */
const kindsOf = ({ numLayers, windows, layerRopes }: ModelConfig): string[] =>
  Array.from({ length: numLayers }, (_, layer) => `${windows[layer]} ${layerRopes[layer]}`);

/** Whether an adapter's modules may be named by the number of their layer. */
function namesLayers({ adapter }: ModelConfig): boolean {
  if (!adapter || adapter.targetModules === "all-linear") return false;
  const { targetModules, modulesToSave } = adapter;
  return typeof targetModules === "string" || [...targetModules, ...modulesToSave].some((name) => /\d/.test(name));
}

const leastCommonMultiple = (a: number, b: number): number => {
  let multiple = a;
  while (multiple % b !== 0) multiple += a;
  return multiple;
};

/** The layers that `keep` says, of whatever has one entry for each. */
function withLayers(model: ModelConfig, keep: (layer: number) => boolean): ModelConfig {
  const only = <T>(list: readonly T[]): T[] => list.filter((_, layer) => keep(layer));
  const windows = only(model.windows);
  return { ...model, numLayers: windows.length, windows, layerRopes: only(model.layerRopes) };
}

/** Checkpoints that are kept on each side of those that are alike. */
export type Margins = readonly [before: number, behind: number];

/**
 * The margins that are worth trying. What leaves the device is let go of when the next checkpoint is made, or later where
 * it passes through the host; what is fetched ahead comes later for the last.
 */
export function marginsOf({ offload, states }: MemoryPlan): readonly Margins[] {
  if (offload === "disk") return [[5, 3]];
  const still = offload === "none" && states.gradients === "none" && states.params === "none";
  return still
    ? [
        [1, 1],
        [2, 2],
      ]
    : [
        [2, 2],
        [3, 3],
      ];
}

/** A walk that may turn out to stand for nothing is to spare at least this part of the layers. */
const WORTH = 1 / 3;

/** The shortest model that stands for this one; null: none is shorter, or it is not known what layers differ by. */
export function shorter(model: ModelConfig, plan: MemoryPlan, [before, behind]: Margins): Shorter | null {
  const { checkpointEvery, deviceBytes, offload, format } = plan;
  // Experts count in tensors that have a row for each layer.
  if (model.experts !== null || namesLayers(model)) return null;
  // Which checkpoints stay on the device depends on how many there are.
  const some = deviceBytes > 0 && deviceBytes < Number.MAX_SAFE_INTEGER;
  if (some && checkpointEvery > 0 && (offload !== "none" || format !== "native")) return null;
  const every = Math.max(1, checkpointEvery);
  const kinds = kindsOf(model);
  let best: Shorter | null = null;
  for (let own = 1; own <= MOST_KINDS; own++) {
    const period = leastCommonMultiple(own, every);
    const edge = behind * every;
    for (let first = before * every; first + 3 * period + edge <= kinds.length; first += every) {
      // How far the kinds come again from here on.
      let end = first + period;
      while (end < kinds.length && kinds[end] === kinds[end - period]) end++;
      const copies = Math.floor((Math.min(end, kinds.length - edge) - first) / period) - 2;
      if (copies < 1 || copies * period <= (best ? best.copies * best.period : WORTH * kinds.length)) continue;
      const at = first + period;
      const kept = withLayers(model, (layer) => layer < at || layer >= at + copies * period);
      best = { model: kept, at, period, copies };
    }
  }
  return best;
}
