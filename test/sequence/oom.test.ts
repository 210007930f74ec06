// Out of memory in the middle of a step: one typed error with the breakdown, nothing left behind, and the next step with
// more room gives the plain run's numbers.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import type { ConfigInput } from "../../lib/config/index.js";
import {
  type CausalLM,
  Device,
  initModel,
  type MemoryOptions,
  nn,
  OutOfMemoryError,
  optim,
  type Parameter,
  scope,
  type Tier,
} from "../../lib/index.js";
import { run, tiny, writeRows } from "../train/helpers.js";

/** Activations large enough to have pages of their own. */
const T = 1200;
const fields = {
  model_type: "llama",
  hidden_size: 64,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: 96,
  vocab_size: 97,
  max_position_embeddings: 2048,
};
const batch = { inputIds: Int32Array.from({ length: T }, (_, i) => (Math.imul(i + 1, 0x9e3779b1) >>> 8) % 97) };
const settings: MemoryOptions[] = [
  { tileMlp: 0, tileLoss: 0, checkpointEvery: 0, keepAttention: false, offload: "none", deviceBytes: 0 },
  { tileMlp: 500, tileLoss: 400, checkpointEvery: 0, keepAttention: false, offload: "none", deviceBytes: 0 },
  { tileMlp: 500, tileLoss: 400, checkpointEvery: 1, keepAttention: true, offload: "none", deviceBytes: 0 },
  { tileMlp: 500, tileLoss: 400, checkpointEvery: 2, keepAttention: false, offload: "none", deviceBytes: 0 },
  { tileMlp: 500, tileLoss: 400, checkpointEvery: 1, keepAttention: true, offload: "host", deviceBytes: 0 },
  { tileMlp: 500, tileLoss: 400, checkpointEvery: 1, keepAttention: false, offload: "host", deviceBytes: 700_000 },
  { tileMlp: 500, tileLoss: 400, headChunks: 4, checkpointEvery: 1, keepAttention: true, offload: "disk" },
  {
    tileMlp: 500,
    tileLoss: 400,
    headChunks: 2,
    checkpointEvery: 1,
    offload: "host",
    states: { params: "host", gradients: "host", optimizer: "host" },
  },
];
/** Limits between nothing and the peak. */
const parts = 10;
const categories = ["params", "grads", "optimizer", "checkpoints", "activations", "logits", "comm", "workspace"];

interface Loop {
  device: Device;
  model: CausalLM;
  parameters: Parameter[];
  optimizer: optim.AdamW;
}

function open(memory: MemoryOptions): Loop {
  const device = new Device("cpu", { threads: 2 });
  const model = initModel(fields, { device, dtype: "float32", seed: 2, memory });
  const parameters = [...new Set(model.parameters())];
  return {
    device,
    model,
    parameters,
    optimizer: new optim.AdamW(parameters, { learningRate: 1e-2, offload: memory.states?.optimizer ?? "none" }),
  };
}

/** One step; figures of the loss and the norm. */
async function step({ model, parameters, optimizer }: Loop): Promise<[loss: number, norm: number]> {
  const { loss, norm } = scope(() => {
    const loss = model.loss(batch);
    loss.backward();
    const { norm, factor } = nn.gradNorm(parameters, 1);
    optimizer.step({ factor });
    optimizer.zeroGrad();
    return { loss, norm };
  });
  const figures: [number, number] = [await loss.item(), await norm.item()];
  loss.dispose();
  norm.dispose();
  return figures;
}

function checkError(t: Test, error: unknown, tier: Tier, limit: number): void {
  if (!(error instanceof OutOfMemoryError)) throw error;
  t.match(error.message, `out of ${tier} memory on cpu`);
  t.match(error.message, `memory.${tier}_limit`);
  const details = error.details as Record<string, number>;
  t.equal(details.limit, limit);
  t.equal(
    categories.reduce((sum, category) => sum + (details[category] as number), 0),
    details.live,
    "the breakdown adds up",
  );
  t.ok((details.live as number) <= limit);
}

