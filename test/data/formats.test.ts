// Data files of other formats: each gives the tokens of the same rows as .jsonl, and says what is wrong with it.

import fs from "node:fs";
import path from "node:path";
import zlib from "node:zlib";
import t, { type Test } from "tap";
import type { DataOptions, Dataset } from "../../lib/data/index.js";
import { ConfigError, DataError } from "../../lib/errors.js";
import { fresh, GOLDEN, open, rejection, write } from "./helpers.js";

const FORMATS = path.join(GOLDEN, "formats");
const bytesOptions = { tokenizer: "bytes", vocabSize: 259, sequenceLength: 4096 };

/** Every row's ids and targets, with where it stands. */
async function rowsOf(data: Dataset) {
  const rows: { place: string; ids: number[]; targets: number[] }[] = [];
  for (let i = 0; i < data.documents; i++) {
    const { inputIds, targets } = await data.sequence(0, i);
    const { file, line } = data.documentInfo(i);
    rows.push({ place: `${path.basename(file)}:${line}`, ids: [...inputIds], targets: [...targets] });
  }
  await data.close();
  return rows;
}

/** The rows of files as they are read; a folder of its own for the cache. */
async function read(t: Test, files: DataOptions["files"], options: Partial<DataOptions> = {}) {
  return rowsOf(await open(fresh(t), { files, ...bytesOptions, ...options }));
}

/** The rows of the same content as .jsonl. */
async function readRows(t: Test, content: string | object[], options: Partial<DataOptions> = {}) {
  const directory = fresh(t);
  return rowsOf(
    await open(directory, { files: [write(directory, "rows.jsonl", content)], ...bytesOptions, ...options }),
  );
}

const failing = (files: DataOptions["files"], directory: string, options: Partial<DataOptions> = {}) =>
  rejection(open(directory, { files, ...bytesOptions, ...options }));

const withoutPlaces = (rows: Awaited<ReturnType<typeof rowsOf>>) => rows.map(({ ids, targets }) => [ids, targets]);
const textOf = (ids: number[]) => Buffer.from(ids.filter((id) => id < 256)).toString();

const chatTemplate =
  "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls is defined %}{{ m.tool_calls | tojson }}{% endif %}\n{% endfor %}" +
  "{% if add_generation_prompt %}assistant: {% endif %}";

t.test(".jsonl.gz, of one member and of several, is the same as .jsonl, with its lines", async (t) => {
  const content = fs.readFileSync(path.join(FORMATS, "rows.jsonl"));
  const plain = await readRows(t, content.toString());
  const members = [content.subarray(0, 777), content.subarray(777)].map((part) => zlib.gzipSync(part));
  for (const packed of [zlib.gzipSync(content), Buffer.concat(members)]) {
    const directory = fresh(t);
    const rows = await read(t, [write(directory, "rows.jsonl.gz", packed)]);
    t.same(withoutPlaces(rows), withoutPlaces(plain));
    t.equal(rows[299]?.place, "rows.jsonl.gz:300");
  }
});

t.test(
  ".jsonl.zst of frames with and without size and checksum, with one to skip, is the same as .jsonl",
  async (t) => {
    const plain = await readRows(t, fs.readFileSync(path.join(FORMATS, "rows.jsonl"), "utf8"));
    const rows = await read(t, [path.join(FORMATS, "rows.jsonl.zst")]);
    t.equal(rows.length, 300);
    t.same(withoutPlaces(rows), withoutPlaces(plain));
    t.equal(rows[41]?.place, "rows.jsonl.zst:42");
  },
);

