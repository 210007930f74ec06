// Memory of whole steps on the device under test: bytes against `meta`'s by category, checkpoints that really go out and
// come back, states on the host, the disk tier; each run's losses are those of the run with nothing on.
import t from "tap";
import { nothingOn, Runner } from "../../bench/steps.js";
import { type ByCategory, binding } from "../../lib/binding.js";
import { Device, type Tier } from "../../lib/index.js";
import type { MemoryPlan } from "../../lib/train/memory_plan.js";
import { openGpu, small } from "./device.js";

t.setTimeout(0);
const tokens = small ? 160 : 8192;
const [H, N, K, layers] = small ? [64, 4, 2, 3] : [1024, 16, 4, 6];
const fields = {
  model_type: "llama",
  vocab_size: small ? 101 : 32000,
  hidden_size: H,
  intermediate_size: 3 * H,
  num_hidden_layers: layers,
  num_attention_heads: N,
  num_key_value_heads: K,
  max_position_embeddings: 1 << 20,
};
const dtype = "bfloat16";
const tiles = { tileMlp: Math.ceil(tokens / 4), tileLoss: Math.ceil(tokens / 8) };
const full: MemoryPlan = { ...nothingOn, ...tiles, checkpointEvery: 1, keepAttention: true };
const plans: [name: string, plan: MemoryPlan][] = [
  ["nothing on", nothingOn],
  ["tiles, checkpoints with attention", full],
  ["checkpoints to the host", { ...full, offload: "host" }],
  ["head chunks", { ...full, offload: "host", headChunks: N / 2 }],
  ["checkpoints to the disk", { ...full, offload: "disk" }],
  ["optimizer on the host", { ...full, states: { ...full.states, optimizer: "host" } }],
  ["all on the host", { ...full, offload: "host", states: { optimizer: "host", params: "host", gradients: "host" } }],
];
const tiers: Tier[] = ["device", "host", "disk"];
const gpu = openGpu();
const meta = new Device("meta", { profile: gpu.profile });

/** Highest bytes of each category of each tier while a model is made and trained two steps. */
async function peaks(device: Device, plan: MemoryPlan) {
  device.trim();
  device.resetPeaks();
  const runner = new Runner(plan, tokens, 16, device, { fields, dtype });
  for (let step = 0; step < 2; step++) await runner.step();
  const found = Object.fromEntries(tiers.map((tier) => [tier, device.memory(tier)]));
  const counts = device.opCounts();
  await runner.dispose();
  const live = tiers.map((tier) => device.memory(tier).live);
  return { found, counts, live, result: runner.result };
}

const without = (bytes: ByCategory | undefined, category: string): ByCategory => ({ ...bytes, [category]: 0 });
const plain = await peaks(gpu, nothingOn);
for (const [name, plan] of plans)
  await t.test(name, { timeout: 0 }, async (t) => {
    const ours = await peaks(gpu, plan);
    const theirs = await peaks(meta, plan);
    for (const tier of tiers) {
      const [a, b] = [ours.found[tier], theirs.found[tier]];
      t.same(
        without(a?.categoryPeak, "workspace"),
        without(b?.categoryPeak, "workspace"),
        `${tier}: each category but workspace is meta's to the byte`,
      );
      const [peak, expected] = [a?.peak ?? 0, b?.peak ?? 0];
      console.log(
        `# ${name}, ${tier}: peak ${peak}, meta ${expected}; workspace ${a?.categoryPeak.workspace}, ` +
          `meta ${b?.categoryPeak.workspace}`,
      );
      t.ok(
        Math.abs(peak - expected) <= 0.01 * expected,
        `${tier}: the peak ${peak} is within 1% of meta's ${expected}`,
      );
    }
    t.same(ours.live, [0, 0, 0], "nothing is left");
    for (const [step, loss] of plain.result.losses.slice(0, 2).entries()) {
      const got = ours.result.losses[step] as number;
      t.ok(Math.abs(got / loss - 1) <= 2e-3, `loss of step ${step + 1}: ${got}, with nothing on ${loss}`);
    }
    if (plan.offload === "none") return;
    // What each layer sends away: x [T, H], O [T, N D] and its log-sum-exp [N, T].
    const away = layers * tokens * (2 * H + 2 * H + 4 * N);
    if (plan.offload === "host" && plan.states.params === "none") {
      const base = await peaks(gpu, { ...plan, offload: "none" });
      const copied = ours.result.copied - base.result.copied;
      console.log(`# ${name}: ${copied} bytes copied more than without, ${4 * away} are all layers out and back`);
      t.equal(copied, 4 * away, "all layers, O too, go out and come back: each copy reads and writes");
    }
    if (plan.offload === "disk") {
      for (const op of ["disk_write", "disk_read"])
        t.ok((ours.counts[op]?.bytes ?? 0) >= away, `${op}: ${ours.counts[op]?.bytes} bytes, ${away} are all layers`);
    }
  });
t.equal(binding.failure(gpu.native), null, "the device is well");
