// The configuration: defaults, spellings, overrides, and one clear line for every mistake.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import {
  type Config,
  type ConfigInput,
  canonicalJson,
  configDifference,
  isOverride,
  loadConfig,
  parseConfig,
  parseConfigObject,
} from "../../lib/config/index.js";
import { configSchema, leafPaths } from "../../lib/config/schema.js";
import { toSnake } from "../../lib/config/values.js";
import { ConfigError } from "../../lib/errors.js";

const minimal = `model:
  path: ./tiny
data:
  train: ["data/*.jsonl"]
  sequence_length: 500_000
train:
  steps: 100
output:
  dir: runs/first
`;

/** The message of the ConfigError that `make` throws. */
function refusal(make: () => unknown): string {
  try {
    make();
  } catch (error) {
    if (error instanceof ConfigError) return error.message;
    throw error;
  }
  return "accepted";
}

const parse = (text: string, ...overrides: string[]) => parseConfig(text, "run.yaml", overrides);

t.test("defaults are the design's", async (t) => {
  t.same(parse(minimal), {
    model: { path: "./tiny", init: null, dtype: "auto", override: {}, baseFormat: "native" },
    adapter: {
      path: null,
      r: null,
      alpha: null,
      targetModules: null,
      modulesToSave: null,
      dropout: null,
      rslora: null,
      init: null,
      dtype: null,
    },
    data: {
      train: ["data/*.jsonl"],
      eval: [],
      tokenizer: null,
      sequenceLength: 500_000,
      packing: true,
      chatTemplate: null,
      trainOn: "assistant",
      overlong: "raise",
      shuffle: true,
    },
    train: {
      steps: 100,
      epochs: null,
      batchSize: 1,
      microBatchSize: 1,
      learningRate: 1e-5,
      schedule: "cosine",
      warmupSteps: 0,
      minLearningRate: 0,
      decaySteps: null,
      weightDecay: 0,
      betas: [0.9, 0.95],
      eps: 1e-8,
      clipGradNorm: 1,
      seed: 0,
      evalEvery: 0,
      sampleEvery: 0,
      samplePrompts: [],
      sampleTokens: 64,
      deterministic: "auto",
    },
    device: "auto",
    threads: "auto",
    attention: "auto",
    parallel: { sequence: "auto", ring: "auto", data: 1, zero: "auto" },
    memory: {
      deviceLimit: "auto",
      hostLimit: "auto",
      tileMlp: "auto",
      tileLoss: "auto",
      headChunks: "auto",
      checkpoint: {
        every: "auto",
        keepAttention: "auto",
        offload: "auto",
        deviceBytes: "auto",
        format: "native",
        directory: null,
      },
      offload: { optimizer: "none", params: "none", gradients: "none" },
    },
    output: { dir: "runs/first", saveEvery: 0, keep: 2, resume: "auto", traceSteps: 0, trackers: [], command: null },
  } satisfies Config);
});

t.test("values as people write them", async (t) => {
  const config = parse(`model:
  init: {vocab_size: 32_000, rope_theta: 500K, model_type: llama, name: "500K", layer_types: [1_0]}
  dtype: bfloat16
data: {train: one.jsonl, eval: [a, b], sequence_length: 8K, tokenizer: bytes, packing: false}
train:
  epochs: 2
  learning_rate: 1e-3
  batch_size: 4
  micro_batch_size: 2
  betas: [0, "0.5"]
  clip_grad_norm: null
  deterministic: true
memory: {device_limit: 80GiB, host_limit: 1_000GB, tile_mlp: off, tile_loss: 4K, checkpoint: {every: 0, device_bytes: 0}}
threads: 2
output: {dir: o, trace_steps: 3}
`);
  t.same(config.model.init, {
    vocab_size: 32_000,
    rope_theta: 500_000,
    model_type: "llama",
    name: "500K",
    layer_types: [10],
  });
  t.equal(config.model.dtype, "bfloat16");
  t.same(config.data.train, ["one.jsonl"], "one name is a list of one");
  t.equal(config.data.sequenceLength, 8000);
  t.equal(config.train.learningRate, 1e-3);
  t.same(config.train.betas, [0, 0.5]);
  t.equal(config.train.clipGradNorm, 0);
  t.equal(config.train.deterministic, true);
  t.equal(config.memory.deviceLimit, 80 * 2 ** 30);
  t.equal(config.memory.hostLimit, 1e12);
  t.equal(config.memory.tileMlp, "off");
  t.equal(config.memory.tileLoss, 4000);
  t.equal(config.threads, 2);
  t.equal(config.output.traceSteps, 3);
  const override = parse(minimal, "model.override={rope_theta: 500_000, rope_scaling: {rope_type: yarn, factor: 4.0}}");
  t.same(override.model.override, { rope_theta: 500_000, rope_scaling: { rope_type: "yarn", factor: 4 } });
  t.same(parse(`${minimal}memory:\n  # head_chunks: 2\n`), parse(minimal), "an empty section is none");
  t.same(parse(`\ufeff${minimal.replaceAll("\n", "\r\n")}`.slice(1)), parse(minimal), "CRLF");
});

