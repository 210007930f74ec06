// The libraries of test/native/cuda_host that stand in for the CUDA driver, cuBLASLt and NCCL, and the backends that run
// over them. Built where CUDA's headers are.
import { existsSync, mkdirSync, readdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import { packageRoot } from "../../lib/binding.js";
import { compiled } from "./plans_tool.js";

const native = join(packageRoot, "native");
const stand = join(packageRoot, "test/native/cuda_host");

/** The folders of CUDA's headers; null where one is missing. */
export const headers: string[] | null = (() => {
  const vendor = join(packageRoot, ".cache/cuda/nvidia");
  const folders = [
    ...[process.env.CUDA_HOME, process.env.CUDA_PATH, "/usr/local/cuda"].flatMap((path) =>
      path ? [join(path, "include")] : [],
    ),
    ...(existsSync(vendor) ? readdirSync(vendor).map((name) => join(vendor, name, "include")) : []),
  ];
  const found = ["cuda_runtime.h", "cuda.h", "cublasLt.h", "nccl.h"].map((name) =>
    folders.find((folder) => existsSync(join(folder, name))),
  );
  return found.includes(undefined) ? null : [...new Set(found as string[])];
})();

const options = [
  ...["-std=c++20", "-O1", "-g1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"],
  ...[native, join(native, "include"), join(native, "cuda"), stand].map((folder) => `-I${folder}`),
  ...(headers ?? []).map((folder) => `-isystem${folder}`),
];
const include = (name: string): string => join(native, "include/longseq", name);

/** The backend's host files with ops that compute nothing but touch their tensors, each under CUDA's rules. */
export function touchingBackend(): string {
  // All but those that call cuBLASLt.
  const inFolder = readdirSync(join(native, "cuda")).map((name) => join(native, "cuda", name));
  const sources = inFolder.filter((path) => /\.cc$/.test(path) && !/(gemm_cublaslt|matmul)\.cc$/.test(path));
  const used = inFolder
    .filter((path) => /\.h$/.test(path))
    .concat(include("backend.h"), include("comm.h"), join(native, "runtime/ops/cudnn_attention.h"))
    .concat(join(stand, "cudart.h"));
  const own = ["cudart.cc", "ops.cc"].map((name) => join(stand, name));
  return compiled("cuda_host.so", "g++", options, [...sources, ...own], used);
}

/** The whole backend, its kernels emulated on streams that run behind. */
export async function wholeBackend(): Promise<string> {
  const path = new URL("../native/cuda_emul/build.mjs", import.meta.url).href;
  const { buildWhole } = (await import(path)) as { buildWhole: () => Promise<string> };
  return buildWhole();
}

/** A folder with the driver's library, cuBLASLt's and NCCL's. */
export function libraries(t: Test): string {
  const library = (soname: string, sources: string[], used: string[]): string =>
    compiled(soname, "g++", [...options, `-Wl,-soname,${soname}`], sources, used);
  const channels = [join(native, "channels/shared_memory.cc"), join(native, "runtime/error.cc")];
  const folder = join(t.testdir({ libraries: {} }), "libraries");
  mkdirSync(folder, { recursive: true });
  for (const [name, path] of [
    ["libcuda.so.1", library("libcuda.so.1", [join(stand, "libcuda.cc")], [])],
    [
      "libnccl.so.2",
      library(
        "libnccl.so.2",
        [join(stand, "libnccl.cc"), ...channels],
        [join(stand, "cudart.h"), include("comm.h"), include("backend.h"), join(native, "channels/channels.h")],
      ),
    ],
    ["libcublasLt.so.13", join(packageRoot, "build/test/fake_cublaslt.so")],
  ] as const)
    symlinkSync(path, join(folder, name));
  return folder;
}

/** What a process needs to take them for a GPU. */
export const environmentOf = (backend: string, folder: string): Record<string, string> => ({
  LD_LIBRARY_PATH: folder,
  LONGSEQ_CUDA_LIBS: folder,
  LONGSEQ_TEST_BACKEND: backend,
});
