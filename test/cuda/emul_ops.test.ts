// The tests of single ops once more, on the kernels of native/cuda compiled for the CPU (test/native/cuda_emul).
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { emulatorEnvironment } from "./emul.js";

const ops =
  "adamw argmax axpby binary clip_factor copy cross_entropy embedding fill layer_norm norm_squared random rms_norm rope sum swiglu unary".split(
    " ",
  );

const environment = await emulatorEnvironment();

/** Runs a test file of test/ops in a process of its own: a kernel that does what CUDA leaves undefined ends it. */
async function run(op: string): Promise<{ code: number | null; problems: string; passed: number }> {
  const file = fileURLToPath(new URL(`../ops/${op}.test.ts`, import.meta.url));
  const child = spawn(process.execPath, ["--import=tsx", file], {
    env: { ...process.env, ...environment, TAP: "1" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let text = "";
  for (const stream of [child.stdout, child.stderr])
    stream.on("data", (chunk: Buffer) => {
      text += chunk;
    });
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  const lines = text.split("\n");
  return {
    code,
    problems: lines.filter((line) => /not ok|^cuda_emul: |Error: /.test(line)).join("\n"),
    passed: Number(/^# \{.*pass: ([\d_]+)/m.exec(text)?.[1]?.replaceAll("_", "") ?? 0),
  };
}

t.test("the tests of each op pass on the emulated CUDA backend", async (t) => {
  for (const op of ops) {
    const { code, problems, passed } = await run(op);
    t.equal(code, 0, `${op}: ${problems}`);
    t.ok(passed > 0, `${op}: ${passed} checks`);
  }
});
