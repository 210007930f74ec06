// Each component of tokenizer.json against Rust's tokenizers library (test/data/tokenizers/components.py).

import { createHash } from "node:crypto";
import fs from "node:fs";
import t from "tap";
import { Pipeline } from "../../lib/data/tokenizers/pipeline.js";

interface Case {
  name: string;
  normalizer: object | null;
  pre_tokenizer: object | null;
  added_tokens: object[];
  model: object | "probe";
  texts: "texts" | "added" | "model";
  ids: string;
  /** Absent where the library's are not what they should be. */
  offsets?: string;
  /** Texts for which the library has no answer. */
  panics?: number[];
}
const file = new URL("tokenizers/components.json", import.meta.url);
const golden = JSON.parse(fs.readFileSync(file, "utf8")) as Record<Case["texts"], string[]> & { cases: Case[] };

/** Every character or byte is a token, and the first of a piece another than the rest. */
const vocab: Record<string, number> = {};
let size = 0;
for (; size < 256; size++) vocab[`<0x${size.toString(16).toUpperCase().padStart(2, "0")}>`] = size;
for (let code = 0; code < 0x80; code++) {
  vocab[String.fromCharCode(code)] = size++;
  vocab[`##${String.fromCharCode(code)}`] = size++;
}
const probe = { type: "BPE", continuing_subword_prefix: "##", byte_fallback: true, vocab, merges: [] };

const sha = (value: unknown) => createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 16);
t.test("ids and offsets of every component equal Rust's", async (t) => {
  t.ok(golden.cases.length > 100);
  for (const entry of golden.cases) {
    const pipeline = new Pipeline({ ...entry, model: entry.model === "probe" ? probe : entry.model });
    const texts = golden[entry.texts].filter((_, i) => !entry.panics?.includes(i));
    const encodings = texts.map((text) => pipeline.encode(text));
    t.equal(sha(encodings.map(({ ids }) => Array.from(ids))), entry.ids, `${entry.name}: ids`);
    if (entry.offsets === undefined) continue;
    const places: number[][][] = [];
    encodings.forEach(({ begins, ends }, i) => {
      // The probe's own "##" counts as text where the library falls back to bytes.
      const counts = entry.model !== "probe" || /^[\0-\x7f]*$/.test(texts[i] as string);
      if (counts) places.push(Array.from(begins, (begin, k) => [begin, ends[k] as number]));
    });
    t.equal(sha(places), entry.offsets, `${entry.name}: offsets`);
  }
});
