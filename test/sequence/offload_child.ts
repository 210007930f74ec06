// Steps with the disk tier in a process of its own: `steps FOLDER` for ever, `full FOLDER` until the file may not grow.
import { Device, initModel, type LongseqError } from "../../lib/index.js";

const [mode, directory] = process.argv.slice(2) as [string, string];
const device = new Device("cpu", { threads: 1 });
const model = initModel(
  {
    model_type: "llama",
    hidden_size: 64,
    num_hidden_layers: 4,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    intermediate_size: 96,
    vocab_size: 97,
    max_position_embeddings: 4096,
  },
  { device, dtype: "float32", seed: 2 },
);
const batch = { inputIds: Int32Array.from({ length: 3000 }, (_, i) => (i * 31) % 97) };

async function step(offload: "host" | "disk"): Promise<number> {
  model.configureMemory({ checkpointEvery: 1, keepAttention: true, offload, directory });
  const loss = model.loss(batch);
  loss.backward();
  return loss.item();
}

if (mode === "steps") {
  for (;;) {
    await step("disk");
    console.log("step");
  }
} else {
  const failures: { name: string; code: string; message: string }[] = [];
  try {
    await step("disk");
  } catch (error) {
    const { name, code, message } = error as LongseqError;
    failures.push({ name, code, message });
  }
  await device.resume();
  const loss = await step("host");
  const live = device.memory("disk").live;
  console.log(JSON.stringify({ failures, loss, live }));
}
