// `longseq plan`: what it prints, and that it is what the run then takes.

import { writeFileSync } from "node:fs";
import * as path from "node:path";
import t from "tap";
import { main } from "../../lib/cli/main.js";
import { Output } from "../../lib/cli/output.js";
import { run as train } from "../train/helpers.js";

const T = 1100;
const MiB = 2 ** 20;

async function run(argv: string[]): Promise<{ code: number; out: string; err: string }> {
  let [out, err] = ["", ""];
  const code = await main(argv, {
    stdout: { write: (text) => (out += text) },
    stderr: { write: (text) => (err += text) },
  });
  return { code, out, err };
}

/** A configuration file, and the object that it holds. */
function write(folder: string, more: Record<string, unknown> = {}) {
  const config = {
    model: {
      init: {
        model_type: "llama",
        vocab_size: 96,
        hidden_size: 64,
        intermediate_size: 160,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 4096,
      },
    },
    data: { train: [path.join(folder, "rows.jsonl")], sequence_length: T },
    train: { steps: 2, batch_size: 2 },
    memory: { device_limit: "16MiB", host_limit: "16MiB", tile_mlp: 200, tile_loss: 150 },
    output: { dir: path.join(folder, "run") },
    ...more,
  };
  const file = path.join(folder, "run.yaml");
  writeFileSync(file, JSON.stringify(config));
  return { file, config };
}

const lines = (text: string) =>
  text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

