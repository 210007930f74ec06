// A training run of a small Llama on the device under test and on the CPU: the same loss curve, in float32 step for step,
// in bfloat16 as near as bfloat16 on the CPU is to float32.
import t from "tap";
import { nothingOn, Runner } from "../../bench/steps.js";
import { Device } from "../../lib/index.js";
import { openGpu, small } from "./device.js";

t.setTimeout(0);
const [tokens, steps] = small ? [96, 3] : [1024, 20];
const H = small ? 32 : 256;
const fields = {
  model_type: "llama",
  vocab_size: small ? 101 : 2003,
  hidden_size: H,
  intermediate_size: 3 * H,
  num_hidden_layers: 4,
  // Heads of 64, or 16 where all is small.
  num_attention_heads: small ? 2 : 4,
  num_key_value_heads: small ? 1 : 2,
  max_position_embeddings: 4096,
};

async function curve(device: Device, dtype: "float32" | "bfloat16"): Promise<{ losses: number[]; norms: number[] }> {
  const plan = { ...nothingOn, tileLoss: Math.ceil(tokens / 3), checkpointEvery: 1, keepAttention: true };
  // With ten times the rate the curve has a spike at step 10, behind which a rounding has grown a thousandfold, also
  // between two runs on the CPU that differ in their tiles alone.
  const runner = new Runner(plan, tokens, 16, device, { fields, dtype }, small ? 1e-3 : 1e-4);
  for (let step = 0; step < steps; step++) await runner.step();
  await runner.dispose();
  return runner.result;
}

const gpu = openGpu();
const cpu = new Device("cpu");
const [ours, theirs] = [await curve(gpu, "float32"), await curve(cpu, "float32")];
t.ok((theirs.losses.at(-1) as number) < (theirs.losses[0] as number) - 0.1, "the run on the CPU learns");
for (let step = 0; step < steps; step++)
  for (const what of ["losses", "norms"] as const) {
    const [a, b] = [ours[what][step] as number, theirs[what][step] as number];
    // Rounding grows from step to step.
    const bound = (what === "losses" ? 2e-6 : 2e-5) * (step + 1);
    t.ok(Math.abs(a / b - 1) <= bound, `float32, ${what} of step ${step + 1}: ${a}, on the CPU ${b}`);
  }
const [half, halfCpu] = [await curve(gpu, "bfloat16"), await curve(cpu, "bfloat16")];
for (let step = 0; step < steps; step++) {
  const [a, b, exact] = [half, halfCpu, theirs].map(({ losses }) => losses[step] as number) as [number, number, number];
  const bound = 2 * Math.abs(b - exact) + 5e-3 * exact;
  t.ok(Math.abs(a - b) <= bound, `bfloat16, loss of step ${step + 1}: ${a}, on the CPU ${b}, in float32 ${exact}`);
}
