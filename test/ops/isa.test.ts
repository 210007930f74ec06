// AVX2 and AVX-512 give the same bits in every op but matmul and attention, whose own tests compare them.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import t from "tap";
import { binding } from "../../lib/binding.js";

const ops = [
  "adamw",
  "argmax",
  "attention_merge",
  "axpby",
  "binary",
  "clip_factor",
  "copy",
  "cross_entropy",
  "embedding",
  "fill",
  "layer_norm",
  "norm_squared",
  "quantize",
  "random",
  "rms_norm",
  "rope",
  "sum",
  "swiglu",
  "unary",
];

/** What a child process prints with LONGSEQ_CPU_ISA set. */
async function child(isa: string, names: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const process_ = spawn(
    process.execPath,
    ["--import=tsx", fileURLToPath(new URL("isa_ops_child.ts", import.meta.url)), ...names],
    { env: { ...process.env, LONGSEQ_CPU_ISA: isa, LONGSEQ_TEST_CASES_ONLY: "1" } },
  );
  const text = { stdout: "", stderr: "" };
  process_.stdout.on("data", (chunk) => {
    text.stdout += chunk;
  });
  process_.stderr.on("data", (chunk) => {
    text.stderr += chunk;
  });
  const code = await new Promise<number>((resolve) => process_.on("close", resolve));
  return { code, ...text };
}

const parse = (run: { stdout: string }) => JSON.parse(run.stdout) as { isa: string; hashes: Record<string, string> };

/** Read from the system, so that a build that fails to find AVX-512 does not pass for a machine without it. */
const avx512 = /\bavx512f\b.*\bavx512vl\b|\bavx512vl\b.*\bavx512f\b/.test(readFileSync("/proc/cpuinfo", "utf8"));

const [narrow, wide] = await Promise.all([child("avx2", ops), avx512 ? child("avx512", ops) : null]);

t.test("LONGSEQ_CPU_ISA=avx2 runs every op with AVX2", async (t) => {
  t.equal(narrow.code, 0, narrow.stderr);
  t.equal(parse(narrow).isa, "avx2");
  t.same(Object.keys(parse(narrow).hashes), ops);
});

if (wide) {
  t.test("AVX2 and AVX-512 give the same bits in every op", async (t) => {
    t.equal(wide.code, 0, wide.stderr);
    t.equal(parse(wide).isa, "avx512");
    for (const op of ops) t.equal(parse(wide).hashes[op], parse(narrow).hashes[op], op);
  });
} else {
  t.test("AVX-512 could not be executed on this CPU: AVX2 is compared with what is used by default", async (t) => {
    t.equal(binding.cpuIsa(), "avx2");
    const again = await child("", ops);
    t.same(parse(again).hashes, parse(narrow).hashes);
  });
}

t.test("an unknown instruction set, or one that the CPU lacks, is refused by name", async (t) => {
  const unknown = await child("sse9", ["fill"]);
  t.not(unknown.code, 0);
  t.match(unknown.stderr, /sse9/);
  if (!avx512) t.match((await child("avx512", ["fill"])).stderr, /avx512/);
});
