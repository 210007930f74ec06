// The tiers of the checkpoint store: the plain run's numbers, bytes that are counted and come back, copies beside
// compute, and what happens when a disk fails.
import { spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t, { type Test } from "tap";
import { binding, type NativeTensor } from "../../lib/binding.js";
import {
  ArgumentError,
  CancelledError,
  type CausalLM,
  Device,
  IoError,
  initModel,
  type MemoryOptions,
  OutOfMemoryError,
  type Parameter,
  type Tier,
} from "../../lib/index.js";

const layers = 5;
const T = 500;
const H = 64;
const heads = 4;
const fields = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: H,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: 2,
  intermediate_size: 96,
  vocab_size: 211,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 4096,
  hidden_act: "silu",
};
const inputIds = Int32Array.from({ length: T }, (_, i) => (i * 7919 + (i % 13)) % 211);
const batch = { inputIds, cuSeqlens: BigInt64Array.from([0n, 130n, 131n, BigInt(T)]) };
const input = T * H * 4;
const kept = T * H * 4 + T * heads * 4;

const folder = (t: Test): string => {
  const path = mkdtempSync(join(tmpdir(), "longseq-offload-test-"));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
};

const modelOn = (device: Device): CausalLM => initModel(fields, { device, dtype: "float32", seed: 1 });

interface Outcome {
  loss: number;
  grads: Map<string, Float32Array>;
  live: Record<Tier, number>;
  peak: Record<Tier, number>;
  bytes: Record<string, number>;
}

const byTier = (value: (tier: Tier) => number): Record<Tier, number> => ({
  device: value("device"),
  host: value("host"),
  disk: value("disk"),
});

const neutral: Required<
  Pick<
    MemoryOptions,
    | "tileMlp"
    | "tileLoss"
    | "checkpointEvery"
    | "keepAttention"
    | "offload"
    | "deviceBytes"
    | "format"
    | "directory"
    | "prefetch"
  >
> = {
  tileMlp: 200,
  tileLoss: 200,
  checkpointEvery: 1,
  keepAttention: false,
  offload: "none",
  deviceBytes: 0,
  format: "native",
  directory: null,
  prefetch: true,
};

function forget(model: CausalLM): void {
  for (const parameter of model.parameters()) {
    parameter.grad?.dispose();
    parameter.grad = null;
  }
}

async function step(model: CausalLM, memory: MemoryOptions): Promise<Outcome> {
  const { device } = model;
  model.configureMemory({ ...neutral, ...memory });
  forget(model);
  device.trim();
  device.resetPeaks();
  device.resetOpCounts();
  const root = model.loss(batch);
  root.backward();
  const bytes = Object.fromEntries(Object.entries(device.opCounts()).map(([name, count]) => [name, count.bytes]));
  const peak = byTier((tier) => device.memory(tier).peak);
  const loss = await root.item();
  const grads = new Map<string, Float32Array>();
  for (const [name, parameter] of model.namedParameters() as Iterable<[string, Parameter]>)
    grads.set(name, ((await (parameter.grad as NonNullable<typeof parameter.grad>).data()) as Float32Array).slice());
  await device.synchronize();
  return { loss, grads, live: byTier((tier) => device.memory(tier).live), peak, bytes };
}

/** The root of all squared differences over that of all squares. */
function distance(a: Map<string, Float32Array>, b: Map<string, Float32Array>): number {
  let difference = 0;
  let norm = 0;
  for (const [name, expected] of b)
    expected.forEach((value, i) => {
      difference += ((a.get(name)?.[i] as number) - value) ** 2;
      norm += value ** 2;
    });
  return Math.sqrt(difference / norm);
}

