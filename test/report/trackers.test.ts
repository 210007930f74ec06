// Trackers: event files to TensorBoard's own bytes, a program that gets every line, and runs that outlive both.

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { CommandTracker } from "../../lib/report/command_tracker.js";
import type { RunItem, StepMetrics } from "../../lib/report/events.js";
import { crc32c, scalarsOf, TensorBoardTracker } from "../../lib/report/tensorboard.js";
import { Trackers } from "../../lib/report/tracker.js";
import { Trainer } from "../../lib/train/trainer.js";

const folder = mkdtempSync(join(tmpdir(), "longseq-trackers-"));
t.teardown(() => rmSync(folder, { recursive: true }));

const step = (number: number, more: Partial<StepMetrics> = {}): StepMetrics => ({
  step: number,
  epoch: 0.5,
  loss: 2.5,
  gradNorm: 0.125,
  learningRate: 1e-3,
  tokens: 64,
  validTokens: 63,
  seconds: 0.5,
  tokensPerSecond: 128,
  modelTflops: 1,
  hardwareTflops: 1,
  mfu: null,
  devicePeakBytes: 1024,
  deviceLiveBytes: 512,
  hostPeakBytes: 0,
  rssPeakBytes: 2048,
  skipped: false,
  ...more,
});

/** The records of an event file, their checksums checked. */
function records(file: string): Buffer[] {
  const bytes = readFileSync(file);
  const masked = (data: Buffer) => {
    const crc = crc32c(data);
    return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
  };
  const found: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at));
    if (bytes.readUInt32LE(at + 8) !== masked(bytes.subarray(at, at + 8))) throw new Error("length");
    const data = bytes.subarray(at + 12, at + 12 + length);
    if (bytes.readUInt32LE(at + 12 + length) !== masked(data)) throw new Error("data");
    found.push(data);
    at += 16 + length;
  }
  return found;
}

t.test("event files are TensorBoard's to the byte", async (t) => {
  t.equal(crc32c(Buffer.from("123456789")), 0xe3069283, "the check value of CRC-32C");
  const { file } = JSON.parse(readFileSync(join(import.meta.dirname, "../golden/tensorboard.json"), "utf8")) as {
    file: string;
  };
  const golden = join(folder, "golden");
  let now = 1000.5;
  const tracker = new TensorBoardTracker(golden, { startStep: 300, config: "a: ä", now: () => now });
  await tracker.close();
  const whole = Buffer.from(file, "base64");
  const written = readFileSync(tracker.file);
  t.same(written, whole.subarray(0, written.length));
  now = 1001.5;
  const other = new TensorBoardTracker(golden, { startStep: 0, config: "a", now: () => now });
  other.write({ ...step(301), epoch: Number.NaN, learningRate: null as never, skipped: null as never } as RunItem);
  other.write({ event: "save", step: 301, path: "p" });
  await other.close();
  await other.close();
  const last = records(other.file).at(-1) as Buffer;
  const [first] = [whole.subarray(written.length + 12, whole.length - 4)];
  t.same(last.subarray(0, 12), first.subarray(0, 12), "time and step");
  t.ok(last.includes(first.subarray(first.indexOf("train/loss") - 4, first.indexOf("train/grad_norm") - 4)));
});

t.test("what is shown of an item", async (t) => {
  const tags = Object.fromEntries(scalarsOf(step(1, { skipped: true, loss: null, mfu: 0.4 })));
  t.match(tags, { "train/grad_norm": 0.125, "speed/mfu": 0.4, "train/skipped": 1, "memory/device_peak_bytes": 1024 });
  t.notOk("train/loss" in tags);
  t.same(scalarsOf({ event: "eval", step: 3, loss: 1.5 }), [["eval/loss", 1.5]]);
  t.same(scalarsOf({ event: "save", step: 3, path: "p" }), []);
});