t.test("unpacked lines over several pieces, with threads and without, keep their order and numbers", async (t) => {
  const content = Array.from(
    { length: 40 },
    (_, i) => `{"text":"${i} ${"x".repeat(300_000)}"}\n${i % 3 === 0 ? "\n" : ""}`,
  );
  const directory = fresh(t);
  const file = write(directory, "rows.jsonl.gz", zlib.gzipSync(content.join("")));
  const all = await Promise.all(
    [0, 2].map(async (workers) => {
      const data = await open(directory, {
        ...{ files: [file], ...bytesOptions, sequenceLength: 400_000, workers },
        cacheDir: path.join(directory, `cache${workers}`),
      });
      const places = Array.from({ length: data.documents }, (_, d) => data.documentInfo(d));
      const begins = await Promise.all(
        places.map(async (_, document) =>
          textOf([...(await data.readSegment({ document, begin: 1, end: 4 })).inputIds]),
        ),
      );
      await data.close();
      return { lines: places.map(({ line }) => line), begins };
    }),
  );
  t.same(all[0], all[1]);
  t.same(
    all[0]?.begins,
    Array.from({ length: 40 }, (_, i) => `${i} xx`.slice(0, 3)),
  );
  t.same(
    all[0]?.lines,
    Array.from({ length: 40 }, (_, i) => 1 + i + Math.ceil(i / 3)),
  );
});

t.test("a fault in an unpacked row names file and line", async (t) => {
  const directory = fresh(t);
  const file = write(directory, "rows.jsonl.gz", zlib.gzipSync('{"text":"a"}\n\n{"text":3}\n'));
  t.match((await failing([file], directory)).message, /rows\.jsonl\.gz:3: "text" must be a string, not 3/);
});

t.test("damaged gzip and zstd are one clear error", async (t) => {
  const directory = fresh(t);
  const gzip = zlib.gzipSync(fs.readFileSync(path.join(FORMATS, "rows.jsonl")));
  const zstd = fs.readFileSync(path.join(FORMATS, "rows.jsonl.zst"));
  const broken = Buffer.from(gzip);
  broken[broken.length - 6] = (broken[broken.length - 6] as number) ^ 1;
  const wrongBlock = Buffer.from(zstd);
  wrongBlock[7] = (wrongBlock[7] as number) | 6;
  const cases: [name: string, content: Uint8Array, message: RegExp][] = [
    [
      "a.jsonl.gz",
      gzip.subarray(0, -20),
      /a\.jsonl\.gz is damaged gzip data: it ends too early; was it copied whole\?/,
    ],
    ["b.jsonl.gz", broken, /b\.jsonl\.gz is damaged gzip data: incorrect data check/],
    ["c.jsonl.gz", Buffer.from('{"text":"a"}\n'), /c\.jsonl\.gz is damaged gzip data: incorrect header check/],
    ["d.jsonl.zst", zstd.subarray(0, -20), /d\.jsonl\.zst is damaged zstd data: it ends too early/],
    ["e.jsonl.zst", wrongBlock, /e\.jsonl\.zst is damaged zstd data: invalid block type/],
    ["f.jsonl.zst", Buffer.from('{"text":"a long enough line"}\n'), /f\.jsonl\.zst is damaged zstd data: /],
  ];
  for (const [name, content, message] of cases) {
    const error = await failing([write(directory, name, content)], directory);
    t.ok(error instanceof DataError, name);
    t.match(error.message, message, name);
  }
});

/** A zstd frame of blocks that each say one byte 128 KiB long. */
function zstdBomb(blocks: number): Buffer {
  const block = (last: number) => {
    const header = Buffer.alloc(4);
    header.writeUIntLE((131072 << 3) | 2 | last, 0, 3);
    header[3] = "x".charCodeAt(0);
    return header;
  };
  const head = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, (20 - 10) << 3]);
  const blank = Array.from({ length: blocks }, (_, i) => block(i === blocks - 1 ? 1 : 0));
  return Buffer.concat([head, ...blank]);
}

t.test(
  "a file that unpacks to too much is refused before it is unpacked whole, and its entry may allow more",
  async (t) => {
    const directory = fresh(t);
    // 50,000 blocks would be 6 GiB.
    const file = write(directory, "bomb.jsonl.zst", zstdBomb(50_000));
    const before = process.memoryUsage().rss;
    const error = await failing([{ path: file, expansion: 100 }], directory);
    t.ok(error instanceof ConfigError);
    t.match(
      error.message,
      /bomb\.jsonl\.zst unpacks to more than 20000600 bytes, 100 times its size; .*: \{path: \.\.\., expansion: 1000\}/,
    );
    t.ok(process.memoryUsage().rss - before < 512 * 1024 * 1024);
    const blank = write(directory, "blank.jsonl.gz", zlib.gzipSync(`{"text":"a"}${" ".repeat(500_000)}\n`));
    t.match(
      (await failing([{ path: blank, expansion: 10 }], directory)).message,
      /blank\.jsonl\.gz unpacks to more than/,
    );
    t.equal((await read(t, [{ path: blank, expansion: 2000 }])).length, 1);
    t.equal((await read(t, [blank])).length, 1, "small files may be anything");
  },
);

