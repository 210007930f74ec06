// Several ranks through the command line: the numbers of one rank, and clear ends.
import { execFile, spawn } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";

const bin = join(import.meta.dirname, "../../bin/longseq.mjs");
const folder = mkdtempSync(join(tmpdir(), "longseq-ranks-"));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

// Documents of many lengths, one of a single byte; rows of labels that leave whole ranks without any.
const words = "the quick brown fox jumps over the lazy dog while nobody looks ".repeat(40);
const texts = Array.from({ length: 40 }, (_, i) => ({ text: words.slice(i, i + 1 + ((i * 37) % 211)) }));
const rows = Array.from({ length: 8 }, (_, i) => {
  const inputIds = Array.from({ length: 61 + i }, (_, j) => (j * 7 + i) % 250);
  return { input_ids: inputIds, labels: inputIds.map((id, j) => (i === 5 || j > 20 ? -100 : id)) };
});
const lines = (values: object[]): string => `${values.map((value) => JSON.stringify(value)).join("\n")}\n`;
writeFileSync(join(folder, "texts.jsonl"), lines(texts));
writeFileSync(join(folder, "eval.jsonl"), lines(texts.slice(0, 7)));
writeFileSync(join(folder, "rows.jsonl"), lines(rows));

const config = {
  model: {
    init: {
      model_type: "llama",
      vocab_size: 259,
      hidden_size: 32,
      intermediate_size: 80,
      num_hidden_layers: 2,
      num_attention_heads: 8,
      num_key_value_heads: 2,
      head_dim: 6,
      max_position_embeddings: 4096,
      tie_word_embeddings: true,
      initializer_range: 0.06,
    },
  },
  data: {
    train: [join(folder, "texts.jsonl")],
    eval: [join(folder, "eval.jsonl")],
    tokenizer: "bytes",
    sequence_length: 127,
    overlong: "split",
  },
  train: {
    steps: 5,
    schedule: "constant",
    learning_rate: 0.01,
    weight_decay: 0.1,
    batch_size: 4,
    micro_batch_size: 2,
    eval_every: 2,
  },
  output: { save_every: 2, keep: 9 },
};
const file = join(folder, "config.yaml");
writeFileSync(file, JSON.stringify(config));

interface Ended {
  code: number;
  stderr: string;
  dir: string;
}

const run = (name: string, ...args: string[]): Promise<Ended> =>
  new Promise((resolve) => {
    const dir = join(folder, name);
    execFile(
      process.execPath,
      [bin, "train", file, `output.dir=${dir}`, ...args],
      { timeout: 120_000 },
      (error, _, stderr) => resolve({ code: error === null ? 0 : Number(error.code), stderr, dir }),
    );
  });

type Line = Record<string, number | string | null>;
const metrics = (dir: string): Line[] =>
  readFileSync(join(dir, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
const steps = (dir: string): Line[] => metrics(dir).filter((line) => line.event === undefined);

/** The float32 tensors of the exported model, by name. */
function weights(dir: string): Map<string, Float32Array> {
  const bytes = readFileSync(join(dir, "model", "model.safetensors"));
  const begin = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, begin)) as Record<string, { data_offsets: [number, number] }>;
  const found = new Map<string, Float32Array>();
  for (const [name, { data_offsets: at }] of Object.entries(header))
    if (name !== "__metadata__") {
      const own = Uint8Array.from(bytes.subarray(begin + at[0], begin + at[1]));
      found.set(name, new Float32Array(own.buffer));
    }
  return found;
}

const close = (a: unknown, b: unknown, tolerance = 1e-5): boolean =>
  a === b || Math.abs(Number(a) - Number(b)) <= tolerance * Math.abs(Number(a));

