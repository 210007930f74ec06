// The tests of single ops once more, on the kernels of native/cuda compiled for the CPU (test/native/cuda_emul).
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { emulatorEnvironment } from "./emul.js";

const ops = [
  "adamw",
  "argmax",
  "axpby",
  "binary",
  "clip_factor",
  "copy",
  "cross_entropy",
  "embedding",
  "fill",
  "layer_norm",
  "matmul",
  "norm_squared",
  "quantize",
  "random",
  "rms_norm",
  "rope",
  "sum",
  "swiglu",
  "unary",
];
/** Those whose bits are defined: no sums, no functions of the C library, no NaN that is rounded. */
const exact = ["fill", "random"];

const environment = await emulatorEnvironment();

/** Runs a file of test/ops in a process of its own: a kernel that does what CUDA leaves undefined ends it. */
async function run(file: string, args: string[], env: Record<string, string>): Promise<{ code: number; text: string }> {
  const path = fileURLToPath(new URL(`../ops/${file}`, import.meta.url));
  const child = spawn(process.execPath, ["--import=tsx", path, ...args], {
    // Emulated kernels are slow, and machines may be busy: tap's own limit of 30 seconds is none.
    env: { ...process.env, TAP: "1", TAP_TIMEOUT: "900", ...env },
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

for (const op of ops)
  t.test(`${op}: its tests pass on the emulated CUDA backend`, { timeout: 0 }, async (t) => {
    const { code, text } = await run(`${op}.test.ts`, [], environment);
    const problems = text.split("\n").filter((line) => /not ok|^cuda_emul: |Error: /.test(line));
    t.equal(code, 0, problems.join("\n"));
    const passed = /^# \{.*pass: ([\d_]+)/m.exec(text)?.[1]?.replaceAll("_", "");
    t.ok(Number(passed) > 0, `${passed} checks`);
  });

t.test("what has defined bits has the CPU's", { timeout: 0 }, async (t) => {
  const children = await Promise.all(
    [environment, {}].map((env) => run("isa_ops_child.ts", exact, { LONGSEQ_TEST_CASES_ONLY: "1", ...env })),
  );
  const [emulated, cpu] = children.map(({ code, text }) => {
    if (code !== 0) t.fail(text);
    return (JSON.parse(text) as { hashes: Record<string, string> }).hashes;
  });
  t.same(Object.keys(cpu ?? {}), exact);
  for (const op of exact) t.equal(emulated?.[op], cpu?.[op], op);
});
