// Adapters against PEFT in float64: logits, loss and every gradient; the merged model; what is refused.
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import t from "tap";
import { noGrad } from "../../lib/autograd/function.js";
import { SafetensorsFile } from "../../lib/checkpoint/safetensors.js";
import { ConfigError, IoError, ModelError } from "../../lib/errors.js";
import type { AdapterConfig } from "../../lib/models/adapter.js";
import { loadModel } from "../../lib/models/index.js";
import { mergeAdapter } from "../../lib/models/merge.js";
import { peftName, readAdapterConfig, writeAdapterFiles } from "../../lib/models/peft.js";
import { gradNorm } from "../../lib/nn/clip_grad.js";
import { scopeAsync } from "../../lib/tensor/scope.js";
import { error, goldenFolder, putStored, storedSize } from "./helpers.js";

const folder = path.join(goldenFolder, "..", "adapters");
const cases = readdirSync(folder).sort();

interface Golden {
  model: string;
  loss: number;
  grad_norm: number;
}

const goldenOf = (name: string) => {
  const at = path.join(folder, name);
  const golden = JSON.parse(readFileSync(path.join(at, "golden.json"), "utf8")) as Golden;
  return { at, golden, base: path.join(goldenFolder, golden.model, "model") };
};

const modelFolder = (name: string) => path.join(goldenFolder, name, "model");

t.ok(cases.length >= 13, "all cases are there");

for (const name of cases)
  t.test(name, async (t) =>
    scopeAsync(async () => {
      const { at, golden, base } = goldenOf(name);
      using file = await SafetensorsFile.open(path.join(at, "golden.safetensors"));
      using saved = await SafetensorsFile.open(path.join(at, "adapter_model.safetensors"));
      const inputIds = new Int32Array(await file.readBytes("input_ids"));
      const float32 = async (tensor: string) => new Float32Array(await file.readBytes(tensor));
      const { config: adapter } = await readAdapterConfig(at);
      using model = await loadModel(base, { dtype: "float32", adapter });
      const logits = noGrad(() => model.forward({ inputIds }));
      const wrong = error((await logits.data()) as Float32Array, await float32("logits"));
      t.ok(wrong <= 3e-5, `logits: ${wrong}`);

      for (const memory of [
        { tileMlp: 0, tileLoss: 0, headChunks: 1, checkpointEvery: 0 },
        { tileMlp: 7, tileLoss: 5, headChunks: 2, checkpointEvery: 1 },
      ]) {
        model.configureMemory(memory);
        model.zeroGrad();
        const loss = model.loss({ inputIds });
        loss.backward();
        const value = await loss.item();
        t.ok(Math.abs(value / golden.loss - 1) <= 1e-6, `loss ${value}, expected ${golden.loss}`);
        const grads = new Map<string, Float32Array>();
        for (const [parameter, tensor] of model.namedParameters()) {
          if (!tensor.requiresGrad) {
            t.equal(tensor.grad, null, `${parameter} is frozen`);
            continue;
          }
          const place = model.place(parameter);
          const name = peftName(model, place.stored.name);
          const whole = grads.get(name) ?? new Float32Array(storedSize(place));
          putStored(place, (await tensor.grad?.data()) as Float32Array, whole);
          grads.set(name, whole);
        }
        t.same([...grads.keys()].sort(), [...saved.entries.keys()].sort());
        for (const [name, grad] of grads) {
          const off = error(grad, await float32(`grad.${name}`));
          if (!(off <= 1e-4)) t.fail(`gradient of ${name}: ${off}`);
        }
        const norm = await gradNorm(model.parameters(), 0).norm.item();
        t.ok(Math.abs(norm / golden.grad_norm - 1) <= 1e-5, `gradient norm ${norm}, expected ${golden.grad_norm}`);
      }
      model.zeroGrad();

      // Written again, the same files but for what PEFT says beside.
      const out = t.testdir({});
      await writeAdapterFiles(model, out, base);
      using written = await SafetensorsFile.open(path.join(out, "adapter_model.safetensors"));
      t.same([...written.entries.keys()].sort(), [...saved.entries.keys()].sort());
      for (const [tensor, { shape }] of saved.entries) {
        t.same(written.entries.get(tensor)?.shape, shape, tensor);
        const [a, b] = await Promise.all([written.readBytes(tensor), saved.readBytes(tensor, { dtype: "F32" })]);
        t.ok(Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0, `${tensor} is as it was`);
      }
      const again = await readAdapterConfig(out);
      t.same({ ...again.config, path: "", file: "" }, { ...adapter, path: "", file: "" });
      t.equal(again.base, base);

      const merged = path.join(out, "merged");
      const told = await mergeAdapter(at, merged, { base, maxShardBytes: 20_000 });
      t.equal(told.path, merged);
      t.ok(told.merged > 0 || told.replaced > 0);
      using one = await loadModel(merged, { dtype: "float32" });
      const whole = noGrad(() => one.forward({ inputIds }));
      const off = error((await whole.data()) as Float32Array, await float32("logits"));
      t.ok(off <= 3e-5, `logits of the merged model: ${off}`);
    }),
  );

