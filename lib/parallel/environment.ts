// Who this process is in its job, from the variables of whoever started it: the launcher or torchrun.

import { ConfigError } from "../errors.js";

/** A rank's place, before it has met the others. */
export interface Place {
  readonly rank: number;
  readonly world: number;
  /** Among the ranks of this machine. */
  readonly localRank: number;
  readonly localWorld: number;
  /** Where the ranks meet. */
  readonly host: string;
  readonly port: number;
  /** Whether the launcher keeps the meeting place; else rank 0 does. */
  readonly hosted: boolean;
}

/** The launcher's own variables, and torchrun's. */
const dialects = [
  {
    rank: "LONGSEQ_RANK",
    world: "LONGSEQ_WORLD_SIZE",
    localRank: "LONGSEQ_LOCAL_RANK",
    localWorld: "LONGSEQ_LOCAL_WORLD_SIZE",
    host: "LONGSEQ_RENDEZVOUS_HOST",
    port: "LONGSEQ_RENDEZVOUS_PORT",
    hosted: true,
  },
  {
    rank: "RANK",
    world: "WORLD_SIZE",
    localRank: "LOCAL_RANK",
    localWorld: "LOCAL_WORLD_SIZE",
    host: "MASTER_ADDR",
    port: "MASTER_PORT",
    hosted: false,
  },
] as const;

function wholeNumber(env: NodeJS.ProcessEnv, name: string, least: number, below: number): number {
  const text = env[name] ?? "";
  const value = Number(text);
  if (!/^\d{1,9}$/.test(text) || value < least || value >= below)
    throw new ConfigError(
      `the environment's ${name} is ${text === "" ? "missing" : JSON.stringify(text)}; expected a whole number from ${least} to ${below - 1}`,
      { name, value: text },
    );
  return value;
}

/** The place that the environment names; undefined for a process that is alone. Throws ConfigError. */
export function placeOf(env: NodeJS.ProcessEnv): Place | undefined {
  const names = dialects.find(({ rank, world }) => env[rank] !== undefined && env[world] !== undefined);
  if (names === undefined) return undefined;
  const world = wholeNumber(env, names.world, 1, 1e6);
  if (world === 1) return undefined;
  const rank = wholeNumber(env, names.rank, 0, world);
  const localWorld = env[names.localWorld] === undefined ? world : wholeNumber(env, names.localWorld, 1, world + 1);
  return {
    rank,
    world,
    localRank: env[names.localRank] === undefined ? rank : wholeNumber(env, names.localRank, 0, localWorld),
    localWorld,
    host: env[names.host] ?? "127.0.0.1",
    port: wholeNumber(env, names.port, 1, 65536),
    hosted: names.hosted,
  };
}
