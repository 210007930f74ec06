// metrics.jsonl: the order of keys, what is cut off on resume, and failing writes.

import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { IoError } from "../../lib/errors.js";
import type { StepMetrics } from "../../lib/report/events.js";
import { MetricsWriter, toLine } from "../../lib/report/metrics.js";

const metrics = (step: number): StepMetrics => ({
  // Not in the order of the file.
  skipped: false,
  step,
  epoch: 0.5,
  loss: 2.25,
  gradNorm: 1,
  learningRate: 1e-3,
  tokens: 8192,
  validTokens: 8191,
  seconds: 2,
  tokensPerSecond: 4096,
  modelTflops: 0.1,
  hardwareTflops: 0.2,
  mfu: null,
  devicePeakBytes: 4,
  deviceLiveBytes: 3,
  hostPeakBytes: 2,
  rssPeakBytes: 1,
});

const folder = mkdtempSync(join(tmpdir(), "longseq-metrics-"));
t.teardown(() => rmSync(folder, { recursive: true }));
let files = 0;
const newFile = () => join(folder, `${++files}.jsonl`);
const read = (file: string) => readFileSync(file, "utf8");

t.test("a line has every key, in the documented order, with null for what is not finite", async (t) => {
  t.equal(
    toLine(metrics(3)),
    '{"step":3,"epoch":0.5,"loss":2.25,"grad_norm":1,"learning_rate":0.001,"tokens":8192,"valid_tokens":8191,' +
      '"seconds":2,"tokens_per_second":4096,"model_tflops":0.1,"hardware_tflops":0.2,"mfu":null,' +
      '"device_peak_bytes":4,"device_live_bytes":3,"host_peak_bytes":2,"rss_peak_bytes":1,"skipped":false}\n',
  );
  const broken = { ...metrics(1), loss: Number.NaN, gradNorm: Number.POSITIVE_INFINITY, skipped: true };
  t.match(JSON.parse(toLine(broken)), { loss: null, grad_norm: null, skipped: true });
  const partial = { step: 1, loss: 1.2345678901234567 } as StepMetrics;
  const record = JSON.parse(toLine(partial));
  t.equal(Object.keys(record).length, 17, "an absent figure is null, not left out");
  t.equal(record.loss, 1.2345678901234567, "unrounded");
  t.equal(record.mfu, null);
  t.equal(
    toLine({ event: "save", path: "a", step: 2, totalBytes: 3n, parts: [{ byteCount: Number.NaN }] }),
    '{"event":"save","path":"a","step":2,"total_bytes":3,"parts":[{"byte_count":null}]}\n',
  );
});

t.test("append", async (t) => {
  const file = newFile();
  const writer = new MetricsWriter(file, 0);
  writer.write(metrics(1));
  t.equal(read(file), toLine(metrics(1)), "a line is there as soon as it is written");
  writer.write({ event: "eval", step: 1, loss: 3 });
  writer.sync();
  writer.close();
  writer.close();
  t.equal(read(file), `${toLine(metrics(1))}{"event":"eval","step":1,"loss":3}\n`);
  t.throws(() => writer.write(metrics(2)), IoError, "closed");
});

t.test("a resume keeps what the checkpoint knows", async (t) => {
  const kept =
    '{"event":"plan","steps":9}\n' +
    toLine(metrics(1)) +
    toLine(metrics(2)) +
    '{"event":"eval","step":2,"loss":1}\n{"event":"save","step":2,"path":"step-2"}\n';
  const later = `${toLine(metrics(3))}{"event":"warning","message":"late"}\n${toLine(metrics(4))}`;
  const cases: [name: string, content: string, step: number, expected: string][] = [
    ["later lines go, also those that name no step", kept + later, 2, kept],
    ["a progress line of the running step goes", `${kept}{"event":"progress","step":3,"fraction":0.5}\n`, 2, kept],
    ["a torn last line goes", `${kept}{"step":3,"ep`, 2, kept],
    ["a torn line that is valid JSON goes", `${kept}{"step":2}`, 2, kept],
    ["a tail of zeros from a crash goes", `${kept}\0\0\0\0\n`, 2, kept],
    ["a broken line in the middle stays where it is", `oops\n${kept}`, 2, `oops\n${kept}`],
    ["nothing later", kept, 2, kept],
    ["a start from nothing", kept + later, 0, ""],
    ["an empty file", "", 5, ""],
    ["nothing but a torn line", "{", 5, ""],
  ];
  for (const [name, content, step, expected] of cases) {
    const file = newFile();
    writeFileSync(file, content);
    const writer = new MetricsWriter(file, step);
    t.equal(read(file), expected, name);
    writer.write(metrics(step + 1));
    writer.close();
    t.equal(read(file), expected + toLine(metrics(step + 1)), `${name}: goes on behind it`);
  }
});

t.test("long files and lines across the reader's blocks", async (t) => {
  const file = newFile();
  let kept = "";
  for (let step = 1; step <= 700; step++) kept += toLine(metrics(step));
  kept += `${JSON.stringify({ event: "warning", step: 700, message: "ä".repeat(100_000) })}\n`;
  writeFileSync(file, kept + toLine(metrics(701)));
  new MetricsWriter(file, 700).close();
  t.ok(read(file) === kept);
});

t.test("what the file system refuses is an IoError that names file, reason and advice", async (t) => {
  t.throws(() => new MetricsWriter(join(folder, "none", "m.jsonl"), 0), {
    code: "IO",
    message: `${join(folder, "none", "m.jsonl")}: cannot be opened (ENOENT); the run's folder is gone`,
  });
  mkdirSync(join(folder, "folder.jsonl"));
  t.throws(() => new MetricsWriter(join(folder, "folder.jsonl"), 0), /cannot be opened \(EISDIR\)/);
});

t.test("after a failed write the file ends with the line before", async (t) => {
  const file = newFile();
  const module = new URL("../../lib/report/metrics.ts", import.meta.url).href;
  // The child may write 1024 bytes to a file; the second line is longer than what is left.
  const script = `
    import { MetricsWriter } from ${JSON.stringify(module)};
    const writer = new MetricsWriter(${JSON.stringify(file)}, 0);
    writer.write({ event: "warning", message: "x".repeat(600) });
    try {
      writer.write({ event: "warning", message: "y".repeat(600) });
      console.log("written");
    } catch (error) {
      console.log(error.code, error.message);
    }
    writer.write({ event: "warning", message: "z" });
  `;
  const program = newFile().replace(".jsonl", ".mts");
  writeFileSync(program, script);
  const child = spawnSync("bash", ["-c", 'ulimit -f 1; exec "$0" --import=tsx "$1"', process.execPath, program], {
    encoding: "utf8",
    env: { ...process.env, NODE_OPTIONS: "", TSX_DISABLE_CACHE: "1" },
  });
  t.match(child.stdout, /^IO .*cannot be written \(EFBIG\)/, child.stderr);
  const lines = read(file).split("\n");
  t.equal(lines.length, 3);
  t.match(
    lines.slice(0, 2).map((line) => JSON.parse(line).message[0]),
    ["x", "z"],
  );
});

t.test("a reader that follows the file keeps its place", async (t) => {
  const file = newFile();
  writeFileSync(file, toLine(metrics(1)) + toLine(metrics(2)));
  const before = statSync(file).ino;
  const writer = new MetricsWriter(file, 1);
  writer.write(metrics(2));
  t.equal(statSync(file).ino, before, "the same file, cut in place");
  writer.close();
  t.equal(read(file), toLine(metrics(1)) + toLine(metrics(2)));
});
