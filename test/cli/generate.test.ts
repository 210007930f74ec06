// `longseq generate`: a run's model, prompts of every kind, what it writes, and what it refuses.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { main } from "../../lib/cli/main.js";
import { writeBytesTokenizer } from "../../lib/data/byte_tokenizer.js";
import { initModel, loadModel, writeExport } from "../../lib/models/index.js";

const folder = mkdtempSync(join(tmpdir(), "longseq-generate-"));
t.teardown(() => rmSync(folder, { recursive: true }));
const golden = join(import.meta.dirname, "../golden");
const run = join(folder, "run");
const model = join(run, "model");
mkdirSync(model, { recursive: true });

t.before(async () => {
  using made = initModel(
    {
      model_type: "llama",
      vocab_size: 259,
      hidden_size: 16,
      intermediate_size: 24,
      num_hidden_layers: 2,
      num_attention_heads: 2,
      max_position_embeddings: 64,
      initializer_range: 0.4,
    },
    { seed: 3 },
  );
  await writeExport(made, model, { tokenizer: null });
  writeBytesTokenizer(
    model,
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
  );
});

/** What the command wrote, and its exit code. */
async function generate(...argv: string[]) {
  const seen = { stdout: "", stderr: "" };
  const code = await main(["generate", ...argv], {
    stdout: { write: (text) => (seen.stdout += text) },
    stderr: { write: (text) => (seen.stderr += text) },
    env: {},
  });
  const records = (argv.includes("--json") ? seen.stdout.trimEnd().split("\n") : []).map(
    (line) => JSON.parse(line) as Record<string, unknown>,
  );
  return { ...seen, code, records };
}

/** Greedy ids. */
async function idsOf(dir: string, prompt: number[], count: number): Promise<number[]> {
  using loaded = await loadModel(dir);
  const ids: number[] = [];
  for await (const { id } of loaded.generate(prompt, { maxNewTokens: count })) ids.push(id);
  return ids;
}

t.test("prompts of every kind", async (t) => {
  const file = join(folder, "prompts.jsonl");
  writeFileSync(
    file,
    '{"prompt": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n\n{"input_ids": [1, 2, 3]}\n{"prompt": "f", "completion": "g"}\n',
  );
  const text = join(folder, "prompt.txt");
  writeFileSync(text, "four\n");
  const { code, records } = await generate(
    ...[run, "zero", "-n", "6", "--file", file, "--file", text, "--ids", "9, 8 7", "--json", "--logprobs"],
  );
  t.equal(code, 0);
  const bytes = (words: string) => [...Buffer.from(words)];
  const prompts = [
    [256, ...bytes("zero")],
    [256, ...bytes("one")],
    bytes("user: two\nassistant:"),
    [1, 2, 3],
    [256, ...bytes("f")],
    [256, ...bytes("four\n")],
    [9, 8, 7],
  ];
  t.same(
    records.slice(0, -1).map((record) => record.prompt_ids),
    prompts,
  );
  for (const [i, prompt] of prompts.entries()) {
    const ids = records[i]?.ids as number[];
    t.same(ids, await idsOf(model, prompt, ids.length));
    t.match(records[i], { log_probabilities: { length: ids.length } });
    t.equal(records[i]?.finish, ids.includes(257) ? "eos" : "length");
  }
  t.match(records.at(-1), { event: "generated", tokens: Number });
});

t.test("a text is shown as it grows; stop strings", async (t) => {
  const { stdout, stderr, code } = await generate(model, "abc", "-n", "12", "--ignore-eos");
  t.equal(code, 0);
  const ids = await idsOf(model, [256, 97, 98, 99], 12);
  const text = Buffer.from(ids.filter((id) => id < 256)).toString("utf8");
  t.equal(stdout, `${text}\n`);
  t.match(stderr, /^12 tokens in [\d.]+ s, [\d.]+ tokens\/s\n$/);
  const stop = [...text].find((character) => character !== "\ufffd") as string;
  const { records } = await generate(model, "abc", "-n", "12", "--ignore-eos", "--stop", stop, "--json");
  t.match(records[0], { finish: "stop", text: text.slice(0, text.indexOf(stop)) });
  const sampled = async (seed: string) =>
    (await generate(model, "abc", "-n", "12", "-t", "1", "--seed", seed, "--json")).records[0]?.ids;
  t.same(await sampled("1"), await sampled("1"));
  t.notSame(await sampled("1"), await sampled("2"));
});

t.test("--chat renders a prompt as the user's turn", async (t) => {
  const { records } = await generate(model, "hi", "--chat", "--system", "be brief", "-n", "1", "--json");
  t.same(records[0]?.prompt_ids, [...Buffer.from("system: be brief\nuser: hi\nassistant:")]);
});

