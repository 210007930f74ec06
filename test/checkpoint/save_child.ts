// Run by the tests in a process of its own: saves one checkpoint, or saves on and on until it is killed.
//
// save_child.ts DIR native|node STEP BYTES   one save; prints the error, if any, as JSON
// save_child.ts DIR loop FIRST BYTES         steps FIRST, FIRST + 1, ...; DIR/../model is replaced after each

import { writeFileSync } from "node:fs";
import * as path from "node:path";
import { checkpointPath, pruneCheckpoints, writeFolder } from "../../lib/checkpoint/atomic.js";
import { writeModel } from "../../lib/checkpoint/safetensors.js";

const [dir, kind, first, bytes] = process.argv.slice(2) as [string, string, string, string];
const count = Math.ceil(Number(bytes) / 4);

async function model(folder: string, step: number) {
  const values = () => new Float32Array(count).fill(step);
  return writeModel(
    folder,
    ["a", "b"].map((name) => ({ name, dtype: "F32" as const, shape: [count], load: values })),
  );
}

async function save(step: number): Promise<void> {
  await writeFolder(
    checkpointPath(dir, step),
    async (draft) => {
      if (kind === "node") writeFileSync(await draft.file("state.bin"), Buffer.alloc(Number(bytes)));
      else for (const [name, digest] of await model(draft.path, step)) draft.note(name, digest);
      writeFileSync(await draft.file("trainer.json"), JSON.stringify({ step }));
    },
    { info: { step } },
  );
}

if (kind === "loop") {
  for (let step = Number(first); ; step++) {
    await save(step);
    await pruneCheckpoints(dir, 2);
    await writeFolder(path.join(dir, "..", "model"), async (draft) => void (await model(draft.path, step)), {
      manifest: false,
    });
    console.log(step);
  }
}
try {
  await save(Number(first));
  console.log(JSON.stringify({ name: "nothing was thrown" }));
} catch (error) {
  const { name, message, details } = error as Error & { details?: { errno?: string } };
  console.log(JSON.stringify({ name, message, errno: details?.errno }));
}
