// The ranks of a run: how they share the sequences, the heads and the states.

import type { Config } from "../config/index.js";
import { ConfigError } from "../errors.js";
import type { ModelConfig } from "../models/config.js";
import type { MeshSizes } from "../parallel/mesh.js";
import type { ZeroLevel } from "../parallel/zero.js";
import { fewestRings } from "../sequence/shard.js";
import { unservedHeads } from "../sequence/ulysses.js";

/** The ranks of a job, and how their states are spread. */
export interface RanksOf extends MeshSizes {
  readonly zero: ZeroLevel;
}

/** Ranks that a configuration asks for; undefined: as many as there are. */
export function wantedRanks({ parallel: { sequence, data } }: Config): number | undefined {
  return sequence === "auto" ? undefined : sequence * data;
}

/** Throws ConfigError where the configuration is not for so many ranks. */
export function checkRanks(config: Config, world: number): void {
  const { sequence, data } = config.parallel;
  const wanted = wantedRanks(config);
  if (wanted === undefined ? world % data === 0 : wanted === world) return;
  throw new ConfigError(
    `parallel: sequence ${sequence} x data ${data} is for ${wanted ?? `a multiple of ${data}`} ranks, but this run has ` +
      `${world}; start it with --nproc ${wanted ?? data}, or set ` +
      `${wanted === undefined ? "parallel.data to a divisor of that" : "parallel.sequence to auto"}`,
    { world },
  );
}

/**
 * How `world` ranks share the heads and the tokens of sequences of at most so many tokens, and the states. Throws
 * ConfigError where no way serves.
 */
export function ranksOf(config: Config, world: number, model: ModelConfig, tokens: number): RanksOf {
  const { data, ring: wanted, zero } = config.parallel;
  const sequence = world / data;
  const unserved = (ulysses: number) => unservedHeads(ulysses, model.numHeads, model.numKeyValueHeads);
  const ring = wanted === "auto" ? (fewestRings(sequence, (ulysses) => unserved(ulysses) === undefined) ?? 1) : wanted;
  if (sequence % ring !== 0)
    throw new ConfigError(
      `parallel.ring: ${ring} does not divide the ${sequence} ranks of a sequence; use a divisor, or auto`,
      { ring, ranks: sequence },
    );
  const ulysses = sequence / ring;
  const reason = unserved(ulysses);
  if (reason !== undefined)
    throw new ConfigError(
      `parallel: ${reason} (sequence ${sequence} in ${ring === 1 ? "no ring" : `a ring of ${ring}`}); use another ` +
        "parallel.ring, auto, or another number of ranks",
      { ranks: sequence, ring },
    );
  if (sequence > tokens)
    throw new ConfigError(
      `parallel: ${sequence} ranks share each sequence, but the longest has ${tokens} tokens; use fewer ranks, or raise ` +
        "parallel.data",
      { ranks: world, tokens },
    );
  return { data, ring, ulysses, zero: zero === "auto" ? (world > 1 ? 3 : 0) : zero };
}

/** "8 ranks: data 2 x ring 2 x ulysses 2, ZeRO 3" */
export const describeRanks = ({ data, ring, ulysses, zero }: RanksOf): string =>
  `${data * ring * ulysses} ranks: data ${data} x ring ${ring} x ulysses ${ulysses}, ZeRO ${zero}`;