t.test("a program gets every line, and its end is told", async (t) => {
  const out = join(folder, "lines");
  const warnings: string[] = [];
  const warn = (message: string) => warnings.push(message);
  const good = new CommandTracker(`cat > '${out}'; echo "$LONGSEQ_RUN_DIR" >> '${out}'`, { dir: folder, warn });
  good.write(step(1));
  good.write({ event: "done", step: 1 });
  await good.close();
  const lines = readFileSync(out, "utf8").trimEnd().split("\n");
  t.equal(lines.length, 3);
  t.match(JSON.parse(lines[0] as string), { step: 1, grad_norm: 0.125 });
  t.same(JSON.parse(lines[1] as string), { event: "done", step: 1 });
  t.equal(lines[2], folder);
  const bad = new CommandTracker("cat > /dev/null; exit 3", { dir: folder, warn });
  bad.write(step(1));
  await bad.close();
  t.same(warnings, ["output.command: it ended with exit code 3"]);
});

t.test("a tracker that fails is told once, and the others go on", async (t) => {
  const warnings: string[] = [];
  const trackers = new Trackers((message) => warnings.push(message));
  const seen: RunItem[] = [];
  trackers.add("none", () => {
    throw new Error("no room");
  });
  trackers.add("weak", () => ({
    name: "weak",
    write: () => {
      throw new Error("gone");
    },
    close: async () => {},
  }));
  trackers.add("late", () => ({
    name: "late",
    write: async () => {
      await Promise.resolve();
      throw undefined;
    },
    close: async () => {},
  }));
  trackers.add("strong", () => ({ name: "strong", write: (item) => seen.push(item), close: async () => {} }));
  trackers.write(step(1));
  trackers.write(step(2));
  await trackers.close();
  t.same(warnings, [
    "none follows nothing of this run: no room",
    "weak no longer follows the run: gone",
    "late no longer follows the run: undefined",
  ]);
  t.equal(seen.length, 2);
});

t.test("runs", async (t) => {
  const dir = join(folder, "run");
  const lines = join(folder, "of_run");
  const config = (steps: number) => ({
    model: {
      init: {
        model_type: "llama",
        vocab_size: 16,
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 1,
      },
    },
    data: { train: [join(folder, "rows.jsonl")], sequenceLength: 8, shuffle: false },
    train: { steps, learningRate: 1e-3, schedule: "constant" as const },
    threads: 1,
    device: "cpu",
    output: { dir, trackers: ["tensorboard" as const], command: `cat >> '${lines}'; exit 1` },
  });
  writeFileSync(join(folder, "rows.jsonl"), '{"input_ids":[1,2,3,4,5,6,7,8]}\n');
  const items: RunItem[] = [];
  const heard: RunItem[] = [];
  const onEvent = (item: RunItem) => {
    heard.push(item);
    if (item.event === undefined && item.step === 3) throw new Error("enough");
  };
  for (const steps of [2, 3]) for await (const item of new Trainer(config(steps)).run({ onEvent })) items.push(item);
  t.match(heard.at(-1), { step: 3 });
  t.ok(items.some((item) => item.event === "warning" && item.message === "onEvent no longer follows the run: enough"));
  t.equal(items.filter(({ event }) => event === "warning").length, 3, "each run tells how the program ended");
  const told = readFileSync(lines, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  t.same(
    told.filter(({ event }) => event === undefined).map(({ step }) => step),
    [1, 2, 3],
  );
  const files = readdirSync(join(dir, "tensorboard")).sort();
  t.equal(files.length, 2);
  const [first, second] = files.map((name) => records(join(dir, "tensorboard", name))) as [Buffer[], Buffer[]];
  t.ok(first[0]?.includes("brain.Event:2"));
  t.ok(first[1]?.includes("sequence_length: 8"), "the configuration");
  t.equal(first.filter((record) => record.includes("train/loss")).length, 2);
  t.equal(second.filter((record) => record.includes("train/loss")).length, 1);
  t.equal(
    (second[1] as Buffer).subarray(-4).toString("hex"),
    "3a020801",
    "the second takes back what it goes over again",
  );
});