t.test("every tier gives the bits of checkpoints on the device, and counted bytes", async (t) => {
  const directory = join(folder(t), "made", "for it");
  const model = modelOn(new Device("cpu", { threads: 2 }));
  const plain = await step(model, { checkpointEvery: 0 });
  for (const checkpointEvery of [1, 2, 3])
    for (const keepAttention of checkpointEvery === 1 ? [false, true] : [false]) {
      const there = await step(model, { checkpointEvery, keepAttention });
      t.ok(distance(there.grads, plain.grads) < 1e-5, "the plain run's gradients");
      const entry = input + (keepAttention ? kept : 0);
      const entries = Math.ceil(layers / checkpointEvery);
      for (const offload of ["host", "disk"] as const)
        for (const deviceBytes of [0, 2 * entry])
          for (const prefetch of [true, false]) {
            const setting = { checkpointEvery, keepAttention, offload, deviceBytes, prefetch, directory };
            const name = JSON.stringify({ ...setting, directory: undefined });
            const away = await step(model, setting);
            t.equal(away.loss, there.loss, `loss: ${name}`);
            t.equal(distance(away.grads, there.grads), 0, `gradients: ${name}`);
            t.same(away.live, there.live, `live bytes: ${name}`);
            const gone = (entries - (deviceBytes > 0 ? 2 : 0)) * entry;
            const travelled = (away.bytes.copy ?? 0) - (there.bytes.copy ?? 0);
            t.equal(travelled, 4 * gone, `there and back, read and written: ${name}`);
            t.equal(away.bytes.disk_write ?? 0, offload === "disk" ? gone : 0, `written: ${name}`);
            t.equal(away.bytes.disk_read ?? 0, offload === "disk" ? gone : 0, `read: ${name}`);
            t.equal(away.peak.disk > 0, offload === "disk" && gone > 0, `on the disk: ${name}`);
            if (offload === "disk") {
              const pages = 2 * 65_536 + 2 ** 20;
              t.ok(away.peak.host <= 2 * entry + pages, `two checkpoints of staging (${away.peak.host}): ${name}`);
            } else t.ok(away.peak.host >= gone, `on the host: ${name}`);
          }
    }
  t.notOk(existsSync(join(directory, "..")), "the folders that were made are gone");
  model.dispose();
});

t.test("8 bits change gradients a little, and the loss not at all", async (t) => {
  const directory = folder(t);
  const model = modelOn(new Device("cpu", { threads: 2 }));
  for (const keepAttention of [false, true]) {
    const there = await step(model, { keepAttention });
    for (const [format, bound] of [
      ["int8", 0.02],
      ["float8", 0.08],
    ] as const) {
      let first: Outcome | undefined;
      for (const offload of ["none", "host", "disk"] as const) {
        const away = await step(model, { keepAttention, offload, format, directory });
        const name = `${format}, ${offload}, keepAttention ${keepAttention}`;
        t.equal(away.loss, there.loss, `loss: ${name}`);
        const error = distance(away.grads, there.grads);
        t.ok(error > 0 && error < bound, `gradients are off by ${error}: ${name}`);
        t.same(away.live, there.live, `live bytes: ${name}`);
        first ??= away;
        t.equal(distance(away.grads, first.grads), 0, `the same in every tier: ${name}`);
        // 64 codes and a scale of two bytes; the log-sum-exp as it is.
        const packed =
          layers * ((input / 4) * (66 / 64) * (keepAttention ? 2 : 1) + (keepAttention ? T * heads * 4 : 0));
        t.equal(away.bytes.disk_write ?? 0, offload === "disk" ? packed : 0, `written: ${name}`);
      }
    }
    t.equal(
      distance(
        (await step(model, { keepAttention, offload: "host", format: "int8", deviceBytes: 2 ** 30 })).grads,
        there.grads,
      ),
      0,
      "what stays on the device keeps its bits",
    );
  }
  model.dispose();
});

