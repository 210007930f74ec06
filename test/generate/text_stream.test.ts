// Decoded texts beside transformers', and texts that come token by token: the same in the end, and never past a stop string.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { loadTokenizer, resolveTokenizer, type TextTokenizer } from "../../lib/data/tokenizer.js";
import { createDecoder } from "../../lib/data/tokenizers/decoders.js";
import { TextStream } from "../../lib/generate/text_stream.js";

const golden = join(import.meta.dirname, "../golden");
const { texts } = JSON.parse(readFileSync(join(golden, "generate.json"), "utf8")) as {
  texts: Record<string, { ids: number[]; all: string; plain: string }[]>;
};
const open = (name: string): TextTokenizer => {
  const spec = resolveTokenizer(name);
  if (spec === null) throw new Error(`${name} has no tokenizer`);
  return loadTokenizer(spec);
};

/** The text of tokens that come one by one, as it was told. */
function streamed(tokenizer: Pick<TextTokenizer, "decode">, ids: readonly number[], stops: string[] = []): string {
  const stream = new TextStream(tokenizer, stops);
  const told = ids.map((id) => stream.push(id)).join("") + stream.finish();
  // Bytes that are no character may be taken back.
  if (stream.text !== told && !stream.text.includes("\ufffd")) throw new Error(`${told} for ${stream.text}`);
  return stream.text;
}

for (const [name, cases] of Object.entries(texts))
  t.test(`${name}: decodes as transformers does`, async (t) => {
    const tokenizer = open(join(golden, "data", name));
    for (const { ids, all, plain } of cases) {
      t.equal(tokenizer.decode(ids, false), all);
      t.equal(tokenizer.decode(ids, true), plain);
      t.equal(streamed(tokenizer, ids), plain, "token by token");
    }
  });

t.test("bytes", async (t) => {
  const tokenizer = open("bytes");
  const text = "naïve 机器 👩‍👩‍👧 end";
  const ids = [...tokenizer.encode(text)];
  t.equal(tokenizer.decode([256, ...ids, 257], true), text);
  t.equal(tokenizer.decode([256, ...ids, 257], false), `<|bos|>${text}<|eos|>`);
  t.equal(tokenizer.decode(ids.slice(0, 3), true), "na\ufffd");
  const stream = new TextStream(tokenizer);
  const pieces = ids.map((id) => stream.push(id));
  t.equal(pieces.join("") + stream.finish(), text);
  t.notOk(pieces.join("").includes("\ufffd"), "half a character is not told");
  t.equal(streamed(tokenizer, ids.slice(0, 3)), "na\ufffd", "but at the end");
});

t.test("stop strings", async (t) => {
  const tokenizer = open("bytes");
  const ids = [...tokenizer.encode("one END two")];
  t.equal(streamed(tokenizer, ids, ["END"]), "one ");
  t.equal(streamed(tokenizer, ids, ["ENDE", "two"]), "one END ");
  t.equal(streamed(tokenizer, ids, ["absent", ""]), "one END two");
  t.equal(streamed(tokenizer, ids, ["twofold"]), "one END two", "what only begins one is told at the end");
  t.equal(streamed(tokenizer, ids, ["D tw", "ND"]), "one E", "the first to come");
  const stream = new TextStream(tokenizer, ["END"]);
  t.equal(
    ids
      .slice(0, 6)
      .map((id) => stream.push(id))
      .join(""),
    "one ",
    "its beginning waits",
  );
  stream.push(ids[6] as number);
  t.ok(stream.stopped);
  t.equal(stream.push(65) + stream.finish(), "");
});

t.test("decoders", async (t) => {
  const decode = (config: object | null, ...tokens: string[]) => createDecoder(config)(tokens);
  t.equal(decode(null, "a", "b"), "a b");
  t.equal(decode({ type: "WordPiece", prefix: "##", cleanup: true }, "do", "n't", "go", "##ing", "."), "don't going.");
  t.equal(decode({ type: "BPEDecoder", suffix: "</w>" }, "he", "llo</w>", "you</w>"), "hello you");
  t.equal(decode({ type: "Metaspace", replacement: "▁", prepend_scheme: "first" }, "▁a", "▁b"), "a b");
  t.equal(decode({ type: "Metaspace", replacement: "▁", prepend_scheme: "never" }, "▁a", "▁b"), " a b");
  const llama = {
    type: "Sequence",
    decoders: [
      { type: "Replace", pattern: { String: "▁" }, content: " " },
      { type: "ByteFallback" },
      { type: "Fuse" },
      { type: "Strip", content: " ", start: 1, stop: 0 },
    ],
  };
  t.equal(decode(llama, "▁a", "<0xE6>", "<0x9C>", "<0xBA>", "▁▁b"), "a机  b");
  t.equal(decode(llama, "<0xE6>", "<0x9C>", "x"), "\ufffd\ufffdx");
  t.throws(() => createDecoder({ type: "CTC" }), { message: /the decoder "CTC" is not known/ });
});
