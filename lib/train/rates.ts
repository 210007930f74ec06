// How fast devices are, from small files: those in native/runtime/rates, or of a machine at hand (calibrate.ts writes
// them). For tiles, and for estimates of a step's time.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { type OpCount, packageRoot } from "../binding.js";
import { ConfigError } from "../errors.js";
import type { DType } from "../tensor/dtype.js";
import { queues } from "../tensor/tiers.js";

/** Raised whenever the meaning of a file of rates changes. */
const VERSION = 2;

/** What one call does (FLOPs, or bytes where it counts none; ascending), and how much of that a second. */
const curve = z.array(z.tuple([z.number().positive(), z.number().positive()])).min(1);

const ratesSchema = z.strictObject({
  version: z.literal(VERSION),
  /** Of what kind. */
  device: z.enum(["cpu", "cuda"]),
  /** On what they were measured. */
  measured: z.string(),
  /** For so many threads; of others more or less in proportion. A GPU has one. */
  threads: z.number().int().positive(),
  /** By storage dtype: which share of the full rate products of so many rows reach, ascending. */
  tiles: z.record(z.string(), z.array(z.tuple([z.number(), z.number()]))).optional(),
  /**
   * By op, maybe with "/" and the logarithm (base 2) of its FLOPs a byte behind it, maybe with ":" and a storage dtype;
   * "products" and "stream" are for all that have none of their own, those that count FLOPs and the others; "host" is what
   * the CPU does beside a GPU.
   */
  ops: z.record(z.string(), curve),
  /** Of what copy_out, copy_in, disk_out and disk_in do. Bytes of a copy count twice: it reads and writes. */
  copies: z.record(z.string(), curve),
  /** Of what leaves a rank, by what joins ranks ("node", "network"), maybe with an op and ":" before it. */
  links: z.record(z.string(), curve),
  /** How much of copies and exchanges is hidden where compute has something to do: 1 where they share nothing. */
  overlap: z.number().min(0).max(1),
  /** Seconds that an op takes to be asked for: a step cannot be faster. */
  call: z.number().min(0),
});

export type Rates = z.infer<typeof ratesSchema>;

/** What tiles may cost of the full rate. */
const TILE_LOSS = 0.03;

/** Of a kind of device, such as "cpu". */
export const ratesOf = (device: string): Rates =>
  readRates(join(packageRoot, "native/runtime/rates", `${device}.json`), device);

/** What a plan asks for whatever the model: without it, it would take no time. */
const NEEDED = {
  ops: ["products", "stream"],
  copies: ["copy_out", "copy_in", "disk_out", "disk_in"],
  links: ["node", "network"],
} as const;

/** kind: of what device they have to be. Throws ConfigError. */
export function readRates(file: string, kind: string): Rates {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new ConfigError(`cannot read the rates in ${file}: ${(error as Error).message}`, { file }, { cause: error });
  }
  const version = (value as { version?: unknown } | null)?.version;
  if (version !== VERSION)
    throw new ConfigError(
      `${file} has rates of version ${JSON.stringify(version) ?? "none"}, expected ${VERSION}; write it again with ` +
        "longseq bench --calibrate",
      { file },
    );
  const parsed = ratesSchema.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new ConfigError(`${file}: ${issue?.path.join(".")}: ${issue?.message}`, { file });
  }
  const rates = parsed.data;
  if (rates.device !== kind)
    throw new ConfigError(
      `${file} has the rates of a device of kind ${rates.device}, but the plan is for one of kind ${kind}; leave --rates ` +
        `out, or write them with longseq bench --calibrate FILE --device ${kind}`,
      { file },
    );
  for (const section of ["ops", "copies", "links"] as const)
    for (const name of NEEDED[section])
      if (!(name in rates[section]) && ![...dtypes].every((dtype) => `${name}:${dtype}` in rates[section]))
        throw new ConfigError(
          `${file}: ${section} has no ${JSON.stringify(name)}; write it again with longseq bench --calibrate`,
          { file },
        );
  return rates;
}

/** What a file of rates holds: JSON with a pair of numbers on one line. */
export const textOf = (rates: Rates): string =>
  `${JSON.stringify(rates, null, 2).replaceAll(/\[\s+([\d.e+-]+),\s+([\d.e+-]+)\s+\]/g, "[$1, $2]")}\n`;

