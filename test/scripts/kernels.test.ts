// What the build promises about the CPU kernels: nothing of one instruction set can be linked into the others.
import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";

const build = join(dirname(dirname(dirname(fileURLToPath(import.meta.url)))), "build");

/** The names that the merged kernels of an instruction set define for others. */
function globals(isa: string): string[] {
  const result = spawnSync("nm", ["-g", "--defined-only", "--format=posix", join(build, `kernels_${isa}.o`)], {
    encoding: "utf8",
  });
  if (result.status !== 0) throw new Error(`nm: ${result.stderr}`);
  return result.stdout
    .trim()
    .split("\n")
    .map((line) => line.split(" ")[0] ?? "");
}

t.test("every global name of the kernels names its instruction set", async (t) => {
  for (const isa of ["avx2", "avx512"]) {
    const names = globals(isa);
    t.ok(names.length > 0);
    t.strictSame(
      names.filter((name) => !name.includes(isa)),
      [],
    );
  }
});

t.test("both sets have the same entries", async (t) => {
  const entries = (isa: string, length: number) =>
    globals(isa)
      .filter((name) => new RegExp(`^_ZN7longseq3cpu${length}${isa}[0-9]+[a-z_]+EPK7ls_exec`).test(name))
      .map((name) => name.replace(`${length}${isa}`, "ISA"))
      .sort();
  t.ok(entries("avx2", 4).some((name) => name.includes("matmul")));
  t.strictSame(entries("avx512", 6), entries("avx2", 4));
});
