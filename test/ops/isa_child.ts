// Prints the instruction set in use and one hash of all results of an op's cases (child of isa.ts).
import { createHash } from "node:crypto";
import { binding } from "../../lib/binding.js";
import { attentionCases, runAttention } from "./attention_cases.js";
import { matmulCases, runMatmul } from "./matmul_cases.js";

const hash = createHash("sha256");
if (process.argv[2] === "matmul") {
  for (const spec of matmulCases()) hash.update((await runMatmul(spec, 2)).raw);
} else {
  for (const spec of attentionCases()) {
    const run = await runAttention(spec, 2);
    for (const raw of run.raw) hash.update(raw);
  }
}
console.log(`${binding.cpuIsa()} ${hash.digest("hex")}`);
