// How fast the ranks of a job exchange, for a file of rates.

import { binding } from "../binding.js";
import type { Job } from "../parallel/job.js";
import type { Device } from "../tensor/device.js";
import { Tensor } from "../tensor/tensor.js";
import { queues } from "../tensor/tiers.js";
import type { Rates } from "./rates.js";

/** Bytes of the whole that is exchanged. */
const SIZES = [2 ** 14, 2 ** 16, 2 ** 18, 2 ** 20, 2 ** 22, 2 ** 24, 2 ** 26];
/** One behind the other are timed together, and that so often: the fastest counts. */
const IN_A_ROW = 4;
const REPEATS = 5;

/** Exchanges of x, all of it or this rank's part, and the bytes of it that leave the rank. */
interface Exchange {
  run: () => void;
  bytes: number;
}

/**
 * Times the exchanges of all ranks together; each of them calls it. The rates are named by op and by what joins the ranks:
 * "node" where they share a machine, else "network".
 */
export async function calibrateLinks(
  job: Job,
  device: Device,
  sizes: readonly number[] = SIZES,
): Promise<Rates["links"]> {
  await job.divide({ data: 1, ring: 1, ulysses: job.world }, device);
  const group = job.mesh.world;
  if (group === null) return {};
  const { world, rank } = job;
  const link = job.localWorld === world ? "node" : "network";
  const links: Rates["links"] = {};
  for (const size of sizes) {
    const part = Math.ceil(size / 4 / world);
    const make = (shape: number[]) => {
      const made = Tensor.empty(shape, { device });
      binding.ops.fill(made.native(), 0);
      return made;
    };
    const [x, y, own] = [make([world, part]), make([world, part]), make([part])];
    const away = (world - 1) / world;
    const exchanges: Record<string, Exchange> = {
      all_to_all: {
        run: () => binding.ops.allToAll(x.native(), y.native(), group.number, queues.comm),
        bytes: away * x.bytes,
      },
      all_gather: {
        run: () => binding.ops.allGather(own.native(), y.native(), group.number, queues.comm),
        bytes: away * y.bytes,
      },
      reduce_scatter: {
        run: () => binding.ops.reduceScatter(x.native(), own.native(), group.number, 0, queues.comm),
        bytes: away * x.bytes,
      },
      all_reduce: {
        run: () => binding.ops.allReduce(x.native(), group.number, 0, queues.comm),
        bytes: 2 * away * x.bytes,
      },
      send_receive: {
        run: () =>
          binding.ops.sendReceive(
            ...[x.native(), y.native(), group.number],
            ...[(rank + 1) % world, (rank + world - 1) % world, queues.comm],
          ),
        bytes: x.bytes,
      },
    };
    for (const [name, { run, bytes }] of Object.entries(exchanges)) {
      let best = Number.POSITIVE_INFINITY;
      for (let i = 0; i < REPEATS; i++) {
        await device.synchronize();
        await job.swap(null);
        const start = performance.now();
        for (let n = 0; n < IN_A_ROW; n++) run();
        await device.synchronize();
        const seconds = (performance.now() - start) / 1000 / IN_A_ROW;
        best = Math.min(best, Math.max(...(await job.swap(seconds))));
      }
      const point: [number, number] = [Math.round(bytes), Number((bytes / best).toPrecision(3))];
      const key = `${name}:${link}`;
      links[key] = [...(links[key] ?? []), point];
    }
    for (const one of [x, y, own]) one.dispose();
  }
  links[link] = links[`all_to_all:${link}`] as [number, number][];
  return links;
}
