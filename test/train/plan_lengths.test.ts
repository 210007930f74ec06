// Runs whose sequences differ in length take what their plan says, and no more than its limits.

import t from "tap";
import type { ConfigInput } from "../../lib/config/index.js";
import { run } from "./helpers.js";
import { config, MiB, rowsFile, tiles } from "./plan_config.js";

t.test("sequences of any length take what the plan says", async (t) => {
  const folder = t.testdir({});
  // One tile keeps what several make again; more checkpoints of a shorter sequence fit what may stay on the device.
  const rows = rowsFile(
    folder,
    "rows.jsonl",
    [1100, 801, 800, 799, 1090, 605, 604, 603, 1000, 1001, 333, 1050, 31, 900],
  );
  const memories: Record<string, NonNullable<ConfigInput["memory"]>> = {
    "one tile": { tileMlp: 800, tileLoss: 604, checkpoint: { every: 0 } },
    "one tile of the loss": { tileMlp: 100, tileLoss: 1050, checkpoint: { every: 1, offload: "none" } },
    "some stay": { ...tiles, checkpoint: { every: 1, offload: "host", deviceBytes: 1_200_000 } },
    "some stay, all is kept": {
      ...tiles,
      checkpoint: { every: 1, keepAttention: true, offload: "host", deviceBytes: 2_000_000 },
    },
    "the ladder": tiles,
  };
  for (const [name, memory] of Object.entries(memories))
    for (const batchSize of [1, 2]) {
      const train = { batchSize, steps: 14 / batchSize };
      const loose = config(folder, `loose ${name} ${batchSize}`, rows, {
        train,
        memory: { ...memory, deviceLimit: "1GiB" },
      });
      const plannedPeak = ({ events }: Awaited<ReturnType<typeof run>>) =>
        events.find(({ event }) => event === "plan")?.devicePeakBytes as number;
      // Where sizes vary, limits are asked to leave room for two chunks of small blocks.
      const most = plannedPeak(await run(loose)) + 2 * MiB;
      // A part of what the ladder takes without a limit makes it climb.
      for (const part of name === "the ladder" ? [0.66, 0.75, 0.85, 0.95] : [1]) {
        const deviceLimit = Math.floor(most * part);
        const dir = `tight ${name} ${batchSize} ${part}`;
        const tight = await run(config(folder, dir, rows, { train, memory: { ...memory, deviceLimit } }));
        t.equal(tight.steps.length, train.steps);
        const peak = Math.max(...tight.steps.map(({ devicePeakBytes }) => devicePeakBytes));
        t.equal(peak, plannedPeak(tight), dir);
        t.ok(peak <= deviceLimit, `${dir}: ${peak} of ${deviceLimit}`);
      }
    }
});
