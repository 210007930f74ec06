// The tests of attention once more, on the kernels of native/cuda with emulated tensor cores; and a GPU with little
// shared memory.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { emulatedOpTests, emulatorEnvironment } from "./emul.js";

await emulatedOpTests(["attention"]);

t.test("99 KiB of shared memory a block are enough for float32 and refused by name for bfloat16", async (t) => {
  const path = fileURLToPath(new URL("./attention_program.ts", import.meta.url));
  const env = { ...process.env, ...(await emulatorEnvironment()), LONGSEQ_EMUL_SHARED_KIB: "99" };
  const run = (...args: string[]) => {
    const { stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", path, ...args], { env, encoding: "utf8" });
    return stdout.trim() || stderr;
  };
  t.equal(run("float32", "256"), "none");
  t.match(run("bfloat16", "128"), /head sizes up to 128 in bfloat16 take 138 KiB of shared memory a block, more than/);
});
