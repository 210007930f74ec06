// Builds and starts the tools of test/native/cudnn, and finds cuDNN where it is installed.
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { packageRoot } from "../../lib/binding.js";
import { type GraphCase, line, type Problem, problemLine } from "./cudnn_cases.js";
import type { Run } from "./graph_interpreter.js";

const folder = join(packageRoot, "build", "test", "cudnn");
const native = join(packageRoot, "native");
// What needs neither CUDA's headers nor cuDNN's.
const parts = ["cudnn_library", "cudnn_graph", "cudnn_attention_graph"].map((name) => join(native, "cuda", name));
const sources = [join(packageRoot, "test/native/cudnn/plans.cc"), ...parts.map((part) => `${part}.cc`)];
const headers = [
  ...parts.map((part) => `${part}.h`),
  join(native, "cuda/cudnn_api.h"),
  join(native, "runtime/ops/cudnn_attention.h"),
  join(native, "include/longseq/backend.h"),
];

/** Compiles into build/test/cudnn/NAME-HASH unless it is there; another process may do the same at the same time. */
export function compiled(
  name: string,
  compiler: string,
  options: string[],
  inputs: string[],
  also: string[] = [],
): string {
  const hash = createHash("sha256").update(options.join(" "));
  for (const file of [...inputs, ...also]) hash.update(readFileSync(file));
  const path = join(folder, `${name}-${hash.digest("hex").slice(0, 16)}`, name);
  if (existsSync(path)) return path;
  mkdirSync(dirname(path), { recursive: true });
  const partial = `${path}.${process.pid}`;
  const result = spawnSync(compiler, [...options, "-o", partial, ...inputs, "-ldl"], { encoding: "utf8" });
  if (result.status !== 0) throw new Error(`${compiler} could not build ${name}: ${result.stderr}`);
  renameSync(partial, path);
  return path;
}

export function plansTool(): string {
  return compiled("plans", "g++", ["-std=c++20", "-O1", `-I${native}`, `-I${native}/include`], sources, headers);
}

/** The folder of a CUDA driver library that knows no device. */
function driverFolder(): string {
  const source = join(packageRoot, "test/native/cudnn/fake_libcuda.c");
  return dirname(compiled("libcuda.so.1", "gcc", ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1"], [source]));
}

/** A libcudnn.so.9 that says its version, LONGSEQ_FAKE_CUDNN, and what it was built for, LONGSEQ_FAKE_CUDART. */
export const fakeCudnn = (): string =>
  compiled("libcudnn.so.9", "gcc", ["-shared", "-fPIC"], [join(packageRoot, "test/native/cudnn/fake_cudnn.c")]);

/** What is said of a libcudnn.so.9 of these versions; of one that says nothing else. */
export function openedCudnn(version: number, cudart: number): string {
  const result = spawnSync(plansTool(), [fakeCudnn(), join(packageRoot, "test/cuda/device_h200.json")], {
    input: "",
    encoding: "utf8",
    env: { ...process.env, LONGSEQ_FAKE_CUDNN: String(version), LONGSEQ_FAKE_CUDART: String(cudart) },
  });
  return result.stderr;
}

/** The values that our declarations give cuDNN's enumerations. */
export function declaredValues(): Map<string, number> {
  const result = spawnSync(plansTool(), [], { encoding: "utf8" });
  return new Map(
    result.stdout
      .trim()
      .split("\n")
      .map((text) => text.split(" "))
      .map(([name, value]) => [name as string, Number(value)]),
  );
}

/** How attention problems are run on cuDNN, or why not. */
export function runs(problems: Problem[]): (Run | { refused: string })[] {
  const result = spawnSync(plansTool(), ["problems"], {
    input: `${problems.map(problemLine).join("\n")}\n`,
    encoding: "utf8",
    maxBuffer: 1 << 28,
  });
  if (result.status !== 0) throw new Error(`plans problems: ${result.stderr}`);
  return result.stdout
    .trim()
    .split("\n")
    .map((text) => JSON.parse(text) as Run | { refused: string });
}

export interface Plan {
  ok: boolean;
  /** Of cuDNN, e.g. 92400. */
  version: number;
  reason?: string;
  engine: number;
  /** What cuDNN asks for, and what the graph keeps in workspace. */
  planBytes: number;
  graphBytes: number;
  /** What native/runtime reserves for both. */
  reservedBytes: number;
  nodes: number;
  seconds: number;
}

/** libcudnn.so.9 and the folders of the libraries it needs; null where it is not installed. */
export function findCudnn(): { library: string; folders: string[]; include: string } | null {
  const roots = [
    join(packageRoot, ".cache/cuda"),
    ...(process.env.LONGSEQ_CUDA_LIBS ?? "").split(delimiter).filter((path) => path !== ""),
  ];
  for (const root of roots) {
    const library = [join(root, "nvidia/cudnn/lib/libcudnn.so.9"), join(root, "libcudnn.so.9")].find(existsSync);
    if (library === undefined) continue;
    const compilers = [join(root, "nvidia/cu13/lib"), root, "/usr/local/cuda/lib64"].filter((path) =>
      existsSync(join(path, "libnvrtc.so.13")),
    );
    if (compilers.length === 0) continue;
    return { library, folders: [dirname(library), ...compilers], include: join(dirname(dirname(library)), "include") };
  }
  return null;
}

/** Asks cuDNN for plans on the device that a JSON file describes. */
export async function plans(cases: GraphCase[], device: string): Promise<Plan[]> {
  const cudnn = findCudnn();
  if (!cudnn) throw new Error("cuDNN is not installed");
  const child = spawn(plansTool(), [cudnn.library, join(packageRoot, "test/cuda", device)], {
    env: { ...process.env, LD_LIBRARY_PATH: [driverFolder(), ...cudnn.folders].join(delimiter) },
    stdio: ["pipe", "pipe", "pipe"],
  });
  let [out, errors] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    out += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors += text;
  });
  child.stdin.end(`${cases.map(line).join("\n")}\n`);
  const code = await new Promise((resolve) => child.on("close", resolve));
  if (code !== 0) throw new Error(`plans ended with ${code}: ${errors}`);
  return out
    .trim()
    .split("\n")
    .map((text) => JSON.parse(text) as Plan);
}