function sameRun(t: Test, one: string, other: string, what: string): void {
  const [a, b] = [metrics(one), metrics(other)];
  for (const event of [undefined, "eval"]) {
    const [left, right] = [a, b].map((all) => all.filter((line) => line.event === event)) as [Line[], Line[]];
    t.equal(right.length, left.length, `${what}: as many lines`);
    left.forEach((line, i) => {
      for (const key of ["step", "loss", "grad_norm", "tokens", "valid_tokens", "learning_rate", "skipped"])
        t.ok(close(line[key], right[i]?.[key]), `${what}: step ${line.step}, ${key}: ${line[key]}, ${right[i]?.[key]}`);
    });
  }
  const [p, q] = [weights(one), weights(other)];
  t.same([...q.keys()], [...p.keys()]);
  for (const [name, values] of p) {
    const others = q.get(name) as Float32Array;
    let [difference, norm] = [0, 0];
    values.forEach((value, i) => {
      difference += (value - (others[i] as number)) ** 2;
      norm += value ** 2;
    });
    t.ok(
      Math.sqrt(difference) <= 1e-5 * Math.sqrt(norm),
      `${what}: ${name} differs by ${Math.sqrt(difference / norm)}`,
    );
  }
}

// Seven rows: with two a step, the last step leaves one of two groups of ranks without any.
writeFileSync(join(folder, "seven.jsonl"), lines(rows.slice(0, 7)));

