// File patterns: what they match, in which order, and what is refused.

import fs from "node:fs";
import path from "node:path";
import t from "tap";
import { expandPatterns } from "../../lib/data/glob.js";
import { ConfigError } from "../../lib/errors.js";

t.test("patterns", async (t) => {
  const root = t.testdir({
    "b.jsonl": "",
    "a.jsonl": "",
    "a10.jsonl": "",
    "c.txt": "",
    "[x].jsonl": "",
    ".hidden.jsonl": "",
    deep: { "d.jsonl": "", er: { "e.jsonl": "", "f.json": "" }, ".git": { "g.jsonl": "" } },
  });
  const match = (...patterns: string[]) =>
    expandPatterns(patterns, "data.train", root).map((f) => path.relative(root, f));
  t.same(match("*.jsonl"), ["[x].jsonl", "a.jsonl", "a10.jsonl", "b.jsonl"]);
  t.same(match("?.jsonl"), ["a.jsonl", "b.jsonl"]);
  t.same(match("[ab].jsonl"), ["a.jsonl", "b.jsonl"]);
  t.same(match("[!a]*.*"), ["[x].jsonl", "b.jsonl", "c.txt"]);
  t.same(match("[a-b]*.jsonl"), ["a.jsonl", "a10.jsonl", "b.jsonl"]);
  t.same(match("{b,a}.jsonl"), ["a.jsonl", "b.jsonl"]);
  t.same(match("{c.txt,{a,b}.jsonl}"), ["a.jsonl", "b.jsonl", "c.txt"]);
  t.same(match("**/*.jsonl"), ["[x].jsonl", "a.jsonl", "a10.jsonl", "b.jsonl", "deep/d.jsonl", "deep/er/e.jsonl"]);
  t.same(match("deep/**/*.json"), ["deep/er/f.json"]);
  t.same(match("*/*.jsonl"), ["deep/d.jsonl"]);
  t.same(match("[x].jsonl"), ["[x].jsonl"], "a name that exists is taken as it is");
  t.same(match("\\[x\\].jsonl"), ["[x].jsonl"]);
  t.same(match(".*.jsonl"), [".hidden.jsonl"]);
  t.same(match("b.jsonl", "*.jsonl"), ["b.jsonl", "[x].jsonl", "a.jsonl", "a10.jsonl"], "given order first, each once");
  t.same(expandPatterns([path.join(root, "a*.jsonl")]), [path.join(root, "a.jsonl"), path.join(root, "a10.jsonl")]);
  const here = process.cwd();
  process.chdir(root);
  t.teardown(() => process.chdir(here));
  t.same(expandPatterns(["deep/*.jsonl"]), ["deep/d.jsonl"]);
  t.same(expandPatterns(["./a.jsonl"]), ["./a.jsonl"]);
  process.chdir(here);
});

t.test("links to folders end no search", async (t) => {
  const root = t.testdir({ a: { "x.jsonl": "" } });
  fs.symlinkSync(root, path.join(root, "a", "loop"));
  t.same(expandPatterns(["**/*.jsonl"], "data.train", root), [path.join(root, "a/x.jsonl")]);
});

t.test("refusals", async (t) => {
  const root = t.testdir({ folder: { "x.txt": "" } });
  const refuse = (patterns: string[], message: RegExp) => {
    t.throws(() => expandPatterns(patterns, "data.eval", root), { constructor: ConfigError, message });
  };
  refuse([], /^data\.eval names no files/);
  refuse([""], /^data\.eval must hold file names or patterns, not ""/);
  refuse(["*.jsonl"], /^data\.eval: no file matches "\*\.jsonl" \(relative patterns start at /);
  refuse(["absent.jsonl"], /^data\.eval: there is no file "absent\.jsonl"/);
  refuse(["folder"], /^data\.eval: ".*folder" is a folder; name its files, for example ".*folder\/\*\.jsonl"$/);
  refuse(["fold*"], /is a folder/);
});
