// Ranks on GPUs, each a process: the whole CUDA backend, its kernels emulated on streams that run behind, over stand-ins
// for driver, runtime and NCCL that end a process which breaks their rules. What they compute is what one rank computes
// on the CPU.
import { execFile, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import t from "tap";
import { packageRoot } from "../../lib/binding.js";
import { full } from "../full.js";
import { bin, file, folder, run, sameRun, weights } from "../parallel/cli_runs.js";
import { environmentOf, headers, libraries, wholeBackend } from "./stand_ins.js";

t.setTimeout(0);

if (headers === null) {
  t.comment("CUDA's headers are not installed: nothing was built, nothing is judged");
  t.pass("no headers");
} else {
  const environment = environmentOf(await wholeBackend(), await libraries(t));
  const preload = pathToFileURL(join(import.meta.dirname, "preload.mjs")).href;
  // For the command line, in every process that it starts.
  const onGpus = { ...environment, NODE_OPTIONS: `--import=${preload}` };

  const sizes = ["model.init.head_dim=16", "train.steps=3", "train.eval_every=2", "train.batch_size=2"];
  const small = [...sizes, "train.micro_batch_size=1", "data.sequence_length=63"];
  const cpu = await run("cpu", ...small);
  const gpus = (name: string, ranks: number, ...args: string[]) =>
    run(name, { env: onGpus }, "--nproc", String(ranks), "device=cuda", ...small, ...args);

  const everything = [
    ...["memory.offload.params=host", "memory.offload.optimizer=host", "memory.offload.gradients=host"],
    ...["memory.checkpoint.every=1", "memory.checkpoint.offload=host", "memory.tile_mlp=20", "memory.head_chunks=2"],
  ];
  for (const [ranks, args] of [
    [2, everything],
    ...(full ? ([[2, ["parallel.zero=0", "memory.offload.gradients=host", "parallel.ring=2"]]] as const) : []),
    [4, ["parallel.ring=2", "parallel.zero=1"]],
  ] as const)
    t.test(`${ranks} ranks: ${args.join(" ")}`, async (t) => {
      const { code, stderr, dir } = await gpus(`gpus ${ranks} ${args[0]}`, ranks, ...args);
      t.equal(code, 0, stderr);
      sameRun(t, cpu.dir, dir, "against the cpu", 1e-4);
    });

  /** A longer run; `act` gets the launcher and its ranks after the first step. */
  const disturbed = (name: string, act: (ranks: number[], launcher: number) => void) => {
    const dir = join(folder, name);
    const args = ["--nproc", "2", "device=cuda", ...small, "train.steps=6", "train.eval_every=0"];
    return new Promise<{ code: number; stderr: string; dir: string }>((resolve) => {
      const child = spawn(process.execPath, [bin, "train", file, `output.dir=${dir}`, ...args], {
        env: { ...process.env, ...onGpus },
        stdio: ["ignore", "ignore", "pipe"],
      });
      let [stderr, acted] = ["", false];
      child.stderr.on("data", (bytes) => {
        stderr += bytes;
        if (acted || !stderr.includes("step 1/")) return;
        acted = true;
        const ranks = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ");
        act(ranks.map(Number), child.pid as number);
      });
      child.once("close", (code) => resolve({ code: code ?? -1, stderr, dir }));
    });
  };

  t.test("a rank that is killed ends the job: the other does not wait in a kernel", async (t) => {
    const { code, stderr } = await disturbed("killed", (ranks) => process.kill(ranks[1] as number, "SIGKILL"));
    t.equal(code, 1, stderr);
    t.match(stderr, /rank 1 (has ended|was lost)/);
  });

  // npm run test:full; on CPUs faults.test.ts does the same.
  const slowTest: typeof t.test = full ? t.test.bind(t) : ((() => {}) as never);
  slowTest("Ctrl-C, and on to the bits of a run that was not stopped", async (t) => {
    const { code, stderr, dir } = await disturbed("stopped", (_, launcher) => process.kill(launcher, "SIGINT"));
    t.equal(code, 130, stderr);
    t.ok(readdirSync(join(dir, "checkpoints")).length > 0, "a state is saved");
    const [unbroken, on] = await Promise.all(
      ["unbroken", "stopped"].map((name) => gpus(name, 2, "train.steps=6", "train.eval_every=0")),
    );
    t.equal(on?.code, 0, `${on?.stderr}`);
    t.same([...weights(dir)], [...weights(unbroken?.dir as string)]);
  });

  /** Runs a file of tests or a program in a process of its own, on the stand-ins. */
  const program = (path: string, ...args: string[]) =>
    new Promise<{ code: number; text: string }>((resolve) =>
      execFile(
        process.execPath,
        ["--import=tsx", fileURLToPath(new URL(path, import.meta.url)), ...args],
        {
          cwd: packageRoot,
          env: { ...process.env, TAP: "1", TAP_TIMEOUT: "0", ...environment, LONGSEQ_TEST_DEVICE: "cuda" },
          maxBuffer: 2 ** 26,
        },
        (error, stdout, stderr) =>
          resolve({ code: error === null ? 0 : Number(error.code ?? -1), text: stdout + stderr }),
      ),
    );

  t.test("collectives", async (t) => {
    const { code, text } = await program("../parallel/collectives.test.ts");
    t.equal(code, 0, text);
    t.match(text, /ok .* - what waits on a stream/);
  });

  t.test("calls that do not fit are the end", async (t) => {
    for (const [name, message] of [
      ["sizes", /rank \d is at all-reduce of \d float32, .* rank \d at all-reduce of \d float32/],
      ["order", /rank \d is at (all-reduce|broadcast) .* rank \d at (broadcast|all-reduce)/],
    ] as const) {
      const { code, text } = await program("rank_programs.ts", name);
      t.equal(code, 99, text);
      t.match(text, message);
    }
  });

  t.test("an exchange that another rank takes no part in ends when its time is over", async (t) => {
    const { code, text } = await program("rank_programs.ts", "timeout");
    t.equal(code, 0, text);
    t.match(text, /an exchange failed on rank 0: all_reduce has not ended within 0 s: another rank takes no part/);
  });

  t.test("without NCCL, and with one that is too old", async (t) => {
    const old = await run(
      "old",
      { env: { ...onGpus, LONGSEQ_FAKE_NCCL_VERSION: "22605" } },
      "--nproc",
      "2",
      "device=cuda",
    );
    t.equal(old.code, 1, old.stderr);
    t.match(
      old.stderr,
      /several ranks on cuda: .*libnccl\.so\.2 cannot be used: it is version 2\.26\.5, at least 2\.27\.0/,
    );
  });
}
