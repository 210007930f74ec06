// Packs the npm package, installs it in an empty folder, inspects its binaries and runs it with nothing but node on PATH.
import { spawnSync } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
// Outside the clone: nothing of it may be found by accident.
const folder = await mkdtemp(join(tmpdir(), "longseq-package-"));
t.teardown(() => rm(folder, { recursive: true, force: true }));
const app = join(folder, "app");
const installed = join(app, "node_modules/longseq");
const bare = join(folder, "bin");
mkdirSync(app);
mkdirSync(bare);
symlinkSync(process.execPath, join(bare, "node"));

/** Runs a command to its end; a failure shows all it printed. */
function run(command: string, args: string[], cwd: string, env: NodeJS.ProcessEnv = process.env): string {
  const result = spawnSync(command, args, { cwd, env, encoding: "utf8", maxBuffer: 1 << 26 });
  if (result.error) throw result.error;
  if (result.status !== 0) {
    throw new Error(
      `${command} ${args.join(" ")} exited with ${result.status ?? result.signal}\n${result.stdout}${result.stderr}`,
    );
  }
  return result.stdout;
}

/** Runs the installed command with a PATH that holds node alone. */
const longseq = (...args: string[]) =>
  run(join(app, "node_modules/.bin/longseq"), args, app, { PATH: bare, HOME: folder });

function filesUnder(path: string): string[] {
  return readdirSync(path, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? filesUnder(join(path, entry.name)) : [join(path, entry.name)],
  );
}

function isElf(path: string): boolean {
  const file = openSync(path, "r");
  const magic = Buffer.alloc(4);
  readSync(file, magic, 0, 4, 0);
  closeSync(file);
  return magic.toString("latin1") === "\x7fELF";
}

