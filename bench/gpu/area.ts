// One area of bench:gpu on our side, in this process: JSON lines {row, seconds, ...}. Times of single ops are the device's
// events as the recorder keeps them, medians after warm-up, on random data, 512 MB written between two runs; whole steps
// are timed by the clock around synchronize.
//
//   area gemm | attention T ENGINE | streams | offload T | mfu T | full [T]
import { totalmem } from "node:os";
import { binding, type NativeTensor } from "../../lib/binding.js";
import { modelShape } from "../../lib/models/config.js";
import { parseModelConfig } from "../../lib/models/registry.js";
import { modelFlops } from "../../lib/report/model_flops.js";
import type { MemoryPlan } from "../../lib/train/memory_plan.js";
import { type Engine, openGpu, openWith, Pool, small } from "../../test/gpu/device.js";
import { type Model, median, nothingOn, onMeta, Runner } from "../steps.js";

const [area = "", size, only] = process.argv.slice(2);
const device = only ? openWith(only as Engine) : openGpu();
const { ops } = binding;
const pool = new Pool(device);
const flush = pool.empty([small ? 1 : 1 << 27], "float32");
const row = (line: Record<string, unknown>) => console.log(JSON.stringify(line));
const shrunk = (value: number, by: number) => (small ? Math.max(1, Math.ceil(value / by)) : value);

interface Event {
  name: string;
  ph: string;
  dur: number;
  args: { bytes: number };
}

/** Seconds (median) and bytes of the op `name`, which one call of `run` enqueues once. */
async function timed(name: string, run: () => void, reps = 10, warm = 3): Promise<{ seconds: number; bytes: number }> {
  for (let i = 0; i < warm; i++) run();
  await device.synchronize();
  device.startTrace();
  for (let i = 0; i < reps; i++) {
    // What is timed begins with nothing of its own in the L2.
    ops.fill(flush, i);
    run();
  }
  await device.synchronize();
  const { traceEvents } = JSON.parse(device.stopTrace()) as { traceEvents: Event[] };
  const found = traceEvents.filter((event) => event.ph === "X" && event.name === name);
  if (found.length !== reps) throw new Error(`${found.length} runs of ${name} were recorded, expected ${reps}`);
  return { seconds: median(found.map(({ dur }) => dur)) / 1e6, bytes: found[0]?.args.bytes ?? 0 };
}

async function gemm(): Promise<void> {
  const rows = shrunk(32_768, 64);
  for (const [fullN, fullK] of [
    [4096, 4096],
    [1024, 4096],
    [14_336, 4096],
    [4096, 14_336],
  ] as const) {
    const [n, k] = [shrunk(fullN, 64), shrunk(fullK, 64)];
    const [x, w, dy] = [pool.random([rows, k]), pool.random([n, k]), pool.random([rows, n])];
    const [y, dx, dw] = [pool.poisoned([rows, n]), pool.poisoned([rows, k]), pool.random([n, k], "float32")];
    const wT = pool.view(w, [k, n], [1, k]);
    const dyT = pool.view(dy, [n, rows], [1, n]);
    for (const [what, run, note] of [
      ["forward", () => ops.matmul(x, wT, y, null, 1, false), undefined],
      ["dx", () => ops.matmul(dy, w, dx, null, 1, false), undefined],
      ["dW", () => ops.matmul(dyT, x, dw, null, 1, true), "dW float32, added to what is there"],
    ] as const) {
      const { seconds } = await timed("matmul", run);
      row({ row: `${rows} x ${n} x ${k} ${what}`, seconds, flops: 2 * rows * n * k, note });
    }
  }
}

async function attention(): Promise<void> {
  const T = shrunk(Number(size), 256);
  const [N, K, D] = small ? [4, 1, 128] : [32, 8, 128];
  const [reps, warm] = T > 65_536 ? [5, 1] : [10, 2];
  const [q, dout] = [pool.random([T, N, D]), pool.random([T, N, D])];
  const [k, v] = [pool.random([T, K, D]), pool.random([T, K, D])];
  const [o, dq] = [pool.poisoned([T, N, D]), pool.poisoned([T, N, D])];
  const [dk, dv] = [pool.poisoned([T, K, D]), pool.poisoned([T, K, D])];
  const lse = pool.poisoned([N, T], "float32");
  const scale = 1 / Math.sqrt(D);
  const pairs = (T * (T + 1)) / 2;
  const forward = await timed(
    "attention",
    () => ops.attention(q, k, v, o, lse, null, scale, true, 0, 0, 0),
    reps,
    warm,
  );
  row({ row: `forward, T ${T}`, engine: only, seconds: forward.seconds, flops: 4 * N * D * pairs });
  const backward = await timed(
    "attention_backward",
    () =>
      ops.attentionBackward(
        ...([q, k, v, o, lse, dout, null, dq, dk, dv, null] as const),
        ...([scale, true, 0, 0, 0, false, false, false] as const),
      ),
    reps,
    warm,
  );
  row({ row: `backward, T ${T}`, engine: only, seconds: backward.seconds, flops: 8 * N * D * pairs });
}

