// `longseq bench --calibrate FILE`: how fast this machine is, for plans of it.

import { closeSync, existsSync, openSync, rmSync, writeFileSync } from "node:fs";
import { IoError } from "../errors.js";
import { init, type Job, leave } from "../parallel/job.js";
import { formatSi } from "../report/format.js";
import { Device } from "../tensor/device.js";
import { calibrate } from "../train/calibrate.js";
import { calibrateLinks } from "../train/calibrate_links.js";
import { textOf } from "../train/rates.js";
import { exitCode, type Output, UsageError } from "./output.js";

export interface BenchOptions {
  calibrate?: string;
  device: "cpu" | "cuda";
  threads?: number;
}

/** As one of several ranks too, whose exchanges are timed then. Returns the exit code. Throws UsageError, IoError. */
export async function bench(options: BenchOptions, output: Output): Promise<number> {
  const job = await init();
  let failed = true;
  try {
    const code = await measure(job, options, output);
    failed = false;
    return code;
  } finally {
    await leave({ failed });
  }
}

async function measure(job: Job, options: BenchOptions, output: Output): Promise<number> {
  const { calibrate: file, device, threads } = options;
  if (file === undefined) throw new UsageError("missing what to measure; usage: longseq bench --calibrate FILE");
  const attempt = (what: () => void) => {
    try {
      what();
    } catch (error) {
      throw new IoError(`cannot write ${file}: ${(error as Error).message}`, { path: file }, { cause: error });
    }
  };
  // What cannot be written is said before the work; a file that was there stays until there is another.
  if (job.leads)
    attempt(() => {
      const isNew = !existsSync(file);
      closeSync(openSync(file, "a"));
      if (isNew) rmSync(file);
    });
  // Alone: the others wait.
  const rates = await job.fromLeader(() =>
    calibrate({
      device,
      ...(threads !== undefined && { threads }),
      onSample: (text) => output.status(`timing steps: ${text}`),
    }),
  );
  if (job.world > 1) {
    output.status("timing exchanges");
    const own = device === "cuda" ? new Device(`cuda:${job.localRank}`) : new Device("cpu", { threads: job.threads });
    Object.assign(rates.links, await calibrateLinks(job, own));
    rates.measured += `, ${job.world} ranks`;
  }
  if (!job.leads) return exitCode.done;
  attempt(() => writeFileSync(file, textOf(rates)));
  output.status(null);
  output.record({ event: "rates", path: file, ...rates });
  if (output.json) return exitCode.done;
  output.line(`rates of ${rates.measured}:`);
  const best = (name: string) => Math.max(...(rates.ops[name] ?? rates.copies[name] ?? []).map(([, rate]) => rate));
  for (const dtype of ["float32", "bfloat16"])
    output.line(
      `${dtype}: products ${formatSi(best(`products:${dtype}`))}FLOP/s, attention ${formatSi(best(`attention:${dtype}`))}FLOP/s, ` +
        `its backward ${formatSi(best(`attention_backward:${dtype}`))}FLOP/s`,
    );
  output.line(
    `what only reads and writes ${formatSi(best("stream"))}B/s, copies to the host ${formatSi(best("copy_out"))}B/s`,
  );
  if (job.world > 1) {
    const link = Object.entries(rates.links)
      .filter(([name]) => name.startsWith("all_to_all:"))
      .map(([name, curve]) => `${name.slice(11)} ${formatSi(Math.max(...curve.map(([, rate]) => rate)))}B/s`);
    output.line(`what leaves a rank: ${link.join(", ")}`);
  }
  output.line(`written to ${file}: longseq plan CONFIG --rates ${file} takes them`);
  return exitCode.done;
}
