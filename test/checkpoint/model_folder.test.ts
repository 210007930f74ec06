// Model folders: one file or shards, an index that lies, weights in other formats; and export.

import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import * as path from "node:path";
import t from "tap";
import { type ExportTensor, openModelFolder, SafetensorsFile, writeModel } from "../../lib/checkpoint/safetensors.js";
import { ArgumentError, FormatError, IoError, ModelError } from "../../lib/errors.js";
import { golden, writeSafetensors } from "./helpers.js";

const root = t.testdir({});
const INDEX = "model.safetensors.index.json";
let folders = 0;

/** A folder with shards of one-value tensors and an index. */
function folder(shards: Record<string, Record<string, number>>, index?: unknown): string {
  const dir = path.join(root, `model-${folders++}`);
  mkdirSync(dir);
  const weightMap: Record<string, string> = {};
  for (const [file, tensors] of Object.entries(shards)) {
    const header: Record<string, unknown> = {};
    Object.keys(tensors).forEach((name, i) => {
      header[name] = { dtype: "F32", shape: [1], data_offsets: [4 * i, 4 * i + 4] };
      weightMap[name] = file;
    });
    writeSafetensors(path.join(dir, file), header, Buffer.from(Float32Array.from(Object.values(tensors)).buffer));
  }
  const content = index ?? { metadata: { total_size: 1 }, weight_map: weightMap };
  writeFileSync(path.join(dir, INDEX), typeof content === "string" ? content : JSON.stringify(content));
  return dir;
}

t.test("shards written by huggingface_hub", async (t) => {
  using model = await openModelFolder(path.join(golden, "sharded"));
  t.equal(model.entries.size, 5);
  for (let i = 0; i < 5; i++) {
    const name = `model.layers.${i}.weight`;
    t.same(model.entries.get(name)?.shape, [4, 8]);
    t.same([...new Float32Array(await model.readBytes(name))], Array(32).fill(i));
  }
  t.equal(model.entries.get("model.layers.4.weight")?.file, "model-00003-of-00003.safetensors");
  await t.rejects(model.readBytes("lm_head.weight"), {
    constructor: ModelError,
    message: /sharded has no tensor "lm_head.weight"/,
  });
});

t.test("one file, also through symbolic links as in the Hugging Face cache", async (t) => {
  const dir = path.join(root, "snapshot");
  mkdirSync(path.join(root, "blobs"));
  mkdirSync(dir);
  copyFileSync(path.join(golden, "python.safetensors"), path.join(root, "blobs", "0123"));
  symlinkSync("../blobs/0123", path.join(dir, "model.safetensors"));
  using model = await openModelFolder(dir);
  t.equal(model.entries.get("matrix")?.file, "model.safetensors");
  t.equal((await model.readBytes("matrix")).byteLength, 140);
});

t.test("index paths that leave the folder", async (t) => {
  folder({ "a.safetensors": { w: 1 } });
  for (const name of [
    "../model-0/a.safetensors",
    path.join(root, "model-0", "a.safetensors"),
    "sub/a.safetensors",
    "..\\a.safetensors",
    ".",
    "..",
    "",
    "a\0.safetensors",
    "a.bin",
    7,
    null,
    ["a.safetensors"],
  ]) {
    const dir = folder({}, { weight_map: { w: name } });
    await t.rejects(
      openModelFolder(dir),
      {
        constructor: FormatError,
        message: /places tensor "w" in .*, which is not the plain name of a \.safetensors file in the folder/,
      },
      JSON.stringify(name),
    );
  }
});

t.test("an index and shards that disagree", async (t) => {
  const missing = folder({ "a.safetensors": { x: 1 }, "b.safetensors": { y: 2 } });
  rmSync(path.join(missing, "b.safetensors"));
  await t.rejects(openModelFolder(missing), {
    constructor: ModelError,
    message: /names b\.safetensors, which is not in the folder: the download is not complete/,
  });
  await t.rejects(
    openModelFolder(folder({ "a.safetensors": { x: 1 } }, { weight_map: { x: "a.safetensors", y: "a.safetensors" } })),
    {
      constructor: FormatError,
      message: /says that tensor "y" is in a\.safetensors, but it is not/,
    },
  );
  await t.rejects(
    openModelFolder(folder({ "a.safetensors": { x: 1, z: 2 } }, { weight_map: { x: "a.safetensors" } })),
    {
      constructor: FormatError,
      message: /a\.safetensors holds tensor "z", which model\.safetensors\.index\.json does not list/,
    },
  );
  await t.rejects(
    openModelFolder(
      folder(
        { "a.safetensors": { x: 1 }, "b.safetensors": { x: 2, y: 3 } },
        { weight_map: { x: "a.safetensors", y: "b.safetensors" } },
      ),
    ),
    {
      constructor: FormatError,
      message: /b\.safetensors holds tensor "x", which .* places in a\.safetensors/,
    },
  );
  const broken = folder({ "a.safetensors": { x: 1 } });
  writeFileSync(path.join(broken, "a.safetensors"), readFileSync(path.join(broken, "a.safetensors")).subarray(0, -1));
  await t.rejects(openModelFolder(broken), {
    constructor: FormatError,
    message: /a\.safetensors: tensor "x": .*cut off/,
  });
});