async function streams(): Promise<void> {
  const T = shrunk(32_768, 256);
  const [H, F, V, rows] = small ? [64, 96, 500, 16] : [4096, 14_336, 128_256, 2048];
  const [N, D] = small ? [2, 16] : [32, 128];
  const report = async (name: string, run: () => void, note?: string) => {
    try {
      row({ row: name, ...(await timed(name, run)), note });
    } catch (error) {
      row({ row: name, failed: (error as Error).message });
    }
  };
  const area = new Pool(device);
  const big = shrunk(2 ** 30, 2 ** 14);
  const [a, b] = [area.random([big], "float32"), area.poisoned([big], "float32")];
  await report("copy", () => ops.copy(a, b));
  area.free();
  const [x, w, dy] = [area.random([T, H]), area.random([H], "float32"), area.random([T, H])];
  const [y, dx, dw] = [area.poisoned([T, H]), area.poisoned([T, H]), area.random([H], "float32")];
  await report("rms_norm", () => ops.rmsNorm(x, w, y, 1e-5));
  await report("rms_norm_backward", () => ops.rmsNormBackward(x, w, dy, dx, dw, 1e-5, false));
  area.free();
  const [q, rotated] = [area.random([T, N, D]), area.poisoned([T, N, D])];
  const positions = area.write(
    [T],
    "int64",
    BigInt64Array.from({ length: T }, (_, i) => BigInt(i)),
  );
  const frequencies = Float32Array.from({ length: D / 2 }, (_, i) => 500_000 ** ((-2 * i) / D));
  const inverse = area.write([D / 2], "float32", frequencies);
  await report("rope", () => ops.rope(q, positions, inverse, rotated, 1, false));
  area.free();
  const [gate, up, dz] = [area.random([T, F]), area.random([T, F]), area.random([T, F])];
  const [z, dgate, dup] = [area.poisoned([T, F]), area.poisoned([T, F]), area.poisoned([T, F])];
  await report("swiglu", () => ops.swiglu(gate, up, z, 0));
  await report("swiglu_backward", () => ops.swigluBackward(gate, up, dz, dgate, dup, 0));
  area.free();
  const logits = area.random([rows, V], "float32");
  const dlogits = area.poisoned([rows, V], "float32");
  const labels = area.write(
    [rows],
    "int32",
    Int32Array.from({ length: rows }, (_, i) => (i * 7919) % V),
  );
  const loss = area.write([], "float64", Float64Array.of(0));
  await report(
    "cross_entropy",
    () => ops.crossEntropy(logits, labels, loss, dlogits, null, null, 1),
    "loss and gradient",
  );
  area.free();
  const count = small ? 1 << 10 : 1 << 27;
  const param = area.random([count]);
  const [grad, m, v, master] = [1, 2, 3, 4].map(() => area.random([count], "float32")) as [
    NativeTensor,
    NativeTensor,
    NativeTensor,
    NativeTensor,
  ];
  ops.binary(v, v, v, 1);
  const step = area.write([], "int64", BigInt64Array.of(1n));
  await report(
    "adamw",
    () => ops.adamw(param, grad, m, v, step, master, null, null, 1e-3, 0.9, 0.95, 1e-8, 0.1),
    "bfloat16 with a float32 master",
  );
  area.free();
}

/** Llama-3 8B with so many layers. */
const llama8B = (layers: number): Model => ({
  fields: {
    model_type: "llama",
    vocab_size: small ? 500 : 128_256,
    hidden_size: small ? 128 : 4096,
    intermediate_size: small ? 256 : 14_336,
    num_hidden_layers: layers,
    num_attention_heads: small ? 4 : 32,
    num_key_value_heads: small ? 2 : 8,
    rope_theta: 500_000,
    max_position_embeddings: 1 << 22,
  },
  dtype: "bfloat16",
});
const tiles = { tileMlp: shrunk(16_384, 256), tileLoss: shrunk(2048, 256) };
const withAttention: MemoryPlan = { ...nothingOn, ...tiles, checkpointEvery: 1, keepAttention: true };
const flopsOf = ({ fields }: Model, T: number) =>
  modelFlops(modelShape(parseModelConfig(fields, { file: "bench" })), [T]);