/** Rows of the smallest tile whose matrix products run within 3% of the full rate. */
export function smallestTile({ tiles = {} }: Rates, dtype: DType): number {
  const rows = tiles[dtype] ?? (tiles.float32 as [number, number][]);
  const least = rows.find(([, share]) => share >= 1 - TILE_LOSS) ?? (rows.at(-1) as [number, number]);
  return least[0];
}

/** What the log of a step needs to be played with durations. */
export interface Timing {
  /** By name: work, seconds, work, seconds, ... of one call. See Durations in native/runtime. */
  durations: Record<string, number[]>;
  overlap: number;
  call: number;
  /** Ranks of a machine: groups that reach further exchange over the network. */
  perNode: number;
}

/** By these rates, on so many threads. */
export function timingOf(rates: Rates, dtype: DType, threads: number, perNode = Number.POSITIVE_INFINITY): Timing {
  const durations: Record<string, number[]> = {};
  const add = (curves: Rates["ops"], faster: number) => {
    for (const [name, points] of Object.entries(curves)) {
      const [op, only] = dtypeOf(name);
      if (only !== undefined && only !== dtype) continue;
      // Those of the dtype before those of any.
      if (only === undefined && durations[op] !== undefined) continue;
      durations[op] = points.flatMap(([work, rate]) => [work, work / rate / faster]);
    }
  };
  add(rates.ops, threads / rates.threads);
  fillIntensities(durations);
  add(rates.copies, 1);
  add(rates.links, 1);
  return { durations, overlap: rates.overlap, call: rates.call, perNode };
}

/** FLOPs a byte of which rates may be asked for, as a logarithm. */
const INTENSITIES = [-8, 24] as const;

/** Those that were not measured are like the nearest that were. */
function fillIntensities(durations: Record<string, number[]>): void {
  const measured = new Map<string, number[]>();
  for (const name of Object.keys(durations)) {
    const [op, intensity] = name.split("/");
    if (intensity !== undefined) measured.set(op as string, [...(measured.get(op as string) ?? []), Number(intensity)]);
  }
  for (const [op, all] of measured)
    for (let intensity = INTENSITIES[0]; intensity <= INTENSITIES[1]; intensity++) {
      const distance = (one: number) => Math.abs(one - intensity);
      const nearest = all.reduce((best, one) => (distance(one) < distance(best) ? one : best));
      durations[`${op}/${intensity}`] ??= durations[`${op}/${nearest}`] as number[];
    }
}

const dtypes = new Set(["float32", "bfloat16"]);

/** "matmul:float32" as its parts; a name without a dtype behind it is one part. */
function dtypeOf(name: string): [string, string | undefined] {
  const colon = name.lastIndexOf(":");
  const last = name.slice(colon + 1);
  return colon >= 0 && dtypes.has(last) ? [name.slice(0, colon), last] : [name, undefined];
}

/** Seconds by what is done in them. */
export interface SecondsByPart {
  attention: number;
  products: number;
  /** What only reads and writes. */
  rest: number;
  /** Copies between tiers, and exchanges, that nothing hides. */
  copies: number;
  exchanges: number;
}

/** When the log of a step was played: seconds of the compute queue, and of each queue what it did and what stood still. */
export interface Elapsed {
  seconds: number;
  busy: number[];
  exposed: number[];
}

/** Of a step whose ops and log came to this. */
export function secondsByPart(ops: Record<string, OpCount>, { exposed }: Elapsed, call: number): SecondsByPart {
  const at = (queue: number): number => exposed[queue] ?? 0;
  const seconds = {
    attention: 0,
    products: 0,
    rest: 0,
    copies: at(queues.copyOut) + at(queues.copyIn) + at(queues.diskOut) + at(queues.diskIn),
    exchanges: at(queues.comm),
  };
  let calls = 0;
  for (const [name, op] of Object.entries(ops)) {
    calls += op.calls;
    if (name.startsWith("attention")) seconds.attention += op.seconds;
    else if (op.flops > 0) seconds.products += op.seconds;
    else seconds.rest += op.seconds;
  }
  // Where ops are small, asking for them takes longer than they do.
  seconds.rest += Math.max(0, calls * call - totalSeconds(seconds));
  return seconds;
}

export const totalSeconds = (seconds: SecondsByPart): number =>
  Object.values(seconds).reduce((sum, part) => sum + part, 0);
