// Runs an op's cases in child processes, one an instruction set, and compares what they computed by hash.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

/** The hash of every result by instruction set; undefined where the machine cannot execute it. */
export async function isaHashes(op: "matmul" | "attention"): Promise<{ avx2?: string; avx512?: string }> {
  const hashes: { avx2?: string; avx512?: string } = {};
  for (const isa of ["avx2", "avx512"] as const) {
    // Compiled, as in the bundle for GPU machines, it needs no loader.
    const [loader, extension] = import.meta.url.endsWith(".ts") ? [["--import=tsx"], "ts"] : [[], "js"];
    const child = spawn(
      process.execPath,
      [...loader, fileURLToPath(new URL(`isa_child.${extension}`, import.meta.url)), op],
      { env: { ...process.env, LONGSEQ_CPU_ISA: isa }, stdio: ["ignore", "pipe", "inherit"] },
    );
    let text = "";
    child.stdout.on("data", (chunk: Buffer) => {
      text += chunk;
    });
    const code = await new Promise((resolve) => child.on("close", resolve));
    const [ran, hash] = text.trim().split(" ");
    if (code !== 0) {
      if (isa === "avx2") throw new Error(`the cases of ${op} failed with LONGSEQ_CPU_ISA=avx2`);
      continue;
    }
    if (ran === isa && hash) hashes[isa] = hash;
  }
  return hashes;
}