t.test("overrides", async (t) => {
  const config = parse(
    minimal,
    "train.steps=5",
    "data.train=[a, b]",
    "train.steps=1K",
    "model.override.rope_theta=10_000",
  );
  t.equal(config.train.steps, 1000, "the last one wins");
  t.same(config.data.train, ["a", "b"]);
  t.same(config.model.override, { rope_theta: 10_000 });
  t.same(parse(minimal, "output.dir=a=b").output.dir, "a=b");
  const init = parse(minimal, "model.path=null", "model.init.hidden_size=64", "model.init={vocab_size: 1K}");
  t.same(init.model.init, { vocab_size: 1000 }, "a mapping replaces what was there");
  t.equal(parse(minimal, "train.steps=null", "train.epochs=2").train.epochs, 2, "null takes a key back");
  t.equal(
    refusal(() => parse(minimal, "train.steps=abc")),
    'command line: train.steps: got "abc" (string); expected null or a whole number of at least 1 ' +
      "(such as 500000, 500_000, 500K or 1M)",
  );
  t.equal(
    refusal(() => parse(minimal, "train.betas=[1")),
    "command line: train.betas: not valid YAML: Flow sequence must end with a ]",
  );
  t.match(
    refusal(() => parse(minimal, "steps=3")),
    /^command line: steps: unknown key; did you mean train\.steps\?$/,
  );
  t.match(
    refusal(() => parse(minimal, "train.steps")),
    /expected an override like/,
  );
  t.equal(
    refusal(() => parse(minimal, "train.steps.more=3")),
    "command line: train.steps.more: train.steps is 100 (number), which has no keys of its own",
  );
  t.match(
    refusal(() => parse(minimal, "__proto__.steps=3")),
    /unknown key/,
  );
  t.equal(({} as Record<string, unknown>).steps, undefined, "no prototype is touched");
  t.ok(isOverride("train.steps=3"));
  t.ok(isOverride("device=cpu"));
  for (const word of ["run.yaml", "./a=b.yaml", "--json", "=3", "a..b=3", "/x/train.steps=3"])
    t.notOk(isOverride(word), word);
});