t.test("a JSON list of rows, pretty-printed or not, and a .json file of lines", async (t) => {
  const rows = [
    { text: 'a "quoted" [ text ] \\' },
    { prompt: "p{", completion: "c}" },
    { messages: [{ role: "assistant", content: "deep [[" }] },
    { input_ids: [1, 2] },
  ];
  const plain = withoutPlaces(await readRows(t, rows, { chatTemplate }));
  for (const text of [
    JSON.stringify(rows),
    JSON.stringify(rows, null, 2),
    `\ufeff \n${JSON.stringify(rows, null, "\t")}\n`,
  ]) {
    const directory = fresh(t);
    const found = await read(t, [write(directory, "rows.json", text)], { chatTemplate });
    t.same(withoutPlaces(found), plain);
    t.equal(found[3]?.place, "rows.json:4", "the number of a row");
    const packed = write(directory, "rows.json.gz", zlib.gzipSync(text));
    t.same(withoutPlaces(await read(t, [packed], { chatTemplate })), plain);
  }
  const directory = fresh(t);
  const lines = write(directory, "lines.json", rows);
  t.same(withoutPlaces(await read(t, [lines], { chatTemplate })), plain);
  const cases: [text: string, message: RegExp][] = [
    ['[{"text":"a"}', /rows\.json:1: the file is no JSON list of rows: it ends before the list does/],
    ['[{"text":"a"},]', /rows\.json:2: .*a row is missing between commas/],
    ['[{"text":"a"}] {"text":"b"}', /rows\.json:2: .*something stands behind the list/],
    ['[{"text":"a"},{"text":}]', /rows\.json:2: invalid JSON at column 9/],
    ['[{"text":"a"}, 3]', /rows\.json:2: a row must be a JSON object/],
    ["[]", /data\.train: no rows in/],
  ];
  for (const [text, message] of cases) {
    t.match((await failing([write(fresh(t), "rows.json", text)], fresh(t))).message, message, text);
  }
});

t.test("Parquet in every codec, row group by row group", async (t) => {
  const texts = ["one", "zwei \u00e4\u00df", "three \u{1f600}", "line\nbreak", 'quote " and \\'];
  for (const codec of ["none", "snappy", "gzip", "brotli", "zstd"]) {
    const rows = await read(t, [path.join(FORMATS, `texts_${codec}.parquet`)]);
    t.same(
      rows.map(({ ids }) => textOf(ids)),
      texts,
      codec,
    );
    t.equal(rows[4]?.place, `texts_${codec}.parquet:5`);
  }
  const lz4 = await failing([path.join(FORMATS, "texts_lz4.parquet")], fresh(t));
  t.match(lz4.message, /texts_lz4\.parquet: row group 1 of 1 \(rows 1 to 5\) cannot be read: .*LZ4/i);
});

t.test("Parquet: nested messages, floats as floats, nulls left out, columns without effect told", async (t) => {
  const warnings: string[] = [];
  const directory = fresh(t);
  const file = path.join(FORMATS, "messages.parquet");
  const data = await open(directory, {
    ...{ files: [file], ...bytesOptions, chatTemplate },
    onWarning: (message) => warnings.push(message),
  });
  const rows = await rowsOf(data);
  t.same(
    withoutPlaces(rows),
    withoutPlaces(
      await readRows(
        t,
        '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes","tool_calls":[{"name":"f","score":2.0}]},' +
          '{"role":"assistant","content":"no","weight":0}]}\n{"text":"plain"}\n{"text":"also"}\n',
        { chatTemplate },
      ),
    ),
  );
  t.match(textOf(rows[0]?.ids ?? []), /"score": 2\.0/);
  t.equal(warnings.length, 1);
  t.match(warnings[0], /no effect here: "chosen" \(first at .*messages\.parquet:3\)/);
});