for (const memory of settings)
  t.test(JSON.stringify(memory), async (t) => {
    const expected: [number, number][] = [];
    const plain = open(memory);
    for (let i = 0; i < 3; i++) expected.push(await step(plain));
    const tiers = (["device", "host"] as const).filter((tier) => plain.device.memory(tier).peak > 0);
    plain.device.trim();
    plain.device.resetPeaks();
    await step(plain);
    const peaks = new Map(tiers.map((tier) => [tier, plain.device.memory(tier).peak]));
    t.equal(tiers.includes("host"), memory.offload !== "none");

    const loop = open(memory);
    t.same(await step(loop), expected[0]);
    const { device, optimizer } = loop;
    const live = () => tiers.map((tier) => device.memory(tier).live);
    const before = live();
    let thrown = 0;
    for (const tier of tiers) {
      device.trim();
      const [low, high] = [device.memory(tier).reserved, peaks.get(tier) as number];
      // From the first allocation that takes pages to the last one before the peak.
      for (let part = 0; part < parts; part++) {
        const limit = Math.floor(low + ((high - low) * part) / parts) || 1;
        device.trim();
        device.setLimit(limit, tier);
        try {
          await step(loop);
          t.fail(`a step within ${limit} bytes of ${tier} memory, ${high} were needed`);
        } catch (error) {
          checkError(t, error, tier, limit);
          thrown++;
        }
        optimizer.zeroGrad();
        device.setLimit(0, tier);
        t.same(live(), before, `live bytes after an error at ${limit} bytes of ${tier} memory`);
      }
    }
    t.equal(thrown, parts * tiers.length);
    // The failed steps changed nothing; what was enqueued before the error has run in vain.
    for (const figures of expected.slice(1)) t.same(await step(loop), figures);
    t.same(live(), before);
    device.trim();
    device.setLimit(peaks.get("device") as number);
    t.ok((await step(loop))[0] > 0, "what the plain run reserved is enough");
    for (const each of [plain, loop]) each.model.dispose();
  });

t.test("an error in the first step, when the optimizer has no states yet", async (t) => {
  const memory = settings[4] as MemoryOptions;
  const plain = open(memory);
  const loop = open(memory);
  const before = loop.device.memory().live;
  for (const limit of [loop.device.memory().reserved, loop.device.memory().reserved + 2_000_000]) {
    loop.device.setLimit(limit);
    await t.rejects(step(loop), { code: "OUT_OF_MEMORY" });
    loop.optimizer.zeroGrad();
    loop.device.setLimit(0);
    t.equal(loop.device.memory().live, before);
    t.equal(loop.device.memory("host").live, 0);
  }
  for (let i = 0; i < 2; i++) t.same(await step(loop), await step(plain));
  for (const each of [plain, loop]) each.model.dispose();
});

t.test("through the trainer", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "longseq-oom-"));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const rows = writeRows(join(folder, "rows.jsonl"), 40);
  let runs = 0;
  const config = (limits: ConfigInput["memory"]) =>
    tiny(rows, join(folder, `run-${runs++}`), { train: { steps: 3 }, memory: { ...memory, ...limits } });
  // All keys are fixed, so nothing can be moved to fit.
  const memory: ConfigInput["memory"] = {
    tileMlp: 8,
    tileLoss: 8,
    headChunks: 1,
    checkpoint: { every: 1, keepAttention: true, offload: "host", deviceBytes: 0 },
  };
  const plain = await run(config({}));
  const [first] = plain.steps;
  const peak = first?.devicePeakBytes as number;
  for (const limits of [{ deviceLimit: peak - 4096 }, { hostLimit: 4096 }]) {
    const [key, needed] = "hostLimit" in limits ? ["host", first?.hostPeakBytes] : ["device", peak];
    // A plan knows before the first step what the allocator would say in its middle.
    await t.rejects(run(config(limits)), {
      code: "CONFIG",
      message: new RegExp(`memory\\.${key}_limit is .* needs at least .* \\(${needed}\\) of ${key} memory`),
    });
    // What it says is enough, in the same process.
    const again = await run(config({ [`${key}Limit`]: needed }));
    const figures = (steps: typeof plain.steps) => steps.map(({ loss, gradNorm }) => [loss, gradNorm]);
    t.same(figures(again.steps), figures(plain.steps));
    t.equal(again.steps[0]?.deviceLiveBytes, first?.deviceLiveBytes);
  }
});
