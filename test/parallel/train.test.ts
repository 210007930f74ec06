// Several ranks through the command line: the numbers of one rank, and going on with other ranks.
import { cpSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import { full } from "../full.js";
import { folder, type Line, metrics, run, sameRun, steps, weights } from "./cli_runs.js";

/** Settings, and the worlds that they are tried in; those that are slow in npm run test:full alone. */
const settings: Record<string, { args: string[]; worlds: string[][]; slow?: boolean }> = {
  packed: {
    args: [],
    worlds: [
      ["--nproc", "2"],
      ["--nproc", "4", "parallel.data=2", "parallel.zero=1"],
    ],
  },
  "rows without labels": {
    slow: true,
    args: [`data.train=[${join(folder, "rows.jsonl")}]`, "data.packing=false", "data.shuffle=false"],
    worlds: [["--nproc", "2", "parallel.zero=0", "output.resume=never"]],
  },
  "heads that the ranks cannot share out": {
    slow: true,
    // With a larger eps, since AdamW makes much of the rounding of gradients that are nearly 0.
    args: [
      "model.init.num_attention_heads=6",
      "model.init.num_key_value_heads=2",
      "memory.checkpoint.every=1",
      "train.eps=1e-5",
    ],
    worlds: [["--nproc", "4"]],
  },
  "an odd number of sequences": {
    args: [
      `data.train=[${join(folder, "seven.jsonl")}]`,
      "data.packing=false",
      "train={epochs: 1, steps: null, batch_size: 2, micro_batch_size: 1}",
    ],
    worlds: [["--nproc", "2", "parallel.data=2"]],
  },
  "chunks, tiles, checkpoints": {
    args: [
      "memory.head_chunks=2",
      "memory.tile_mlp=16",
      "memory.tile_loss=24",
      "memory.checkpoint={every: 1, keep_attention: true, offload: host}",
      "model.init.model_type=qwen3",
    ],
    worlds: [["--nproc", "2", "parallel.zero=2"]],
  },
  "a window, recomputed attention, states on the host": {
    slow: true,
    args: [
      "model.init.model_type=mistral",
      "model.init.sliding_window=20",
      "memory.checkpoint={every: 2, offload: none}",
      "memory.offload={optimizer: host, params: host, gradients: host}",
      "model.init.num_key_value_heads=4",
    ],
    worlds: [["--nproc", "4"]],
  },
};

/** A test for npm run test:full. */
const slowTest = (name: string, body: (t: Test) => Promise<void>): void => {
  if (full) t.test(name, body);
};

slowTest("eight ranks: a Llama of 2 layers, H 64, at T = 256", async (t) => {
  const args = [
    "model.init.hidden_size=64",
    "model.init.head_dim=8",
    "model.init.num_key_value_heads=4",
    "data.sequence_length=256",
    "train.steps=3",
    "train.eps=1e-5",
  ];
  const one = await run("alone for eight", ...args);
  t.equal(one.code, 0, one.stderr);
  const eight = await run("eight", ...args, "--nproc", "8", "parallel.ring=2");
  t.equal(eight.code, 0, eight.stderr);
  sameRun(t, one.dir, eight.dir, "eight ranks");
});

slowTest("bfloat16 over 20 steps", async (t) => {
  const args = ["model.dtype=bfloat16", "train.steps=20", "train.learning_rate=3e-3", "output.save_every=0"];
  const one = await run("bfloat16 1", ...args);
  t.equal(one.code, 0, one.stderr);
  const losses = steps(one.dir).map(({ loss }) => Number(loss));
  t.equal(losses.length, 20);
  t.ok((losses.at(-1) as number) < 0.8 * (losses[0] as number), "it learns");
  const several = await run("bfloat16 4", ...args, "--nproc", "4", "parallel.ring=2");
  t.equal(several.code, 0, several.stderr);
  const worst = Math.max(
    ...steps(several.dir).map(({ loss }, i) => Math.abs(Number(loss) / (losses[i] as number) - 1)),
  );
  t.ok(worst <= 1e-2, `losses differ by ${worst}`);
});

for (const [name, { args, worlds, slow = false }] of Object.entries(settings)) {
  if (slow && !full) continue;
  t.test(name, async (t) => {
    const one = await run(`${name} 1`, ...args);
    t.equal(one.code, 0, one.stderr);
    for (const world of worlds) {
      const what = world.join(" ");
      const several = await run(`${name} ${what}`, ...args, ...world);
      t.equal(several.code, 0, several.stderr);
      sameRun(t, one.dir, several.dir, what);
      t.same(
        readdirSync(join(several.dir, "ranks")).sort(),
        Array.from({ length: Number(world[1]) - 1 }, (_, i) => `${i + 1}.log`),
      );
      const ranks = Number(world[1]);
      for (const line of steps(several.dir)) {
        const spread = line.ranks as unknown as Record<
          string,
          { min: number; max: number; max_rank: number; each: number[] }
        >;
        t.ok(
          spread.seconds && spread.seconds.max_rank < ranks && spread.seconds.min > 0,
          `${what}: seconds of all ranks`,
        );
        const all = spread.seconds?.each ?? [];
        t.equal(all.length, ranks, `${what}: of each rank`);
        t.same([Math.min(...all), all[spread.seconds?.max_rank ?? 0]], [spread.seconds?.min, spread.seconds?.max]);
        const { min, max } = spread.device_peak_bytes as { min: number; max: number };
        // Shares are of one size.
        if (!what.includes("data")) t.same([min, max], [line.device_peak_bytes, line.device_peak_bytes]);
      }
      // Several groups walk other sequences: what is planned holds for the longest.
      const [plan] = metrics(several.dir).filter(({ event }) => event === "plan") as [Line];
      const peak = Math.max(...steps(several.dir).map((line) => Number(line.device_peak_bytes)));
      if (!what.includes("data")) t.equal(peak, plan.device_peak_bytes, `${what}: the peak that was planned`);
    }
  });
}

t.test("a run goes on bit for bit, and with other ranks", async (t) => {
  const whole = await run("whole", "--nproc", "2");
  const begun = await run("begun", "--nproc", "2", "train.steps=3");
  t.equal(begun.code, 0, begun.stderr);
  // Behind the newest checkpoint nothing is kept that a longer run would not have made.
  const on = await run("begun", "--nproc", "2");
  t.equal(on.code, 0, on.stderr);
  t.same(
    steps(on.dir).map(({ step, loss, grad_norm: norm }) => [step, loss, norm]),
    steps(whole.dir).map(({ step, loss, grad_norm: norm }) => [step, loss, norm]),
  );
  t.same([...weights(on.dir)], [...weights(whole.dir)]);
  const checkpoint = join(whole.dir, "checkpoints", "step-4");
  t.same(readdirSync(checkpoint).sort(), [
    "manifest.json",
    "share-00001-of-00002.safetensors",
    "share-00002-of-00002.safetensors",
    "trainer.json",
  ]);
  const kept = join(folder, "kept");
  cpSync(whole.dir, kept, { recursive: true });
  for (const world of [[], ["--nproc", "4", "parallel.data=2", "parallel.zero=1"]]) {
    rmSync(join(whole.dir, "checkpoints", "step-5"), { recursive: true });
    rmSync(join(whole.dir, "finished.json"));
    const other = await run("whole", ...world);
    t.equal(other.code, 0, other.stderr);
    sameRun(t, kept, other.dir, `${world.join(" ")} from two ranks' checkpoint`);
  }
});
