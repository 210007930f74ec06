// Frozen base weights in 8 bits: what is read is what was packed, whoever packed it; what it saves; what is refused.
import * as path from "node:path";
import t from "tap";
import { noGrad } from "../../lib/autograd/function.js";
import { parseConfigObject } from "../../lib/config/index.js";
import { Device } from "../../lib/index.js";
import type { AdapterConfig } from "../../lib/models/adapter.js";
import { initModel, loadModel } from "../../lib/models/index.js";
import { packedPieces } from "../../lib/models/packed.js";
import { type BlockFormat, dequantize, packedShape, quantize } from "../../lib/ops/quantize.js";
import { scope, scopeAsync } from "../../lib/tensor/scope.js";
import { Tensor } from "../../lib/tensor/tensor.js";
import { goldenFolder } from "./helpers.js";

const adapterOf = (baseFormat: BlockFormat | null): AdapterConfig => ({
  rank: 2,
  alpha: 4,
  targetModules: "all-linear",
  modulesToSave: [],
  dropout: 0,
  rslora: false,
  init: true,
  path: null,
  baseFormat,
  file: "adapter",
});

const modelFolder = (name: string): string => path.join(goldenFolder, name, "model");

/** Whether a matrix is packed. */
const packs = (name: string): boolean => !/embed|wte|wpe|lora_|\.gate\.weight|shared_expert_gate/.test(name);

for (const [name, format] of [
  ["llama2", "int8"],
  ["llama2", "float8"],
  ["gpt2", "int8"],
  ["phi3", "float8"],
  ["qwen2_moe", "int8"],
] as const)
  t.test(`${name} in ${format}: logits are those of weights that went there and back`, async (t) =>
    scopeAsync(async () => {
      const inputIds = Int32Array.from({ length: 19 }, (_, i) => (i * i + 3) % 60);
      using plain = await loadModel(modelFolder(name), { dtype: "float32" });
      let packed = 0;
      for (const [parameter, tensor] of plain.namedParameters()) {
        if (tensor.ndim < 2 || !packs(parameter)) continue;
        packed += tensor.size;
        scope(() => tensor.copyFrom(dequantize(quantize(tensor, format), format, tensor.shape, "float32")));
      }
      t.ok(packed > 0);
      using model = await loadModel(modelFolder(name), { dtype: "float32", adapter: adapterOf(format) });
      const [ours, theirs] = [model, plain].map((one) => noGrad(() => one.forward({ inputIds })));
      t.same(await ours?.data(), await theirs?.data(), "bit for bit");
    }),
  );

t.test("a part of the packed bytes is that part of the whole", async (t) =>
  scopeAsync(async () => {
    for (const [shape, format] of [
      [[37, 70], "int8"],
      [[3, 5, 129], "float8"],
    ] as const) {
      const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(i * i));
      const source = Tensor.empty(shape).copyFrom(values);
      const whole = (await quantize(source, format).data()) as Uint8Array;
      const size = packedShape(shape).reduce((a, b) => a * b, 1);
      for (const [begin, end] of [
        [0, size],
        [1, 2],
        [71, 500],
        [size - 130, size],
      ] as const) {
        const target = Tensor.empty([end - begin], { dtype: "uint8" });
        for (const { values: piece, begin: first } of packedPieces(shape, format, target, begin)) {
          t.equal(first % 4, 0);
          piece.copyFrom(values.subarray(first, first + piece.size));
        }
        t.same(await target.data(), whole.subarray(begin, end), `${format} ${begin} to ${end}`);
      }
    }
  }),
);

t.test("an initialised model has the numbers that it has unpacked", async (t) => {
  const fields = {
    model_type: "llama",
    vocab_size: 31,
    hidden_size: 18,
    intermediate_size: 26,
    num_hidden_layers: 2,
    num_attention_heads: 3,
    num_key_value_heads: 3,
    max_position_embeddings: 64,
  };
  await scopeAsync(async () => {
    using plain = initModel(fields, { seed: 5 });
    for (const [parameter, tensor] of plain.namedParameters())
      if (tensor.ndim > 1 && packs(parameter))
        scope(() => tensor.copyFrom(dequantize(quantize(tensor, "int8"), "int8", tensor.shape, "float32")));
    using model = initModel(fields, { seed: 5, adapter: adapterOf("int8") });
    const inputIds = [3, 1, 4, 1, 5, 9, 2, 6];
    const [ours, theirs] = [model, plain].map((one) => noGrad(() => one.forward({ inputIds })));
    t.same(await ours?.data(), await theirs?.data());
  });
});

t.test("memory: a quarter of float32, a half of bfloat16, and a layer's weights while they are used", async (t) => {
  const fields = {
    model_type: "llama",
    vocab_size: 64,
    hidden_size: 256,
    intermediate_size: 512,
    num_hidden_layers: 12,
    num_attention_heads: 4,
    num_key_value_heads: 4,
    max_position_embeddings: 64,
  };
  const layer = 4 * 256 * 256 + 3 * 256 * 512;
  for (const [dtype, bytes] of [
    ["float32", 4],
    ["bfloat16", 2],
  ] as const) {
    const device = new Device("cpu", { threads: 1 });
    const before = device.memory().live;
    const adapter = { ...adapterOf("int8"), targetModules: ["q_proj"] };
    using model = initModel(fields, { device, dtype, adapter, memory: { checkpointEvery: 1 } });
    const packed = 12 * layer * (1 + 2 / 64);
    const live = device.memory().live - before;
    t.ok(live >= packed && live < packed * 1.05, `${live} bytes, ${packed} of them packed`);
    device.resetPeaks();
    model.loss({ inputIds: [1, 2, 3, 4, 5] }).backward();
    await device.synchronize();
    const most = device.memory().peakLive - before - live;
    t.ok(
      most > bytes * layer && most < 1.3 * bytes * layer,
      `${most} bytes more in a step, ${bytes * layer} of a layer`,
    );
    model.zeroGrad();
  }
});

t.test("only frozen weights", async (t) => {
  const config = {
    data: { train: ["rows"], sequenceLength: 8 },
    train: { steps: 1 },
    output: { dir: "run" },
  };
  t.throws(() => parseConfigObject({ ...config, model: { path: "m", baseFormat: "int8" } }), {
    name: "ConfigError",
    message: /model\.baseFormat: got int8, which is for weights that are frozen/,
  });
  t.throws(() => parseConfigObject({ ...config, model: { path: "m", baseFormat: "int4" as never } }), {
    message: /one of native, int8, float8/,
  });
  const packed = { ...config, model: { path: "m", baseFormat: "int8" as const }, adapter: { r: 4 } };
  t.throws(() => parseConfigObject({ ...packed, memory: { checkpoint: { every: 0 } } }), {
    message: /memory\.checkpoint\.every: got 0, but model\.baseFormat is int8/,
  });
  t.doesNotThrow(() => parseConfigObject({ ...config, model: { path: "m", baseFormat: "int8" }, adapter: { r: 4 } }));
});
