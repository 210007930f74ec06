// Builds examples/native as a user would, outside the clone, and runs its op on longseq tensors.
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, symlinkSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { device, native, tensor } from "../lib/index.js";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folder = await mkdtemp(join(tmpdir(), "longseq-addon-"));
t.teardown(() => rm(folder, { recursive: true, force: true }));

interface Addon {
  scaleAdd(backend: object, y: object, x: object, alpha: number): void;
}

cpSync(join(root, "examples/native"), folder, {
  recursive: true,
  filter: (path) => !/\/(build|node_modules)$/.test(path.slice(root.length)),
});
mkdirSync(join(folder, "node_modules"));
symlinkSync(root, join(folder, "node_modules/longseq"));

/** Runs node in the example's folder; a failure shows all it printed. */
function node(...args: string[]): string {
  const result = spawnSync(process.execPath, args, { cwd: folder, encoding: "utf8" });
  if (result.status !== 0) throw new Error(`node ${args.join(" ")}\n${result.stdout}${result.stderr}`);
  return result.stdout;
}

node(join(root, "node_modules/cmake-js/bin/cmake-js"), "build", "-G", "Ninja", "-l", "warn");
const addon = createRequire(import.meta.url)(join(folder, "build/Release/scale_add.node")) as Addon;

t.test("the example prints what its addon computed", async (t) => {
  t.equal(node("example.mjs"), "y + 0.5 x = 10.5, 21, 31.5, 42\n");
});

t.test("the addon's op works on the tensors themselves, strided ones too", async (t) => {
  const cpu = device("cpu");
  const x = tensor([
    [1, 2, 3],
    [4, 5, 6],
  ]);
  const y = tensor([
    [10, 20],
    [30, 40],
    [50, 60],
  ]);
  await cpu.synchronize();
  addon.scaleAdd(native.backendTable(cpu), y.native(), x.transpose(0, 1).native(), 2);
  t.strictSame([...((await y.data()) as Float32Array)], [12, 28, 34, 50, 56, 72]);
});

t.test("anything but a longseq tensor and table is refused", async (t) => {
  const backend = native.backendTable(device("cpu"));
  const y = tensor([1]).native();
  const expected = { message: /expected \(backendTable, y.native\(\), x.native\(\), alpha\)/ };
  t.throws(() => addon.scaleAdd(y, backend, y, 1), expected, "swapped");
  t.throws(() => addon.scaleAdd(backend, y, {}, 1), expected, "a plain object");
  t.throws(() => addon.scaleAdd(backend, y, Buffer.alloc(200), 1), expected, "bytes");
  t.throws(() => addon.scaleAdd(backend, y, y, "1" as unknown as number), expected, "a string");
});
