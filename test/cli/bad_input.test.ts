// Bad input end to end through the command line: one clear message, the right exit code, nothing lost.

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { main } from "../../lib/cli/main.js";
import * as longseq from "../../lib/index.js";

const folder = fs.mkdtempSync(join(tmpdir(), "longseq-bad-input-"));
process.env.LONGSEQ_CACHE_DIR = join(folder, "cache");
t.teardown(() => fs.rmSync(folder, { recursive: true }));

type Tree = { [key: string]: unknown };

const init = {
  model_type: "llama",
  vocab_size: 64,
  hidden_size: 16,
  intermediate_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
};
const good = { input_ids: Array.from({ length: 20 }, (_, i) => (i * 7) % 64) };
const rowsFile = join(folder, "good.jsonl");
fs.writeFileSync(rowsFile, Array.from({ length: 6 }, () => `${JSON.stringify(good)}\n`).join(""));

let count = 0;
/** A new run folder. */
const newDir = () => join(folder, `run-${++count}`);

/** Puts a tree of keys into another one, section by section. */
function merge(into: Tree, more: Tree): Tree {
  const result = { ...into };
  for (const [key, value] of Object.entries(more)) {
    const inner = result[key];
    const both = [inner, value].every((tree) => typeof tree === "object" && tree !== null && !Array.isArray(tree));
    result[key] = both && key !== "init" ? merge(inner as Tree, value as Tree) : value;
  }
  return result;
}

/** A configuration file (JSON is YAML) of a tiny run with some keys replaced. */
function configFile(more: Tree = {}): { file: string; dir: string } {
  const dir = newDir();
  const base: Tree = {
    model: { path: null, init: "path" in ((more.model as Tree) ?? {}) ? null : init },
    data: { train: rowsFile, sequence_length: 32 },
    train: { steps: 6, learning_rate: 0.01 },
    output: { dir },
  };
  const file = `${dir}.yaml`;
  fs.writeFileSync(file, JSON.stringify(merge(base, more), null, 2));
  return { file, dir };
}

interface Ended {
  code: number | null;
  out: string;
  err: string;
}

/** Runs the command line in this process, with everything real but the signal handlers. */
async function cli(...argv: string[]): Promise<Ended> {
  const seen = { out: "", err: "" };
  const code = await main([...argv, "--json"], {
    stdout: { write: (text) => (seen.out += text) },
    stderr: { write: (text) => (seen.err += text) },
    env: {},
    parts: { installSignals: async () => ({ signal: new AbortController().signal, received: () => null }) },
  });
  return { code, ...seen };
}

/** What every refusal has in common. */
function refused(
  t: typeof import("tap").default | import("tap").Test,
  { code, out, err }: Ended,
  expected: 1 | 2,
  message: RegExp,
  name: string,
): void {
  t.equal(code, expected, `${name}: exit code; ${err}`);
  t.match(err, message, name);
  t.match(err, /^error: /m, `${name}: on stderr`);
  t.notMatch(err, /\n {4}at |mistake in longseq|unexpected:/, `${name}: a message, no stack`);
  const lines = out.trim().split("\n");
  const items = lines.map((line) => JSON.parse(line));
  t.match(items.at(-1), { event: "error", code: String, message }, `${name}: the last line on stdout`);
}

const rowsOf = (lines: (Tree | string)[] | Buffer): string => {
  const file = join(folder, `rows-${++count}.jsonl`);
  const text = Buffer.isBuffer(lines)
    ? lines
    : lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join("");
  fs.writeFileSync(file, text);
  return file;
};

