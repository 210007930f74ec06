// SIGKILL in the middle of saves: whatever is left, the newest valid checkpoint and the model folder load in full.

import { existsSync, mkdirSync, readdirSync } from "node:fs";
import * as path from "node:path";
import t from "tap";
import { cleanStale, newestValid } from "../../lib/checkpoint/atomic.js";
import { openModelFolder } from "../../lib/checkpoint/safetensors.js";
import { startChild } from "./helpers.js";

const ROUNDS = 12;
const BYTES = 4_000_000;

/** The one value that all of both tensors hold. */
async function onlyValue(folder: string): Promise<number> {
  using model = await openModelFolder(folder);
  const found = new Set<number>();
  for (const name of ["a", "b"]) {
    const values = new Float32Array(await model.readBytes(name));
    if (values.length !== BYTES / 4) return Number.NaN;
    for (const value of values) found.add(value);
  }
  return found.size === 1 ? ([...found][0] as number) : Number.NaN;
}

t.test("killed again and again", async (t) => {
  const run = t.testdir({});
  const dir = path.join(run, "checkpoints");
  const model = path.join(run, "model");
  mkdirSync(dir);
  let newest = 0;
  let midway = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const child = startChild("save_child.ts", [dir, "loop", String(newest + 1), String(BYTES)]);
    let reported = newest;
    const closed = new Promise<NodeJS.Signals | null>((resolve) =>
      child.on("close", (_code, signal) => resolve(signal)),
    );
    await new Promise<void>((resolve) => {
      let seen = 0;
      child.stdout?.on("data", (chunk: Buffer) => {
        for (const line of chunk.toString().trim().split("\n")) reported = Number(line);
        // A different moment each round, from right after a save to the end of the next.
        if (seen++ === 0) setTimeout(resolve, round * 7);
      });
      child.on("close", () => resolve());
    });
    child.kill("SIGKILL");
    t.equal(await closed, "SIGKILL", "it was still saving");
    if (
      readdirSync(dir)
        .concat(readdirSync(run))
        .some((name) => name.startsWith("."))
    )
      midway++;

    await cleanStale(dir);
    await cleanStale(run);
    const { checkpoint, passedOver } = await newestValid(dir);
    t.same(passedOver, [], "none under its final name is incomplete");
    t.ok(
      checkpoint !== undefined && checkpoint.step >= reported,
      `step ${checkpoint?.step} is not older than ${reported}`,
    );
    t.equal(await onlyValue(checkpoint?.path as string), checkpoint?.step);
    const exported = await onlyValue(model);
    t.ok(exported >= reported, `the model of step ${exported} is whole`);
    t.same(
      readdirSync(dir)
        .concat(readdirSync(run))
        .filter((name) => name.startsWith(".")),
      [],
      "no leftovers",
    );
    newest = checkpoint?.step as number;
  }
  t.ok(existsSync(model));
  t.comment(`${midway} of ${ROUNDS} kills hit the middle of a save; step ${newest} was reached`);
});
