// The `ranks` of a step's line: figures of several ranks, as far as they are sound.

import type { RankFigure, RanksInfo } from "./protocol.js";

/** More ranks than a page can show one by one. */
const MOST_RANKS = 1024;

const isCount = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value) && value >= 0;

function figure(value: unknown): RankFigure | null {
  if (typeof value !== "object" || value === null) return null;
  const { min, max, max_rank: maxRank, each } = value as Record<string, unknown>;
  if (!isCount(min) || !isCount(max) || !isCount(maxRank)) return null;
  const all = Array.isArray(each) && each.length <= MOST_RANKS && each.every(isCount) ? (each as number[]) : null;
  return { min, max, maxRank, each: all };
}

/** Null for a run of one rank, and for what is no such object. */
export function readRanks(value: unknown, step: number): RanksInfo | null {
  if (typeof value !== "object" || value === null) return null;
  const record = value as Record<string, unknown>;
  const seconds = figure(record.seconds);
  const devicePeakBytes = figure(record.device_peak_bytes);
  const hostPeakBytes = figure(record.host_peak_bytes);
  if (seconds === null || devicePeakBytes === null || hostPeakBytes === null) return null;
  return { step, seconds, devicePeakBytes, hostPeakBytes };
}