t.test("the object of the TypeScript API", async (t) => {
  const object: ConfigInput = {
    model: { path: "./tiny" },
    data: { train: ["data/*.jsonl"], sequenceLength: 500_000 },
    train: { steps: 100 },
    output: { dir: "runs/first" },
  };
  const config = parseConfigObject(object);
  t.same(config, parse(minimal));
  t.same(parseConfigObject(config), config, "a complete configuration passes through");
  t.equal(
    refusal(() => parseConfigObject({ ...object, train: { steps: 3, batch_size: 2 } } as never)),
    "config: train.batch_size: unknown key; did you mean train.batchSize?",
  );
  t.match(
    refusal(() => parseConfigObject({ ...object, train: { steps: 3, learningRate: Number.NaN } })),
    /^config: train\.learningRate: got NaN \(number\); expected a number, 0 or more$/,
  );
  for (const wrong of [null, undefined, 3, "x", [], () => 1])
    t.match(
      refusal(() => parseConfigObject(wrong as never)),
      /^config: got .* expected an object$/,
    );
  t.match(
    refusal(() => parseConfigObject({ ...object, model: { init: new Map() } } as never)),
    /config: model\.init: got/,
  );
  const init = { hidden_size: 4, nested: [1] };
  const copied = parseConfigObject({ ...object, model: { init } });
  init.nested.push(2);
  t.same(copied.model.init, { hidden_size: 4, nested: [1] }, "later changes of the caller's object do not reach it");
  t.match(
    refusal(() => parseConfigObject({ ...object, model: { init: { f: () => 1 } } } as never)),
    /config: model\.init: got/,
    "values that no file could hold are refused",
  );
  const loop: Record<string, unknown> = {};
  loop.loop = loop;
  t.match(
    refusal(() => parseConfigObject({ ...object, model: { init: loop } })),
    /config: model\.init: got \[object Object\] \(mapping\); expected/,
  );
});