t.test("an adapter goes with its base", async (t) => {
  const adapter = join(golden, "adapters/llama_all");
  const base = join(golden, "models/llama3/model");
  const { records, code } = await generate(adapter, "--base", base, "--ids", "1,2,3", "-n", "4", "--json");
  t.equal(code, 0);
  const plain = await generate(base, "--ids", "1,2,3", "-n", "4", "--json");
  t.notSame(records[0]?.ids, plain.records[0]?.ids);
  t.match(await generate(base, "--base", base, "--ids", "1"), { code: 2, stderr: /holds a whole model/ });
});

t.test("prompts behind a byte order mark; sampling without a temperature is remarked on", async (t) => {
  const file = join(folder, "marked.jsonl");
  writeFileSync(file, '\ufeff{"prompt": "b"}\n{"prompt": "c"}');
  const { records, stderr } = await generate(run, "--file", file, "-n", "1", "--top-k", "3", "--json");
  t.same(
    records.slice(0, -1).map(({ prompt }) => prompt),
    ["b", "c"],
  );
  t.match(stderr, /--top-k: no effect without --temperature/);
});

t.test("mistakes", async (t) => {
  const fails = async (argv: string[], code: number, message: RegExp) => {
    const seen = await generate(...argv);
    t.equal(seen.code, code, argv.join(" "));
    t.match(seen.stderr, message);
    t.equal(seen.stdout, "");
  };
  await fails([run], 2, /missing prompt/);
  await fails([join(folder, "absent"), "x"], 2, /there is no folder/);
  mkdirSync(join(folder, "young"));
  writeFileSync(join(folder, "young/metrics.jsonl"), "");
  await fails([join(folder, "young"), "x"], 2, /has no model yet/);
  await fails([folder, "x"], 2, /holds neither a model/);
  await fails([join(folder, "young/metrics.jsonl"), "x"], 2, /is a file/);
  await fails([run, "--ids", "1,259"], 2, /"259" is no token of this model/);
  await fails([run, "--ids", ","], 2, /there are none/);
  await fails([run, "x", "-t", "-1"], 2, /Expected a number, 0 or more/);
  await fails([run, "x", "--top-p", "2"], 2, /Expected a number above 0, at most 1/);
  await fails([run, "--file", join(folder, "absent.jsonl")], 1, /absent.jsonl/);
  const bad = join(folder, "bad.jsonl");
  writeFileSync(bad, '{"prompt": "a"}\n{"prompt": 3}\n');
  await fails([run, "--file", bad], 1, /bad.jsonl:2: prompt is 3; expected a text/);
  writeFileSync(bad, '{"prompt": ""}\n');
  await fails([run, "--file", bad], 1, /bad.jsonl:1: prompt is empty/);
  writeFileSync(bad, '{"prompt": "a", "messages": []}\n');
  await fails([run, "--file", bad], 1, /bad.jsonl:1: /);
  writeFileSync(bad, Buffer.concat([Buffer.from('{"prompt": "a'), Buffer.of(0xff), Buffer.from('"}\n')]));
  await fails([run, "--file", bad], 1, /bad.jsonl:1: .*UTF-8/);
  await fails([run, "--file", folder], 2, /is a folder; give a file/);
  await fails([run, "--file", "-", "--file", "-"], 2, /can be read once/);
  await fails([run, "x", "--top-p", "0"], 2, /Expected a number above 0, at most 1/);
  await fails([run, "x", "--repetition-penalty", "0"], 2, /from 0.001 to 1000/);
  await fails([run, "x", "--stop", ""], 2, /--stop is empty/);
  await fails([run, "x", "--system", "y"], 2, /which --chat asks for/);
  await fails([run, "x", "--logprobs"], 2, /--logprobs is for --json/);
  await fails([run, "x", "--chat-template", join(folder, "none.jinja")], 1, /none.jinja: there is no such file/);
  await fails(
    [join(golden, "adapters/llama_all"), "--base", "/nowhere", "--ids", "1"],
    2,
    /--base: there is no folder "\/nowhere"/,
  );
  writeFileSync(bad, "");
  await fails([run, "--file", bad], 1, /has no rows/);
  await fails([join(golden, "models/llama3/model"), "x"], 2, /has no tokenizer.json, so a prompt must be token ids/);
  await fails([join(golden, "models/llama3/model"), "--ids", "1", "--stop", "x"], 2, /--stop needs a tokenizer/);
  const broken = join(folder, "broken");
  mkdirSync(broken);
  writeFileSync(join(broken, "config.json"), readFileSync(join(model, "config.json")));
  await fails([broken, "--ids", "1"], 1, /broken/);
});
