// What is chosen before the first step: of a ladder of memory settings, ordered by added work, the first that a step on
// `meta` says fits.

import type { Config } from "../config/index.js";
import { ConfigError } from "../errors.js";
import type { ModelConfig } from "../models/config.js";
import { formatBytes } from "../report/format.js";
import { checkKeys, divisors, type Fixed, fixedKeys, isRung, ladder, leading, type Rung } from "./ladder.js";
import type { Peaks } from "./limits.js";
import type { Measurement } from "./measure.js";
import { describeSetting, type MemoryPlan, type Setting, settingOf } from "./memory_plan.js";
import { bisect, furthest, type PlanFacts, Trials } from "./trials.js";

export interface Choice {
  plan: MemoryPlan;
  /** Of the rung that was taken; "as before" for a plan that is used again. */
  rung: string;
  measured: Measurement;
  /** Steps on `meta` that it took. */
  runs: number;
  warnings: string[];
}

/** Takes back what was given up on the way to `rung` and is not needed, the most work first. */
function relax(rung: Rung, fixed: Fixed, model: ModelConfig, bench: Trials): Rung {
  let best = rung;
  const attempt = (change: Partial<Setting>): boolean => {
    const next = { ...best, ...change };
    if (bench.exhausted || !bench.fits(next)) return false;
    best = next;
    return true;
  };
  if (best.checkpointEvery === 1 && !best.keepAttention && fixed.keepAttention === undefined)
    attempt({ keepAttention: true });
  if (!best.prefetch) attempt({ prefetch: true });
  if (best.headChunks > 1 && fixed.headChunks === undefined) {
    const choices = divisors(model.numHeads);
    const at = bisect(
      0,
      choices.indexOf(best.headChunks),
      (i) => !bench.exhausted && bench.fits({ ...best, headChunks: choices[i] as number }),
    );
    attempt({ headChunks: choices[at] as number });
  }
  if (best.offload !== "none" && fixed.offload === undefined && fixed.deviceBytes === undefined)
    attempt({ offload: "none", prefetch: true });
  if (best.offload !== "none" && fixed.deviceBytes === undefined) {
    // All of them, or as many as fit.
    if (attempt({ deviceBytes: Number.MAX_SAFE_INTEGER })) return best;
    // As many as fit: each is as large as the others.
    const { resident } = bench.of({ ...best, deviceBytes: Number.MAX_SAFE_INTEGER });
    const count = Math.ceil(model.numLayers / best.checkpointEvery);
    const bytes = (checkpoints: number) => Math.ceil((checkpoints * resident) / count);
    const slackAt = (checkpoints: number) =>
      bench.exhausted ? Number.NaN : bench.slack({ ...best, deviceBytes: bytes(checkpoints) }, "device");
    const none = bench.slack(best, "device");
    const guess = Math.floor(none / bytes(1));
    const some = furthest(0, count, slackAt, { guess, known: [{ index: 0, slack: none }] });
    if (some > 0) attempt({ deviceBytes: bytes(some) });
  }
  return best;
}

/** "1.50 GiB" with the exact bytes where rounding would hide them. */
const exactly = (bytes: number): string => `${formatBytes(bytes)} (${bytes})`;

function byCategory(categories: Record<string, number>): string {
  return Object.entries(categories)
    .filter(([, bytes]) => bytes > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([name, bytes]) => `${name} ${formatBytes(bytes)}`)
    .join(", ");
}

/** Whether some setting of what is left open fits; asked of those alone that no other spares more than. */
export function canFit(config: Config, facts: PlanFacts): boolean {
  const bench = new Trials(config, facts, undefined);
  return leading(ladder(config.memory, facts.model), facts.model).some((rung) => bench.fits(rung));
}

