// Tokenizers against the ids that Rust's tokenizers and transformers give (test/golden/data_tokenizers.py).

import fs from "node:fs";
import path from "node:path";
import t from "tap";
import {
  BYTE_VOCAB_SIZE,
  loadTokenizer,
  resolveTokenizer,
  tokenizerHash,
  writeBytesTokenizer,
} from "../../lib/data/tokenizer.js";
import { ConfigError, FormatError } from "../../lib/errors.js";
import { GOLDEN, rejection, write } from "./helpers.js";

interface Golden {
  strings: string[];
  ids: Record<string, number[][]>;
  whole: Record<string, number[][]>;
  pre_tokenizers: Record<string, { tokenizer: object; ids: number[][] }>;
}
const golden = JSON.parse(fs.readFileSync(path.join(GOLDEN, "golden.json"), "utf8")) as Golden;
const load = (name: string) => loadTokenizer({ kind: "json", file: path.join(GOLDEN, name, "tokenizer.json") });

for (const name of Object.keys(golden.ids)) {
  t.test(`${name}: ids equal Rust's, with and without special tokens`, async (t) => {
    const tokenizer = load(name);
    t.ok(golden.strings.length > 80);
    golden.strings.forEach((text, i) => {
      const ids = Array.from(tokenizer.encode(text));
      t.same(ids, golden.ids[name]?.[i], `string ${i}`);
      t.same([...tokenizer.prefixIds, ...ids, ...tokenizer.suffixIds], golden.whole[name]?.[i], `string ${i}`);
    });
  });
}

t.test("pre-tokenizers cut as Rust's do", async (t) => {
  for (const [name, { tokenizer, ids }] of Object.entries(golden.pre_tokenizers)) {
    const file = write(t.testdir(), "tokenizer.json", JSON.stringify(tokenizer));
    const loaded = loadTokenizer({ kind: "json", file });
    golden.strings.forEach((text, i) => {
      t.same(Array.from(loaded.encode(text)), ids[i], `${name}, string ${i}`);
    });
  }
});

t.test("special tokens, templates and vocabulary are found", async (t) => {
  const llama3 = load("llama3");
  t.match(llama3, { bosToken: "<|begin_of_text|>", eosToken: "<|end_of_text|>", padToken: null, vocabSize: 425 });
  t.same([llama3.bosId, llama3.eosId, llama3.padId], [420, 421, null]);
  t.same(new Set(llama3.endStrings), new Set(["<|end_of_text|>", "<|eot_id|>"]));
  t.ok(llama3.isSpecial(420));
  t.notOk(llama3.isSpecial(65));
  t.match(llama3.chatTemplates.get("default")?.source, /start_header_id/);
  const qwen = load("qwen2");
  t.match(
    qwen,
    { bosToken: null, eosToken: "<|im_end|>", padToken: "<|endoftext|>" },
    "a token as an object, and null",
  );
  t.equal(load("gpt2").chatTemplates.size, 0);
  t.equal(load("llama2").piece(1), "<s>");
  t.equal(qwen.piece(qwen.encode("é")[0] as number), "é");
  t.equal(qwen.piece(99999), "<99999>");

  // Without tokenizer_config.json, ids come from generation_config.json and config.json.
  const copy = t.testdir();
  fs.copyFileSync(path.join(GOLDEN, "llama3/tokenizer.json"), path.join(copy, "tokenizer.json"));
  const spec = { kind: "json", file: path.join(copy, "tokenizer.json") } as const;
  t.same([loadTokenizer(spec).bosId, loadTokenizer(spec).eosId], [null, null]);
  write(copy, "config.json", JSON.stringify({ bos_token_id: 420, eos_token_id: 422 }));
  t.same([loadTokenizer(spec).bosId, loadTokenizer(spec).eosId], [420, 422]);
  write(copy, "generation_config.json", JSON.stringify({ eos_token_id: [424, 421] }));
  t.same([loadTokenizer(spec).bosId, loadTokenizer(spec).eosId], [420, 424]);
  // Templates: a list by name, and the file, which goes first.
  const named = [
    { name: "rag", template: "R" },
    { name: "default", template: "D" },
  ];
  write(copy, "tokenizer_config.json", JSON.stringify({ chat_template: named, eos_token: "<|eot_id|>" }));
  t.equal(loadTokenizer(spec).chatTemplates.get("default")?.source, "D");
  t.equal(loadTokenizer(spec).eosId, 424);
  write(copy, "chat_template.jinja", "F");
  t.equal(loadTokenizer(spec).chatTemplates.get("default")?.source, "F");
  // add_bos_token and add_eos_token count for nothing beside a tokenizer.json.
  t.same([loadTokenizer(spec).prefixIds, loadTokenizer(spec).suffixIds], [[420], []]);
  write(
    copy,
    "tokenizer_config.json",
    JSON.stringify({ add_bos_token: false, add_eos_token: true, eos_token: "<|eot_id|>" }),
  );
  t.same([loadTokenizer(spec).prefixIds, loadTokenizer(spec).suffixIds], [[420], []]);
});