t.test("a merged model keeps the dtype of each tensor, and what goes with the weights", async (t) => {
  const { at } = goldenOf("llama_all");
  const out = t.testdir({ base: {}, adapter: {} });
  // llama3 once more, in float16.
  const from = modelFolder("llama3");
  const { SafetensorsWriter } = await import("../../lib/checkpoint/safetensors.js");
  const base = path.join(out, "base");
  {
    using source = await SafetensorsFile.open(path.join(from, "model.safetensors"));
    const half = [...source.entries.values()].map(({ name, shape }) => ({ name, shape, dtype: "F16" as const }));
    const writer = await SafetensorsWriter.create(path.join(base, "model.safetensors"), half);
    const { Tensor } = await import("../../lib/tensor/tensor.js");
    for (const { name, shape } of half) {
      using values = Tensor.empty(shape);
      await source.read(name, values);
      await writer.write(name, values);
    }
    await writer.finish();
  }
  cpSync(path.join(from, "config.json"), path.join(base, "config.json"));
  writeFileSync(path.join(base, "LICENSE"), "a licence");
  writeFileSync(path.join(base, "tokenizer_config.json"), '{"of": "the base"}');
  const adapter = path.join(out, "adapter");
  for (const name of ["adapter_config.json", "adapter_model.safetensors"])
    cpSync(path.join(at, name), path.join(adapter, name));
  writeFileSync(path.join(adapter, "tokenizer_config.json"), '{"of": "the adapter"}');
  const target = path.join(out, "merged");
  const { merged, tensors } = await mergeAdapter(adapter, target, { base });
  t.equal(readFileSync(path.join(target, "LICENSE"), "utf8"), "a licence");
  t.match(readFileSync(path.join(target, "tokenizer_config.json"), "utf8"), /the adapter/);
  t.equal(readFileSync(path.join(target, "config.json"), "utf8").length > 0, true);
  using result = await SafetensorsFile.open(path.join(target, "model.safetensors"));
  using before = await SafetensorsFile.open(path.join(base, "model.safetensors"));
  t.equal(result.entries.size, tensors);
  let changed = 0;
  for (const [name, { dtype }] of result.entries) {
    t.equal(dtype, "F16", name);
    const [a, b] = await Promise.all([result.readBytes(name), before.readBytes(name)]);
    if (Buffer.compare(Buffer.from(a), Buffer.from(b)) !== 0) changed++;
  }
  t.equal(changed, merged);
  // Each value is the float32 sum rounded once.
  using weights = await SafetensorsFile.open(path.join(adapter, "adapter_model.safetensors"));
  const name = "model.layers.0.self_attn.q_proj";
  const floats = async (source: SafetensorsFile, tensor: string) =>
    new Float32Array(await source.readBytes(tensor, { dtype: "F32" }));
  const [w, sum] = [await floats(before, `${name}.weight`), await floats(result, `${name}.weight`)];
  const a = await floats(weights, `base_model.model.${name}.lora_A.weight`);
  const b = await floats(weights, `base_model.model.${name}.lora_B.weight`);
  const rank = 4;
  const columns = a.length / rank;
  let worst = 0;
  for (let i = 0; i < w.length; i++) {
    const [row, column] = [Math.floor(i / columns), i % columns];
    let exact = w[i] as number;
    for (let k = 0; k < rank; k++) exact += 2 * (b[row * rank + k] as number) * (a[k * columns + column] as number);
    const ulp = 2 ** (Math.max(-14, Math.floor(Math.log2(Math.abs(exact)))) - 10);
    worst = Math.max(worst, Math.abs((sum[i] as number) - exact) / ulp);
  }
  t.ok(worst <= 0.51, `${worst} units in the last place`);
});

