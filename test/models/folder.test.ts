// Model folders: export and reload, initialisation, and what is refused.

import { createHash } from "node:crypto";
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import t from "tap";
import { noGrad } from "../../lib/autograd/function.js";
import { openModelFolder, SafetensorsFile, writeModel } from "../../lib/checkpoint/safetensors.js";
import { ArgumentError, type LongseqError, ModelError } from "../../lib/errors.js";
import { type CausalLM, initModel, loadModel, saveModel, writeModelFiles } from "../../lib/models/index.js";
import { resolveModelConfig } from "../../lib/models/load.js";
import { storedIn } from "../../lib/models/registry.js";
import { scopeAsync } from "../../lib/tensor/scope.js";
import { error, goldenCases, goldenFolder, withGolden } from "./helpers.js";

const tiny = {
  model_type: "llama",
  vocab_size: 41,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
};

const readJson = (...parts: string[]) => JSON.parse(readFileSync(path.join(...parts), "utf8"));

async function logitsOf(model: CausalLM, inputIds: readonly number[] | Int32Array): Promise<Float32Array> {
  return scopeAsync(async () => (await noGrad(() => model.forward({ inputIds })).data()) as Float32Array);
}

async function valuesOf(model: CausalLM): Promise<Record<string, number[]>> {
  const result: Record<string, number[]> = {};
  for (const [name, parameter] of model.namedParameters())
    result[name] = Array.from((await parameter.data()) as Float32Array);
  return result;
}

/** A hash of each parameter's values: comparing thousands of numbers one by one takes tap minutes. */
async function digestsOf(model: CausalLM): Promise<Record<string, string>> {
  const result: Record<string, string> = {};
  for (const [name, parameter] of model.namedParameters())
    result[name] = createHash("sha256")
      .update(await parameter.data())
      .digest("hex");
  return result;
}

/** What `promise` is rejected with. */
async function rejection(promise: Promise<unknown>): Promise<LongseqError> {
  try {
    await promise;
  } catch (error) {
    return error as LongseqError;
  }
  throw new Error("nothing was rejected");
}

t.test("export and reload of every case", async (t) => {
  const dir = t.testdir();
  for (const name of goldenCases) {
    const source = path.join(goldenFolder, name, "model");
    const target = path.join(dir, name);
    using model = await loadModel(source);
    await saveModel(model, target);
    using again = await loadModel(target);
    t.strictSame(await digestsOf(again), await digestsOf(model), name);
    const { fields: _, file: __, source: ___, dtype, ...config } = model.config;
    t.match(again.config, config, "the same sizes and choices");
    t.equal(again.config.dtype, "float32");
    const [before, after] = [readJson(source, "config.json"), readJson(target, "config.json")];
    // A key that names the dtype is the only one that may change.
    const key = "torch_dtype" in before ? "torch_dtype" : "dtype";
    t.strictSame(after, { ...before, [key]: "float32" });
    using file = await SafetensorsFile.open(path.join(target, "model.safetensors"));
    t.equal(file.metadata.format, "pt");
    t.equal(file.entries.has(storedIn(model.config, "lm_head.weight").name), !model.config.tieWordEmbeddings);
    t.ok([...file.entries.values()].every((entry) => entry.dtype === "F32"));
  }
});

