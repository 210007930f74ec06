// Who this process is in its job, from the variables of whoever started it: the launcher, torchrun, Slurm's srun, or Open
// MPI's mpirun.

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

interface Dialect {
  readonly rank: string;
  readonly world: string;
  readonly localRank: string;
  readonly localWorld: string;
  /** The first that is set. */
  readonly host: readonly string[];
  readonly port: string;
  /** Where nobody says. */
  readonly defaultPort?: string;
  /** Nobody else sets these names: one without the other is a mistake. */
  readonly whole?: boolean;
  readonly hosted: boolean;
}

/** The first one whose rank and world are set is spoken. */
const dialects: readonly Dialect[] = [
  {
    rank: "LONGSEQ_RANK",
    world: "LONGSEQ_WORLD_SIZE",
    localRank: "LONGSEQ_LOCAL_RANK",
    localWorld: "LONGSEQ_LOCAL_WORLD_SIZE",
    host: ["LONGSEQ_RENDEZVOUS_HOST"],
    port: "LONGSEQ_RENDEZVOUS_PORT",
    whole: true,
    hosted: true,
  },
  // torchrun
  {
    rank: "RANK",
    world: "WORLD_SIZE",
    localRank: "LOCAL_RANK",
    localWorld: "LOCAL_WORLD_SIZE",
    host: ["MASTER_ADDR"],
    port: "MASTER_PORT",
    whole: true,
    hosted: false,
  },
  // mpirun
  {
    rank: "OMPI_COMM_WORLD_RANK",
    world: "OMPI_COMM_WORLD_SIZE",
    localRank: "OMPI_COMM_WORLD_LOCAL_RANK",
    localWorld: "OMPI_COMM_WORLD_LOCAL_SIZE",
    host: ["MASTER_ADDR"],
    port: "MASTER_PORT",
    defaultPort: "29500",
    hosted: false,
  },
  // srun: a step's numbers, which a batch script that starts no step does not have
  {
    rank: "SLURM_PROCID",
    world: "SLURM_STEP_NUM_TASKS",
    localRank: "SLURM_LOCALID",
    localWorld: "SLURM_STEP_TASKS_PER_NODE",
    host: ["MASTER_ADDR", "SLURM_LAUNCH_NODE_IPADDR"],
    port: "MASTER_PORT",
    defaultPort: "29500",
    hosted: false,
  },
];

function wholeNumber(name: string, text: string | undefined, least: number, below: number): number {
  const value = Number(text);
  if (text === undefined || !/^\d{1,9}$/.test(text) || value < least || value >= below)
    throw new ConfigError(
      `the environment's ${name} is ${text === undefined || text === "" ? "missing" : JSON.stringify(text)}; expected a whole number from ${least} to ${below - 1}`,
      { name, value: text },
    );
  return value;
}

/** The place that the environment names; undefined for a process that is alone. Throws ConfigError. */
export function placeOf(env: NodeJS.ProcessEnv): Place | undefined {
  for (const { rank, world, whole } of dialects) {
    const [there, missing] = env[rank] === undefined ? [world, rank] : [rank, world];
    if (whole && env[there] !== undefined && env[missing] === undefined && env[world] !== "1")
      throw new ConfigError(
        `the environment has ${there}=${env[there]} but no ${missing}; set both for a rank of a job, or neither to train alone`,
        { name: missing },
      );
  }
  const names = dialects.find(({ rank, world }) => env[rank] !== undefined && env[world] !== undefined);
  if (names === undefined) return undefined;
  const world = wholeNumber(names.world, env[names.world], 1, 1e6);
  if (world === 1) return undefined;
  const rank = wholeNumber(names.rank, env[names.rank], 0, world);
  const port = wholeNumber(names.port, env[names.port] ?? names.defaultPort, 1, 65535);
  // Slurm writes "4(x2)" for two machines of four ranks each.
  const perMachine = env[names.localWorld]?.replace(/^(\d+)\(x\d+\)$/, "$1");
  const localWorld = perMachine === undefined ? world : wholeNumber(names.localWorld, perMachine, 1, world + 1);
  return {
    rank,
    world,
    localRank:
      env[names.localRank] === undefined ? rank : wholeNumber(names.localRank, env[names.localRank], 0, localWorld),
    localWorld,
    host: names.host.map((name) => env[name]).find((host) => host !== undefined) ?? "127.0.0.1",
    // torchrun keeps a server of its own at the port that it names.
    port: env.TORCHELASTIC_USE_AGENT_STORE === "True" && names.rank === "RANK" ? port + 1 : port,
    hosted: names.hosted,
  };
}
