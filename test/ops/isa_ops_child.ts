// Prints the instruction set in use and a hash of all results of each op's cases as JSON (child of isa.test.ts).
import { binding } from "../../lib/binding.js";
import { type Case, hashOf } from "./helpers.js";

const hashes: Record<string, string> = {};
for (const op of process.argv.slice(2)) {
  const { cases } = (await import(`./${op}.test.js`)) as { cases: Case[] };
  hashes[op] = await hashOf(cases);
}
console.log(JSON.stringify({ isa: binding.cpuIsa(), hashes }));
