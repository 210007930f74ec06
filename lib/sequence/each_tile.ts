// Walking row tiles in order; on the meta device only as many as differ, the others are counted.
import { binding } from "../binding.js";
import type { Device } from "../tensor/device.js";
import { scope } from "../tensor/scope.js";

/** So many of something, from `start` on. */
export interface Stretch {
  start: number;
  length: number;
}

/** Calls `body` in a scope of its own for each tile of `rows` rows; the last may have fewer. rows 0: one tile of all. */
export function eachTile(device: Device, total: number, rows: number, body: (tile: Stretch) => void): void {
  eachStretch(device, total, rows > 0 ? rows : Math.max(total, 1), (tile) => scope(() => body(tile)));
}

let everything = false;

/** For tests: whether all is walked on `meta` too. */
export function walkAllStretches(all: boolean): void {
  everything = all;
}

/**
 * Calls `body` for each stretch of `step`; the last may be shorter. On `meta` one that leaves the allocators as it found
 * them would be followed by its like: those are added to the op counts and left out, so that a step of millions of tokens
 * is planned in milliseconds, its peaks exact to the byte. `body` may therefore depend on `start` by values alone, not by
 * what it allocates.
 */
export function eachStretch(device: Device, total: number, step: number, body: (stretch: Stretch) => void): void {
  const walk = (start: number): void => body({ start, length: Math.min(step, total - start) });
  // Four and more: the first may set what the others add to, the last full one and the shorter one behind it are walked.
  if (!device.isMeta || everything || total <= 3 * step) {
    for (let start = 0; start < total; start += step) walk(start);
    return;
  }
  const { native } = device;
  walk(0);
  let blocks = binding.arrangement(native);
  for (let start = step; start < total; start += step) {
    const mark = binding.markOps(native);
    walk(start);
    const alike = Math.floor((total - start) / step) - 2;
    if (alike >= 1) {
      const after = binding.arrangement(native);
      if (after === blocks) {
        binding.repeatOps(native, mark, alike);
        start += alike * step;
      }
      blocks = after;
    }
    binding.dropOps(native, mark);
  }
}
