// `longseq eval`: what it prints, keeps and draws, and what it refuses.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { main } from "../../lib/cli/main.js";
import { writeBytesTokenizer } from "../../lib/data/byte_tokenizer.js";
import { initModel, writeExport } from "../../lib/models/index.js";

const folder = mkdtempSync(join(tmpdir(), "longseq-eval-cli-"));
t.teardown(() => rmSync(folder, { recursive: true }));
const model = join(folder, "model");
const tiny = {
  model_type: "llama",
  vocab_size: 259,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  max_position_embeddings: 512,
};
mkdirSync(model);
t.before(async () => {
  using made = initModel(tiny, { seed: 3 });
  await writeExport(made, model, { tokenizer: null });
  writeBytesTokenizer(model, undefined);
});
const text = (words: number, from = 0) =>
  Array.from({ length: words }, (_, i) => `word${(i * 7 + from) % 13}`).join(" ");
const file = (name: string, rows: object[]): string => {
  const path = join(folder, name);
  writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  return path;
};

async function run(...argv: string[]) {
  const seen = { stdout: "", stderr: "" };
  const code = await main(argv, {
    stdout: { write: (out) => (seen.stdout += out) },
    stderr: { write: (out) => (seen.stderr += out) },
    env: {},
  });
  const records = (argv.includes("--json") ? seen.stdout.trimEnd().split("\n") : []).map(
    (line) => JSON.parse(line) as Record<string, unknown>,
  );
  return { ...seen, code, records };
}

t.test("of a run: its figures, and its report", async (t) => {
  const data = file("train.jsonl", [{ text: text(30) }, { text: text(60, 3) }]);
  const dir = join(folder, "run");
  const config = join(folder, "run.yaml");
  writeFileSync(
    config,
    JSON.stringify({
      model: { init: tiny },
      data: { train: [data], eval: [data], sequence_length: 512, tokenizer: "bytes" },
      train: { steps: 3, learning_rate: 1e-3 },
      output: { dir },
    }),
  );
  t.equal((await run("train", config, "--quiet")).code, 0);
  const { code, records, stderr } = await run(
    ...["eval", dir, data, "--needle", "--lengths", "300,500", "--depths", "0,100", "--trials", "2", "--json"],
  );
  t.equal(code, 0, stderr);
  const of = (event: string) => records.filter((record) => record.event === event);
  t.match(of("eval_file"), [{ file: data, documents: 2 }]);
  t.same(
    of("eval_position").map(({ begin }) => begin),
    [0, 128, 256],
  );
  // What the run itself found of the same data with the same parameters.
  const metrics = readFileSync(join(dir, "metrics.jsonl"), "utf8").trimEnd().split("\n");
  const own = metrics.map((line) => JSON.parse(line)).findLast(({ event }) => event === "eval");
  const total = of("eval_total")[0] as { tokens: number; loss: number };
  t.equal(total.tokens, own.valid_tokens);
  t.ok(Math.abs(total.loss - own.loss) < 1e-6 * own.loss, `${total.loss} ${own.loss}`);
  t.equal(of("eval_needle").length, 4);
  t.match(of("eval_needle")[3], { length: 500, depth: 100, trials: 2 });
  const kept = JSON.parse(readFileSync(join(dir, "eval/loss.json"), "utf8"));
  t.equal(kept.total.loss, total.loss);
  t.equal((await run("report", dir)).code, 0);
  const page = readFileSync(join(dir, "report.html"), "utf8");
  for (const id of ["eval-positions", "eval-files", "eval-needle"]) t.match(page, `id="${id}"`);
  t.match(page, /needle at 100%/);
  t.notOk(existsSync(join(dir, "eval.html")), "the report has it");
  // The needle test alone leaves the losses as they were.
  t.equal((await run("eval", dir, "--needle", "--lengths", "200", "--depths", "50", "--trials", "1")).code, 0);
  t.equal(JSON.parse(readFileSync(join(dir, "eval/loss.json"), "utf8")).total.loss, total.loss);
  t.equal(JSON.parse(readFileSync(join(dir, "eval/needle.json"), "utf8")).cells.length, 1);
  writeFileSync(join(dir, "eval/needle.json"), '{"version": 1, "cells": [{"length": "long"}]}');
  const broken = await run("report", dir);
  t.equal(broken.code, 1);
  t.match(broken.stderr, /needle\.json: not what longseq eval of this version writes; remove it/);
});

t.test("of a model: tables for people, and a page of its own", async (t) => {
  const one = file("one.jsonl", [{ text: text(20) }]);
  const two = file("<two>.jsonl", [{ text: text(100) }, { prompt: "a", completion: "b" }]);
  const out = join(folder, "out");
  const { code, stdout, stderr } = await run(
    "eval",
    model,
    one,
    two,
    "--length",
    "256",
    "--bucket",
    "64",
    "--out",
    out,
  );
  t.equal(code, 0, stderr);
  t.match(stdout, /^file +documents +predicted +loss +error +perplexity$/m);
  t.match(stdout, /<two>\.jsonl +2 /);
  t.match(stdout, /^all +3 /m);
  t.match(stdout, /^192 to 255 /m);
  t.notMatch(stdout, /^256 to /m);
  const page = readFileSync(join(out, "eval.html"), "utf8");
  t.match(page, "&#60;two&#62;.jsonl");
  t.notMatch(page, "<two>");
  t.match(stderr, "eval.html");
  t.match((await run("eval", model, one)).stderr, /--out FOLDER keeps this/);
  t.match((await run("eval", model, file("long.jsonl", [{ text: text(200) }]))).stderr, /made for 512/);
});

t.test("what is refused", async (t) => {
  const data = file("small.jsonl", [{ text: "some words" }]);
  for (const [argv, message] of [
    [[model], /nothing to evaluate/],
    [[join(folder, "none"), data], /there is no folder/],
    [[model, join(folder, "missing.jsonl")], /missing\.jsonl/],
    [[model, data, "--depths", "0,200"], /from 0 to 100/],
    [[model, data, "--lengths", "4K,x"], /Expected tokens/],
    [[model, data, "--bucket", "0"], /at least 1/],
    [[model, data, "--overlong", "keep"], /split/],
    [[model, "--needle", "--lengths", "40"], /40 tokens are too few/],
    [[model, "--needle", "--haystack", file("empty.txt", [])], /has no sentences/],
    [[model, "--needle", "--lengths", "400", "--chat"], /chat template/],
  ] as const) {
    const { code, stderr } = await run("eval", ...argv);
    t.equal(code === 1 || code === 2, true, argv.join(" "));
    t.match(stderr, message);
    t.equal(stderr.trimEnd().split("\n").length, 1, stderr);
  }
});