t.test("files beside the weights, shards, overrides", async (t) => {
  const dir = t.testdir();
  const source = path.join(dir, "source");
  cpSync(path.join(goldenFolder, "llama_linear_hub", "model"), source, { recursive: true });
  for (const name of ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
    writeFileSync(path.join(source, name), `what ${name} holds`);
  writeFileSync(path.join(source, "optimizer.bin"), "not part of the model");
  const target = path.join(dir, "target");
  using model = await loadModel(source, {
    override: { rope_theta: 77, rope_scaling: { type: "yarn", factor: 2 }, max_position_embeddings: 1024 },
  });
  await saveModel(model, target, { maxShardBytes: 20_000 });
  using folder = await openModelFolder(target);
  t.ok(new Set([...folder.entries.values()].map((entry) => entry.file)).size > 1, "more than one file");
  for (const name of ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
    t.equal(readFileSync(path.join(target, name), "utf8"), `what ${name} holds`);
  t.throws(() => readFileSync(path.join(target, "optimizer.bin")));
  t.match(readJson(target, "config.json"), {
    rope_theta: 77,
    rope_scaling: { type: "yarn", factor: 2, original_max_position_embeddings: 256 },
    max_position_embeddings: 1024,
  });
  using again = await loadModel(target);
  t.strictSame(again.config.ropes, model.config.ropes);
  const ids = [1, 2, 3, 4, 5, 6, 7];
  t.equal(error(await logitsOf(again, ids), await logitsOf(model, ids)), 0);
});

t.test("config.json comes out as it was: number text, unknown fields, the order of keys", async (t) => {
  const dir = t.testdir();
  const source = path.join(dir, "source");
  cpSync(path.join(goldenFolder, "llama3_hub", "model"), source, { recursive: true });
  const file = path.join(source, "config.json");
  const text = readFileSync(file, "utf8").replace(
    "{",
    `{
  "mystery": {
    "10": 64.0,
    "2": [
      1e-07,
      12345678901234567890,
      1.0
    ],
    "caf\\u00e9": null
  },
  "rope_interleaved": false,`,
  );
  writeFileSync(file, text);
  const exported = async (override?: object) => {
    using model = await loadModel(source, { dtype: "bfloat16", ...(override === undefined ? {} : { override }) });
    await saveModel(model, path.join(dir, "target"));
    return readFileSync(path.join(dir, "target", "config.json"), "utf8");
  };
  t.equal(await exported(), text);
  // Only what was overridden differs, floats as floats, where and as the folder spells it.
  const longer = await exported({ max_position_embeddings: 4096, rope_theta: 5000 });
  t.equal(
    longer,
    text.replace(/("max_position_embeddings": )512/, "$14096").replace(/("rope_theta": )10000\.0/, "$15000.0"),
  );
  const scaled = await exported({ rope_scaling: { rope_type: "linear", factor: 4 } });
  t.match(scaled, /"rope_scaling": \{\n {4}"rope_type": "linear",\n {4}"factor": 4\.0\n {2}\}/);
  t.notMatch(scaled, "rope_parameters");

  using fresh = initModel({ ...readJson(source, "config.json"), rope_theta: 10000, rms_norm_eps: 1e-6 });
  await saveModel(fresh, path.join(dir, "fresh"));
  const made = readFileSync(path.join(dir, "fresh", "config.json"), "utf8");
  t.match(made, /"rope_theta": 10000\.0,/);
  t.match(made, /"rms_norm_eps": 1e-06,/);
});

t.test("what goes with a model, and what does not", async (t) => {
  const dir = t.testdir();
  const source = path.join(dir, "source");
  const target = path.join(dir, "target");
  cpSync(path.join(goldenFolder, "llama2", "model"), source, { recursive: true });
  mkdirSync(path.join(source, "additional_chat_templates"));
  const along = [
    ...["generation_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json"],
    ...["merges.txt", "tekken.json", "additional_chat_templates/tool_use.jinja", "LICENSE.txt", "USE_POLICY.md"],
  ];
  const not = [".hidden.json", "modeling_own.py", "pytorch_model.bin", "README.md", "model.safetensors.index.json.bak"];
  for (const name of [...along, ...not]) writeFileSync(path.join(source, name), name);
  chmodSync(path.join(source, "tokenizer.model"), 0o444);
  using model = await loadModel(source);
  await saveModel(model, target);
  for (const name of along) t.equal(readFileSync(path.join(target, name), "utf8"), name);
  for (const name of not) t.notOk(existsSync(path.join(target, name)), name);
  t.equal(statSync(path.join(target, "tokenizer.model")).mode & 0o200, 0o200, "it can be written over");

  const config = readJson(source, "config.json");
  writeFileSync(
    path.join(source, "config.json"),
    JSON.stringify({ ...config, auto_map: { AutoConfig: "modeling_own.C" } }),
  );
  using custom = await loadModel(source);
  await saveModel(custom, target);
  t.ok(existsSync(path.join(target, "modeling_own.py")), "code that config.json names");

  const elsewhere = path.join(dir, "elsewhere");
  mkdirSync(elsewhere);
  writeFileSync(path.join(elsewhere, "tokenizer.json"), "another tokenizer");
  mkdirSync(path.join(dir, "mixed"));
  await writeModelFiles(model, path.join(dir, "mixed"), { tokenizer: elsewhere });
  t.ok(existsSync(path.join(dir, "mixed", "tokenizer.json")));
  t.ok(existsSync(path.join(dir, "mixed", "generation_config.json")));
  for (const name of ["vocab.json", "tokenizer.model", "additional_chat_templates"])
    t.notOk(existsSync(path.join(dir, "mixed", name)), `two tokenizers are not mixed: ${name}`);
});

t.test("bfloat16", async (t) => {
  for (const name of ["llama3", "qwen2_window_hub", "qwen3_hub", "mistral_packed"]) {
    await withGolden(name, async ({ model: source, inputIds, labels, cuSeqlens, golden, float32 }) =>
      scopeAsync(async () => {
        using model = await loadModel(source, { dtype: "bfloat16" });
        t.ok(model.parameters().every((parameter) => parameter.dtype === "bfloat16"));
        const logits = noGrad(() => model.forward({ inputIds, cuSeqlens }));
        const wrong = error((await logits.to("float32").data()) as Float32Array, await float32("logits"));
        t.ok(wrong > 1e-5 && wrong < 0.2, `${name}: logits are ${wrong} off`);
        const loss = model.loss({ inputIds, labels, cuSeqlens });
        loss.backward();
        const value = await loss.item();
        t.ok(Math.abs(value - golden.loss) < 0.03 * golden.loss, `loss ${value}, in float64 ${golden.loss}`);
        for (const [parameter, { grad }] of model.namedParameters()) {
          t.equal(grad?.dtype, "float32", "gradients are float32");
          if (grad === null) continue;
          const off = error((await grad.data()) as Float32Array, await float32(`grad.${parameter}`));
          if (!(off < 0.5)) t.fail(`gradient of ${parameter}: ${off}`);
        }
        const target = path.join(t.testdirName, name);
        mkdirSync(t.testdirName, { recursive: true });
        await saveModel(model, target);
        using file = await SafetensorsFile.open(path.join(target, "model.safetensors"));
        t.ok([...file.entries.values()].every((entry) => entry.dtype === "BF16"));
        using again = await loadModel(target, { dtype: "bfloat16" });
        t.equal(again.config.dtype, "bfloat16");
        t.strictSame(await digestsOf(again), await digestsOf(model));
      }),
    );
  }
  t.testdir();
});

t.test("initialisation", async (t) => {
  const wide = {
    ...tiny,
    hidden_size: 64,
    vocab_size: 300,
    attention_bias: true,
    pad_token_id: 3,
    initializer_range: 0.05,
  };
  using model = initModel(wide, { seed: 5 });
  const values = await valuesOf(model);
  for (const [name, numbers] of Object.entries(values)) {
    if (name.endsWith("norm.weight"))
      t.ok(
        numbers.every((value) => value === 1),
        name,
      );
    else if (name.endsWith(".bias"))
      t.ok(
        numbers.every((value) => value === 0),
        name,
      );
    else {
      const mean = numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
      const std = Math.sqrt(numbers.reduce((sum, value) => sum + (value - mean) ** 2, 0) / numbers.length);
      t.ok(Math.abs(mean) < (0.05 * 5) / Math.sqrt(numbers.length), `${name}: mean ${mean}`);
      t.ok(Math.abs(std / 0.05 - 1) < 0.1, `${name}: standard deviation ${std}`);
    }
  }
  const embedding = values["model.embed_tokens.weight"] as number[];
  t.ok(
    embedding.slice(3 * 64, 4 * 64).every((value) => value === 0),
    "the padding token's row",
  );
  t.ok(embedding.slice(4 * 64, 5 * 64).some((value) => value !== 0));
  const digests = await digestsOf(model);
  t.not(digests["model.layers.0.mlp.gate_proj.weight"], digests["model.layers.1.mlp.gate_proj.weight"]);

  using same = initModel(wide, { seed: 5 });
  t.strictSame(await digestsOf(same), digests);
  using tied = initModel({ ...wide, tie_word_embeddings: true }, { seed: 5 });
  const tiedDigests = await digestsOf(tied);
  const { "lm_head.weight": head, ...others } = digests;
  t.strictSame(tiedDigests, others, "a weight depends on seed and name alone");
  using other = initModel(wide, { seed: 6 });
  t.not((await digestsOf(other))["lm_head.weight"], head);

  for (const family of ["llama", "mistral", "qwen2", "qwen3"]) {
    using made = initModel({ ...tiny, model_type: family });
    const target = path.join(t.testdirName, family);
    mkdirSync(t.testdirName, { recursive: true });
    await saveModel(made, target);
    t.match(readJson(target, "config.json"), {
      ...tiny,
      model_type: family,
      architectures: [made.config.architecture],
      head_dim: made.config.headDim,
      dtype: "float32",
      rope_theta: 10000,
    });
    using again = await loadModel(target);
    t.strictSame(await digestsOf(again), await digestsOf(made));
  }
  t.testdir();
  t.throws(() => initModel(tiny, { seed: -1 }), ArgumentError);
  t.throws(() => initModel({ ...tiny, hidden_act: "mish" }), /the model's fields: hidden_act is "mish"/);
  t.throws(() => initModel(tiny, { dtype: "int32" }), /a model's dtype is int32/);
});

t.test("tied or not", async (t) => {
  const dir = t.testdir();
  using model = initModel(tiny, { seed: 1 });
  const source = path.join(dir, "source");
  await saveModel(model, source);
  const fields = { ...readJson(source, "config.json"), tie_word_embeddings: true };
  writeFileSync(path.join(source, "config.json"), JSON.stringify(fields));

  const differ = {
    name: "ModelError",
    message: /lm_head\.weight is model\.embed_tokens\.weight .*holds two that differ; set/,
  };
  await t.rejects(loadModel(source), differ);
  await t.rejects(resolveModelConfig(source), differ);
  using own = await loadModel(source, { override: { tie_word_embeddings: false } });
  t.equal(own.config.tieWordEmbeddings, false);
  t.strictSame(await digestsOf(own), await digestsOf(model));
  await saveModel(own, path.join(dir, "own"));
  t.equal(readJson(dir, "own", "config.json").tie_word_embeddings, false);

  const equal = path.join(dir, "equal");
  mkdirSync(equal);
  writeFileSync(path.join(equal, "config.json"), JSON.stringify(fields));
  await writeModel(
    equal,
    [...model.namedParameters()].map(([name, parameter]) => ({
      name,
      dtype: "F32" as const,
      shape: parameter.shape,
      load: () => (name === "lm_head.weight" ? model.model.embedTokens.weight : parameter),
    })),
  );
  using tied = await loadModel(equal);
  t.equal(tied.lmHead, null, "an equal one is the embedding");
  t.equal([...tied.namedParameters()].length, [...model.namedParameters()].length - 1);
});

t.test("what is refused", async (t) => {
  const dir = t.testdir();
  using model = initModel(tiny, { seed: 1 });
  const good = path.join(dir, "good");
  await saveModel(model, good);
  let made = 0;
  /** A copy of the good folder with other fields. */
  const variant = (change: Record<string, unknown>): string => {
    const folder = path.join(dir, `variant-${made++}`);
    cpSync(good, folder, { recursive: true });
    writeFileSync(path.join(folder, "config.json"), JSON.stringify({ ...readJson(good, "config.json"), ...change }));
    return folder;
  };
  /** The good tensors, some left out, some added. */
  const rewritten = async (leaveOut: string[], added: { name: string; dtype: "F32" | "I8"; shape: number[] }[]) => {
    const folder = path.join(dir, `variant-${made++}`);
    mkdirSync(folder);
    cpSync(path.join(good, "config.json"), path.join(folder, "config.json"));
    const kept = [...model.namedParameters()].filter(([name]) => !leaveOut.includes(name));
    await writeModel(folder, [
      ...kept.map(([name, parameter]) => ({
        name,
        dtype: "F32" as const,
        shape: parameter.shape,
        load: () => parameter,
      })),
      ...added.map((tensor) => {
        const size = tensor.shape.reduce((a, b) => a * b, 1);
        return { ...tensor, load: () => (tensor.dtype === "I8" ? new Int8Array(size) : new Float32Array(size)) };
      }),
    ]);
    return folder;
  };

  const cases: [folder: string, message: RegExp][] = [
    [path.join(dir, "nowhere"), /the model folder .*nowhere does not exist/],
    [dir, /has no config\.json/],
    [
      variant({ intermediate_size: 25 }),
      /gate_proj\.weight has shape \[24, 16\], but .*config\.json asks for \[25, 16\]/,
    ],
    [variant({ vocab_size: 40 }), /embed_tokens\.weight has shape \[41, 16\], but .* asks for \[40, 16\]/],
    [
      variant({ num_hidden_layers: 3 }),
      /lacks 9 tensors: model\.layers\.2\.self_attn\.q_proj\.weight, .*\.\.\., which/,
    ],
    [variant({ num_hidden_layers: 1 }), /holds 9 tensors: .*model\.layers\.1.* has no place for/],
    [variant({ attention_bias: true }), /lacks 8 tensors: .*q_proj\.bias/],
    [variant({ architectures: ["BloomForCausalLM"] }), /unknown architecture "BloomForCausalLM"/],
    [await rewritten(["lm_head.weight"], []), /lacks tensor lm_head\.weight.*tie_word_embeddings: true/],
    [await rewritten([], [{ name: "score.weight", dtype: "F32", shape: [2, 16] }]), /holds tensor score\.weight/],
    [
      await rewritten(["lm_head.weight"], [{ name: "lm_head.weight", dtype: "I8", shape: [41, 16] }]),
      /tensor lm_head\.weight is I8; weights must be/,
    ],
  ];
  for (const [folder, message] of cases) {
    const refused = await rejection(loadModel(folder));
    t.type(refused, ModelError);
    t.match(refused.message, message);
  }
  const broken = variant({});
  writeFileSync(path.join(broken, "config.json"), "{ no");
  t.match((await rejection(loadModel(broken))).message, /config\.json:1 is not valid JSON: unexpected "n"/);
  const old = await rewritten([], [{ name: "model.layers.0.self_attn.rotary_emb.inv_freq", dtype: "F32", shape: [2] }]);
  using ignored = await loadModel(old);
  t.strictSame(await digestsOf(ignored), await digestsOf(model), "inverse frequencies in old files are passed over");
  t.match(await rejection(loadModel(good, { dtype: "float64" })), { code: "INVALID_ARGUMENT" });
  t.match(await rejection(loadModel(good, { signal: AbortSignal.abort() })), { name: "AbortError" });
});
