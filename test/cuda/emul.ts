// The emulated CUDA backend for tests: built where it is not current, named to processes by their environment, and the
// tests of test/ops run on it.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import t from "tap";

/** What a test process needs to run on it instead of the CPU: see test/ops/strided.ts. */
export async function emulatorEnvironment(): Promise<{ LONGSEQ_TEST_DEVICE: string; LONGSEQ_TEST_BACKEND: string }> {
  const path = new URL("../native/cuda_emul/build.mjs", import.meta.url).href;
  const { buildEmulator } = (await import(path)) as { buildEmulator: () => Promise<string> };
  return { LONGSEQ_TEST_DEVICE: "cuda_emul", LONGSEQ_TEST_BACKEND: await buildEmulator() };
}

/** Runs a file of test/ops in a process of its own: a kernel that does what CUDA leaves undefined ends it. */
export async function runOps(
  file: string,
  args: string[],
  env: Record<string, string>,
): Promise<{ code: number; text: string }> {
  const path = fileURLToPath(new URL(`../ops/${file}`, import.meta.url));
  const child = spawn(process.execPath, ["--import=tsx", path, ...args], {
    // Emulated kernels are slow, and machines may be busy: tap's limit of 30 seconds is lifted.
    env: { ...process.env, TAP: "1", TAP_TIMEOUT: "0", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let text = "";
  for (const stream of [child.stdout, child.stderr])
    stream.on("data", (chunk: Buffer) => {
      text += chunk;
    });
  const code = await new Promise<number>((resolve) => child.on("close", (status) => resolve(status ?? -1)));
  return { code, text };
}

/** A test for each op: those of test/ops pass on the emulated backend. */
export async function emulatedOpTests(ops: readonly string[]): Promise<void> {
  t.setTimeout(0);
  const environment = await emulatorEnvironment();
  for (const op of ops)
    t.test(`${op}: its tests pass on the emulated CUDA backend`, { timeout: 0 }, async (t) => {
      const { code, text } = await runOps(`${op}.test.ts`, [], environment);
      const problems = text.split("\n").filter((line) => /not ok|^cuda_emul: |Error: /.test(line));
      t.equal(code, 0, problems.join("\n"));
      // Its own summary is not printed below a runner.
      const passed = text.match(/^ +ok \d+/gm)?.length ?? 0;
      t.ok(passed > 0, `${passed} checks`);
    });
}