t.test("which tokenizer a path means, and what is refused", async (t) => {
  const directory = t.testdir({ empty: {} });
  t.same(resolveTokenizer("bytes"), { kind: "bytes" });
  t.same(resolveTokenizer(path.join(GOLDEN, "gpt2")), {
    kind: "json",
    file: path.join(GOLDEN, "gpt2", "tokenizer.json"),
  });
  t.equal(resolveTokenizer(path.join(directory, "empty")), null);
  t.throws(() => resolveTokenizer(path.join(directory, "absent.json")), {
    constructor: ConfigError,
    message: /^data\.tokenizer: there is no file ".*absent\.json"; give a tokenizer\.json/,
  });
  const refuse = async (content: string, message: RegExp) => {
    const file = write(directory, "tokenizer.json", content);
    const error = await rejection((async () => loadTokenizer({ kind: "json", file }))());
    t.ok(error instanceof FormatError);
    t.match(error.message, message);
  };
  await refuse("{", /tokenizer\.json is not valid JSON/);
  await refuse("[]", /tokenizer\.json must hold one JSON object/);
  await refuse("{}", /tokenizer\.json is no tokenizer\.json: it has no "model"/);
  await refuse('{"model": {"type": "Elephant"}}', /cannot use .*tokenizer\.json: .*Elephant/);
  await refuse(
    '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a)\\\\1"}, "behavior": "Isolated"}}',
    /cannot use .*tokenizer\.json: the pattern "\(a\).*1" uses \\1, which is not supported/,
  );
  write(directory, "tokenizer_config.json", '{"eos_token": "</s>"}');
  await refuse(
    '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
    /names eos_token "<\/s>", which .* does not have/,
  );
});

t.test("the hash follows every file that matters", async (t) => {
  const directory = t.testdir();
  fs.cpSync(path.join(GOLDEN, "qwen2"), directory, { recursive: true });
  const spec = { kind: "json", file: path.join(directory, "tokenizer.json") } as const;
  const hashes = new Set([tokenizerHash(spec), tokenizerHash(null), tokenizerHash({ kind: "bytes" })]);
  fs.appendFileSync(path.join(directory, "chat_template.jinja"), " ");
  hashes.add(tokenizerHash(spec));
  fs.appendFileSync(path.join(directory, "tokenizer.json"), " ");
  hashes.add(tokenizerHash(spec));
  write(directory, "generation_config.json", "{}");
  hashes.add(tokenizerHash(spec));
  t.equal(hashes.size, 6);
});

t.test("the byte tokenizer and its exported files give the same ids", async (t) => {
  const directory = t.testdir();
  writeBytesTokenizer(directory);
  const bytes = loadTokenizer({ kind: "bytes" });
  const exported = loadTokenizer({ kind: "json", file: path.join(directory, "tokenizer.json") });
  t.equal(bytes.vocabSize, BYTE_VOCAB_SIZE);
  t.equal(exported.vocabSize, BYTE_VOCAB_SIZE);
  t.same([exported.bosId, exported.eosId, exported.padId], [256, 257, 258]);
  t.same([bytes.bosId, bytes.eosId, bytes.padId], [256, 257, 258]);
  t.same([bytes.prefixIds, bytes.suffixIds], [exported.prefixIds, exported.suffixIds]);
  golden.strings.forEach((text, i) => {
    t.same(Array.from(bytes.encode(text)), [...Buffer.from(text, "utf8")], `string ${i}`);
    t.same(Array.from(exported.encode(text)), [...Buffer.from(text, "utf8")], `string ${i}`);
  });
  // transformers obeys split_special_tokens: a text that spells a special token is bytes.
  const config = JSON.parse(fs.readFileSync(path.join(directory, "tokenizer_config.json"), "utf8"));
  t.equal(config.split_special_tokens, true);
  t.same(Array.from(exported.encode("<|eos|>")), [...Buffer.from("<|eos|>")]);
  t.equal(bytes.piece(65), "A");
  t.equal(bytes.piece(10), "<0x0A>");
  t.equal(bytes.piece(257), "<|eos|>");
});

t.test("spans of characters become tokens that hold one of them", async (t) => {
  for (const name of ["llama3", "qwen2", "gpt2", "llama2", "metaspace", "unigram", "bytes"]) {
    const tokenizer = name === "bytes" ? loadTokenizer({ kind: "bytes" }) : load(name);
    const text = "user: naïve 机器 question\nassistant: Grüße, 12345 \u{1f600} done. next";
    const begin = text.indexOf("Grüße");
    const end = text.indexOf(" next");
    const { ids, inside } = tokenizer.encodeSpans(text, [[begin, end]]);
    t.same(ids, tokenizer.encode(text), `${name}: the ids are those of the whole text`);
    const first = inside.indexOf(1);
    const last = inside.lastIndexOf(1);
    t.ok(first > 0 && last < ids.length - 1, name);
    t.ok(
      inside.subarray(first, last + 1).every((flag) => flag === 1),
      `${name}: one stretch`,
    );
    // What stands before the stretch is made of the text before it, and likewise behind it.
    const before = tokenizer.encode(text.slice(0, begin));
    t.ok(Math.abs(before.length - first) <= 1, `${name}: ${before.length} tokens before, ${first} outside`);
    const none = tokenizer.encodeSpans(text, []);
    t.notOk(none.inside.includes(1));
    const all = tokenizer.encodeSpans(text, [[0, text.length]]);
    t.notOk(all.inside.includes(0), `${name}: everything`);
  }
});

t.test("a text of a million characters in one piece", async (t) => {
  for (const name of ["qwen2", "llama2", "unigram"]) {
    const ids = load(name).encode("a".repeat(300_000));
    t.ok(ids.length > 100, name);
  }
});