/** Says which limit is short, what the most saving rung needs, and what would do. */
function tooSmall(rungs: readonly Rung[], bench: Trials, facts: PlanFacts): ConfigError {
  const { limits } = facts;
  const tried = leading(rungs, facts.model).map((rung) => ({ rung, measured: bench.of(rung) }));
  const excess = ({ measured }: (typeof tried)[number]) => limits.excess(measured.needs);
  type Tier = "device" | "host";
  const least = (among: typeof tried, tier: Tier) =>
    among.reduce<(typeof tried)[number] | undefined>(
      (best, one) => (best && best.measured.needs[tier] <= one.measured.needs[tier] ? best : one),
      undefined,
    );
  // With the other limit as it is, if that can be.
  const forDevice = least(
    tried.filter((one) => excess(one).host === 0 || limits.host === undefined),
    "device",
  );
  const forHost = least(
    tried.filter((one) => excess(one).device === 0),
    "host",
  );
  const short: Tier = forHost ? "host" : "device";
  const found = forHost ?? forDevice ?? (least(tried, "device") as (typeof tried)[number]);
  const { needs, categories } = bench.exact(found.rung);
  const both = forHost === undefined && forDevice === undefined;
  const shown = (tier: Tier) => {
    const limit = limits[tier];
    if (limit !== undefined && limits.auto[tier])
      return `memory.${tier}_limit is auto, ${tier === "device" ? "the GPU's free" : "80% of the memory,"} ${exactly(limit)}`;
    return limit === undefined
      ? `memory.${tier}_limit is auto, with ${formatBytes(limits.total)} for device and host together`
      : `memory.${tier}_limit is ${exactly(limit)}`;
  };
  const needed = (tier: Tier) => `at least ${exactly(needs[tier])} of ${tier} memory (${byCategory(categories[tier])})`;
  const tiers: Tier[] = both ? ["device", "host"] : [short];
  const { tokens, documents } = facts.work.micro;
  return new ConfigError(
    `${tiers.map(shown).join(" and ")}; a step of ${tokens} tokens${documents > 1 ? ` in ${documents} documents` : ""} ` +
      `needs ${tiers.map(needed).join(" and ")}, with ${describeSetting(bench.plan(found.rung))}; ` +
      `raise ${tiers.map((tier) => `memory.${tier}_limit`).join(" and ")}, use a shorter data.sequence_length` +
      `${rungs.length < 3 ? ", leave more keys of memory to auto" : ""}, or a smaller model`,
    {
      short: tiers,
      deviceLimit: limits.device ?? limits.total,
      hostLimit: limits.host ?? limits.total,
      deviceBytes: needs.device,
      hostBytes: needs.host,
      categories: Object.fromEntries(tiers.map((tier) => [tier, categories[tier]])),
      runs: bench.runs,
    },
  );
}

/**
 * What `memory` says, `auto` resolved by the ladder: the first rung whose peaks on `meta` fit the limits. `before`: what
 * was chosen when the run began; keys left to us stay as they were. Throws ConfigError for keys that contradict each
 * other and for limits that no rung fits.
 */
export function chooseMemory(config: Config, facts: PlanFacts, before?: MemoryPlan): Choice {
  const { memory } = config;
  const { model, limits } = facts;
  checkKeys(memory);
  const warnings: string[] = [];
  const fixed = fixedKeys(memory, model.numHeads);
  if (memory.headChunks !== "auto" && fixed.headChunks !== memory.headChunks)
    warnings.push(
      `memory.head_chunks: ${memory.headChunks} does not divide the ${model.numHeads} heads; ${fixed.headChunks} are used`,
    );
  const bench = new Trials(config, facts, before);
  const chosen = (rung: string, setting: Setting): Choice => {
    if (memory.checkpoint.keepAttention === true && setting.checkpointEvery > 1)
      warnings.push(
        "memory.checkpoint.keep_attention: true changes nothing where a checkpoint spans several layers " +
          `(every is ${setting.checkpointEvery}): attention's results are kept within the layers that are run again`,
      );
    return { plan: bench.taken(setting), rung, measured: bench.exact(setting), runs: bench.runs, warnings };
  };
  const rungs = ladder(memory, model);
  if (before !== undefined) {
    const again: Setting = { ...settingOf(before), ...fixed };
    if (isRung(again, fixed, memory, model)) {
      if (bench.fits(again)) return chosen("as before", again);
      warnings.push(
        "the memory settings of the checkpoint do not fit the limits of this run; they are chosen anew, tiles apart",
      );
    }
  }
  for (const rung of rungs) if (bench.fits(rung)) return relaxed(rung);
  // What was to be spared may be what lacks.
  for (const rung of rungs) if (limits.fits(bench.exact(rung).needs)) return chosen(rung.name, rung);
  throw tooSmall(rungs, bench, facts);

  function relaxed(rung: Rung): Choice {
    return chosen(rung.name, relax(rung, fixed, model, bench));
  }
}

/** Of a choice, for the line that tells of it. */
export function describeChoice({ plan, measured }: Choice, { device, host }: Peaks): string {
  const { peaks } = measured;
  return (
    `${describeSetting(plan)}; device ${formatBytes(peaks.device)} of ${formatBytes(device)}` +
    (peaks.host > 0 ? `, host ${formatBytes(peaks.host)} of ${formatBytes(host)}` : "") +
    (peaks.disk > 0 ? `, disk ${formatBytes(peaks.disk)}` : "")
  );
}