t.test("Parquet: ids of each integer type, labels, null columns", async (t) => {
  const plain = withoutPlaces(
    await readRows(t, [{ input_ids: [1, 2, 3], labels: [-100, 2, 3] }, { input_ids: [4, 5] }, { input_ids: [6] }]),
  );
  for (const kind of ["int64", "int32", "uint16"])
    t.same(withoutPlaces(await read(t, [path.join(FORMATS, `ids_${kind}.parquet`)])), plain, kind);
});

t.test("columns under other names, in Parquet and in lines", async (t) => {
  const [renamed] = await read(t, [{ path: path.join(FORMATS, "renamed.parquet"), columns: { text: "content" } }]);
  t.equal(textOf(renamed?.ids ?? []), "renamed");
  const directory = fresh(t);
  const turns = [{ role: "assistant", content: "b" }];
  const file = write(directory, "rows.jsonl", [
    { q: "a", a: "b", prompt: "not this" },
    { q: null, turns },
  ]);
  const columns = { prompt: "q", completion: "a", messages: "turns" };
  const rows = await read(t, [{ path: file, columns }], { chatTemplate });
  const same = await readRows(t, [{ prompt: "a", completion: "b" }, { messages: turns }], { chatTemplate });
  t.same(withoutPlaces(rows), withoutPlaces(same));
});

t.test("Parquet that is damaged, cut short, of other bytes or of no kind", async (t) => {
  const good = fs.readFileSync(path.join(FORMATS, "texts_zstd.parquet"));
  const broken = Buffer.from(good);
  broken.fill(0xee, 4, 500);
  const cases: [name: string, content: Uint8Array, message: RegExp][] = [
    ["a.parquet", good.subarray(0, -7), /a\.parquet: its footer cannot be read: .*; the file is damaged/],
    ["b.parquet", Buffer.from("not parquet at all"), /b\.parquet is no Parquet file/],
    ["c.parquet", broken, /c\.parquet: row group 1 of 3 \(rows 1 to 2\) cannot be read: .*; the file is damaged/],
    ["d.parquet", Buffer.alloc(0), /d\.parquet is no Parquet file/],
    [
      "e.parquet",
      fs.readFileSync(path.join(FORMATS, "not_utf8.parquet")),
      /e\.parquet: row group 1 of 1 \(rows 1 to 1\) cannot be read: a text is not valid UTF-8/,
    ],
    [
      "f.parquet",
      fs.readFileSync(path.join(FORMATS, "no_kind.parquet")),
      /f\.parquet:1: the row is none of the four kinds/,
    ],
    ["g.parquet", Buffer.from("version https://git-lfs.github.com/spec/v1\n"), /g\.parquet is a Git LFS pointer/],
  ];
  for (const [name, content, message] of cases) {
    const directory = fresh(t);
    const error = await failing([write(directory, name, content)], directory);
    t.ok(error instanceof DataError, name);
    t.match(error.message, message, name);
  }
});

t.test("a text file is one document, a folder its texts in the order of names", async (t) => {
  const directory = t.testdir({
    "book.txt": "\ufeffA book.\r\n\nIts end.",
    repo: {
      "b.py": "print(1)\n",
      "a.ts": "let a;\n",
      lib: { "z.md": "# z\n", ".hidden.py": "no" },
      ".git": { "x.py": "no" },
      node_modules: { "x.js": "no" },
      "empty.py": "",
      "image.png": "no",
      "binary.py": "a\0b",
      Makefile: "all:\n",
    },
  });
  fs.writeFileSync(path.join(directory, "repo", "latin.py"), Buffer.from([0x23, 0xe4, 0x0a]));
  fs.symlinkSync("a.ts", path.join(directory, "repo", "link.ts"));
  const [book] = await read(t, [path.join(directory, "book.txt")]);
  t.equal(textOf(book?.ids ?? []), "A book.\r\n\nIts end.");
  const plain = await readRows(t, [
    { text: "all:\n" },
    { text: "let a;\n" },
    { text: "print(1)\n" },
    { text: "# z\n" },
  ]);
  const warnings: string[] = [];
  const data = await open(fresh(t), {
    ...{ files: [path.join(directory, "repo")], ...bytesOptions },
    onWarning: (message) => warnings.push(message),
  });
  const rows = await rowsOf(data);
  t.same(withoutPlaces(rows), withoutPlaces(plain));
  t.same(
    rows.map(({ place }) => place),
    ["Makefile:1", "a.ts:1", "b.py:1", "z.md:1"],
  );
  t.equal(warnings.length, 1);
  t.match(
    warnings[0],
    /repo: 4 texts are read; left out: 3 hidden or installed, 2 not named as texts, 1 empty, 2 not UTF-8 text$/,
  );
});

