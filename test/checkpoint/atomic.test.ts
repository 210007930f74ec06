// Folders that appear at once: swaps, failures, leftovers; and finding the newest checkpoint that is whole.

import { spawnSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import * as path from "node:path";
import t from "tap";
import {
  checkpointPath,
  cleanStale,
  listCheckpoints,
  MANIFEST_NAME,
  newestValid,
  pruneCheckpoints,
  replaceFolder,
  verifyFolder,
  writeFileDurably,
  writeFolder,
} from "../../lib/checkpoint/atomic.js";
import { exchangeNames, hashFile } from "../../lib/checkpoint/native_files.js";
import { writeModel } from "../../lib/checkpoint/safetensors.js";
import { ArgumentError, FormatError, IoError } from "../../lib/errors.js";
import { runChild } from "./helpers.js";

/** A checkpoint with one small and one nested file. */
async function save(dir: string, step: number): Promise<string> {
  const written = await writeFolder(
    checkpointPath(dir, step),
    async (draft) => {
      writeFileSync(await draft.file("trainer.json"), JSON.stringify({ step }));
      writeFileSync(await draft.file("rank/0/state.bin"), Buffer.alloc(1000, step));
    },
    { info: { step } },
  );
  return written.path;
}

t.test("a folder appears with a manifest of sizes and hashes", async (t) => {
  const dir = path.join(t.testdir({}), "runs", "checkpoints");
  const target = checkpointPath(dir, 5);
  let draftPath = "";
  const written = await writeFolder(
    target,
    async (draft) => {
      draftPath = draft.path;
      t.equal(path.dirname(draftPath), dir, "beside the target: the same file system");
      const values = { name: "w", dtype: "F32" as const, shape: [100], load: () => new Float32Array(100) };
      for (const [name, digest] of await writeModel(draft.path, [values])) draft.note(name, digest);
      writeFileSync(await draft.file("a/b/c.txt"), "text");
      t.notOk(existsSync(target), "not there before it is complete");
    },
    { info: { step: 5 } },
  );
  t.notOk(existsSync(draftPath));
  t.same(readdirSync(dir), ["step-5"]);
  t.same(written.files.sort(), ["a/b/c.txt", MANIFEST_NAME, "model.safetensors"]);
  const manifest = await verifyFolder(target);
  t.same(manifest.info, { step: 5 });
  t.same(manifest.files["a/b/c.txt"], await hashFile(path.join(target, "a/b/c.txt")));
  t.same(manifest.files["model.safetensors"], await hashFile(path.join(target, "model.safetensors")));
  t.equal(
    written.bytes,
    written.files.map((name) => readFileSync(path.join(target, name)).length).reduce((a, b) => a + b),
  );
});

t.test("an existing folder is replaced as a whole, with or without a manifest", async (t) => {
  const dir = t.testdir({ model: { "old.txt": "old", "both.txt": "old" } });
  const target = path.join(dir, "model");
  await writeFolder(target, async (draft) => writeFileSync(await draft.file("both.txt"), "new"), { manifest: false });
  t.same(readdirSync(target), ["both.txt"]);
  t.equal(readFileSync(path.join(target, "both.txt"), "utf8"), "new");
  t.same(readdirSync(dir), ["model"], "the old one is gone");
  await writeFolder(`${target}/`, async (draft) => writeFileSync(await draft.file("third.txt"), "3"));
  t.same(readdirSync(target).sort(), [MANIFEST_NAME, "third.txt"]);
});

t.test("a failure leaves the old folder and no draft", async (t) => {
  const dir = t.testdir({});
  const target = await save(dir, 1);
  const unchanged = async (what: string) => {
    t.same(readdirSync(dir), ["step-1"], `${what}: no draft`);
    await t.resolves(verifyFolder(target), `${what}: the old one is whole`);
  };
  const boom = new Error("boom");
  await t.rejects(
    writeFolder(target, () => Promise.reject(boom)),
    boom,
  );
  await unchanged("fill throws");
  await t.rejects(
    writeFolder(target, () => {}, { signal: AbortSignal.abort(boom) }),
    boom,
  );
  await unchanged("aborted");
  await t.rejects(
    writeFolder(target, (draft) => symlinkSync("/etc/passwd", path.join(draft.path, "link"))),
    { constructor: ArgumentError, message: /link is neither a file nor a folder/ },
  );
  await unchanged("a link");
  await t.rejects(
    writeFolder(target, (draft) => draft.note("ghost", { bytes: 1, hash: "0" })),
    { constructor: ArgumentError, message: /ghost was noted, but is not in/ },
  );
  await t.rejects(
    writeFolder(target, async (draft) => {
      writeFileSync(await draft.file("x"), "12");
      draft.note("x", { bytes: 1, hash: "0" });
    }),
    { constructor: FormatError, message: /x has 2 bytes where its writer counted 1/ },
  );
  await t.rejects(
    writeFolder(target, async (draft) => writeFileSync(await draft.file(MANIFEST_NAME), "{}")),
    { message: /written by the save itself/ },
  );
  for (const name of ["../x", "/x", "", "a//b", "a/../b", "a\0"]) {
    await t.rejects(
      writeFolder(target, async (draft) => {
        await draft.file(name);
      }),
      { constructor: ArgumentError, message: /not a relative file name inside the folder/ },
      JSON.stringify(name),
    );
  }
  await unchanged("wrong use");
  await t.rejects(
    writeFolder(target, async (draft) => writeFileSync(path.join(draft.path, "no", "such"), "x")),
    {
      constructor: IoError,
      message: /cannot save .*step-1: ENOENT.*; what was saved there before is untouched/,
      details: { errno: "ENOENT" },
    },
  );
  await unchanged("a system error");
  t.throws(() => checkpointPath(dir, -1), ArgumentError);
  t.throws(() => checkpointPath(dir, 1.5), ArgumentError);
});

t.test("a full disk: the error names path and cause, earlier checkpoints stay", async (t) => {
  const dir = t.testdir({});
  await save(dir, 1);
  for (const kind of ["native", "node"]) {
    for (const step of ["1", "2"]) {
      const { code, out } = await runChild("save_child.ts", [dir, kind, step, "8000000"], 3000);
      t.equal(code, 0);
      const { name, message, errno } = JSON.parse(out);
      t.equal(name, "IoError", `${kind} ${step}`);
      t.equal(errno, "EFBIG");
      t.match(message, new RegExp(`cannot save .*step-${step}: .*EFBIG`));
      if (kind === "native") t.match(message, /cannot write \d+ bytes at byte \d+ of .*model\.safetensors/);
      t.match(
        message,
        step === "1" ? /what was saved there before is untouched$/ : /earlier checkpoints are untouched$/,
      );
      t.same(readdirSync(dir), ["step-1"]);
      t.equal((await newestValid(dir)).checkpoint?.step, 1);
    }
  }
});

t.test("a place where nothing can be written", async (t) => {
  // /proc refuses even root.
  await t.rejects(
    writeFolder("/proc/longseq/step-1", () => {}),
    {
      constructor: IoError,
      message: /cannot save \/proc\/longseq\/step-1: ENOENT.*; earlier checkpoints are untouched/,
    },
  );
  const dir = t.testdir({ file: "x" });
  await t.rejects(
    writeFolder(path.join(dir, "file", "step-1"), () => {}),
    { constructor: IoError, message: /cannot save .*step-1: ENOTDIR/ },
  );
  // As another user, because permissions stop nobody who is root.
  if (process.getuid?.() === 0) {
    const { status, stdout } = spawnSync(
      process.execPath,
      ["--import=tsx", path.join(import.meta.dirname, "save_child.ts"), "/usr", "node", "1", "10"],
      {
        uid: 65534,
        gid: 65534,
        encoding: "utf8",
        env: { PATH: process.env.PATH, HOME: "/tmp", LONGSEQ_PREBUILD: process.env.LONGSEQ_PREBUILD ?? "" },
      },
    );
    // The clone itself may be out of that user's reach; then the child says nothing.
    if (status === 0)
      t.match(JSON.parse(stdout), { name: "IoError", errno: "EACCES", message: /cannot save \/usr\/step-1: EACCES/ });
  }
});

t.test("newest valid: broken newer ones are passed over, with a reason", async (t) => {
  const dir = t.testdir({});
  t.same(await newestValid(dir), { checkpoint: undefined, passedOver: [] });
  t.same(await newestValid(path.join(dir, "missing")), { checkpoint: undefined, passedOver: [] });
  for (const step of [2, 9, 10, 100, 101, 102, 103, 104]) await save(dir, step);
  mkdirSync(path.join(dir, "step-07"));
  mkdirSync(path.join(dir, "step-x"));
  writeFileSync(path.join(dir, "step-999"), "a file");
  t.same(
    (await listCheckpoints(dir)).map(({ step }) => step),
    [2, 9, 10, 100, 101, 102, 103, 104],
  );
  t.equal((await newestValid(dir)).checkpoint?.step, 104);

  const at = (step: number, name: string) => path.join(checkpointPath(dir, step), name);
  rmSync(at(104, MANIFEST_NAME));
  truncateSync(at(103, "rank/0/state.bin"), 999);
  const state = readFileSync(at(102, "rank/0/state.bin"));
  state[500] = (state[500] as number) ^ 1;
  writeFileSync(at(102, "rank/0/state.bin"), state);
  rmSync(at(101, "trainer.json"));
  appendFileSync(at(100, MANIFEST_NAME), "}");
  const { checkpoint, passedOver } = await newestValid(dir);
  t.equal(checkpoint?.step, 10);
  t.same(checkpoint?.manifest.info, { step: 10 });
  t.same(
    passedOver.map(({ step }) => step),
    [104, 103, 102, 101, 100],
  );
  const reasons = passedOver.map(({ reason }) => reason);
  t.match(reasons[0], /step-104 has no manifest\.json: its save did not finish/);
  t.match(reasons[1], /state\.bin has 999 bytes where the manifest says 1000/);
  t.match(reasons[2], /state\.bin has hash [0-9a-f]{16} where the manifest says [0-9a-f]{16}: the file is damaged/);
  t.match(reasons[3], /trainer\.json is missing, though the manifest lists it/);
  t.match(reasons[4], /manifest\.json is not valid JSON/);
  t.equal((await newestValid(dir, { hashes: false })).checkpoint?.step, 102, "sizes alone do not see a flipped bit");
});

t.test("manifests that are none", async (t) => {
  const dir = t.testdir({});
  const folder = await save(dir, 1);
  const file = path.join(folder, MANIFEST_NAME);
  const good = JSON.parse(readFileSync(file, "utf8"));
  for (const [content, message] of [
    [[], /not the manifest of a checkpoint/],
    [null, /not the manifest of a checkpoint/],
    [{ ...good, format: "x" }, /not the manifest of a checkpoint/],
    [{ ...good, files: [] }, /not the manifest of a checkpoint/],
    [{ ...good, version: 2 }, /has version 2 and hash xxh64; this release reads version 1/],
    [{ ...good, hash: "md5" }, /hash md5/],
    [
      { ...good, files: { "../../x": { bytes: 1, hash: "0" } } },
      /"\.\.\/\.\.\/x", which is not a name inside the folder/,
    ],
    [{ ...good, files: { "trainer.json": { bytes: "1" } } }, /no size and hash for trainer\.json/],
    [{ ...good, files: { rank: { bytes: 1, hash: "0" } } }, /rank is not a file/],
  ] as const) {
    writeFileSync(file, JSON.stringify(content));
    await t.rejects(verifyFolder(folder), { constructor: FormatError, message });
  }
});

t.test("pruning keeps the newest complete ones", async (t) => {
  const dir = t.testdir({});
  for (const step of [1, 2, 3, 4]) await save(dir, step);
  mkdirSync(path.join(dir, "step-5")); // no manifest: neither counted nor touched
  t.same(await pruneCheckpoints(dir, 2), [checkpointPath(dir, 1), checkpointPath(dir, 2)]);
  t.same(readdirSync(dir).sort(), ["step-3", "step-4", "step-5"]);
  t.same(await pruneCheckpoints(dir, 2), []);
  t.same(await pruneCheckpoints(path.join(dir, "missing"), 1), []);
  for (const keep of [0, -1, 1.5, Number.NaN])
    await t.rejects(pruneCheckpoints(dir, keep), { constructor: ArgumentError, message: /keep must be/ });
});

t.test("what killed processes left is cleaned up, what living ones write is not", async (t) => {
  const dir = t.testdir({});
  await save(dir, 1);
  const host = hostname().replace(/[^A-Za-z0-9_-]/g, "_");
  const start = readFileSync(`/proc/${process.pid}/stat`, "utf8").split(") ").at(-1)?.split(" ")[19];
  const hour = new Date(Date.now() - 2 * 3_600_000);
  const names = {
    dead: `.step-2.tmp-4000000-5-0@${host}`,
    reused: `.step-2.tmp-${process.pid}-1-0@${host}`,
    alive: `.step-2.tmp-${process.pid}-${start}-0@${host}`,
    foreignNew: ".step-2.tmp-1-1-0@elsewhere",
    foreignOld: ".step-3.tmp-1-1-0@elsewhere",
    aside: `.step-9.old-4000000-5-0@${host}`,
    replaced: `.step-1.old-4000000-5-0@${host}`,
    other: ".step-2.tmp",
  };
  for (const name of Object.values(names)) {
    mkdirSync(path.join(dir, name));
    writeFileSync(path.join(dir, name, "part"), name);
  }
  utimesSync(path.join(dir, names.foreignOld, "part"), hour, hour);
  utimesSync(path.join(dir, names.foreignOld), hour, hour);
  t.same(
    (await cleanStale(dir)).sort(),
    [names.dead, names.reused, names.foreignOld, names.aside, names.replaced].sort(),
  );
  t.same(readdirSync(dir).sort(), [names.alive, names.foreignNew, names.other, "step-1", "step-9"].sort());
  t.equal(readFileSync(path.join(dir, "step-9", "part"), "utf8"), names.aside, "a folder moved aside is put back");
  await t.resolves(verifyFolder(checkpointPath(dir, 1)), "and never over one that is there");
  t.same(await cleanStale(path.join(dir, "missing")), []);
  // Leftovers are no checkpoints.
  t.same(
    (await listCheckpoints(dir)).map(({ step }) => step),
    [1, 9],
  );
});

t.test("swapping names and replacing one file", async (t) => {
  const dir = t.testdir({ a: { x: "a" }, b: { x: "b" } });
  t.equal(await exchangeNames(path.join(dir, "a"), path.join(dir, "b")), true);
  t.equal(readFileSync(path.join(dir, "a", "x"), "utf8"), "b");
  await t.rejects(exchangeNames(path.join(dir, "a"), path.join(dir, "none")), {
    constructor: IoError,
    message: /cannot swap /,
    details: { errno: "ENOENT" },
  });
  const cannot = async () => false;
  const aside = await replaceFolder(path.join(dir, "a"), path.join(dir, "b"), cannot);
  t.equal(readFileSync(path.join(dir, "b", "x"), "utf8"), "b", "two renames where names cannot be swapped");
  t.equal(readFileSync(path.join(aside, "x"), "utf8"), "a");
  await t.rejects(replaceFolder(path.join(dir, "none"), path.join(dir, "b"), cannot), { code: "ENOENT" });
  t.equal(readFileSync(path.join(dir, "b", "x"), "utf8"), "b", "put back where the second rename fails");
  renameSync(aside, path.join(dir, "a"));
  const file = path.join(dir, "state.json");
  await writeFileDurably(file, "1");
  await writeFileDurably(file, Buffer.from("22"));
  t.equal(readFileSync(file, "utf8"), "22");
  renameSync(file, path.join(dir, "kept"));
  mkdirSync(file);
  await t.rejects(writeFileDurably(file, "3"), { constructor: IoError, message: /cannot save .*state\.json: EISDIR/ });
  t.same(readdirSync(dir).sort(), ["a", "b", "kept", "state.json"]);
});
