// Ranks that share the one GPU: the command line trains with so many, and with one on the CPU, to the same losses and
// norms; a rank that is killed in the middle ends the job. NCCL refuses several ranks of one GPU unless told, or takes
// them for machines of their own.
//
//   ranks RANKS            ranks killed
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import t, { type Test } from "tap";
import { cudaLibrary, packageRoot } from "../../lib/binding.js";

t.setTimeout(0);
const [what = "2"] = process.argv.slice(2);
const device = process.env.LONGSEQ_TEST_DEVICE ?? "cuda";
const folder = mkdtempSync(join(tmpdir(), "longseq-gpu-ranks-"));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

const model = {
  ...{ model_type: "llama", vocab_size: 259, hidden_size: 128, intermediate_size: 320, num_hidden_layers: 2 },
  ...{ num_attention_heads: 8, num_key_value_heads: 2, head_dim: 16, max_position_embeddings: 4096 },
};
const text = "the quick brown fox jumps over the lazy dog while nobody looks ".repeat(40);
const rows = Array.from({ length: 16 }, (_, i) => JSON.stringify({ text: text.slice(i, i + 1 + ((i * 97) % 501)) }));
writeFileSync(join(folder, "rows.jsonl"), rows.join("\n"));
writeFileSync(
  join(folder, "config.yaml"),
  JSON.stringify({
    model: { init: model, dtype: "float32" },
    data: { train: [join(folder, "rows.jsonl")], tokenizer: "bytes", sequence_length: 255, overlong: "split" },
    train: { steps: 3, schedule: "constant", learning_rate: 1e-3, batch_size: 2 },
  }),
);

/** Code in every process of the command line: the backend under test, and each rank a machine of its own. */
const imported = (apart: boolean): string => {
  const library = process.env.LONGSEQ_TEST_BACKEND;
  const binding = pathToFileURL(join(packageRoot, "dist/lib/binding.js")).href;
  const code = [
    library === undefined || library === cudaLibrary
      ? ""
      : `import { binding } from ${JSON.stringify(binding)}; binding.openBackend(${JSON.stringify(library)});`,
    apart ? 'process.env.NCCL_HOSTID = "rank " + process.env.LONGSEQ_RANK;' : "",
  ].join("");
  return code === "" ? "" : `--import=data:text/javascript,${encodeURIComponent(code)}`;
};

interface Ended {
  code: number;
  stderr: string;
  dir: string;
  /** Milliseconds from `act` to the end. */
  after: number;
}

/** Runs to the end. act: called once a step is done, with the ranks' process ids. */
function train(name: string, args: string[], apart: boolean, act?: (ranks: number[]) => void): Promise<Ended> {
  const dir = join(folder, name);
  const bin = join(packageRoot, "bin/longseq.mjs");
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [bin, "train", join(folder, "config.yaml"), `output.dir=${dir}`, ...args], {
      stdio: ["ignore", "ignore", "pipe"],
      env: {
        ...process.env,
        NODE_OPTIONS: imported(apart),
        NCCL_NVLS_ENABLE: "0",
        ...(!apart && { NCCL_MULTI_RANK_GPU_ENABLE: "1" }),
      },
    });
    const limit = setTimeout(() => child.kill("SIGKILL"), 50_000);
    let [stderr, acted] = ["", 0];
    child.stderr.on("data", (bytes) => {
      stderr += bytes;
      if (act === undefined || acted > 0 || !stderr.includes("step 1/")) return;
      acted = performance.now();
      const ranks = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ");
      act(ranks.map(Number));
    });
    child.once("close", (code) => {
      clearTimeout(limit);
      resolve({ code: code ?? -1, stderr, dir, after: performance.now() - acted });
    });
  });
}

const numbers = (dir: string, key: string): number[] =>
  readFileSync(join(dir, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line))
    .filter((line) => line.event === undefined)
    .map((line) => line[key]);

/** On the device, by the first way that NCCL takes. */
async function onDevice(t: Test, name: string, args: string[], act?: (ranks: number[]) => void): Promise<Ended> {
  const first = await train(name, [...args, `device=${device}`], false, act);
  if (first.code === 0 || act !== undefined) return first;
  t.comment(`not as ranks of one GPU: ${first.stderr.trim().split("\n").at(-1)}`);
  return train(`${name} apart`, [...args, `device=${device}`], true);
}

async function compare(t: Test): Promise<void> {
  const cpu = await train("cpu", ["device=cpu"], false);
  t.equal(cpu.code, 0, cpu.stderr.slice(-500));
  for (const args of [
    [],
    ["parallel.ring=2", "parallel.zero=0"],
    ["memory.offload.params=host", "memory.offload.optimizer=host", "memory.checkpoint.every=1"],
  ]) {
    const settings = args.join(" ") || "Ulysses, ZeRO 3";
    const ran = await onDevice(t, `${what} ${args.length}`, ["--nproc", what, ...args]);
    t.equal(ran.code, 0, `${what} ranks, ${settings}: ${ran.code === 0 ? "done" : ran.stderr.slice(-500)}`);
    if (ran.code !== 0) continue;
    for (const [key, tolerance] of [
      ["loss", 1e-4],
      ["grad_norm", 1e-3],
    ] as const) {
      const [ours, theirs] = [numbers(ran.dir, key), numbers(cpu.dir, key)];
      const worst = Math.max(...theirs.map((value, i) => Math.abs((ours[i] as number) / value - 1)));
      t.ok(worst <= tolerance, `${what} ranks, ${settings}: ${key} differs by ${worst}`);
    }
  }
}

t.test(`ranks ${what}`, { timeout: 0 }, async (t) => {
  if (what !== "killed") return compare(t);

  const { code, stderr, after } = await onDevice(t, "killed", ["--nproc", "2", "train.steps=100000"], (ranks) =>
    process.kill(ranks[1] as number, "SIGKILL"),
  );
  t.equal(code, 1, "the job fails");
  t.match(stderr, /rank 1 (was lost|has ended|ended first)/, stderr.slice(-500));
  t.ok(after < 10_000, `it is over ${(after / 1000).toFixed(1)} s later`);
});
