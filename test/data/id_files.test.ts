// Token files: ids of two and four bytes, with and without llm.c's header, cut at separators or into rows of one length.

import path from "node:path";
import t, { type Test } from "tap";
import type { DataEntry } from "../../lib/data/entries.js";
import type { DataOptions } from "../../lib/data/index.js";
import { RANGE_BYTES } from "../../lib/data/lines.js";
import { ConfigError, DataError } from "../../lib/errors.js";
import { open, rejection, write } from "./helpers.js";

const bytesOf = (ids: Uint16Array | Uint32Array) => new Uint8Array(ids.buffer);

/** llm.c's header before the ids. */
function withHeader(magic: number, ids: Uint16Array | Uint32Array): Buffer {
  const header = Buffer.alloc(1024);
  header.writeInt32LE(magic, 0);
  header.writeInt32LE(1, 4);
  header.writeInt32LE(ids.length, 8);
  return Buffer.concat([header, bytesOf(ids)]);
}

async function documents(
  t: Test,
  name: string,
  content: Uint8Array,
  entry: Partial<DataEntry> = {},
  options: Partial<DataOptions> = {},
) {
  const directory = t.testdir();
  const data = await open(directory, {
    files: [{ path: write(directory, name, content), ...entry }],
    vocabSize: 100,
    ...options,
  });
  const found: number[][] = [];
  for (let d = 0; d < data.documents; d++) {
    const end = data.documentInfo(d).tokens;
    found.push([...(await data.readSegment({ document: d, begin: 0, end })).inputIds]);
  }
  t.equal(data.documentInfo(data.documents - 1).line, data.documents, "documents are counted");
  await data.close();
  return found;
}

const ids = [9, 1, 2, 9, 3, 9, 9, 4, 5];

t.test("documents end behind eos or begin at bos, in either width", async (t) => {
  const ended = [[9], [1, 2, 9], [3, 9], [9], [4, 5]];
  const begun = [[9, 1, 2], [9, 3], [9], [9, 4, 5]];
  for (const [dtype, content] of [
    ["uint16", bytesOf(Uint16Array.from(ids))],
    ["uint32", bytesOf(Uint32Array.from(ids))],
  ] as const) {
    t.same(await documents(t, "a.bin", content, { dtype, eos: 9 }), ended);
    t.same(await documents(t, "a.bin", content, { dtype, bos: 9 }), begun);
    t.same(await documents(t, `a.u${dtype.slice(4)}`, content, { eos: 9 }), ended, "by the file's name");
  }
  t.same(await documents(t, "a.bin", withHeader(20240520, Uint16Array.from(ids)), { eos: 9 }), ended);
  t.same(await documents(t, "a.bin", withHeader(20240801, Uint32Array.from(ids)), { bos: 9 }), begun);
  t.same(
    await documents(t, "a.data", bytesOf(Uint16Array.from(ids)), { type: "tokens", dtype: "uint16", eos: 9 }),
    ended,
  );
});

t.test("without a separator a file is one stream in rows of sequence_length", async (t) => {
  const content = bytesOf(Uint16Array.from({ length: 10 }, (_, i) => i));
  const whole = [
    [0, 1, 2, 3],
    [4, 5, 6, 7],
    [8, 9],
  ];
  t.same(await documents(t, "a.u16", content, {}, { sequenceLength: 4 }), whole);
  t.same(await documents(t, "a.u16", content, {}, { sequenceLength: 10 }), [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]);
  const directory = t.testdir();
  const file = write(directory, "a.u16", content);
  const lengths = [];
  for (const sequenceLength of [4, 5, 4]) {
    const data = await open(directory, { files: [file], sequenceLength });
    lengths.push(data.documents);
    await data.close();
  }
  t.same(lengths, [3, 2, 3], "what is kept of one length is not taken for another");
});

t.test("a file over several pieces keeps all ids in order, with threads", async (t) => {
  const count = RANGE_BYTES / 2 + 1000;
  const content = Uint32Array.from({ length: count }, (_, i) => (i % 1001 === 0 ? 99 : i % 97));
  const directory = t.testdir();
  const file = write(directory, "a.u32", bytesOf(content));
  const opened = [];
  for (const workers of [0, 2]) {
    const options = { files: [{ path: file, bos: 99 }], vocabSize: 100, sequenceLength: 2000, workers };
    const data = await open(directory, { ...options, cacheDir: path.join(directory, `cache${workers}`) });
    t.equal(data.documents, Math.ceil(count / 1001));
    t.equal(data.tokens, count);
    for (const document of [0, 1, 1046, 1047, 1048, data.documents - 1]) {
      const end = data.documentInfo(document).tokens;
      const { inputIds } = await data.readSegment({ document, begin: 0, end });
      t.same([...inputIds], [...content.subarray(1001 * document, 1001 * document + end)]);
    }
    opened.push(data.fingerprint);
    await data.close();
  }
  t.equal(opened[0], opened[1]);
});

t.test("token files that cannot be", async (t) => {
  const two = bytesOf(Uint16Array.from([1, 2, 100, 3]));
  const large = bytesOf(Uint32Array.from([1, 4_000_000_000]));
  const header = withHeader(20240520, Uint16Array.from(ids));
  const cases: [
    content: Uint8Array,
    entry: Partial<DataEntry>,
    kind: typeof ConfigError | typeof DataError,
    message: RegExp,
    vocab?: number,
  ][] = [
    [
      two,
      {},
      ConfigError,
      /a\.bin: how its ids are stored is not known; say so in its entry: \{path: \.\.\., dtype: uint16\}/,
    ],
    [
      two,
      { dtype: "uint16" },
      DataError,
      /a\.bin: token 2 is 100; a token id is 0 to 99 \(the vocabulary has 100 tokens\)/,
    ],
    [large, { dtype: "uint32" }, DataError, /a\.bin: token 1 is 4000000000; a token id is 0 to 99/],
    [
      two.subarray(0, 7),
      { dtype: "uint16" },
      DataError,
      /a\.bin has 7 bytes, which is no whole number of ids of 2 bytes/,
    ],
    [header, { dtype: "uint32" }, ConfigError, /header of llm\.c's, which says uint16, but its dtype is uint32/],
    [two, { dtype: "uint16", eos: 1, bos: 1 }, ConfigError, /eos and bos both say where documents part/],
    [new Uint8Array(0), { dtype: "uint16" }, DataError, /data\.train: no rows in/],
  ];
  for (const [content, entry, kind, message] of cases) {
    const directory = t.testdir();
    const file = write(directory, "a.bin", content);
    const error = await rejection(open(directory, { files: [{ path: file, ...entry }], vocabSize: 100 }));
    t.ok(error instanceof kind, message.source);
    t.match(error.message, message);
  }
  const directory = t.testdir({ "a.idx": "MMIDIDX" });
  const megatron = write(directory, "a.bin", two);
  const error = await rejection(open(directory, { files: [{ path: megatron, dtype: "uint16" }] }));
  t.match(error.message, /a\.bin has an index beside it \(\.idx, as Megatron writes it\), which is not read/);
  const free = await rejection(
    open(directory, { files: [{ path: write(directory, "b.bin", large), dtype: "uint32" }] }),
  );
  t.match(free.message, /token 1 is 4000000000; a token id is below 2\^31/);
});