t.test("the meta device knows every tier's peak to the byte", async (t) => {
  const directory = folder(t);
  const cpu = modelOn(new Device("cpu", { threads: 2 }));
  const meta = modelOn(new Device("meta"));
  for (const offload of ["none", "host", "disk"] as const)
    for (const format of ["native", "int8"] as const)
      for (const [checkpointEvery, keepAttention, deviceBytes, prefetch] of [
        [1, true, 0, true],
        [1, true, 0, false],
        [1, false, 2 * input, true],
        [2, false, 0, true],
      ] as const) {
        const setting = { offload, format, checkpointEvery, keepAttention, deviceBytes, prefetch, directory };
        const peaks = [];
        for (const model of [cpu, meta]) {
          const { device } = model;
          model.configureMemory({ ...neutral, ...setting });
          forget(model);
          device.trim();
          device.resetPeaks();
          const root = model.loss(batch);
          root.backward();
          root.dispose();
          await device.synchronize();
          peaks.push(byTier((tier) => device.memory(tier).peak));
        }
        t.same(peaks[1], peaks[0], JSON.stringify({ ...setting, directory: undefined }));
      }
  const nowhere = join(directory, "not", "made", "by", "meta");
  meta.configureMemory({ ...neutral, offload: "disk", directory: nowhere });
  meta.loss(batch).backward();
  t.notOk(existsSync(join(directory, "not")));
  cpu.dispose();
  meta.dispose();
});

/** What JavaScript enqueues, in order: ops with their queue, disk transfers, and releases of the last handle. */
function spy(): { events: { what: string; queue: number; tensors: NativeTensor[] }[]; stop: () => void } {
  const events: { what: string; queue: number; tensors: NativeTensor[] }[] = [];
  const ops = binding.ops as unknown as Record<string, (...args: unknown[]) => void>;
  const own = binding as unknown as Record<string, (...args: unknown[]) => unknown>;
  const before = { ...ops };
  const { release, diskRead, diskWrite } = { ...own };
  for (const [name, call] of Object.entries(before))
    ops[name] = (...args) => {
      const queue = name === "copy" && typeof args[2] === "number" ? args[2] : 0;
      const tensors = args.filter((arg) => typeof arg === "object" && arg !== null) as NativeTensor[];
      call(...args);
      events.push({ what: name, queue, tensors });
    };
  own.diskRead = (...args) => {
    events.push({ what: "diskRead", queue: 5, tensors: [] });
    return diskRead?.(...args);
  };
  own.diskWrite = (...args) => {
    events.push({ what: "diskWrite", queue: 4, tensors: [] });
    return diskWrite?.(...args);
  };
  own.release = (...args) => {
    const tensor = args[0] as NativeTensor;
    if (binding.references(tensor) === 1) {
      const copies = events.findIndex(
        ({ queue, tensors }) =>
          queue > 0 && tensors.some((other) => alive(other) && binding.sameStorage(other, tensor)),
      );
      if (copies >= 0) events.push({ what: `release ${copies}`, queue: 0, tensors: [] });
    }
    return release?.(...args);
  };
  return {
    events,
    stop: () => {
      Object.assign(ops, before);
      Object.assign(own, { release, diskRead, diskWrite });
    },
  };
}

function alive(tensor: NativeTensor): boolean {
  try {
    return binding.references(tensor) > 0;
  } catch {
    return false;
  }
}