t.test("texts and folders that cannot be read", async (t) => {
  const directory = t.testdir({ "empty.txt": "", none: { "a.png": "x" }, mixed: { "a.jsonl": "{}", "b.py": "x" } });
  fs.writeFileSync(path.join(directory, "latin.md"), Buffer.from("ok\nna\u00efve", "latin1"));
  const cases: [name: string, message: RegExp][] = [
    ["empty.txt", /empty\.txt is empty/],
    ["latin.md", /latin\.md:2: the text is not valid UTF-8: byte 0xef at byte 6 of the file/],
    ["none", /none is a folder without texts or source files \(left out: 1 not named as texts\)/],
    [
      "mixed",
      /mixed is a folder with files of rows \(.*a\.jsonl\); name them, for example ".*\/mixed\/\*\.jsonl", or say .*type: text/,
    ],
  ];
  for (const [name, message] of cases) {
    t.match((await failing([path.join(directory, name)], fresh(t))).message, message, name);
  }
  const [text] = await read(t, [{ path: path.join(directory, "mixed"), type: "text" }]);
  t.equal(textOf(text?.ids ?? []), "x");
});

t.test("a pattern that finds texts beside rows says so", async (t) => {
  const directory = t.testdir({ "README.md": "About", "a.jsonl": '{"text":"x"}\n', "b.jsonl": '{"text":"y"}\n' });
  const data = await open(fresh(t), { files: [path.join(directory, "*")], ...bytesOptions });
  t.equal(data.documents, 3);
  t.equal(data.warnings.length, 1);
  t.match(data.warnings[0], /finds 2 files of rows and 1 of text, each of which is a document \(.*README\.md\)/);
  await data.close();
});

t.test("the tokens of every format are kept by content", async (t) => {
  const directory = t.testdir({ repo: { "a.py": "one" }, "a.txt": "text" });
  const files = [
    path.join(FORMATS, "texts_snappy.parquet"),
    path.join(FORMATS, "rows.jsonl.zst"),
    path.join(directory, "repo"),
    path.join(directory, "a.txt"),
  ];
  const cacheDir = path.join(directory, "cache");
  const opened = async () => {
    const data = await open(directory, { files, ...bytesOptions });
    await data.close();
    return { fingerprint: data.fingerprint, names: fs.readdirSync(cacheDir).sort() };
  };
  const first = await opened();
  t.equal(first.names.length, 4);
  t.same(await opened(), first);
  fs.writeFileSync(path.join(directory, "repo", "a.py"), "two");
  const second = await opened();
  t.equal(second.names.length, 5);
  t.not(second.fingerprint, first.fingerprint);
});

t.test("entries that cannot be", async (t) => {
  const directory = t.testdir({ folder: { "a.py": "x" }, "a.txt": "x", "a.jsonl": '{"text":"x"}\n' });
  const at = (name: string) => path.join(directory, name);
  const cases: [files: DataOptions["files"], message: RegExp][] = [
    [
      [{ path: at("folder"), type: "parquet" }],
      /"[^"]*folder" is a folder, which can only hold texts, but its type is parquet/,
    ],
    [[{ path: at("a.jsonl"), dtype: "uint16" }], /dtype is for files of token ids, and .*a\.jsonl is one of jsonl/],
    [[{ path: at("a.txt"), columns: { text: "x" } }], /a\.txt has no columns \(text\)/],
    [[{ path: at("none.parquet") }], /there is no file ".*none\.parquet"/],
  ];
  for (const [files, message] of cases) {
    const error = await failing(files, directory);
    t.ok(error instanceof ConfigError);
    t.match(error.message, message);
  }
  const error = await failing([write(directory, "a.txt.gz", "x")], directory);
  t.match(error.message, /a\.txt\.gz is compressed, which is read of \.jsonl and \.json alone; unpack it first/);
});
