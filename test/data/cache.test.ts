// The token cache: keyed by content, the same for any number of threads, rebuilt when damaged, never half-written.

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import t from "tap";
import type { Dataset } from "../../lib/data/index.js";
import { RANGE_BYTES } from "../../lib/data/lines.js";
import { CancelledError, FormatError, IoError } from "../../lib/errors.js";
import { GOLDEN, open, rejection, write } from "./helpers.js";

const cacheFiles = (directory: string) => fs.readdirSync(path.join(directory, "cache")).sort();

/** Every document of a dataset that does not pack or shuffle. */
async function everything(data: Dataset): Promise<number[][]> {
  const all: number[][] = [];
  for (let i = 0; i < data.documents; i++) {
    const { inputIds, targets } = await data.sequence(0, i);
    all.push([...inputIds, -1, ...targets]);
  }
  await data.close();
  return all;
}

/** Rows of all kinds, over several ranges of lines. */
function mixedRows(count: number): object[] {
  return Array.from({ length: count }, (_, i) => {
    const words = `row ${i} ${"lorem ipsum ".repeat(i % 50)}`;
    if (i % 4 === 0) return { text: words };
    if (i % 4 === 1) return { prompt: words, completion: `answer ${i}` };
    if (i % 8 === 2) return { input_ids: [i % 256, 1, 2, 3], labels: [-100, 1, i % 7, 3] };
    if (i % 8 === 6) return { input_ids: [i % 256, 1, 2, 3, 4], seq_lengths: [1 + (i % 3), 4 - (i % 3)] };
    return {
      messages: [
        { role: "user", content: words },
        { role: "assistant", content: `yes ${i}` },
      ],
    };
  });
}
const chatTemplate =
  "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

t.test("any number of worker threads gives the same files, and a second opening makes none", async (t) => {
  const rows = mixedRows(400);
  let first: { files: Buffer[]; all: number[][] } | null = null;
  for (const workers of [0, 1, 3]) {
    const directory = t.testdir();
    for (const name of ["a", "b", "c", "d", "e"])
      write(directory, `${name}.jsonl`, rows.slice("abcde".indexOf(name) * 70));
    const options = { tokenizer: "bytes", chatTemplate, vocabSize: 300, workers, sequenceLength: 2048 };
    const progress: number[] = [];
    const data = await open(directory, { ...options, onProgress: ({ bytes }) => progress.push(bytes) });
    const names = cacheFiles(directory);
    t.equal(names.length, 5);
    t.ok(progress.length > 0);
    t.same(
      progress,
      [...progress].sort((a, b) => a - b),
      "progress only grows",
    );
    const files = names.map((name) => fs.readFileSync(path.join(directory, "cache", name)));
    const all = await everything(data);
    if (first === null) first = { files, all };
    else {
      t.ok(
        files.every((file, i) => file.equals(first?.files[i] as Buffer)),
        `${workers} threads: the same bytes`,
      );
      t.same(all, first.all);
    }
    const times = names.map((name) => fs.statSync(path.join(directory, "cache", name), { bigint: true }).mtimeNs);
    const again = await open(directory, { ...options, onProgress: () => t.fail("nothing is tokenized again") });
    t.same(cacheFiles(directory), names);
    t.same(
      names.map((name) => fs.statSync(path.join(directory, "cache", name), { bigint: true }).mtimeNs),
      times,
    );
    t.equal(again.fingerprint, data.fingerprint);
    t.same(await everything(again), first.all);
  }
});

t.test("a file of several ranges through threads", async (t) => {
  const directory = t.testdir();
  const rows = Array.from({ length: 150 }, (_, i) => ({ text: `${i} ${"x".repeat(60_000)}` }));
  const file = write(directory, "big.jsonl", rows);
  t.ok(fs.statSync(file).size > 2 * RANGE_BYTES);
  const data = await open(directory, { tokenizer: "bytes", sequenceLength: 100_000, workers: 2 });
  t.equal(data.documents, 150);
  for (const i of [0, 74, 149]) {
    const { inputIds } = await data.sequence(0, i);
    t.equal(Buffer.from(inputIds.subarray(1, -1)).toString(), rows[i]?.text);
    t.equal(data.documentInfo(i).line, i + 1);
  }
  await data.close();
});

t.test("the first fault in the files' order is told, for any number of threads", async (t) => {
  const directory = t.testdir();
  const good = `{"text": "${"x".repeat(50_000)}"}\n`;
  write(directory, "a.jsonl", good.repeat(200));
  write(directory, "b.jsonl", `${good.repeat(180)}{"text": 1}\n${good}{"text": 2}\n`);
  write(directory, "c.jsonl", "broken\n");
  for (const workers of [0, 1, 3]) {
    const error = await rejection(open(directory, { tokenizer: "bytes", workers }));
    t.match(error, { name: "DataError", code: "DATA" });
    t.match(error.message, /b\.jsonl:181: "text" must be a string, not 1$/, `${workers} threads`);
    t.notOk(
      cacheFiles(directory).some((name) => name.startsWith(".")),
      "nothing half-written stays",
    );
  }
});