t.test("copies lie beside compute: a layer's work stands between a copy and what waits for it", async (t) => {
  const directory = folder(t);
  const model = modelOn(new Device("cpu", { threads: 1 }));
  for (const offload of ["host", "disk"] as const) {
    model.configureMemory({ ...neutral, keepAttention: true, offload, directory });
    const { events, stop } = spy();
    const root = model.loss(batch);
    const forward = events.length;
    root.backward();
    stop();
    await root.item();
    const out = events.flatMap(({ queue }, i) => (queue === 1 ? [i] : []));
    t.equal(out.length, 3 * layers, `${offload}: input, o and log-sum-exp of each layer`);
    // The input leaves before its layer, and only when the next begins does anything wait for that.
    const attentions = events.flatMap(({ what }, i) => (what === "attention" && i < forward ? [i] : []));
    t.equal(attentions.length, layers, "attention once");
    attentions.forEach((at, layer) => {
      const copies = out.filter((i) => i < at).length;
      t.equal(copies, 3 * layer + 1, `${offload}: the copy of layer ${layer}'s input stands before its attention`);
    });
    for (const copy of out) {
      const release = events.findIndex(({ what }) => what === `release ${copy}`);
      const between = events.slice(copy, release).filter(({ what, queue }) => what === "matmul" && queue === 0).length;
      t.ok(release < 0 || between > 0, `${offload}: ${between} products between copy ${copy} and its end`);
    }
    // Backward: a layer's input is under way before the recomputation of the layer above begins.
    const back = events.slice(forward);
    const norms = back.flatMap(({ what }, i) => (what === "attentionBackward" ? [i] : []));
    t.equal(norms.length, layers);
    norms.forEach((at, step) => {
      const copies = back.slice(0, at).filter(({ queue }) => queue === 2).length;
      // Of this layer and those above all three, and the input of the next.
      t.equal(copies, 3 * (step + 1) + (step < layers - 1 ? 1 : 0), `${offload}: fetched by attention ${step}`);
    });
    if (offload === "disk") {
      const reads = norms.map((at) => back.slice(0, at).filter(({ what }) => what === "diskRead").length);
      t.same(
        reads,
        norms.map((_, step) => Math.min(3 * layers, 3 * (step + 2))),
        "read one layer ahead",
      );
    }
  }
  // Without prefetch nothing of the next layer is on the device.
  model.configureMemory({ ...neutral, keepAttention: true, offload: "host", prefetch: false });
  const { events, stop } = spy();
  const root = model.loss(batch);
  const forward = events.length;
  root.backward();
  stop();
  await root.item();
  const back = events.slice(forward);
  const attentions = back.flatMap(({ what }, i) => (what === "attentionBackward" ? [i] : []));
  attentions.forEach((at, step) => {
    t.equal(back.slice(0, at).filter(({ queue }) => queue === 2).length, 3 * (step + 1), "only this layer's");
  });
  model.dispose();
});

t.test("a cancelled step and one without memory leave a usable process and no files", async (t) => {
  const directory = folder(t);
  const device = new Device("cpu", { threads: 2 });
  const model = modelOn(device);
  for (const offload of ["host", "disk"] as const) {
    const setting = { keepAttention: true, offload, directory };
    const good = await step(model, setting);
    for (const early of [true, false]) {
      forget(model);
      if (early) device.cancel();
      const root = model.loss(batch);
      root.backward();
      device.cancel();
      const ended = await root.item().then(
        () => null,
        (error) => error,
      );
      if (early) t.ok(ended instanceof CancelledError, "what was cancelled says so");
      root.dispose();
      await device.resume();
      const again = await step(model, setting);
      t.equal(distance(again.grads, good.grads), 0, `${offload}: the same step after a cancelled one`);
      t.same(again.live, good.live, "nothing stays");
    }
    const tier = offload === "host" ? "host" : "disk";
    for (const share of [0.1, 0.5, 0.9]) {
      forget(model);
      device.trim();
      device.setLimit(Math.floor((good.peak[tier] * share) / 65_536) * 65_536, tier);
      t.throws(() => model.loss(batch), OutOfMemoryError, `${offload}: ${share} of the peak`);
      device.setLimit(0, tier);
      await device.synchronize();
      const again = await step(model, setting);
      t.equal(distance(again.grads, good.grads), 0, `${offload}: the same step after one without memory`);
      t.same(again.live, good.live, "nothing stays");
    }
    t.same(readdirSync(directory), [], "no files");
  }
  model.dispose();
});

t.test("folders that cannot serve: one error that says what and where", async (t) => {
  const base = folder(t);
  const file = join(base, "file");
  writeFileSync(file, "");
  const device = new Device("cpu", { threads: 1 });
  const model = modelOn(device);
  const good = await step(model, {});
  for (const [directory, Class] of [
    [file, IoError],
    [join(file, "below"), IoError],
    ["/proc/longseq/offload", IoError],
    [join(base, "x".repeat(300)), IoError],
    ["", ArgumentError],
    [join(base, "nul\0byte"), ArgumentError],
  ] as const) {
    model.configureMemory({ ...neutral, offload: "disk", directory });
    try {
      model.loss(batch);
      t.fail(`${directory} was taken`);
    } catch (error) {
      t.ok(error instanceof Class, `${(error as Error).name}: ${(error as Error).message}`);
      t.match((error as Error).message, /memory\.checkpoint\.directory/);
      if (Class === IoError) t.ok((error as Error).message.includes(directory), "the folder is named");
    }
    const again = await step(model, {});
    t.same(again.live, good.live, "nothing stays");
  }
  t.same(readdirSync(base), ["file"], "nothing was made");
  model.dispose();
});

