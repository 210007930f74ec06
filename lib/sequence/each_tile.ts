// Walking row tiles in order; on the meta device only as many as differ, the others are counted.
import { binding } from "../binding.js";
import type { Device } from "../tensor/device.js";
import { scope } from "../tensor/scope.js";

/**
 * Calls `body` in a scope of its own for each tile of `rows` rows; the last may have fewer. rows 0: one tile of all.
 * On `meta` a tile that leaves the allocators as it found them would be followed by its like: those are added to the op
 * counts and left out, so that a step of millions of tokens is planned in milliseconds, its peaks exact to the byte.
 * `body` may therefore depend on `start` by values alone, not by what it allocates.
 */
export function eachTile(
  device: Device,
  total: number,
  rows: number,
  body: (tile: { start: number; length: number }) => void,
): void {
  const step = rows > 0 ? rows : Math.max(total, 1);
  const { native } = device;
  let before = device.isMeta ? { blocks: binding.arrangement(native), ops: binding.opCounts(native) } : undefined;
  for (let start = 0; start < total; start += step) {
    scope(() => body({ start, length: Math.min(step, total - start) }));
    if (before === undefined) continue;
    // Of the full tiles to come the last is walked, and the shorter one behind it.
    const alike = Math.floor((total - start) / step) - 2;
    if (alike < 1) {
      before = undefined;
      continue;
    }
    const blocks = binding.arrangement(native);
    // The first tile may set what the others add to.
    if (start > 0 && blocks === before.blocks) {
      binding.repeatOps(native, before.ops, alike);
      start += alike * step;
      before = undefined;
    } else before = { blocks, ops: binding.opCounts(native) };
  }
}