t.test("every mistake is one line that says what, where and what to do", async (t) => {
  const cases: [name: string, text: string, message: string][] = [
    [
      "unknown key",
      minimal.replace("steps: 100", "steps: 100\n  batchsize: 4"),
      "run.yaml:8: train.batchsize: unknown key; did you mean train.batch_size?",
    ],
    [
      "camelCase in YAML",
      minimal.replace("steps: 100", "steps: 100\n  batchSize: 4"),
      "run.yaml:8: train.batchSize: unknown key; did you mean train.batch_size?",
    ],
    ["mistyped section", `${minimal}memroy: {}\n`, "run.yaml:10: memroy: unknown key; did you mean memory?"],
    [
      "right name in the wrong place",
      `${minimal}tile_mlp: 4\n`,
      "run.yaml:10: tile_mlp: unknown key; did you mean memory.tile_mlp?",
    ],
    [
      "key like none",
      `${minimal}  zzzzzzzzzz: 4\n`,
      "run.yaml:10: output.zzzzzzzzzz: unknown key; the nearest known key is output.dir; known here: " +
        "dir, save_every, keep, resume, trace_steps, trackers, command",
    ],
    [
      "unknown override key",
      minimal.replace("path: ./tiny", "path: ./tiny\n  override: {rope_thea: 3}"),
      "run.yaml:3: model.override.rope_thea: unknown key; did you mean model.override.rope_theta?",
    ],
    [
      "wrong type",
      minimal.replace("100", "[3]"),
      "run.yaml:7: train.steps: got [3] (list); expected null or a whole number of at least 1 " +
        "(such as 500000, 500_000, 500K or 1M)",
    ],
    [
      "wrong word",
      minimal.replace("100", "100\n  schedule: cosinus"),
      'run.yaml:8: train.schedule: got "cosinus" (string); expected one of constant, linear, cosine, wsd',
    ],
    [
      "value for a section",
      `${minimal}memory: 80GiB\n`,
      'run.yaml:10: memory: got "80GiB" (string); expected a mapping of keys to values',
    ],
    [
      "size without unit letters",
      `${minimal}memory:\n  device_limit: 80G\n`,
      'run.yaml:11: memory.device_limit: got "80G" (string); expected auto or a size of more than 0 bytes ' +
        "(such as 80GB, 512MiB or a number of bytes)",
    ],
    [
      "missing value",
      minimal.replace("  sequence_length: 500_000\n", ""),
      "run.yaml:3: data.sequence_length: missing; expected a whole number of at least 2 " +
        "(such as 500000, 500_000, 500K or 1M)",
    ],
    [
      "duplicate key",
      minimal.replace("steps: 100", "steps: 100\n  steps: 200"),
      "run.yaml:8: steps: this key is given twice in the same mapping; keep one",
    ],
    ["broken YAML", "model: [1\n", "run.yaml:2: not valid YAML: "],
    ["second document", `${minimal}---\na: 1\n`, "run.yaml:10: a second YAML document starts here; expected one"],
    ["tag", minimal.replace("100", "!!js/function x"), "run.yaml:7: not valid YAML: Unresolved tag"],
    ["list", "- 1\n", "run.yaml:1: got [1] (list); expected a mapping with model, data, train and output"],
    [
      "both model.path and init",
      minimal.replace("path: ./tiny", "path: ./tiny\n  init: {a: 1}"),
      "run.yaml:3: model.init: given together with model.path; give only one of them",
    ],
    [
      "both steps and epochs",
      minimal.replace("100", "100\n  epochs: 1"),
      "run.yaml:8: train.epochs: given together with train.steps; give only one of them",
    ],
    [
      "neither steps nor epochs",
      minimal.replace("steps: 100", "seed: 1"),
      "run.yaml:6: train.steps: missing; give a number of steps here, or a number of train.epochs",
    ],
    [
      "micro batch",
      minimal.replace("100", "100\n  batch_size: 4\n  micro_batch_size: 3"),
      "run.yaml:9: train.micro_batch_size: got 3; expected a divisor of train.batch_size, which is 4",
    ],
    [
      "minimum above the rate",
      minimal.replace("100", "100\n  min_learning_rate: 1"),
      "run.yaml:8: train.min_learning_rate: got 1; expected at most train.learning_rate, which is 0.00001",
    ],
    [
      "warm-up longer than the run",
      minimal.replace("100", "100\n  warmup_steps: 101"),
      "run.yaml:8: train.warmup_steps: got 101; expected at most train.steps, which is 100",
    ],
    [
      "decay without wsd",
      minimal.replace("100", "100\n  decay_steps: 3"),
      "run.yaml:8: train.decay_steps: only train.schedule: wsd uses it, and the schedule is cosine; leave it out",
    ],
    [
      "decay longer than what is left",
      minimal.replace("100", "100\n  schedule: wsd\n  warmup_steps: 50\n  decay_steps: 51"),
      "run.yaml:10: train.decay_steps: got 51; with 50 warm-up steps expected at most 50, as train.steps is 100",
    ],
    [
      "betas",
      minimal.replace("100", "100\n  betas: [0.9, 1]"),
      "run.yaml:8: train.betas: got [0.9,1] (list); expected two numbers, each at least 0 and below 1",
    ],
    [
      "evaluation of nothing",
      minimal.replace("100", "100\n  eval_every: 2"),
      "run.yaml:8: train.eval_every: got 2, but there is nothing to evaluate on; give data.eval, or set this to 0",
    ],
    [
      "no checkpoint kept",
      `${minimal}  keep: 0\n`,
      "run.yaml:10: output.keep: got 0 (number); expected a whole number of at least 1 " +
        "(such as 500000, 500_000, 500K or 1M)",
    ],
    [
      "device",
      `${minimal}device: gpu\n`,
      'run.yaml:10: device: got "gpu" (string); expected auto, cpu, cuda, cuda:N or meta',
    ],
    [
      "empty path",
      minimal.replace("runs/first", '""'),
      'run.yaml:9: output.dir: got "" (string); expected the path of the run\'s folder',
    ],
    [
      "null where none is allowed",
      minimal.replace("500_000", ""),
      "run.yaml:5: data.sequence_length: got null (null); expected a whole number of at least 2 " +
        "(such as 500000, 500_000, 500K or 1M)",
    ],
  ];
  for (const [name, text, message] of cases) {
    const got = refusal(() => parse(text));
    if (name === "broken YAML" || name === "tag")
      t.ok(got.startsWith(message) && !got.includes("\n"), `${name}: ${got}`);
    else t.equal(got, message, name);
  }
});

t.test("several mistakes are listed together, in the file's order", async (t) => {
  const text = `model: {}
data: {train: [], sequence_length: 1}
train: {steps: 0, lerning_rate: 1}
`;
  let problems: unknown;
  try {
    parse(text, "threads=none");
  } catch (error) {
    t.equal((error as ConfigError).code, "CONFIG");
    problems = (error as ConfigError).details.problems;
  }
  t.match(problems, [
    { key: "output.dir", message: /^missing/ },
    { key: "model.path", line: 1 },
    { key: "data.train", line: 2 },
    { key: "data.sequence_length", line: 2 },
    { key: "train.lerning_rate", line: 3, message: "unknown key; did you mean train.learning_rate?" },
    { key: "train.steps", line: 3 },
    { key: "threads", override: true },
  ]);
  t.equal((problems as unknown[]).length, 7);
});