t.test("the key follows content, tokenizer, template and vocabulary, and nothing else", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", [{ text: "hello" }]);
  const files = new Set<string>();
  const seen = async (expected: number, options: Parameters<typeof open>[1]) => {
    const data = await open(directory, options);
    await data.close();
    for (const name of cacheFiles(directory)) files.add(name);
    t.equal(files.size, expected, JSON.stringify(options));
  };
  await seen(1, { tokenizer: "bytes" });
  await seen(2, { tokenizer: path.join(GOLDEN, "llama3") });
  await seen(3, { tokenizer: path.join(GOLDEN, "qwen2") });
  await seen(4, { tokenizer: "bytes", vocabSize: 300 });
  await seen(5, { tokenizer: "bytes", chatTemplate });
  await seen(5, { tokenizer: "bytes", sequenceLength: 7, overlong: "split", packing: true, shuffle: true, seed: 9 });
  fs.renameSync(path.join(directory, "a.jsonl"), path.join(directory, "b.jsonl"));
  await seen(5, { tokenizer: "bytes" });
  write(directory, "b.jsonl", [{ text: "hellp" }]);
  await seen(6, { tokenizer: "bytes" });
});

t.test("a damaged cache file is made anew, or found out when read", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", mixedRows(40));
  const options = { tokenizer: "bytes", chatTemplate, sequenceLength: 2048 };
  const expected = await everything(await open(directory, options));
  const file = path.join(directory, "cache", cacheFiles(directory)[0] as string);
  const good = fs.readFileSync(file);
  const damages: [name: string, bytes: Buffer][] = [
    ["empty", Buffer.alloc(0)],
    ["cut in the header", good.subarray(0, 100)],
    ["cut in the data", good.subarray(0, 5000)],
    ["one byte short", good.subarray(0, good.length - 1)],
    ["one byte more", Buffer.concat([good, Buffer.alloc(1)])],
    ["another magic", flipped(good, 3)],
    ["a changed header", flipped(good, 120)],
    ["a changed index", flipped(good, good.length - 3)],
  ];
  for (const [name, bytes] of damages) {
    fs.writeFileSync(file, bytes);
    t.same(await everything(await open(directory, options)), expected, name);
    t.ok(fs.readFileSync(file).equals(good), `${name}: made anew`);
  }
  fs.writeFileSync(file, flipped(good, 4096 + 9));
  const error = await rejection(everything(await open(directory, options)));
  t.ok(error instanceof FormatError);
  t.match(error.message, /the token cache .* is damaged \(document of .*a\.jsonl:1\); delete it and start again/);
  const data = await open(directory, options);
  fs.truncateSync(file, 4100);
  t.match((await rejection(data.sequence(0, 30))).message, /the token cache .* is cut short; delete it/);
  await data.close();
});

function flipped(bytes: Buffer, at: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[at] = (copy[at] as number) ^ 1;
  return copy;
}

t.test("what a killed process left is removed, what a living one writes is not", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", [{ input_ids: [1, 2] }]);
  const dead = spawnSync(process.execPath, ["-e", ""]).pid;
  const left = `.tmp-${os.hostname()}-${dead}-0011aabb`;
  const alive = `.tmp-${os.hostname()}-${process.pid}-0011aabb`;
  const foreign = ".tmp-another.host-1-0011aabb";
  for (const name of [left, alive, foreign]) write(path.join(directory, "cache"), name, "x");
  await (await open(directory, {})).close();
  const names = cacheFiles(directory);
  t.notOk(names.includes(left));
  t.ok(names.includes(alive));
  t.ok(names.includes(foreign));
});

t.test("a cache folder that cannot be written, a file that cannot be read", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", [{ input_ids: [1, 2] }]);
  write(directory, "taken", "a file, no folder");
  const error = await rejection(open(directory, { cacheDir: path.join(directory, "taken") }));
  t.ok(error instanceof IoError);
  t.match(error.message, /^cannot write the token cache .*taken: /);
  const below = await rejection(open(directory, { cacheDir: path.join(directory, "taken", "cache") }));
  t.match(below.message, /^cannot write the token cache .*taken\/cache: /);
  fs.symlinkSync("/proc/self/mem", path.join(directory, "b.jsonl"));
  const unreadable = await rejection(open(directory, {}));
  t.ok(unreadable instanceof IoError);
  t.match(unreadable.message, /^cannot read .*b\.jsonl: /);
});