const plain: AdapterConfig = {
  rank: 2,
  alpha: 4,
  targetModules: ["q_proj"],
  modulesToSave: [],
  dropout: 0,
  rslora: false,
  init: true,
  path: null,
  file: "adapter",
};

t.test("bad input: one clear error each", async (t) => {
  const { at, base } = goldenOf("llama_all");
  const load = (adapter: Partial<AdapterConfig>, folder = base) =>
    loadModel(folder, { dtype: "float32", adapter: { ...plain, ...adapter } });
  await t.rejects(load({ targetModules: ["q_prj"] }), {
    name: "ConfigError",
    message: /"q_prj" .*the nearest is q_proj/,
  });
  await t.rejects(load({ targetModules: ["norm"] }), ConfigError, "a norm has no adapter");
  await t.rejects(load({ targetModules: "q_proj" }), {
    message: /matches no module .*model\.layers\.0\.self_attn\.q_proj/,
  });
  await t.rejects(load({ targetModules: "(q" }), { message: /no regular expression/ });
  await t.rejects(load({ modulesToSave: ["lm_hed"] }), {
    message: /"lm_hed" matches no module; the nearest is lm_head/,
  });
  await t.rejects(load({ modulesToSave: ["q_proj"] }), { message: /names no module/ });
  await t.rejects(load({ targetModules: ["gate"] }, modelFolder("mixtral")), { message: /"gate" matches no module/ });

  for (const [name, modulesToSave] of [
    ["mixtral", ["mlp"]],
    ["qwen2_moe", ["experts"]],
  ] as const)
    await t.rejects(load({ modulesToSave }, modelFolder(name)), {
      name: "ConfigError",
      message: /takes in model\.layers\.\d\.mlp\.experts; the matrices of experts are not trained beside adapters/,
    });
  await t.rejects(load({ modulesToSave: ["block_sparse_moe"] }, modelFolder("mixtral")), {
    message: /matches no module/,
  });

  const other = modelFolder("llama2");
  await t.rejects(load((await readAdapterConfig(at)).config, modelFolder("gpt2")), {
    name: "ModelError",
    message:
      /it is an adapter for another base: its target_modules .* name none of this model's modules, which are c_attn/,
  });
  await t.rejects(load({ ...(await readAdapterConfig(at)).config }, other), {
    name: "ModelError",
    message: /adapter for another base/,
  });
  await t.rejects(mergeAdapter(at, path.join(t.testdir({}), "out"), { base: other }), /adapter for another base/);

  const made = t.testdir({ empty: {}, bin: { "adapter_model.bin": "" }, model: {}, full: { file: "" } });
  const write = (name: string, change: object) => {
    const file = path.join(made, name, "adapter_config.json");
    mkdirSync(path.dirname(file), { recursive: true });
    const fields = JSON.parse(readFileSync(path.join(at, "adapter_config.json"), "utf8"));
    writeFileSync(file, JSON.stringify({ ...fields, ...change }));
    return path.dirname(file);
  };
  await t.rejects(readAdapterConfig(path.join(made, "empty")), { message: /has no adapter_config\.json/ });
  for (const [key, value, message] of [
    ["peft_type", "IA3", /LORA/],
    ["use_dora", true, /use_dora is true/],
    ["bias", "all", /bias is "all"/],
    ["rank_pattern", { q_proj: 4 }, /rank_pattern .*all-linear adds it for the matrices of experts/],
    ["use_rslora", "true", /use_rslora is "true"; expected true or false/],
    ["task_type", "SEQ_CLS", /task_type is "SEQ_CLS"; .*CAUSAL_LM/],
    ["target_parameters", ["experts"], /target_parameters/],
    ["r", 0, /r is 0/],
    ["r", 2.5, /r is 2\.5/],
    ["lora_alpha", -1, /lora_alpha is -1/],
    ["lora_dropout", 1, /lora_dropout is 1/],
    ["init_lora_weights", "pissa", /init_lora_weights is "pissa"; such an adapter belongs to a base that it changed/],
    ["modules_to_save", "lm_head", /modules_to_save/],
  ] as const)
    await t.rejects(readAdapterConfig(write(key, { [key]: value })), { name: "ModelError", message });
  writeFileSync(path.join(made, "bin", "adapter_config.json"), readFileSync(path.join(at, "adapter_config.json")));
  await t.rejects(load((await readAdapterConfig(path.join(made, "bin"))).config), { message: /adapter_model\.bin/ });
  await t.rejects(load((await readAdapterConfig(write("model", {}))).config), {
    message: /no adapter_model\.safetensors/,
  });
  writeFileSync(path.join(write("text", {}), "adapter_config.json"), '{\n"r": 1,\n"lora_alpha"');
  await t.rejects(readAdapterConfig(path.join(made, "text")), { message: /adapter_config\.json:3 is not valid JSON/ });
  // A number that is none, in the last row of a B.
  const broken = write("broken", {});
  const bytes = readFileSync(path.join(at, "adapter_model.safetensors"));
  const tensor = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";
  const header = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString());
  bytes.writeFloatLE(Number.NaN, 8 + Number(bytes.readBigUInt64LE(0)) + header[tensor].data_offsets[1] - 4);
  writeFileSync(path.join(broken, "adapter_model.safetensors"), bytes);
  const notFinite = { name: "ModelError", message: new RegExp(`tensor ${tensor} has NaN at .*must be finite`) };
  await t.rejects(load((await readAdapterConfig(broken)).config), notFinite);
  await t.rejects(mergeAdapter(broken, path.join(made, "out"), { base }), notFinite);
  await t.rejects(loadModel(at), { name: "ModelError", message: /holds an adapter, not a model: .*llama3\/model/ });

  await t.rejects(mergeAdapter(at, path.join(made, "full"), { base }), IoError);
  t.same(readdirSync(path.join(made, "full")), ["file"]);
  const nameless = write("nameless", { base_model_name_or_path: null });
  cpSync(path.join(at, "adapter_model.safetensors"), path.join(nameless, "adapter_model.safetensors"));
  await t.rejects(mergeAdapter(nameless, path.join(made, "out")), { message: /names no base .*--base/ });
  await t.rejects(mergeAdapter(write("lost", { base_model_name_or_path: "/nowhere" }), path.join(made, "out")), {
    name: ModelError.name,
    message: /\/nowhere does not exist; .*--base/,
  });
  t.notOk(existsSync(path.join(made, "out")), "nothing was left behind");
});

t.test("an expression is written as the names that it matched, which is what PEFT makes of them", async (t) => {
  const adapter: AdapterConfig = { ...plain, targetModules: ".*self_attn.*" };
  using model = await loadModel(modelFolder("phi3"), { dtype: "float32", adapter });
  const out = t.testdir({});
  await writeAdapterFiles(model, out, null);
  const layers = model.model.layers.map((_, i) => i);
  const names = layers.flatMap((i) => ["o_proj", "qkv_proj"].map((name) => `model.layers.${i}.self_attn.${name}`));
  t.same((await readAdapterConfig(out)).config.targetModules, names);
});