/** Settings, and the worlds that they are tried in. */
const settings: Record<string, { args: string[]; worlds: string[][] }> = {
  packed: {
    args: [],
    worlds: [
      ["--nproc", "2"],
      ["--nproc", "4", "parallel.data=2", "parallel.zero=1"],
    ],
  },
  "rows without labels": {
    args: [`data.train=[${join(folder, "rows.jsonl")}]`, "data.packing=false", "data.shuffle=false"],
    worlds: [["--nproc", "2", "parallel.zero=0", "output.resume=never"]],
  },
  "heads that the ranks cannot share out": {
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

for (const [name, { args, worlds }] of Object.entries(settings)) {
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
        const spread = line.ranks as unknown as Record<string, { min: number; max: number; max_rank: number }>;
        t.ok(
          spread.seconds && spread.seconds.max_rank < ranks && spread.seconds.min > 0,
          `${what}: seconds of all ranks`,
        );
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

t.test("wrong numbers of ranks", async (t) => {
  for (const [args, message] of [
    [["--nproc", "3", "parallel.ring=1"], /parallel: 8 query heads do not divide among 3 ranks .*no ring/],
    [["--nproc", "2", "parallel.ring=3"], /parallel\.ring: 3 does not divide the 2 ranks of a sequence/],
    [["--nproc", "2", "parallel.sequence=4"], /sequence 4 x data 1 is for 4 ranks, but this run has 2/],
    [["parallel.sequence=2"], /is for 2 ranks, but this run has 1; start it with --nproc 2/],
    [["--nproc", "0"], /Expected a whole number of at least 1/],
    [["--nproc", "2", "train.steps=none"], /train\.steps/],
  ] as const) {
    const { code, stderr } = await run("wrong", ...args);
    t.equal(code, 2, stderr);
    t.match(stderr, message);
  }
});

/** Starts a long run and calls `act` with its ranks' process ids after its first step. */
function disturbed(name: string, act: (pids: number[], launcher: number) => void): Promise<Ended> {
  const dir = join(folder, name);
  return new Promise((resolve) => {
    const child = spawn(
      process.execPath,
      [bin, "train", file, `output.dir=${dir}`, "--nproc", "2", "train.steps=100000", "train.eval_every=0"],
      { stdio: ["ignore", "ignore", "pipe"] },
    );
    let stderr = "";
    let acted = false;
    child.stderr.on("data", (bytes) => {
      stderr += bytes;
      if (acted || !stderr.includes("step 3/")) return;
      acted = true;
      const children = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8");
      act(children.trim().split(" ").map(Number), child.pid as number);
    });
    child.once("close", (code) => resolve({ code: code ?? -1, stderr, dir }));
  });
}

const gone = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return false;
  } catch {
    return true;
  }
};

t.test("a rank that is killed ends the job, which says so", async (t) => {
  for (const victim of [0, 1]) {
    let pids: number[] = [];
    const { code, stderr } = await disturbed(`killed ${victim}`, (all) => {
      pids = all;
      process.kill(all[victim] as number, "SIGKILL");
    });
    t.equal(code, 1, stderr);
    if (victim === 1) t.match(stderr, /rank 1 (has ended|was lost)/);
    t.ok(pids.every(gone), "no process is left");
  }
});

t.test("a job that fails goes on from its newest checkpoint, to the same bits", async (t) => {
  const unbroken = await run("unbroken", "--nproc", "2", "train.steps=40", "train.eval_every=0");
  const dir = join(folder, "restarted");
  const options = ["train.steps=40", "train.eval_every=0", "--nproc", "2", "--max-restarts", "1"];
  const child = spawn(process.execPath, [bin, "train", file, `output.dir=${dir}`, ...options], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr = "";
  let killed = false;
  child.stderr.on("data", (bytes) => {
    stderr += bytes;
    if (killed || !stderr.includes("step 7/")) return;
    killed = true;
    const ranks = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ");
    process.kill(Number(ranks[1]), "SIGKILL");
  });
  const code = await new Promise((resolve) => child.once("close", resolve));
  t.equal(code, 0, stderr);
  t.match(stderr, /the job failed; it is started again \(1 of 1 times\)/);
  t.same([...weights(dir)], [...weights(unbroken.dir)]);
});

t.test("scripts, through longseq launch", async (t) => {
  const script = join(folder, "script.mjs");
  const library = new URL("../../dist/lib/index.js", import.meta.url).href;
  writeFileSync(
    script,
    `import { parallel } from ${JSON.stringify(library)};
     const job = await parallel.init();
     const all = await job.swap(job.rank * 10);
     if (job.rank === 0) console.log(JSON.stringify(all));
     if (process.argv[2] === "fail" && job.rank === 2) throw new Error("out of luck");
     job.close();`,
  );
  const launch = (...args: string[]) =>
    new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
      execFile(process.execPath, [bin, "launch", ...args], (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
      );
    });
  const logs = ["--logs", join(folder, "script")];
  const good = await launch("--nproc", "3", ...logs, "--", script);
  t.same([good.code, good.stdout.trim()], [0, "[0,10,20]"], good.stderr);
  const bad = await launch("--nproc", "3", ...logs, "--", script, "fail");
  t.equal(bad.code, 1);
  t.match(bad.stderr, /rank 2 ended first, with exit code 1[\s\S]*out of luck/);
  for (const [args, message] of [
    [[], /missing what to launch/],
    [["--", "no.mjs"], /cannot launch "no\.mjs"/],
    [["--nproc", "2", "--rendezvous-timeout", "0", "--", script], /Expected seconds/],
  ] as const) {
    const { code, stderr } = await launch(...args);
    t.equal(code, 2, stderr);
    t.match(stderr, message);
  }
});

t.test("two launchers, as on two machines, over the network", async (t) => {
  const one = await run("one of two machines");
  const dir = join(folder, "two machines");
  const port = await new Promise<number>((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
  const launch = (node: string, secret: string | undefined) =>
    new Promise<{ code: number; stderr: string }>((resolve) => {
      const args = ["--nproc", "1", "--nnodes", "2", "--node-rank", node, "--rendezvous", `127.0.0.1:${port}`];
      execFile(
        process.execPath,
        [bin, "launch", ...args, "--", "train", file, `output.dir=${dir}`],
        { timeout: 120_000, env: { ...process.env, ...(secret !== undefined && { LONGSEQ_SECRET: secret }) } },
        (error, _, stderr) => resolve({ code: error === null ? 0 : Number(error.code), stderr }),
      );
    });
  const [first, second] = await Promise.all([launch("0", "between us"), launch("1", "between us")]);
  t.same([first?.code, second?.code], [0, 0], `${first?.stderr}${second?.stderr}`);
  sameRun(t, one.dir, dir, "two machines");
  const without = await launch("0", undefined);
  t.equal(without.code, 2);
  t.match(without.stderr, /LONGSEQ_SECRET is not set: on several machines/);
});

t.test("Ctrl-C: the state is saved once, and the run goes on from there", async (t) => {
  const { code, stderr, dir } = await disturbed("stopped", (_, launcher) => process.kill(launcher, "SIGINT"));
  t.equal(code, 130, stderr);
  const last = steps(dir).at(-1)?.step as number;
  t.ok(readdirSync(join(dir, "checkpoints")).includes(`step-${last}`), `step ${last} is saved`);
});