t.test("it packs and installs, without scripts and with all that belongs in it", async (t) => {
  const [packed] = JSON.parse(run("npm", ["pack", "--json", "--pack-destination", folder], root)) as [
    { filename: string; files: { path: string }[] },
  ];
  const paths = packed.files.map((file) => file.path);
  for (const wanted of [
    "LICENSE",
    "README.md",
    "THIRD_PARTY_NOTICES",
    "bin/longseq.mjs",
    "dist/lib/index.d.ts",
    "dist/lib/index.js",
    "dist/cjs/package.json",
    "dist/cjs/lib/index.d.ts",
    "dist/cjs/lib/index.js",
    // Of the page of longseq watch.
    "dist/lib/watch/page/main.js",
    "native/include/longseq/backend.h",
    "native/runtime/rates/cpu.json",
    "prebuilds/linux-x64/longseq.glibc.node",
    // Where nvcc is, the CUDA backend is built, and packed.
    ...(existsSync(join(root, "build/Release/liblongseq_cuda.so")) ? ["prebuilds/linux-x64/liblongseq_cuda.so"] : []),
  ]) {
    t.ok(paths.includes(wanted), `${wanted} is packed`);
  }
  const strange = paths.filter(
    (path) =>
      !/^(bin|dist\/(lib|cjs)|examples|native\/include|native\/runtime\/rates|prebuilds)\//.test(path) &&
      !/^(LICENSE|README\.md|THIRD_PARTY_NOTICES|package\.json)$/.test(path),
  );
  t.strictSame(strange, [], "nothing else is packed");
  t.notOk(paths.some((path) => /binding\.gyp$|\.tsbuildinfo$|node_modules|\.env$/.test(path)));

  writeFileSync(join(app, "package.json"), '{ "name": "app", "private": true, "type": "module" }\n');
  const tarball = join(folder, packed.filename);
  run("npm", ["install", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts", tarball], app);
  const manifest = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
  for (const script of ["preinstall", "install", "postinstall"])
    t.notOk(script in manifest.scripts, `no ${script} script`);
});

t.test("every binary needs the C library alone, of 2.34 at most", async (t) => {
  const binaries = filesUnder(installed).filter(isElf);
  t.ok(binaries.length > 0);
  for (const binary of binaries) {
    const name = binary.slice(installed.length + 1);
    const dynamic = run("readelf", ["-d", binary], app);
    const needed = [...dynamic.matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1] ?? "");
    const known = /^(libc\.so\.6|libm\.so\.6|libdl\.so\.2|libpthread\.so\.0|ld-linux-x86-64\.so\.2)$/;
    t.strictSame(
      needed.filter((library) => !known.test(library)),
      [],
      `${name} needs ${needed.join(", ")}`,
    );
    t.notMatch(dynamic, /RPATH|RUNPATH/, `${name} looks into no folder of the build machine`);
    const symbols = run("objdump", ["-T", binary], app);
    const versions = [...symbols.matchAll(/\b([A-Z]+)_(\d+)\.(\d+)/g)];
    t.ok(versions.length > 0);
    const tooNew = versions
      .filter(([, set, major, minor]) => set !== "GLIBC" || Number(major) > 2 || Number(minor) > 34)
      .map(([version]) => version);
    t.strictSame([...new Set(tooNew)], [], `${name} asks for nothing newer`);
    const exported = symbols
      .split("\n")
      .filter((line) => /^[0-9a-f]{16} .*\s\.text\s/.test(line))
      .map((line) => line.trim().split(/\s+/).at(-1));
    t.strictSame(
      exported.sort(),
      name.endsWith(".so")
        ? ["ls_backend_attention", "ls_backend_open", "ls_comm_open"]
        : ["napi_register_module_v1", "node_api_module_get_api_version_v1"],
      `${name} shows what is looked up and nothing else`,
    );
  }
});

t.test("doctor runs on the installed binary", async (t) => {
  const said = longseq("doctor");
  t.match(said, /^cpu +available/m);
  t.match(said, /^cuda +(available|not available: .*liblongseq_cuda\.so (is missing|cannot be used))/m);
});

t.test("it trains, exports and resumes as finished", async (t) => {
  const rows = Array.from({ length: 16 }, (_, row) =>
    JSON.stringify({ input_ids: Array.from({ length: 32 }, (_, i) => (row * 7 + i * 3) % 50) }),
  );
  writeFileSync(join(app, "rows.jsonl"), `${rows.join("\n")}\n`);
  const config = {
    model: {
      dtype: "float32",
      init: {
        architectures: ["LlamaForCausalLM"],
        model_type: "llama",
        vocab_size: 50,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10000,
        hidden_act: "silu",
        tie_word_embeddings: false,
      },
    },
    data: { train: ["rows.jsonl"], sequence_length: 32, packing: false },
    train: { steps: 8, batch_size: 2, learning_rate: 0.01 },
    output: { dir: "run" },
  };
  writeFileSync(join(app, "train.yaml"), JSON.stringify(config));
  longseq("train", "train.yaml");
  const steps = readFileSync(join(app, "run/metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .filter((line) => !("event" in line));
  t.strictSame(
    steps.map((line) => line.step),
    [1, 2, 3, 4, 5, 6, 7, 8],
  );
  t.ok(steps.at(-1).loss < steps[0].loss - 0.1, `the loss went from ${steps[0].loss} to ${steps.at(-1).loss}`);
  const exported = readdirSync(join(app, "run/model"));
  t.ok(exported.includes("config.json") && exported.some((name) => name.endsWith(".safetensors")), exported.join(", "));
  longseq("train", "train.yaml");
});

t.test("it can be imported and its types hold in a strict program", async (t) => {
  const code =
    'import * as longseq from "longseq"; import include from "longseq/include"; console.log(include, typeof longseq.loadModel);';
  const printed = run("node", ["--input-type=module", "-e", code], app, { PATH: bare, HOME: folder });
  t.equal(printed, `${join(installed, "native/include")} function\n`);
  writeFileSync(
    join(app, "use.ts"),
    'import { loadModel } from "longseq";\nimport include from "longseq/include";\n' +
      "const path: string = include;\nexport const use = async () => [path, await loadModel(path)];\n",
  );
  check(app, ["use.ts", "--module", "nodenext"]);
});

/** Type-checks a strict program of the installed package. */
function check(folder: string, args: string[]): void {
  const options = ["--noEmit", "--strict", "--target", "es2022", "--types", "node"];
  const places = ["--typeRoots", join(root, "node_modules/@types"), "--lib", "es2023,esnext.disposable"];
  run(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), ...options, ...places, ...args], folder);
}

t.test("it can be required, and both ways give the same module", async (t) => {
  // A folder inside the app whose programs are CommonJS.
  const old = join(app, "old");
  mkdirSync(old);
  writeFileSync(join(old, "package.json"), '{ "type": "commonjs" }\n');
  writeFileSync(
    join(old, "use.js"),
    'const { Tensor, loadModel } = require("longseq"); const include = require("longseq/include").default;\n' +
      'import("longseq").then((longseq) => console.log(include, typeof loadModel, longseq.Tensor === Tensor));\n',
  );
  const result = spawnSync(process.execPath, ["use.js"], { cwd: old, encoding: "utf8" });
  t.equal(result.stdout, `${join(installed, "native/include")} function true\n`);
  t.equal(result.stderr, "", "and says nothing about it");
  // What names the entries, however the compiler finds them.
  const program =
    'import { Tensor, loadModel, type Config } from "longseq";\nimport include from "longseq/include";\n' +
    "const path: string = include;\nexport const use = async (config: Config) => [path, config.train.steps, await loadModel(path)];\n" +
    "export const shape = (x: Tensor): readonly number[] => x.shape;\n" +
    "// @ts-expect-error: it is a function of a folder\nloadModel(3);\n";
  const required =
    'import longseq = require("longseq");\nexport const open: (folder: string) => Promise<longseq.CausalLM> = (folder) => longseq.loadModel(folder);\n';
  writeFileSync(join(app, "both.ts"), program);
  writeFileSync(join(old, "both.ts"), program);
  writeFileSync(join(old, "required.ts"), required);
  for (const [folder, file, ...args] of [
    [app, "both.ts", "--module", "node16"],
    [app, "both.ts", "--module", "nodenext"],
    [app, "both.ts", "--module", "esnext", "--moduleResolution", "bundler"],
    [app, "both.ts", "--module", "preserve"],
    [old, "both.ts", "--module", "node16"],
    [old, "both.ts", "--module", "nodenext"],
    [old, "both.ts", "--module", "commonjs", "--moduleResolution", "node10", "--esModuleInterop"],
    [old, "required.ts", "--module", "nodenext"],
    // (Declarations of zod, which ours name, need the flag there.)
    [old, "required.ts", "--module", "commonjs", "--moduleResolution", "node10", "--esModuleInterop"],
  ] as const) {
    check(folder, [file, ...args]);
    t.pass(`${folder === old ? "CommonJS" : "a module"}: ${args.join(" ")}`);
  }
});
