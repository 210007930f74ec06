// What test/cuda/host.test.ts runs in processes of their own: the host side of the CUDA backend over the stand-ins of
// test/native/cuda_host, named by LONGSEQ_TEST_BACKEND. Prints JSON.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { binding } from "../../lib/binding.js";
import type { ConfigInput } from "../../lib/config/index.js";
import { TrainingError } from "../../lib/errors.js";
import { Device } from "../../lib/tensor/device.js";
import { Tensor } from "../../lib/tensor/tensor.js";
import { queues } from "../../lib/tensor/tiers.js";
import { run, tiny, writeRows } from "../train/helpers.js";

binding.openBackend(process.env.LONGSEQ_TEST_BACKEND as string);
const MiB = 2 ** 20;
const floats = (bytes: number) => bytes / 4;

/** Code and message of what a function throws or rejects with. */
async function failure(body: () => unknown): Promise<{ code: string; message: string } | null> {
  try {
    await body();
    return null;
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return { code, message };
  }
}

const programs: Record<string, () => Promise<unknown>> = {
  /** Blocks of ever other sizes come and go while slow kernels write them; each keeps what was written. */
  async churn() {
    const device = new Device("cuda", { threads: 1 });
    let seed = 7;
    const next = (below: number) => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      return (seed >>> 8) % below;
    };
    const kept: { tensor: Tensor; value: number }[] = [];
    const wrong: string[] = [];
    for (let round = 0; round < 400; round++) {
      while (kept.length > 3 + next(4)) kept.splice(next(kept.length), 1)[0]?.tensor.dispose();
      kept.push({
        tensor: Tensor.full([floats((1 + next(12)) * MiB)], round, { device }),
        value: round,
      });
      if (round % 20 !== 19) continue;
      const one = kept[next(kept.length)] as (typeof kept)[0];
      const data = (await one.tensor.data()) as Float32Array;
      if (!data.every((value) => value === one.value)) wrong.push(`round ${round}: not all are ${one.value}`);
    }
    for (const { tensor } of kept) tensor.dispose();
    device.trim();
    await device.synchronize();
    return { wrong, ...device.memory() };
  },

  async outOfMemory() {
    const device = new Device("cuda", { threads: 1 });
    const params = Tensor.full([floats(40 * MiB)], 3, { device, category: "params" });
    const refused = await failure(() => Tensor.empty([floats(200 * MiB)], { device }));
    const after = Tensor.full([floats(20 * MiB)], 4, { device });
    const read = [(await params.data())[0], (await after.data())[0]];
    // With what was in use free, it fits, though the kernels that used it are not done.
    params.dispose();
    after.dispose();
    const large = Tensor.full([floats(110 * MiB)], 5, { device });
    return { refused, read: [...read, (await large.data())[floats(110 * MiB) - 1]] };
  },

  async pinned() {
    const device = new Device("cuda", { threads: 1 });
    const first = Tensor.empty([floats(60 * MiB)], { device, tier: "host", category: "checkpoints" });
    const refused = await failure(() => Tensor.empty([floats(100 * MiB)], { device, tier: "host" }));
    first.dispose();
    const second = Tensor.empty([floats(100 * MiB)], { device, tier: "host" });
    return { refused, live: second.bytes ?? device.memory("host").live, pci: device.info.pciAddress };
  },

  /** Copies over the borders of chunks, out and back in, on the copy queues. */
  async chunks() {
    const device = new Device("cuda", { threads: 1 });
    const elements = floats(150 * MiB);
    const source = Float32Array.from({ length: elements }, (_, i) => i);
    const x = Tensor.empty([elements], { device }).copyFrom(source);
    const out = Tensor.empty([elements], { device, tier: "host" });
    const back = Tensor.empty([elements], { device });
    binding.ops.copy(x.native(), out.native(), queues.copyOut);
    binding.waitQueue(device.native, queues.copyIn, queues.copyOut);
    binding.ops.copy(out.native(), back.native(), queues.copyIn);
    binding.waitQueue(device.native, queues.compute, queues.copyIn);
    // The host block goes while the copies are under way.
    out.dispose();
    device.trim();
    const data = (await back.data()) as Float32Array;
    return { same: data.every((value, i) => value === source[i]) };
  },

  /** What copies leave in host memory is saved, though they are under way when that is asked for. */
  async saving() {
    const folder = mkdtempSync(join(tmpdir(), "longseq-host-"));
    try {
      const device = new Device("cuda", { threads: 1 });
      const kept = Tensor.empty([1000], { device, tier: "host" });
      binding.ops.fill(kept.native(), 1);
      await device.synchronize();
      const x = Tensor.full([1000], 2, { device });
      binding.ops.copy(x.native(), kept.native(), queues.copyOut);
      const path = join(folder, "x.safetensors");
      const { handle } = await binding.createSafetensors(path, [{ name: "x", dtype: "F32", shape: [1000] }], []);
      await binding.writeSafetensors(handle, "x", kept.native());
      await binding.finishSafetensors(handle);
      const reader = await binding.openSafetensors(path);
      const bytes = await binding.readSafetensorsBytes(reader.handle, "x", 0, 1000, "F32");
      binding.closeSafetensors(reader.handle);
      return { saved: [...new Set(new Float32Array(bytes))] };
    } finally {
      rmSync(folder, { recursive: true });
    }
  },

  /** A recording that is long enough for device and host to agree on the time again. */
  async recording() {
    const device = new Device("cuda", { threads: 1 });
    const x = Tensor.full([4], 1, { device });
    await device.synchronize();
    device.startTrace();
    for (let i = 0; i < 60; i++) binding.ops.fill(x.native(), i);
    await device.synchronize();
    const { traceEvents } = JSON.parse(device.stopTrace()) as {
      traceEvents: { name: string; ts: number; dur: number }[];
    };
    const fills = traceEvents.filter(({ name }) => name === "fill");
    return {
      fills: fills.length,
      shortest: Math.min(...fills.map(({ dur }) => dur)),
      overlapping: fills.filter(({ ts }, i) => {
        const before = fills[i - 1];
        return before !== undefined && ts < before.ts + before.dur - 1;
      }).length,
    };
  },

  async kernel() {
    const device = new Device("cuda", { threads: 1 });
    const x = Tensor.full([4, 8], 1, { device });
    binding.ops.fill(x.native(), -1);
    const first = await failure(() => x.data());
    const second = await failure(() => device.synchronize());
    const opening = await failure(() => new Device("cuda", { threads: 1 }));
    return { first, second, opening };
  },

  async opening() {
    return { refused: await failure(() => new Device("cuda", { threads: 1 })) };
  },

  async forcedCudnn() {
    return { refused: await failure(() => new Device("cuda", { threads: 1, attention: "cudnn" })) };
  },

  /** A whole run with the memory settings of LONGSEQ_TEST_MEMORY: what is computed means nothing, its memory is real. */
  async training() {
    const folder = mkdtempSync(join(tmpdir(), "longseq-host-"));
    try {
      const rows = writeRows(join(folder, "rows.jsonl"), 24);
      const device = new Device("cuda", { threads: 1 });
      const memory = JSON.parse(process.env.LONGSEQ_TEST_MEMORY as string) as NonNullable<ConfigInput["memory"]>;
      // Wide enough for blocks of whole pages.
      const options = { memory, hidden: 512, layers: 4, train: { steps: 3, batchSize: 2 } };
      let steps = 0;
      const onItem = ({ event }: { event?: string | undefined }) => {
        if (event === undefined) steps++;
      };
      try {
        await run(tiny(rows, join(folder, "run"), options), { device, onItem });
      } catch (error) {
        // No loss is finite where nothing is computed: the run saves, and ends with this.
        if (!(error instanceof TrainingError) || error.details.skipped !== 3) throw error;
      }
      return { steps, live: device.memory().live, host: device.memory("host").live };
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};

const name = process.argv[2] as string;
console.log(JSON.stringify(await (programs[name] as () => Promise<unknown>)()));
