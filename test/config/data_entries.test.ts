// Entries of data.train that say more than a name: what is taken, what is refused and how, and that it is written back.

import t from "tap";
import { allDifferences } from "../../lib/config/compare.js";
import { canonicalJson, configDifference, parseConfig, parseConfigObject, yamlOf } from "../../lib/config/index.js";

const yaml = (train: string, rest = "") =>
  `model: {path: m}\ndata: {sequence_length: 8, train: ${train}${rest}}\ntrain: {steps: 1}\noutput: {dir: o}\n`;
const parse = (train: string, rest = "") => parseConfig(yaml(train, rest), "run.yaml");

t.test("names and mappings stand beside each other", async (t) => {
  const config = parse(
    "[a.jsonl, {path: b.parquet, weight: 2.5, columns: {text: content}}, {path: c.bin, type: tokens, dtype: uint16, eos: 50_256, epochs: 3, expansion: 1K}]",
  );
  t.same(config.data.train, [
    "a.jsonl",
    { path: "b.parquet", weight: 2.5, columns: { text: "content" } },
    { path: "c.bin", type: "tokens", dtype: "uint16", eos: 50256, epochs: 3, expansion: 1000 },
  ]);
  t.same(parse("{path: src, type: text}").data.train, [{ path: "src", type: "text" }], "one stands without a list");
  t.same(parseConfig(canonicalJson(config), "config.json"), config, "it is written as it is read");
  t.same(parseConfig(yamlOf(config), "short.yaml").data.train, config.data.train);
  t.same(parseConfigObject(config), config);
});

t.test("a run goes on with the same entries alone", async (t) => {
  const config = parse("[{path: a, weight: 1}, {path: b, weight: 2}]");
  t.same(configDifference(config, parse("[{weight: 1, path: a}, {path: b, weight: 2.0}]")), []);
  const other = parse("[{path: a, weight: 1}, {path: b, weight: 3}]");
  t.same(
    configDifference(config, other).map(({ key }) => key),
    ["data.train"],
  );
  t.equal(allDifferences(config, other).length, 1);
});

t.test("what cannot be is told with the entry and its key", async (t) => {
  const cases: [train: string, rest: string, message: RegExp][] = [
    [
      "[a, {path: b, wieght: 2}]",
      "",
      /run\.yaml:2: data\.train: entry 2: wieght: unknown key; did you mean weight\? known here: path, /,
    ],
    [
      "[{path: b, shards: 2}]",
      "",
      /data\.train: entry 1: shards: unknown key; known here: path, weight, epochs, type, /,
    ],
    ["[{path: b, weight: 0}]", "", /data\.train: entry 1: weight: got 0 \(number\); expected a number above 0/],
    [
      "[{path: b, type: csv}]",
      "",
      /entry 1: type: got "csv" \(string\); expected one of jsonl, json, parquet, text, tokens/,
    ],
    ["[{path: b, eos: -1}]", "", /entry 1: eos: got -1 \(number\); expected a token id, 0 or more/],
    ["[{path: b, columns: {txt: c}}]", "", /entry 1: columns: got .*expected a mapping of text, messages/],
    ["[{weight: 1}]", "", /data\.train: entry 1: missing its path; expected a file, a pattern or a folder/],
    [
      "[[a]]",
      "",
      /data\.train: entry 1: got \["a"\] \(list\); expected a file name or pattern, or a mapping with a path/,
    ],
    ["[]", "", /data\.train: got \[\] \(list\); expected a list of one or more file names/],
    [
      "[a]",
      ", eval: [{path: b, epochs: 2}]",
      /data\.eval: entry 1: epochs: all rows are evaluated, each once; leave it out/,
    ],
  ];
  for (const [train, rest, message] of cases) t.throws(() => parse(train, rest), message, train);
});