async function offload(): Promise<void> {
  const T = shrunk(Number(size), 256);
  const model = llama8B(4);
  const sides = (["none", "host"] as const).map((offload) => ({
    offload,
    runner: new Runner({ ...withAttention, offload, deviceBytes: 0 }, T, 16, device, model),
    seconds: [] as number[],
  }));
  const rounds = small ? 2 : T > 65_536 ? 3 : 7;
  for (let round = -1; round < rounds; round++)
    for (const side of sides) {
      const seconds = await side.runner.step();
      if (round >= 0) side.seconds.push(seconds);
    }
  const [none, host] = sides as [(typeof sides)[0], (typeof sides)[0]];
  const fields = model.fields as Record<string, number> & typeof model.fields;
  // x and o [T, H] bfloat16 and the log-sum-exp [N, T] float32, out and back, each copy reading and writing.
  const expected = 4 * 4 * T * (4 * (fields.hidden_size as number) + 4 * (fields.num_attention_heads as number));
  row({
    row: `T ${T}, offload host to none`,
    seconds: median(host.seconds),
    without: median(none.seconds),
    ratio: median(host.seconds) / median(none.seconds),
    copied: host.runner.result.copied - none.runner.result.copied,
    expected,
    hostPeak: host.runner.result.peaks.host,
  });
  for (const { runner } of sides) await runner.dispose();
}

async function steps(
  model: Model,
  plan: MemoryPlan,
  T: number,
  warm: number,
  reps: number,
  note?: string,
): Promise<void> {
  const expected = onMeta(plan, T, model, { profile: device.profile });
  const runner = new Runner(plan, T, 16, device, model);
  const seconds: number[] = [];
  for (let i = 0; i < warm + reps; i++) {
    const took = await runner.step();
    console.error(`step ${i + 1}: ${took.toFixed(2)} s, loss ${runner.result.losses.at(-1)}`);
    if (i >= warm) seconds.push(took);
  }
  const flops = flopsOf(model, T);
  const time = median(seconds);
  const peak = device.info.peakBf16Flops;
  row({
    row: `${model.fields.num_hidden_layers} layers, T ${T}`,
    seconds: time,
    flops,
    mfu: peak > 0 ? flops / time / peak : null,
    tokensPerSecond: T / time,
    loss: runner.result.losses.at(-1),
    peak: device.memory().peak,
    metaPeak: expected.peaks.device,
    hostPeak: device.memory("host").peak,
    metaHostPeak: expected.peaks.host,
    categories: device.memory().categoryPeak,
    note,
  });
  await runner.dispose();
}

/** Bytes of host memory that may be used; LONGSEQ_BENCH_HOST_BYTES says it where the system says something else. */
const hostBytes = Number(
  process.env.LONGSEQ_BENCH_HOST_BYTES || Math.min(0.9 * totalmem(), 0.95 * process.availableMemory()),
);
/** Seconds that bench.ts gives this process. */
const limit = Number(process.env.LONGSEQ_GPU_SECONDS ?? Number.POSITIVE_INFINITY);

/**
 * All layers: weights and gradients on the device, the optimizer on the host, checkpoints in what is left of both. The
 * longest sequence that both memories hold, and of which one step is over in time: by 0.35 of the peak rate, attention's
 * second forward included, and some 90 s to make the model and to pin memory.
 */
async function full(): Promise<void> {
  const model = llama8B(small ? 2 : 32);
  const { memoryFreeBytes, peakBf16Flops } = device.info;
  const plan: MemoryPlan = {
    ...withAttention,
    keepAttention: false,
    offload: "host",
    states: { optimizer: "host", params: "none", gradients: "none" },
  };
  /** With this share of the device for checkpoints: a plan that fits, or why it does not. */
  const fitting = (T: number, share: number): MemoryPlan | string => {
    const tried = { ...plan, deviceBytes: Math.floor(share * memoryFreeBytes) };
    const { device: onDevice, host } = onMeta(tried, T, model, { profile: device.profile }).peaks;
    if (onDevice > 0.9 * memoryFreeBytes) return `T ${T} takes ${onDevice} bytes on the device`;
    return host > hostBytes ? `T ${T} takes ${host} bytes on the host` : tried;
  };
  const why: string[] = [];
  for (const T of size ? [Number(size)] : [512, 448, 384, 320, 256, 192, 128, 96, 64, 32].map((k) => k * 1024)) {
    if (small) return steps(model, plan, shrunk(T, 256), 0, 1);
    const seconds = peakBf16Flops > 0 ? 90 + flopsOf(model, T) / (0.35 * peakBf16Flops) : 0;
    if (seconds > limit) {
      why.push(`T ${T} takes about ${seconds.toFixed(0)} s, there are ${limit.toFixed(0)}`);
      continue;
    }
    // What the host has no room for stays on the device.
    for (const share of [0.3, 0.4, 0.5, 0.6]) {
      const found = fitting(T, share);
      if (typeof found === "string") {
        why.push(found);
        continue;
      }
      for (const line of why) console.error(line);
      return steps(model, found, T, 0, 1, why.at(-1));
    }
  }
  throw new Error(`no length fits this machine: ${why.join("; ")}`);
}

const areas: Record<string, () => Promise<void>> = {
  gemm,
  attention,
  streams,
  offload,
  mfu: () => steps(llama8B(4), withAttention, shrunk(Number(size), 256), 1, small ? 1 : 2),
  full,
};
const run = areas[area];
if (run === undefined) throw new Error(`area is ${area}, expected one of ${Object.keys(areas).join(", ")}`);
await run();
pool.free();