t.test("what the device cannot do is refused, never ignored", async (t) => {
  t.equal(
    refusal(() => parse(`${minimal}attention: cudnn\n`, "device=cpu")),
    "run.yaml:10: attention: got cudnn, which runs on NVIDIA's GPUs, but device is cpu; set device: cuda, or leave this out",
  );
  t.match(
    refusal(() => parse(minimal, "attention=cudnn", "train.deterministic=true")),
    /^command line: attention: got cudnn, whose deterministic backward .* but train\.deterministic is true/,
  );
  const cuda = parse(minimal, "device=cuda:1", "attention=cudnn");
  t.match(cuda, { device: "cuda:1", attention: "cudnn" });
  const neutral = parse(
    minimal,
    "device=cpu",
    "attention=native",
    "parallel={sequence: 1, ring: 1, data: 1, zero: 0}",
    "memory.head_chunks=1",
    "memory.checkpoint={every: 0, keep_attention: false, offload: none, device_bytes: 0, format: native, directory: null}",
    "memory.offload={optimizer: none, params: none, gradients: none}",
  );
  t.equal(neutral.parallel.zero, 0);
});

t.test("files", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "longseq-config-"));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const file = join(folder, "run.yaml");
  writeFileSync(file, minimal);
  t.equal(loadConfig(file, ["train.steps=7"]).train.steps, 7);
  t.equal(
    refusal(() => loadConfig(join(folder, "none.yaml"))),
    `${join(folder, "none.yaml")}: there is no such file`,
  );
  t.match(
    refusal(() => loadConfig(folder)),
    /this is a folder; give the path of a YAML file$/,
  );
  t.match(
    refusal(() => loadConfig(join(file, "x"))),
    /cannot be read \(ENOTDIR\)$/,
  );
  writeFileSync(file, Buffer.from([0x61, 0x3a, 0xff, 0xfe]));
  t.equal(
    refusal(() => loadConfig(file)),
    `${file}: not valid UTF-8 text`,
  );
  writeFileSync(file, `\ufeff${minimal}`);
  t.equal(loadConfig(file).train.steps, 100, "a byte order mark is no content");
  writeFileSync(
    file,
    `a: &a [x, x]\n${"bcdefgh".replaceAll(/./g, (k) => `${k}: &${k} [*${String.fromCharCode(k.charCodeAt(0) - 1)}, *${String.fromCharCode(k.charCodeAt(0) - 1)}, *${String.fromCharCode(k.charCodeAt(0) - 1)}]\n`)}`,
  );
  t.match(
    refusal(() => loadConfig(file)),
    /not valid YAML: Excessive alias count/,
  );
});

t.test("canonical text and differences", async (t) => {
  const config = parse(minimal, "model.path=null", "model.init={b: 1, a: {d: 1, c: 2}}");
  const text = canonicalJson(config);
  t.same(parseConfig(text, "config.json"), config, "it is itself a configuration");
  t.equal(text, canonicalJson(parse(minimal, "model.init={a: {c: 2, d: 1}, b: 1}", "model.path=null")));
  t.same(
    leafPaths(configSchema)
      .map((path) => path.map(toSnake).join("."))
      .filter((key) => !text.includes(`"${key.split(".").at(-1)}"`)),
    [],
    "no key is left out",
  );
  const same = parse(minimal, "train.steps=7", "threads=2", "output.dir=o", "data.eval=[e]", "memory.tile_mlp=8");
  t.same(configDifference(parse(minimal), same), [], "what may change between a save and a resume");
  t.same(
    configDifference(parse(minimal), parse(minimal, "train.learning_rate=1e-4", "model.path=x", "data.shuffle=false")),
    [
      { key: "model.path", a: "./tiny", b: "x" },
      { key: "data.shuffle", a: true, b: false },
      { key: "train.learning_rate", a: 1e-5, b: 1e-4 },
    ],
  );
});