t.test("it needs neither data nor weights, and tells what it chose", async (t) => {
  const folder = t.testdir({ model: { "config.json": "" } });
  const { file, config } = write(folder);
  writeFileSync(
    path.join(folder, "model/config.json"),
    JSON.stringify({ ...config.model.init, tie_word_embeddings: true }),
  );
  for (const words of [[], ["device=meta"], [`model={path: ${path.join(folder, "model")}}`]]) {
    const { code, out, err } = await run(["plan", file, ...words]);
    t.equal(code, 0, err);
    t.match(out, /^a step: 2 micro-batches of 1,100 tokens, float32 on the cpu \(every sequence full/);
    t.match(out, /\nchoice: MLP in tiles of 200, loss in tiles of 150; no checkpoints\n/);
    t.match(out, /\ndevice: [\d.]+ MiB of 16\.0 MiB \(.*params .*\)\n/);
    t.match(out, /\nwork: .*FLOP a step for the model.* copied\n/);
    t.match(out, /\ntime: .* an estimate for \d+ threads? by rates of /);
    t.match(out, /\nlength: [\d,]+ tokens a sequence would fit these limits/);
  }
});

t.test("--json: lines for programs, with the peaks of the run", async (t) => {
  const folder = t.testdir({});
  const row = `${JSON.stringify({ input_ids: Array.from({ length: 550 }, (_, i) => i % 90) })}\n`;
  const { file } = write(folder, {
    memory: { device_limit: "16MiB", host_limit: "16MiB", checkpoint: { every: 1, offload: "host", device_bytes: 0 } },
  });
  writeFileSync(path.join(folder, "rows.jsonl"), row.repeat(8));
  const { code, out, err } = await run(["plan", file, "--data", "--json"]);
  t.equal(code, 0, err);
  const [plan, longest, ...rest] = lines(out);
  t.equal(rest.length, 0);
  t.match(plan, {
    event: "plan",
    checkpoint_every: 1,
    offload: "host",
    tokens: T,
    documents: 2,
    accumulation: 2,
    assumed: "the data",
  });
  t.match(longest, { event: "longest" });
  t.ok((longest?.tokens as number) > T);
  const { code: trained } = await run(["train", file, "--json", "-q"]);
  t.equal(trained, 0);
  const { steps } = await train({
    ...{ model: { init: write(folder).config.model.init }, train: { steps: 2, batchSize: 2 } },
    data: { train: [path.join(folder, "rows.jsonl")], sequenceLength: T },
    memory: {
      deviceLimit: 16 * MiB,
      hostLimit: 16 * MiB,
      checkpoint: { every: 1, offload: "host", deviceBytes: 0 },
    },
    output: { dir: path.join(folder, "again") },
  });
  t.equal(plan?.device_peak_bytes, steps.at(-1)?.devicePeakBytes);
  t.equal(plan?.host_peak_bytes, steps.at(-1)?.hostPeakBytes);
  t.ok((plan?.hardware_flops as number) >= (plan?.model_flops as number), "the model's and what is run again");
  t.ok((plan?.copied_bytes as number) > 0 && (plan?.estimated_seconds as number) > 0);
});

t.test("the plan is one line of a run's text", async (t) => {
  const folder = t.testdir({});
  const { file } = write(folder);
  const row = `${JSON.stringify({ input_ids: Array.from({ length: T }, (_, i) => i % 90) })}\n`;
  writeFileSync(path.join(folder, "rows.jsonl"), row.repeat(4));
  const { code, err } = await run(["train", file]);
  t.equal(code, 0, err);
  const told = err.split("\n").filter((line) => line.includes("tiles of"));
  t.equal(told.length, 1);
  t.match(told[0], /^2 steps, .*; MLP in tiles of 200, loss in tiles of 150; no checkpoints; device .* of 16\.0 MiB$/);
});

t.test("what cannot be is one clear error", async (t) => {
  const folder = t.testdir({});
  const { file } = write(folder);
  const small = await run(["plan", file, "memory.device_limit=100KiB"]);
  t.equal(small.code, 2);
  t.match(small.err, /^error: memory\.device_limit is 100 KiB .* needs at least .*\n$/);
  const meta = await run(["train", file, "device=meta"]);
  t.equal(meta.code, 2);
  t.match(meta.err, /^error: device: meta computes nothing.*longseq plan/);
  const chunks = await run(["plan", file, "memory.head_chunks=0"]);
  t.match(chunks.err, /memory\.head_chunks: got 0/);
  const tiles = await run(["plan", file, "memory.tile_mlp=0"]);
  t.match(tiles.err, /memory\.tile_mlp: got 0/);
  const bound = await run(["plan", file, "memory.head_chunks=3"]);
  t.equal(bound.code, 0);
  t.match(bound.err, /^warning: memory\.head_chunks: 3 does not divide the 4 heads; 2 are used\n$/);
});

t.test("for a GPU that is not here it says what it assumes", async (t) => {
  const folder = t.testdir();
  const { file } = write(folder, { device: "cuda:1023", memory: { device_limit: "48MiB", host_limit: "48MiB" } });
  const { code, out, err } = await run(["plan", file, "model.dtype=bfloat16"]);
  t.equal(code, 0, err);
  t.match(
    err,
    /^warning: cuda:1023 cannot be opened here: a GPU of compute capability 9\.0 with pages of 2\.00 MiB is /m,
  );
  t.match(out, /tokens, bfloat16 on cuda:1023/);
  const told =
    lines((await run(["plan", file, "model.dtype=bfloat16", "--json"])).out).find(({ event }) => event === "plan") ??
    {};
  t.match(told, { device: "cuda:1023", assumedDevice: undefined, assumed_device: /is assumed/ });
  for (const key of ["device_peak_bytes", "host_peak_bytes"])
    t.equal((told[key] as number) % (2 * MiB), 0, `${key}: whole pages of a GPU`);
  t.ok((told.device_categories as Record<string, number>).workspace, "products on a GPU take workspace");
  const auto = await run(["plan", file, "memory.device_limit=auto"]);
  t.equal(auto.code, 2);
  t.match(auto.err, /^error: memory\.device_limit: auto is the GPU's free memory, but .* --device-memory 139GiB/);
});

t.test("on a terminal what is being tried stands in a line of its own until the next one", async (t) => {
  let written = "";
  const stream = { isTTY: true, columns: 20, write: (text: string) => (written += text) };
  const output = new Output(stream, stream, false);
  output.status(null);
  t.equal(written, "", "nothing to take away");
  output.status("trying this and much else");
  t.equal(written, "\r\x1b[Ktrying this and muc", "one column is left free");
  written = "";
  output.line("done");
  t.equal(written, "\r\x1b[Kdone\n");
  written = "";
  new Output({ write: stream.write }, { write: stream.write }, false).status("trying");
  t.equal(written, "", "no terminal");
});
