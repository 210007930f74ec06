// Bad and unusual rows: each fault ends in one DataError that begins with FILE:LINE and says what to do.

import fs from "node:fs";
import path from "node:path";
import t from "tap";
import type { JsonValue } from "../../lib/data/json.js";
import { RANGE_BYTES, scanFile } from "../../lib/data/lines.js";
import { invalidUtf8At, parseRow, UNUSED_COLUMNS } from "../../lib/data/rows.js";
import { DataError } from "../../lib/errors.js";
import { open, openingError, rejection, write } from "./helpers.js";

const bytes = (text: string) => Buffer.from(text, "utf8");

t.test("each bad line names file, line and fault", async (t) => {
  const cases: [name: string, line: string | Uint8Array, message: RegExp][] = [
    ["cut JSON", '{"text": "a', /:2: invalid JSON at column 12: the line ends$/],
    ["a stray character", '{"text": "a"} x', /:2: invalid JSON at column 15: unexpected "x"$/],
    ["no JSON at all", "hello", /:2: invalid JSON at column 1: unexpected "h"$/],
    ["single quotes", "{'text': 1}", /:2: invalid JSON at column 2: unexpected "'"$/],
    ["NaN", '{"input_ids": [NaN]}', /:2: invalid JSON at column 16: unexpected "N"$/],
    ["a document over several lines", "[", /:2: invalid JSON .* looks like one JSON document over several lines/],
    ["a byte order mark in the middle", "\ufeff{}", /:2: invalid JSON at column 1: .*byte order mark inside the file/],
    ["a list", "[1, 2]", /:2: a row must be a JSON object, .*, not a list$/],
    ["a string", '"text"', /:2: a row must be a JSON object, .*, not "text"$/],
    ["null", "null", /:2: a row must be a JSON object, .*, not null$/],
    ["no kind", '{"txt": "a", "id": 3}', /:2: the row is none of the four kinds: .*; its keys are "txt", "id"$/],
    ["no keys", "{}", /:2: the row is none of the four kinds: .*; its keys are none$/],
    ["two kinds", '{"text": "a", "messages": []}', /:2: the row has {text} and {messages}; it must be one of/],
    ["empty text", '{"text": ""}', /:2: "text" is empty$/],
    ["text of another type", '{"text": 5}', /:2: "text" must be a string, not 5$/],
    ["half a surrogate pair", '{"text": "a\\ud83d"}', /:2: "text" holds half of a surrogate pair/],
    ["labels beside text", '{"text": "a", "labels": [1]}', /:2: "labels" goes with "input_ids" only/],
    ["no completion", '{"prompt": "a"}', /:2: the row has "prompt" but no "completion"$/],
    ["no prompt", '{"completion": "a"}', /:2: the row has "completion" but no "prompt"$/],
    ["an empty completion", '{"prompt": "a", "completion": ""}', /:2: "completion" is empty$/],
    ["a mistyped prompt", '{"prompt": ["a"], "completion": "b"}', /:2: "prompt" must be a string, not a list$/],
    ["empty messages", '{"messages": []}', /:2: "messages" is empty$/],
    ["mistyped messages", '{"messages": "hi"}', /:2: "messages" must be a list, not "hi"$/],
    ["a message that is no object", '{"messages": ["hi"]}', /:2: "messages"\[0\] must be an object .*, not "hi"$/],
    ["a message without role", '{"messages": [{"content": "a"}]}', /:2: "messages"\[0\]\.role must be a string/],
    ["a message without content", '{"messages": [{"role": "user"}]}', /:2: "messages"\[0\]\.content must be a string/],
    ["mistyped tools", '{"messages": [{"role": "user", "content": "a"}], "tools": {}}', /:2: "tools" must be a list/],
    ["no ids", '{"input_ids": []}', /:2: "input_ids" is empty$/],
    ["ids of another type", '{"input_ids": "1 2"}', /:2: "input_ids" must be a list of integers, not "1 2"$/],
    [
      "a negative id",
      '{"input_ids": [1, -1]}',
      /:2: "input_ids"\[1\] is -1; a token id is 0 to 258 \(the vocabulary has 259/,
    ],
    ["an id of V", '{"input_ids": [1, 2, 259]}', /:2: "input_ids"\[2\] is 259; a token id is 0 to 258/],
    ["a huge id", '{"input_ids": [1e300]}', /:2: "input_ids"\[0\] is 1e\+300; a token id is 0 to 258/],
    ["a broken id", '{"input_ids": [1.5]}', /:2: "input_ids"\[0\] is 1.5, not an integer$/],
    ["an id as text", '{"input_ids": ["1"]}', /:2: "input_ids"\[0\] is "1", not an integer$/],
    [
      "nested ids",
      '{"input_ids": [[1, 2]]}',
      /:2: "input_ids"\[0\] is a list, not an integer \(one row is one flat list\)$/,
    ],
    ["fewer labels", '{"input_ids": [1, 2], "labels": [1]}', /:2: "labels" has 1 values but "input_ids" has 2/],
    [
      "a label below -100",
      '{"input_ids": [1], "labels": [-101]}',
      /:2: "labels"\[0\] is -101; a label is -100 or 0 to 258/,
    ],
    ["a label of V", '{"input_ids": [1], "labels": [259]}', /:2: "labels"\[0\] is 259; a label is -100 or 0 to 258/],
    [
      "a lone 0xff",
      Buffer.from([0x22, 0xff, 0x22]),
      /:2: the line is not valid UTF-8: byte 0xff at byte 2 of the line$/,
    ],
    ["a UTF-8 surrogate", Buffer.from([0xed, 0xa0, 0x80]), /:2: the line is not valid UTF-8: byte 0xed at byte 1/],
    [
      "a cut UTF-8 sequence",
      Buffer.from([0x22, 0xe2, 0x82, 0x22]),
      /:2: the line is not valid UTF-8: byte 0xe2 at byte 2/,
    ],
  ];
  for (const [name, line, message] of cases) {
    const good = bytes('{"text": "good"}\n');
    const content = Buffer.concat([good, typeof line === "string" ? bytes(line) : line, bytes("\n"), good]);
    const error = await openingError(t.testdir(), content);
    t.ok(error instanceof DataError, name);
    t.match(error.message, message, name);
    t.match(error.message, /^[^\n]*rows\.jsonl:2: [^\n]*$/, `${name}: one line that begins with the place`);
    t.same([(error as DataError).details.line], [2], name);
  }
});

t.test("byte order mark, CRLF, blank lines and a missing last newline are read", async (t) => {
  const directory = t.testdir();
  write(directory, "rows.jsonl", '\ufeff{"input_ids":[1,2]}\r\n\r\n  \t\n{"input_ids":[3]}\n{"input_ids":[4,5,6]}');
  const data = await open(directory, {});
  t.same(
    [0, 1, 2].map((d) => data.documentInfo(d)).map(({ line, tokens }) => [line, tokens]),
    [
      [1, 2],
      [4, 1],
      [5, 3],
    ],
  );
  await data.close();
});

t.test("files that are no JSONL are refused by name", async (t) => {
  const cases: [name: string, content: Uint8Array, message: RegExp][] = [
    ["a.jsonl.xz", bytes("x"), /a\.jsonl\.xz is compressed in a way that is not read; unpack it, or pack it with gzip/],
    ["a.tar.gz", bytes("x"), /a\.tar\.gz is an archive; unpack it first$/],
    ["a.arrow", bytes("x"), /a\.arrow is an Arrow file; write it as \.parquet or \.jsonl first$/],
    ["b.jsonl", Buffer.from([0x1f, 0x8b, 8, 0]), /b\.jsonl is gzip data/],
    ["c.jsonl", bytes("PAR1...."), /c\.jsonl is a Parquet file/],
    ["d.jsonl", Buffer.from([0x28, 0xb5, 0x2f, 0xfd]), /d\.jsonl is zstd data/],
    ["e.jsonl", Buffer.from("\ufeff{}", "utf16le"), /e\.jsonl is UTF-16 \(little endian/],
    ["f.jsonl", Buffer.from([0xfe, 0xff, 0, 0x7b]), /f\.jsonl is UTF-16 \(big endian/],
  ];
  for (const [name, content, message] of cases) {
    const directory = t.testdir();
    const file = write(directory, name, content);
    const error = await rejection(open(directory, { files: [file] }));
    t.ok(error instanceof DataError, name);
    t.match(error.message, message, name);
  }
});

t.test("no usable rows", async (t) => {
  t.match((await openingError(t.testdir(), "")).message, /data\.train: no rows in .*rows\.jsonl$/);
  t.match((await openingError(t.testdir(), "\n \r\n")).message, /data\.train: no rows in/);
  const dropped = await openingError(t.testdir(), [{ input_ids: [1, 2, 3] }], { sequenceLength: 2, overlong: "drop" });
  t.match(
    dropped.message,
    /no usable rows: all 1 have more than data\.sequence_length 2 tokens and data\.overlong is drop/,
  );
});

t.test("a line over 512 MiB is refused without being read into memory", async (t) => {
  const file = path.join(t.testdir(), "rows.jsonl");
  fs.writeFileSync(file, '{"input_ids":[1]}\n');
  fs.truncateSync(file, 530 * 1024 * 1024);
  const before = process.memoryUsage().rss;
  const error = await rejection(scanFile(file));
  t.match(error.message, /rows\.jsonl:2: the line is longer than 512 MiB; split the row into several$/);
  t.ok(process.memoryUsage().rss - before < 256 * 1024 * 1024);
  fs.rmSync(file);
});

t.test("ranges hold whole lines, cover the file and know their line numbers", async (t) => {
  const directory = t.testdir();
  const row = (i: number) => `{"input_ids":[${i}],"pad":"${"x".repeat(40_000)}"}\n`;
  const count = 300;
  const file = write(directory, "rows.jsonl", Array.from({ length: count }, (_, i) => row(i)).join(""));
  const { ranges, bytes: size } = await scanFile(file);
  t.ok(ranges.length >= 2);
  const text = fs.readFileSync(file, "latin1");
  let at = 0;
  for (const range of ranges) {
    t.equal(range.begin, at);
    t.equal(text[range.end - 1], "\n");
    t.equal(range.firstLine, text.slice(0, range.begin).split("\n").length);
    t.ok(range.end - range.begin < RANGE_BYTES + 50_000);
    at = range.end;
  }
  t.equal(at, size);
  const data = await open(directory, {});
  t.equal(data.documents, count);
  t.same((await data.sequence(0, 299)).inputIds, Int32Array.of(299));
  t.equal(data.documentInfo(299).line, 300);
  await data.close();
});

t.test("keys of no row kind are passed over", async (t) => {
  const row = parseRow(bytes('{"id": 7, "text": "hi", "meta": {"a": 1}}'), "f", 1, null);
  t.same(row, { row: { kind: "text", text: "hi" }, unused: [] });
  t.same(parseRow(bytes('{"input_ids": [2147483646], "labels": null}'), "f", 1, null).row, {
    kind: "tokens",
    inputIds: Int32Array.of(2147483646),
    labels: null,
    parts: null,
  });
  t.throws(() => parseRow(bytes('{"input_ids": [2147483647]}'), "f", 1, null), /a token id is 0 or more/);
});

t.test("null columns are absent in every kind of row", async (t) => {
  const nulls: Record<string, null> = {};
  for (const key of ["text", "messages", "prompt", "completion", "input_ids", "labels", "tools", "loss_mask"])
    nulls[key] = null;
  const kind = (row: object) => parseRow(bytes(JSON.stringify({ ...nulls, ...row })), "f", 1, null).row;
  t.same(kind({ text: "a" }), { kind: "text", text: "a" });
  t.same(kind({ prompt: "a", completion: "b" }), { kind: "prompt", prompt: "a", completion: "b" });
  t.match(kind({ messages: [{ role: "user", content: "a" }] }), { kind: "messages", tools: null, untrained: [] });
  t.match(kind({ input_ids: [1] }), { kind: "tokens", labels: null, parts: null });
  t.throws(() => kind({ prompt: "a" }), { message: 'f:1: the row has "prompt" but no "completion"' });
  t.throws(() => kind({}), /none of the four kinds: .*; its keys are "text" \(null\), "messages" \(null\)/);
});

t.test("conversations keep the text of numbers and the order of keys", async (t) => {
  const line =
    '{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"10": 1.0, "2": 1e-07, "b": 12345678901234567890}]}], "tools": [{"n": 1}], "documents": [2], "chat_template_kwargs": {"x": 3.0}}';
  const { row } = parseRow(bytes(line), "f", 1, null);
  if (row.kind !== "messages") throw new Error(row.kind);
  const calls = new Map<string, JsonValue>([
    ["10", 1],
    ["2", 1e-7],
    ["b", 12345678901234567890n],
  ]);
  t.same(
    [...(row.messages[0]?.entries() ?? [])],
    [
      ["role", "assistant"],
      ["content", null],
      ["tool_calls", [calls]],
    ],
  );
  const [message] = row.messages as [Map<string, JsonValue>];
  const [found] = message.get("tool_calls") as [Map<string, JsonValue>];
  t.same([...found.keys()], ["10", "2", "b"]);
  t.same(row.tools, [new Map([["n", 1n]])]);
  t.same(
    [...row.variables],
    [
      ["x", 3],
      ["documents", [2n]],
    ],
  );
  const deep = `{"messages": [{"role": "user", "content": "a", "x": ${"[".repeat(600)}${"]".repeat(600)}}]}`;
  t.throws(() => parseRow(bytes(deep), "f", 1, null), {
    message: "f:1: invalid JSON at column 550: lists and objects nest more than 500 deep",
  });
  t.equal(
    parseRow(bytes(deep.replace('"messages"', '"text": "a", "x"')), "f", 1, null).row.kind,
    "text",
    "not rendered",
  );
});

t.test("a message says whether its turn is trained on", async (t) => {
  const parsed = (...turns: object[]) => {
    const messages = turns.map((turn) => ({ role: "assistant", content: "a", ...turn }));
    const { row, unused } = parseRow(bytes(JSON.stringify({ messages })), "f", 1, null);
    return row.kind === "messages" ? { untrained: row.untrained, unused, first: row.messages[0] } : null;
  };
  const untrained = [
    { weight: 0 },
    { weight: 0.0 },
    { weight: false },
    { train: false },
    { train: 0 },
    { weight: 1, train: false },
  ];
  const trained = [{}, { weight: 1 }, { weight: null, train: null }, { train: true }, { train: 1, weight: true }];
  t.same(parsed(...trained, ...untrained)?.untrained, [5, 6, 7, 8, 9, 10]);
  t.equal(parsed({ weight: 0 })?.first?.get("weight"), 0n, "the template sees the message as it is");
  t.same(parsed({ role: "user", weight: 0 }, { role: "system", train: false }, { role: "tool", weight: 1 }), {
    untrained: [0, 1],
    unused: [],
    first: new Map<string, JsonValue>([
      ["role", "user"],
      ["content", "a"],
      ["weight", 0n],
    ]),
  });
  t.same(parsed({ role: "user", train: true })?.unused, ['"train": true of messages that are not the assistant\'s']);
  t.same(parsed({ loss: false }, { training: null })?.unused, ['"loss" of messages']);
  const refused: [turn: object, shown: string][] = [
    [{ weight: 0.5 }, "weight is 0.5"],
    [{ weight: 2 }, "weight is 2"],
    [{ role: "user", weight: -1 }, "weight is -1"],
    [{ train: "no" }, 'train is "no"'],
    [{ weight: [] }, "weight is a list"],
  ];
  for (const [turn, shown] of refused) {
    t.throws(() => parsed({}, turn), {
      message: `f:1: "messages"[1].${shown}; it is 1 or 0: a turn is trained on or not`,
    });
  }
});

t.test("columns without effect are told once, whoever read the rows", async (t) => {
  const directory = t.testdir();
  const good = (i: number) => ({ text: "x".repeat(40_000), id: i, images: [], system: null, weight: "" });
  write(
    directory,
    "a.jsonl",
    Array.from({ length: 120 }, (_, i) => (i === 110 ? { ...good(i), length: 3 } : good(i))),
  );
  const other = { input_ids: [1], chosen: "a", length: 1, special_tokens_mask: [0], tools: [1] };
  write(directory, "b.jsonl", [other, other, { messages: [{ role: "assistant", content: "a" }], tools: [{}] }]);
  const expected = new RegExp(
    '^data\\.train: the rows hold what has no effect here: "length" \\(first at .*a\\.jsonl:111\\), ' +
      '"chosen" \\(first at .*b\\.jsonl:1\\), "special_tokens_mask" \\(first at .*b\\.jsonl:1\\), "tools" \\(first at .*b\\.jsonl:1\\)$',
  );
  const options = {
    tokenizer: "bytes",
    chatTemplate: "{% for m in messages %}{{ m.content }}{% endfor %}",
    sequenceLength: 50_000,
  };
  for (const workers of [0, 2, 2]) {
    const told: string[] = [];
    const data = await open(directory, {
      ...options,
      workers,
      cacheDir: path.join(directory, `cache${workers}`),
      onWarning: (w) => told.push(w),
    });
    const about = told.filter((warning) => warning.includes("no effect"));
    t.equal(about.length, 1);
    t.match(about[0], expected, `${workers} threads`);
    t.same(data.warnings, told);
    await data.close();
  }
});

t.test("every column that is told stands in the documentation", async (t) => {
  const page = fs.readFileSync(new URL("../../docs/data_rows.md", import.meta.url), "utf8");
  const section = page.slice(page.indexOf("## Columns without effect"));
  for (const column of UNUSED_COLUMNS) t.ok(section.includes(`\`${column}\``), column);
});

t.test("the place where UTF-8 breaks, against TextDecoder", async (t) => {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let state = 12345;
  const random = (below: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % below;
  };
  const leads = [
    0x41, 0x80, 0xbf, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff, 0x9f, 0xa0, 0x8f, 0x90,
  ];
  let invalid = 0;
  for (let k = 0; k < 3000; k++) {
    const line = Uint8Array.from({ length: 1 + random(5) }, () => leads[random(leads.length)] as number);
    let refused = false;
    try {
      decoder.decode(line);
    } catch {
      refused = true;
      invalid++;
    }
    if (invalidUtf8At(line) >= 0 !== refused) t.fail(`disagrees on ${Buffer.from(line).toString("hex")}`);
  }
  t.ok(invalid > 1000 && invalid < 3000);
});
