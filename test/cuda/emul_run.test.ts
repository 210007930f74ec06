// Whole runs of the Trainer on the kernels of native/cuda compiled for the CPU: the losses of a run on the CPU, and the
// bytes that `meta` foretold.
import { join } from "node:path";
import t, { type Test } from "tap";
import { binding } from "../../lib/binding.js";
import { type ConfigInput, parseConfigObject } from "../../lib/config/index.js";
import { openData } from "../../lib/data/index.js";
import { Device } from "../../lib/index.js";
import { dataOptions } from "../../lib/train/data_options.js";
import { workloadOf } from "../../lib/train/measure.js";
import { resolveModel } from "../../lib/train/model.js";
import { type Choice, chooseMemory } from "../../lib/train/plan.js";
import { ratesOf } from "../../lib/train/rates.js";
import { limitsOn, runDtype, standIn } from "../../lib/train/target.js";
import { nominalTokens } from "../../lib/train/trials.js";
import { run, type TinyOptions, tiny, writeRows } from "../train/helpers.js";
import { emulatorEnvironment } from "./emul.js";

// A machine may be busy with much else.
t.setTimeout(0);

const { LONGSEQ_TEST_BACKEND: library, LONGSEQ_TEST_DEVICE: name } = await emulatorEnvironment();
binding.openBackend(library);
const folder = t.testdir();
const rows = writeRows(join(folder, "rows.jsonl"), 24);
const steps = 3;

const settings: [name: string, options: TinyOptions][] = [
  ["float32", {}],
  ["bfloat16", { dtype: "bfloat16" }],
  [
    "all on the host",
    {
      memory: {
        tileMlp: 20,
        tileLoss: 17,
        headChunks: 2,
        checkpoint: { every: 1, keepAttention: true, offload: "host" },
        offload: { optimizer: "host", params: "host", gradients: "host" },
      },
    },
  ],
  ["segments", { dtype: "bfloat16", memory: { checkpoint: { every: 2 } } }],
];

const configOf = (which: string, options: TinyOptions): ConfigInput =>
  tiny(rows, join(folder, which), { ...options, train: { ...options.train, steps, batchSize: 2 } });

/** What the plan of a run on the device says. */
async function planOf(input: ConfigInput, device: Device): Promise<Choice> {
  const config = parseConfigObject(input);
  const data = await openData(dataOptions(config, false));
  try {
    const model = await resolveModel(config);
    return chooseMemory(config, {
      model,
      dtype: runDtype(config, model, device.type),
      work: workloadOf(config, data, undefined, steps),
      tokens: nominalTokens(config, data.longest),
      limits: limitsOn(config, device),
      rates: ratesOf("cuda"),
      on: standIn(config, device.profile),
    });
  } finally {
    await data.close();
  }
}

function sameBytes(t: Test, device: Device, choice: Choice): void {
  const { peaks, categories } = choice.measured;
  for (const tier of ["device", "host"] as const) {
    const memory = device.memory(tier);
    t.equal(memory.peak, peaks[tier], `${tier}: peak`);
    t.same(memory.categoryAtPeak, categories[tier], `${tier}: by category`);
  }
}

for (const [which, options] of settings)
  t.test(`${which}: losses of the CPU, bytes of the plan`, { timeout: 0 }, async (t) => {
    const device = new Device(name, { threads: 2 });
    const choice = await planOf(configOf(`${which} on the GPU`, options), device);
    const ours = await run(configOf(`${which} on the GPU`, options), { device });
    sameBytes(t, device, choice);
    const theirs = await run({ ...configOf(`${which} on the CPU`, options), device: "cpu" });
    t.equal(ours.steps.length, steps);
    const tolerance = options.dtype === "bfloat16" ? 1e-2 : 1e-5;
    for (const [i, step] of theirs.steps.entries())
      for (const key of ["loss", "gradNorm"] as const) {
        const [mine, expected] = [ours.steps[i]?.[key] as number, step[key] as number];
        t.ok(Math.abs(mine / expected - 1) <= tolerance, `${key} ${mine}, on the CPU ${expected}`);
      }
    const plan = ours.events.find(({ event }) => event === "plan");
    t.match(plan, { device: /cuda_emul/, dtype: options.dtype ?? "float32" });
  });

t.test("model.dtype is the checkpoint's on a GPU, float32 on the CPU", async (t) => {
  const config = parseConfigObject({ ...configOf("dtype", {}), model: { init: { torch_dtype: "bfloat16" } } });
  const model = { ...(await resolveModel(parseConfigObject(configOf("dtype", {})))), dtype: "bfloat16" };
  t.equal(runDtype(config, model, name), "bfloat16");
  t.equal(runDtype(config, model, "cpu"), "float32");
  t.equal(runDtype(config, { ...model, dtype: null }, name), "float32");
});

t.test("a lent device is left as it was, and serves another run", { timeout: 0 }, async (t) => {
  const device = new Device(name, { threads: 2 });
  const first = await run(configOf("first", {}), { device });
  t.equal(device.memory().live, 0);
  const second = await run(configOf("second", {}), { device });
  t.same(
    second.steps.map(({ loss }) => loss),
    first.steps.map(({ loss }) => loss),
  );
});

t.test("options of a device", async (t) => {
  t.ok(new Device("cpu", { threads: 1, deterministic: false }).deterministic, "the CPU always is");
  t.notOk(new Device(name, { threads: 1 }).deterministic);
  t.ok(new Device(name, { threads: 1, deterministic: true }).deterministic);
  t.ok(new Device(name, { threads: 1, attention: "native" }).isGpu);
  t.throws(() => new Device(name, { threads: 1, attention: "cudnn" }), {
    code: "UNSUPPORTED",
    message: /cuda_emul has no cuDNN: use attention: auto or native/,
  });
});