/** The newest open file of this process in a folder. */
function openFile(directory: string): string {
  const found = readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith(`${directory}/`);
    } catch {
      return false;
    }
  });
  return `/proc/self/fd/${found.sort((a, b) => Number(a) - Number(b)).at(-1)}`;
}

t.test("bytes that vanish or change on the disk are an error, never numbers", async (t) => {
  for (const [what, damage, message] of [
    ["cut off", (path: string) => truncateSync(path, 70_000), /ends \d+ bytes early/],
    [
      "changed",
      (path: string) => {
        const fd = openSync(path, "r+");
        writeSync(fd, Buffer.from([1, 2, 3, 4]), 0, 4, 1000);
        closeSync(fd);
      },
      /other bytes come back than were written/,
    ],
  ] as const) {
    const directory = folder(t);
    const device = new Device("cpu", { threads: 1 });
    const model = modelOn(device);
    const setting = { keepAttention: true, offload: "disk", directory } as const;
    model.configureMemory({ ...neutral, ...setting });
    const root = model.loss(batch);
    await device.synchronize();
    damage(openFile(directory));
    root.backward();
    await t.rejects(root.item(), IoError, what);
    const text = binding.failure(device.native) ?? "";
    t.match(text, message, text);
    t.ok(text.includes(directory) && text.includes("memory.checkpoint.offload"), "says where and what to do");
    root.dispose();
    await device.resume();
    const again = await step(model, setting);
    t.equal(distance(again.grads, (await step(model, { keepAttention: true })).grads), 0, "the next step is right");
    model.dispose();
  }
});

const child = fileURLToPath(new URL("offload_child.ts", import.meta.url));

t.test("a disk that is full: one error, and the process goes on without it", async (t) => {
  const directory = folder(t);
  // The file may grow to 1 MiB, less than two checkpoints.
  const run = spawn(
    "bash",
    // Without tap's hooks, which die of the SIGXFSZ that Node itself ignores; tap adds them to every child's environment.
    [
      "-c",
      'unset NODE_OPTIONS; ulimit -f 1024; exec "$@"',
      "bash",
      process.execPath,
      "--import=tsx",
      child,
      "full",
      directory,
    ],
    {
      stdio: ["ignore", "pipe", "inherit"],
    },
  );
  let text = "";
  run.stdout.on("data", (chunk) => {
    text += chunk;
  });
  const code = await new Promise((resolve) => run.on("close", resolve));
  t.equal(code, 0);
  const { failures, loss, live } = JSON.parse(text) as {
    failures: { name: string; code: string; message: string }[];
    loss: number;
    live: number;
  };
  t.equal(failures.length, 1);
  const [failure] = failures;
  t.equal(failure?.name, "IoError");
  t.match(failure?.message, /disk_write failed.*KiB of a checkpoint cannot be written.*\(EFBIG\)/);
  t.ok(failure?.message.includes(directory) && failure.message.includes("memory.checkpoint.offload"));
  t.ok(Number.isFinite(loss));
  t.equal(live, 0);
  t.same(readdirSync(directory), []);
});

t.test("a process killed in the middle of a step leaves nothing", async (t) => {
  const directory = folder(t);
  const run = spawn(process.execPath, ["--import=tsx", child, "steps", join(directory, "deep", "down")], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await new Promise<void>((resolve) => run.stdout.once("data", () => resolve()));
  run.kill("SIGKILL");
  const signal = await new Promise((resolve) => run.on("close", (_, name) => resolve(name)));
  t.equal(signal, "SIGKILL");
  t.same(readdirSync(directory), []);
});