t.test("a full disk while tokenizing leaves nothing behind", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", [{ text: "x".repeat(300_000) }]);
  // A limit on file size makes a write fail as a full disk does, also for root.
  const code = `
    process.on("SIGXFSZ", () => {});
    const { openData } = await import(${JSON.stringify(new URL("../../lib/data/index.ts", import.meta.url).href)});
    try {
      await openData({ files: ["a.jsonl"], tokenizer: "bytes", sequenceLength: 8, cacheDir: "cache" });
      console.log("opened");
    } catch (error) {
      console.log(error.name + ": " + error.message);
    }`;
  const { stdout, stderr } = spawnSync(
    "bash",
    ["-c", 'ulimit -f 100 && exec "$0" --import=tsx --input-type=module -e "$1"', process.execPath, code],
    { cwd: directory, encoding: "utf8", env: { ...process.env, NODE_OPTIONS: "", TSX_DISABLE_CACHE: "1" } },
  );
  t.match(stdout, /^IoError: cannot write the token cache cache\/.*/, stderr);
  t.same(cacheFiles(directory), []);
});

t.test("an aborted signal ends tokenizing", async (t) => {
  const directory = t.testdir();
  write(
    directory,
    "a.jsonl",
    Array.from({ length: 250 }, () => ({ text: "word ".repeat(10_000) })),
  );
  const controller = new AbortController();
  const opening = open(directory, {
    tokenizer: path.join(GOLDEN, "llama3"),
    workers: 2,
    signal: controller.signal,
    onProgress: () => controller.abort(),
  });
  const error = await rejection(opening);
  t.ok(error instanceof CancelledError, error.message);
  t.same(cacheFiles(directory), []);
});

t.test("the same content twice is tokenized once and keeps its own name", async (t) => {
  const directory = t.testdir();
  for (const name of ["a", "b"]) write(directory, `${name}.jsonl`, [{ input_ids: [1, 2, 3] }]);
  const data = await open(directory, {});
  t.equal(cacheFiles(directory).length, 1);
  t.match(data.documentInfo(0).file, /a\.jsonl$/);
  t.match(data.documentInfo(1).file, /b\.jsonl$/);
  t.same(await everything(data), [
    [1, 2, 3, -1, 2, 3, -100],
    [1, 2, 3, -1, 2, 3, -100],
  ]);
});

t.test("built JavaScript starts its workers too", async (t) => {
  const directory = t.testdir();
  write(directory, "a.jsonl", mixedRows(50));
  const root = new URL("../../", import.meta.url).pathname;
  const built = path.join(root, ".setup", `data-test-${process.pid}`);
  t.teardown(() => fs.rmSync(built, { recursive: true, force: true }));
  const { default: ts } = await import("typescript");
  const names = fs.readdirSync(path.join(root, "lib/data"), { recursive: true, encoding: "utf8" });
  const sources = names.filter((name) => name.endsWith(".ts")).map((name) => path.join("data", name));
  sources.push("errors.ts", "thread.ts");
  for (const name of sources) {
    const text = fs.readFileSync(path.join(root, "lib", name), "utf8");
    const { outputText } = ts.transpileModule(text, {
      compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022, verbatimModuleSyntax: true },
    });
    write(built, name.replace(/ts$/, "js"), outputText);
  }
  const code = `
    const { openData } = await import(${JSON.stringify(path.join(built, "data/index.js"))});
    const data = await openData({ files: ["a.jsonl"], tokenizer: "bytes", sequenceLength: 4096, cacheDir: "cache", workers: 2,
      chatTemplate: ${JSON.stringify(chatTemplate)} });
    console.log(data.documents, data.fingerprint);`;
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", code], {
    cwd: directory,
    encoding: "utf8",
    env: { ...process.env, NODE_OPTIONS: "" },
  });
  const data = await open(directory, {
    tokenizer: "bytes",
    sequenceLength: 4096,
    chatTemplate,
    packing: true,
    shuffle: true,
  });
  t.equal(stdout.trim(), `50 ${data.fingerprint}`, stderr);
  await data.close();
});

t.test("the names of what is kept, and fingerprints, of lines of JSON are those of earlier versions", async (t) => {
  const directory = t.testdir();
  const file = write(directory, "rows.jsonl", '{"text":"kept"}\n{"input_ids":[1,2,3]}\n');
  const data = await open(directory, {
    files: [file],
    tokenizer: "bytes",
    vocabSize: 259,
    packing: true,
    shuffle: true,
  });
  t.same(cacheFiles(directory), ["1dc31181815eebe615b84bb42c0fefb2.tokens"]);
  t.equal(data.fingerprint, "64bb2dbcf4101522f7a60b9187f88350861a3965edad058c2dde04d38ebafe31");
  await data.close();
});
