// Tokens per second of greedy generation, ours beside transformers', on the 56M Llama in float32: the rate behind the
// first token, whose time is that of the prompt.
//
//   npx tsx bench/generate.ts [--rounds 3] [--tokens 128] [--prompts 16,4096]
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { loadModel } from "../lib/models/index.js";
import { pytorchRate } from "./alternate.js";
import { checkpoint } from "./side_by_side.js";

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
    tokens: { type: "string", default: "128" },
    prompts: { type: "string", default: "16,4096" },
  },
});
const [rounds, tokens] = [Number(values.rounds), Number(values.tokens)];
const { model: folder } = await checkpoint(64, 1);
const model = await loadModel(folder);

interface Rate {
  first: number;
  rate: number;
}

async function ours(prompt: number[]): Promise<Rate & { ids: number[] }> {
  const ids: number[] = [];
  const began = performance.now();
  let first = 0;
  for await (const { id } of model.generate(prompt, { maxNewTokens: tokens })) {
    if (ids.length === 0) first = performance.now();
    ids.push(id);
  }
  const rate = (tokens - 1) / ((performance.now() - first) / 1000);
  return { ids, first: (first - began) / 1000, rate };
}

const median = (list: number[]): number => list.sort((a, b) => a - b)[Math.floor(list.length / 2)] as number;

console.log("| prompt | first token, s | transformers | tokens/s behind it | transformers | ratio | same ids |");
console.log("| ---: | ---: | ---: | ---: | ---: | ---: | --- |");
for (const length of values.prompts.split(",").map(Number)) {
  const [mine, theirs]: [Rate[], Rate[]] = [[], []];
  let same = true;
  for (let i = 0; i < rounds; i++) {
    const other = (await pytorchRate("generate.py", [
      folder,
      length,
      tokens,
      availableParallelism(),
    ])) as unknown as Rate & {
      prompt: number[];
      ids: number[];
    };
    const own = await ours(other.prompt);
    same &&= own.ids.join() === other.ids.join();
    mine.push(own);
    theirs.push(other);
  }
  const [a, b] = [median(mine.map(({ rate }) => rate)), median(theirs.map(({ rate }) => rate))];
  const [first, second] = [mine, theirs].map((list) => median(list.map((one) => one.first)).toFixed(2));
  const cells = [length, first, second, a.toFixed(1), b.toFixed(1), (a / b).toFixed(2), same ? "yes" : "no"];
  console.log(`| ${cells.join(" | ")} |`);
}
model.dispose();
