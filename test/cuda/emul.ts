// The emulated CUDA backend for tests: built where it is not current, and named to processes by their environment.

/** What a test process needs to run on it instead of the CPU: see test/ops/strided.ts. */
export async function emulatorEnvironment(): Promise<{ LONGSEQ_TEST_DEVICE: string; LONGSEQ_TEST_BACKEND: string }> {
  const path = new URL("../native/cuda_emul/build.mjs", import.meta.url).href;
  const { buildEmulator } = (await import(path)) as { buildEmulator: () => Promise<string> };
  return { LONGSEQ_TEST_DEVICE: "cuda_emul", LONGSEQ_TEST_BACKEND: await buildEmulator() };
}