t.test("configurations", async (t) => {
  const cases: [name: string, more: Tree, argv: string[], message: RegExp][] = [
    ["unknown key", { train: { step: 3 } }, [], /yaml:\d+: train\.step: unknown key; did you mean train\.steps\?/],
    ["unknown section", { trian: {} }, [], /trian: unknown key; did you mean train\?/],
    ["wrong type", { train: { learning_rate: "fast" } }, [], /train\.learning_rate: got "fast" \(string\); expected/],
    ["override", {}, ["train.steps=many"], /command line: train\.steps: got "many"/],
    ["unknown override", {}, ["train.lr=1"], /command line: train\.lr: unknown key/],
    [
      "attention",
      { device: "cpu", attention: "cudnn" },
      [],
      /attention: got cudnn, .* but device is cpu; set device: cuda/,
    ],
    ["threads", { threads: 1e9 }, [], /threads: got 1000000000 \(number\); expected auto or a whole number from 1/],
    ["batch", { train: { batch_size: 1e12 } }, [], /train\.batch_size: got 1000000000000 .*from 1 to 1000000/],
    ["no such rows", { data: { train: join(folder, "none.jsonl") } }, [], /data\.train: there is no file/],
    ["no match", { data: { train: join(folder, "*.none") } }, [], /data\.train: no file matches/],
    ["no tokenizer", { data: { tokenizer: "/none.json" } }, [], /data\.tokenizer: there is no file "\/none\.json"/],
    ["no model", { model: { path: "/none" } }, [], /model\.path: there is no folder "\/none"/],
    ["output is a file", { output: { dir: rowsFile } }, [], /output\.dir: .*good\.jsonl is a file/],
  ];
  for (const [name, more, argv, message] of cases) {
    const { file } = configFile(more);
    refused(t, await cli("train", ...argv, file), 2, message, name);
  }
  // A machine without a GPU and one with a few both lack this one, and say why.
  const { file: far } = configFile({ device: "cuda:1023" });
  const lacking = /liblongseq_cuda\.so (is missing|cannot be used: \S)|cuda:1023 does not exist/;
  refused(t, await cli("train", far), 1, lacking, "a GPU that is not there");
  refused(t, await cli("train", join(folder, "none.yaml")), 2, /none\.yaml: there is no such file/, "no file");
  const file = join(folder, "broken.yaml");
  fs.writeFileSync(file, "model: {path: /tmp\ntrain: [");
  refused(t, await cli("train", file), 2, /broken\.yaml:\d+: not valid YAML/, "YAML");
  fs.writeFileSync(file, Buffer.from([0x61, 0x3a, 0x20, 0xff, 0xfe]));
  refused(t, await cli("train", file), 2, /broken\.yaml: not valid UTF-8/, "bytes");
});

