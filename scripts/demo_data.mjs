// The demo's data: the type declarations that ship with TypeScript, cut into documents of about a thousand bytes.
//
// Writes runs/demo_data/train.jsonl and eval.jsonl (every 32nd document is held out). A demo that was finished is
// removed, so that the next one starts afresh; one that was interrupted stays and goes on.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "./hash.mjs";

const DOCUMENT_BYTES = 1000;
const HELD_OUT = 32;

const source = join(root, "node_modules/typescript/lib");
if (!existsSync(source)) {
  console.error(`demo: ${source} is missing; run: node scripts/setup.mjs`);
  process.exit(1);
}

const documents = [];
for (const name of readdirSync(source).sort()) {
  if (!/^lib\..*\.d\.ts$/.test(name)) continue;
  let text = "";
  for (const line of readFileSync(join(source, name), "utf8").split(/(?<=\n)/)) {
    if (text.length > 0 && text.length + line.length > DOCUMENT_BYTES) {
      documents.push(text);
      text = "";
    }
    text += line;
  }
  if (text.length > 0) documents.push(text);
}

const data = join(root, "runs/demo_data");
mkdirSync(data, { recursive: true });
const write = (name, list) =>
  writeFileSync(join(data, name), list.map((text) => `${JSON.stringify({ text })}\n`).join(""));
const train = documents.filter((_, i) => i % HELD_OUT !== 0);
const held = documents.filter((_, i) => i % HELD_OUT === 0);
write("train.jsonl", train);
write("eval.jsonl", held);

const runs = ["runs/demo", "runs/demo_long"].filter((run) => existsSync(join(root, run, "finished.json")));
for (const run of runs) rmSync(join(root, run), { recursive: true });
console.error(
  `demo: ${train.length} documents to train on, ${held.length} held out, in runs/demo_data` +
    runs.map((run) => `; the finished demo in ${run} was removed`).join(""),
);
