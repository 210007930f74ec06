// Compares our ids and offsets with those that conformance.py wrote.
//
// Run: node --import=tsx test/data/tokenizers/conformance.ts FOLDER OUT [--show]
// FOLDER and OUT as for conformance.py. Prints the table of docs/tokenizers.md: texts with equal ids, with equal
// offsets, and with ids equal to AutoTokenizer's, special tokens included.

import fs from "node:fs";
import path from "node:path";
import { loadTokenizer } from "../../../lib/data/tokenizer.js";
import { Pipeline } from "../../../lib/data/tokenizers/pipeline.js";

interface Expected {
  ids: number[][];
  offsets: [number, number][][];
  whole: number[][] | null;
  class: string | null;
}

const [folder = "", out = "", show] = process.argv.slice(2);
const read = (name: string) => JSON.parse(fs.readFileSync(path.join(out, name), "utf8")) as unknown;
const texts = read("texts.json") as string[];
const rows: string[] = [];
let isEqual = true;

function differs(what: string, text: string, ours: unknown, theirs: unknown): boolean {
  if (JSON.stringify(ours) === JSON.stringify(theirs)) return false;
  if (show !== undefined) {
    console.log(
      `${what} ${JSON.stringify(text)}\n  ours   ${JSON.stringify(ours)}\n  theirs ${JSON.stringify(theirs)}`,
    );
  }
  return true;
}

for (const file of fs.readdirSync(out).sort()) {
  if (file === "texts.json") continue;
  const name = path.basename(file, ".json");
  const expected = read(file) as Expected;
  const at = path.join(folder, name, "tokenizer.json");
  let ids = 0;
  let offsets = 0;
  let whole = 0;
  try {
    const pipeline = new Pipeline(JSON.parse(fs.readFileSync(at, "utf8")));
    texts.forEach((text, i) => {
      const ours = pipeline.encode(text);
      if (differs(`${name} ids`, text, Array.from(ours.ids), expected.ids[i])) ids++;
      const places = Array.from(ours.begins, (begin, k) => [begin, ours.ends[k]]);
      if (differs(`${name} offsets`, text, places, expected.offsets[i])) offsets++;
    });
    if (expected.whole !== null) {
      const tokenizer = loadTokenizer({ kind: "json", file: at });
      texts.forEach((text, i) => {
        const ours = [...tokenizer.prefixIds, ...tokenizer.encode(text), ...tokenizer.suffixIds];
        if (differs(`${name} whole`, text, ours, expected.whole?.[i])) whole++;
      });
    }
  } catch (error) {
    rows.push(`| ${name} | ${(error as Error).message} | | | |`);
    isEqual = false;
    continue;
  }
  const count = (different: number) => `${texts.length - different}`;
  const auto = expected.whole === null ? "not opened" : count(whole);
  rows.push(`| ${name} | ${count(ids)} | ${count(offsets)} | ${auto} | ${expected.class ?? ""} |`);
  if (ids > 0) isEqual = false;
}
console.log(`| tokenizer | equal ids of ${texts.length} | equal offsets | equal to AutoTokenizer | its class |`);
console.log("|---|---|---|---|---|");
console.log(rows.join("\n"));
process.exitCode = isEqual ? 0 : 1;
