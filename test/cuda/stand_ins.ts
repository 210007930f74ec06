// The libraries of test/native/cuda_host that stand in for the CUDA driver, cuBLASLt and NCCL, and the backends that run
// over them. Built where CUDA's headers are.
import { existsSync, mkdirSync, readdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import type { Test } from "tap";
import { packageRoot } from "../../lib/binding.js";

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

/** Brings all of them up to date; the folder that they are in. */
async function built(): Promise<string> {
  const path = new URL("../native/cuda_emul/build.mjs", import.meta.url).href;
  const { buildStandIns } = (await import(path)) as { buildStandIns: () => Promise<string> };
  return buildStandIns();
}

/** The backend's host files with ops that compute nothing but touch their tensors, each under CUDA's rules. */
export const touchingBackend = async (): Promise<string> => join(await built(), "cuda_host.so");

/** The whole backend, its kernels emulated on streams that run behind. */
export const wholeBackend = async (): Promise<string> => join(await built(), "cuda_whole.so");

/** A folder with the driver's library, cuBLASLt's and NCCL's. */
export async function libraries(t: Test): Promise<string> {
  const from = await built();
  const folder = join(t.testdir({ libraries: {} }), "libraries");
  mkdirSync(folder, { recursive: true });
  for (const name of ["libcuda.so.1", "libnccl.so.2"]) symlinkSync(join(from, name), join(folder, name));
  symlinkSync(join(packageRoot, "build/test/fake_cublaslt.so"), join(folder, "libcublasLt.so.13"));
  return folder;
}

/** What a process needs to take them for a GPU. */
export const environmentOf = (backend: string, folder: string): Record<string, string> => ({
  LD_LIBRARY_PATH: folder,
  LONGSEQ_CUDA_LIBS: folder,
  LONGSEQ_TEST_BACKEND: backend,
});