t.test("a broken index", async (t) => {
  for (const [index, message] of [
    ["{", /index\.json is not valid JSON/],
    ["[]", /has no object "weight_map"/],
    ["null", /has no object "weight_map"/],
    ['{"weight_map":[]}', /has no object "weight_map"/],
    ['{"weight_map":{}}', /lists no tensor/],
    ["version https://git-lfs.github.com/spec/v1\n", /Git LFS pointer.*git lfs pull/],
  ] as const) {
    await t.rejects(openModelFolder(folder({}, index)), { constructor: FormatError, message });
  }
  const dir = folder({});
  writeFileSync(path.join(dir, INDEX), Buffer.from('{"weight_map":{"\xff":"a"}}', "latin1"));
  await t.rejects(openModelFolder(dir), { constructor: FormatError, message: /not valid UTF-8/ });
});

t.test("folders without safetensors", async (t) => {
  await t.rejects(openModelFolder(path.join(root, "nowhere")), {
    constructor: ModelError,
    message: /nowhere does not exist/,
  });
  await t.rejects(openModelFolder(path.join(golden, "values.json")), {
    constructor: ModelError,
    message: /values\.json is not a folder/,
  });
  const dir = t.testdir({});
  await t.rejects(openModelFolder(dir), {
    constructor: ModelError,
    message: /has neither model\.safetensors nor model\.safetensors\.index\.json/,
  });
  writeFileSync(path.join(dir, "pytorch_model.bin"), "PK");
  await t.rejects(openModelFolder(dir), {
    constructor: ModelError,
    message: /only pytorch_model\.bin: save the model in safetensors form/,
  });
  writeFileSync(path.join(dir, "model-00001-of-00002.safetensors"), "");
  await t.rejects(openModelFolder(dir), {
    constructor: ModelError,
    message: /holds model-00001-of-00002\.safetensors, but not model\.safetensors\.index\.json/,
  });
});

/** Tensors of one value each times `size`, and a count of how many are loaded at a time. */
function exported(sizes: number[]): { tensors: ExportTensor[]; most: () => number } {
  let loaded = 0;
  let most = 0;
  const tensors = sizes.map(
    (size, i): ExportTensor => ({
      name: `t${i}`,
      dtype: i % 2 === 0 ? "BF16" : "F32",
      shape: [size],
      load() {
        most = Math.max(most, ++loaded);
        return i % 2 === 0 ? new Uint16Array(size).fill(i) : new Float32Array(size).fill(i);
      },
      done() {
        loaded--;
      },
    }),
  );
  return { tensors, most: () => most };
}

t.test("export: one file", async (t) => {
  const dir = t.testdir({});
  const { tensors, most } = exported([3, 5, 7]);
  const written = await writeModel(dir, tensors);
  t.same([...written.keys()], ["model.safetensors"]);
  t.same(readdirSync(dir), ["model.safetensors"]);
  t.equal(most(), 1, "one tensor at a time");
  using model = await openModelFolder(dir);
  t.same(new Float32Array(await model.readBytes("t1")), new Float32Array(5).fill(1));
  t.same(new Uint16Array(await model.readBytes("t2")), new Uint16Array(7).fill(2));
  using file = await SafetensorsFile.open(path.join(dir, "model.safetensors"));
  t.same({ ...file.metadata }, { format: "pt" });
  t.equal([...file.entries.keys()][0], "t1", "wide values first, so that each is aligned");
});

t.test("export: shards and their index", async (t) => {
  const dir = t.testdir({});
  // 20, 40, 20, 400, 20, 40 bytes.
  const { tensors } = exported([10, 10, 10, 100, 10, 10]);
  const written = await writeModel(dir, tensors, { maxShardBytes: 80 });
  const names = [1, 2, 3].map((i) => `model-0000${i}-of-00003.safetensors`);
  t.same([...written.keys()], names);
  for (const [name, digest] of written) t.equal(statSync(path.join(dir, name)).size, digest.bytes);
  t.same(JSON.parse(readFileSync(path.join(dir, INDEX), "utf8")), {
    metadata: { total_size: 540 },
    weight_map: { t0: names[0], t1: names[0], t2: names[0], t3: names[1], t4: names[2], t5: names[2] },
  });
  using model = await openModelFolder(dir);
  t.equal(model.entries.size, 6);
  t.same(new Float32Array(await model.readBytes("t3")), new Float32Array(100).fill(3));
});

t.test("export: what is refused, and failures in the middle", async (t) => {
  const dir = t.testdir({});
  const [first] = exported([3]).tensors as [ExportTensor];
  await t.rejects(writeModel(dir, []), { constructor: ArgumentError, message: /no tensor to write/ });
  await t.rejects(writeModel(dir, [first, first]), { constructor: ArgumentError, message: /"t0" occurs twice/ });
  await t.rejects(writeModel(dir, [{ ...first, shape: [Number.NaN] }]), {
    message: /shape \[NaN\] is not made of sizes/,
  });
  await t.rejects(writeModel(dir, [{ ...first, dtype: "X" as "F32" }]), { message: /unknown dtype X/ });
  await t.rejects(writeModel(dir, [first], { maxShardBytes: 0 }), { message: /maxShardBytes must be positive/ });
  let done = 0;
  const failing: ExportTensor = {
    ...first,
    name: "bad",
    load: () => Promise.reject(new Error("no such tensor")),
    done: () => {
      done++;
    },
  };
  await t.rejects(writeModel(dir, [first, failing]), { message: "no such tensor" });
  t.equal(done, 1, "what was loaded is given back");
  await t.rejects(writeModel(dir, [first], { signal: AbortSignal.abort(new Error("stop")) }), { message: "stop" });
  await t.rejects(writeModel(path.join(dir, "no"), [first]), { constructor: IoError, message: /ENOENT/ });
  t.same(readdirSync(dir), [], "nothing is left");
});