t.test("rows", async (t) => {
  const bytes = { data: { tokenizer: "bytes" } };
  const wide = { model: { init: { ...init, vocab_size: 259 } } };
  const cases: [name: string, rows: (Tree | string)[] | Buffer, message: RegExp, more?: Tree][] = [
    ["JSON", [good, good, '{"input_ids": [1, 2'], /jsonl:3: invalid JSON at column 20/],
    ["a list", [good, "[1, 2]"], /jsonl:2: a row must be a JSON object.*not a list/],
    ["null", ["null"], /jsonl:1: a row must be a JSON object.*not null/],
    ["UTF-8", Buffer.from('{"input_ids":[1,2]}\n{"text":"\xff"}\n', "latin1"), /jsonl:2: the line is not valid UTF-8/],
    ["UTF-16", Buffer.from('\ufeff{"text":"a"}\n', "utf16le"), /is UTF-16 .*convert it to UTF-8/],
    ["LFS", Buffer.from("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), /is a Git LFS pointer/],
    ["no kind", [{ txt: "a" }], /jsonl:1: the row is none of the four kinds.*"txt"/],
    ["two kinds", [{ text: "a", input_ids: [1] }], /jsonl:1: the row has \{text\} and \{input_ids\}/],
    ["no completion", [{ prompt: "a" }], /jsonl:1: the row has "prompt" but no "completion"/],
    ["no text", [{ text: "" }], /jsonl:1: "text" is empty/, merge(bytes, wide)],
    ["no messages", [{ messages: [] }], /jsonl:1: "messages" is empty/, merge(bytes, wide)],
    ["no role", [{ messages: [{ content: "a" }] }], /"messages"\[0\]\.role must be a string/, merge(bytes, wide)],
    ["no template", [{ messages: [{ role: "user", content: "a" }] }], /needs a chat template/, merge(bytes, wide)],
    ["small vocabulary", [{ text: "a" }], /token id 256, but the model's vocabulary has 64/, bytes],
    ["text needs a tokenizer", [{ text: "a" }], /jsonl:1: a text row needs a tokenizer/],
    ["negative id", [good, { input_ids: [1, -2] }], /jsonl:2: "input_ids"\[1\] is -2; a token id is 0 to 63/],
    ["id V", [{ input_ids: [1, 64] }], /jsonl:1: "input_ids"\[1\] is 64; a token id is 0 to 63/],
    ["id 1.5", [{ input_ids: [1.5, 2] }], /"input_ids"\[0\] is 1\.5, not an integer/],
    ["no ids", [{ input_ids: [] }], /jsonl:1: "input_ids" is empty/],
    ["labels", [{ input_ids: [1, 2, 3], labels: [1, 2] }], /"labels" has 2 values but "input_ids" has 3/],
    ["label V", [{ input_ids: [1, 2], labels: [1, 64] }], /"labels"\[1\] is 64; a label is -100 or 0 to 63/],
    [
      "overlong",
      [good, { input_ids: new Array(33).fill(1) }],
      /jsonl:2: the row has 33 tokens, more than .*_length 32/,
    ],
    ["empty", Buffer.alloc(0), /data\.train: no rows in/],
    [
      "all dropped",
      [{ input_ids: new Array(33).fill(1) }],
      /data\.train: no usable rows: all 1 have more/,
      { data: { overlong: "drop" } },
    ],
  ];
  for (const [name, rows, message, more = {}] of cases) {
    const { file } = configFile(merge({ data: { train: rowsOf(rows) } }, more));
    refused(t, await cli("train", file), 1, message, name);
  }
  // What editors and other systems leave behind is no mistake.
  const line = JSON.stringify(good);
  const masked = { ...good, labels: good.input_ids.map(() => -100) };
  for (const [name, rows] of [
    ["BOM and CRLF", Buffer.from(`\ufeff${line}\r\n\r\n${line}`)],
    ["a row without a valid label", [good, masked]],
  ] as const) {
    const { code, err } = await cli("train", configFile({ data: { train: rowsOf(rows as Buffer) } }).file);
    t.equal(code, 0, `${name}; ${err}`);
    if (name !== "BOM and CRLF") t.match(err, /warning: .*jsonl:2: the row has no valid label/);
  }
});

/** The model folder of a short run, made once. */
const modelFolder = (async () => {
  const { file, dir } = configFile({ train: { steps: 1 } });
  const { code, err } = await cli("train", file);
  if (code !== 0) throw new Error(err);
  return join(dir, "model");
})();

t.test("model folders", async (t) => {
  const source = await modelFolder;
  const bytes = fs.readFileSync(join(source, "model.safetensors"));
  const config = JSON.parse(fs.readFileSync(join(source, "config.json"), "utf8"));
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString());
  const body = bytes.subarray(8 + length);
  const name = "model.norm.weight";
  const [begin] = header[name].data_offsets;
  const withHeader = (change: (copy: typeof header) => void, data: Buffer = body): Buffer => {
    const copy = structuredClone(header);
    change(copy);
    const text = Buffer.from(JSON.stringify(copy));
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt(text.length));
    return Buffer.concat([size, text, data]);
  };
  const spoiled = Buffer.from(body);
  spoiled.writeFloatLE(Number.NaN, begin);
  const lfs = Buffer.from("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
  const embedding = "model.embed_tokens.weight";
  const cases: [name: string, files: { config?: Tree | string; tensors?: Buffer | null }, message: RegExp][] = [
    ["architecture", { config: { ...config, model_type: "gpt2", architectures: ["GPT2"] } }, /unknown.*longseq knows/],
    ["no JSON", { config: "{" }, /config\.json.*not valid JSON/],
    ["other shape", { config: { ...config, intermediate_size: 48 } }, /tensor .*gate_proj.*has shape \[32, 16\].*48/],
    ["more layers", { config: { ...config, num_hidden_layers: 3 } }, /lacks 9 tensors: model\.layers\.2\./],
    ["a number", { config: { ...config, hidden_size: "x" } }, /config\.json: hidden_size is "x"; expected a whole/],
    ["dropout", { config: { ...config, attention_dropout: 0.1 } }, /attention_dropout is 0\.1; dropout is not impl/],
    ["no tensors", { tensors: null }, /has neither model\.safetensors nor/],
    ["cut off", { tensors: bytes.subarray(0, -10) }, /model\.safetensors: tensor ".*cut off/],
    ["cut in its header", { tensors: bytes.subarray(0, 100) }, /model\.safetensors: its header .*cut off/],
    ["trailing bytes", { tensors: Buffer.concat([bytes, Buffer.alloc(8)]) }, /last 8 bytes of the file belong to no/],
    ["pointer", { tensors: lfs }, /model\.safetensors: this is a Git LFS pointer/],
    [
      "overlap",
      { tensors: withHeader((copy) => Object.assign(copy[name], { data_offsets: copy[embedding].data_offsets })) },
      /model\.safetensors: tensor "/,
    ],
    ["unknown dtype", { tensors: withHeader((copy) => Object.assign(copy[name], { dtype: "X9" })) }, /dtype "X9"/],
    ["NaN", { tensors: withHeader(() => {}, spoiled) }, /not finite[\s\S]*model\.norm\.weight/],
  ];
  for (const [name, files, message] of cases) {
    const path = join(folder, `model-${++count}`);
    fs.mkdirSync(path);
    const text = files.config ?? config;
    fs.writeFileSync(join(path, "config.json"), typeof text === "string" ? text : JSON.stringify(text));
    if (files.tensors !== null) fs.writeFileSync(join(path, "model.safetensors"), files.tensors ?? bytes);
    const { file, dir } = configFile({ model: { path } });
    refused(t, await cli("train", file), 1, message, name);
    t.notOk(fs.existsSync(join(dir, "model")), `${name}: no model is left`);
  }
});

/** The command line as a process of its own, under a limit on the size of files in blocks of 1,024 bytes. */
async function spawned(argv: string[], blocks?: number, kill?: { after: RegExp; signal: NodeJS.Signals }) {
  const child = fileURLToPath(new URL("../train/cli_child.ts", import.meta.url));
  const limit = blocks === undefined ? "" : `ulimit -f ${blocks}; `;
  // Without tap's hooks, which die of the SIGXFSZ that Node itself ignores.
  const script = `unset NODE_OPTIONS; ${limit}exec "$@"`;
  const command = [process.execPath, "--import=tsx", child, ...argv];
  const running = spawn("bash", ["-c", script, "bash", ...command], { stdio: ["ignore", "pipe", "pipe"] });
  const ended = { code: null as number | null, out: "", err: "" };
  running.stdout.on("data", (part) => {
    ended.out += part;
    // Once: a second signal ends the process at once.
    if (!running.killed && kill?.after.test(ended.out)) running.kill(kill.signal);
  });
  running.stderr.on("data", (part) => (ended.err += part));
  [ended.code] = await once(running, "close");
  return ended;
}

const hash = (file: string) => createHash("sha256").update(fs.readFileSync(file)).digest("hex");
/** Hashes of what a finished run leaves: model, parameters and optimizer. */
const left = (dir: string, step: number) =>
  [
    "model/model.safetensors",
    `checkpoints/step-${step}/model.safetensors`,
    `checkpoints/step-${step}/optimizer.safetensors`,
  ].map((name) => hash(join(dir, name)));

t.test("runs that are hindered lose nothing", async (t) => {
  const settings = { train: { steps: 40, batch_size: 2 }, output: { save_every: 2 } };
  const whole = configFile(settings);
  t.equal((await cli("train", whole.file)).code, 0);
  const expected = left(whole.dir, 40);

  await t.test("a full disk", async (t) => {
    const { file, dir } = configFile(settings);
    t.equal((await cli("train", file, "train.steps=4", "train.schedule=constant")).code, 0);
    const before = left(dir, 4);
    const more = ["train", file, "train.steps=8", "train.schedule=constant"];
    refused(t, await spawned([...more, "--json"], 20), 1, /cannot save .*step-6.*EFBIG/, "full");
    t.same(left(dir, 4), before, "the checkpoint and the model before it stay");
    t.same(fs.readdirSync(join(dir, "checkpoints")).sort(), ["step-2", "step-4"], "and nothing half-written");
    t.equal((await cli(...more)).code, 0, "with space again it goes on");
  });

  await t.test("signals and a damaged checkpoint", async (t) => {
    const { file, dir } = configFile(settings);
    const stopped = await spawned(["train", file, "--json"], undefined, { after: /"step":3,/, signal: "SIGTERM" });
    t.equal(stopped.code, 143, stopped.err);
    t.match(stopped.err, /stopped by SIGTERM after step \d+; the state is saved in/);
    for (const line of stopped.out.trim().split("\n")) JSON.parse(line);
    const killed = await spawned(["train", file, "--json"], undefined, { after: /"step":20,/, signal: "SIGKILL" });
    t.equal(killed.code, null);
    const checkpoints = join(dir, "checkpoints");
    const newest = Math.max(...fs.readdirSync(checkpoints).map((name) => Number(/^step-(\d+)$/.exec(name)?.[1] ?? 0)));
    fs.truncateSync(join(checkpoints, `step-${newest}/optimizer.safetensors`), 100);
    fs.mkdirSync(join(checkpoints, "step-1000"));
    const resumed = await cli("train", file);
    t.equal(resumed.code, 0, resumed.err);
    t.match(resumed.err, /step-1000 cannot be used and is passed over: .*its save did not finish/);
    t.match(resumed.err, new RegExp(`step-${newest} cannot be used and is passed over: .*100 bytes`));
    t.same(left(dir, 40), expected, "bit for bit what an undisturbed run gives");
  });

  const again = await cli("train", whole.file);
  t.equal(again.code, 0);
  t.match(JSON.parse(again.out), { event: "done", step: 40, message: /is finished: 40 of 40 steps/ });
  refused(
    t,
    await cli("train", whole.file, "output.resume=never"),
    2,
    /not empty and output\.resume is never/,
    "never",
  );
  const other = await cli("train", whole.file, "train.learning_rate=1");
  refused(
    t,
    other,
    2,
    /other settings:\n(error: )?train\.learning_rate: the checkpoint has 0\.01, the run 1\n/,
    "settings",
  );
  t.same(left(whole.dir, 40), expected, "refusals touch nothing");

  const small = configFile({ memory: { device_limit: "100KiB" } });
  refused(t, await cli("train", small.file), 2, /memory\.device_limit is 100 KiB.*needs at least.*raise/, "memory");
});

t.test("from JavaScript", async (t) => {
  const { ArgumentError, Device, nn, ops, optim, randn, scope, tensor, zeros } = longseq;
  const a = randn([2, 3]);
  const gone = zeros([2, 2]);
  gone.dispose();
  const cpu = new Device("cpu");
  const wrong = (value: unknown) => value as never;
  const cases: [name: string, work: () => unknown, message: RegExp, type?: typeof longseq.OutOfMemoryError][] = [
    ["null", () => ops.matmul(a, wrong(null)), /matmul: cannot work with the arguments \(float32\[2, 3\], null\)/],
    ["undefined", () => a.add(wrong(undefined)), /binary: cannot work with the arguments/],
    ["shapes", () => ops.matmul(a, a), /matmul: .*\[2, 3\]/],
    ["disposed", () => gone.add(gone), /a tensor of shape \[2,2\] was disposed/],
    ["NaN", () => zeros([Number.NaN]), /shape\[0\] is nan/],
    ["negative", () => zeros([-1]), /shape\[0\] is -1/],
    ["no number", () => zeros(wrong(["3"])), /shape\[0\] is a string/],
    ["product", () => zeros([2 ** 31, 2 ** 31]), /larger than any memory/],
    ["4 TiB", () => zeros([2 ** 40]), /out of device memory/, longseq.OutOfMemoryError],
    ["4 TiB here", () => zeros([2 ** 40], { device: cpu }), /out of device memory/, longseq.OutOfMemoryError],
    ["dtype", () => zeros([1], { dtype: wrong("float16") }), /float16/],
    ["ragged", () => tensor([[1, 2], [3]]), /ragged/],
    [
      "rate",
      () => new optim.AdamW([new longseq.Parameter(randn([2]))], { learningRate: wrong("1") }),
      /learningRate is "1"/,
    ],
    ["no gradient", () => nn.clipGradNorm([new longseq.Parameter(randn([2]))], 1), /no parameter has a gradient/],
    ["a promise", () => scope(async () => a), /use scopeAsync/],
  ];
  for (const [name, work, message, type = ArgumentError] of cases) t.throws(work, { constructor: type, message }, name);
  await t.rejects(
    Promise.resolve().then(() => gone.data()),
    ArgumentError,
  );
  t.throws(() => new longseq.Trainer(wrong({ train: { steps: Number.NaN } })), { code: "CONFIG" });
  t.equal(await ops.matmul(tensor([[1, 2]]), tensor([[3], [4]])).item(), 11, "and work goes on");
});
