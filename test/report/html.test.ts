// The report of a run: what its page says and draws, that it stands alone, and what is said about broken input.

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { main } from "../../lib/cli/main.js";
import { formatBytes } from "../../lib/report/format.js";
import { reportHtml, writeReport } from "../../lib/report/html.js";
import { formatMicros, lineChart, ticks } from "../../lib/report/html_chart.js";
import { script } from "../../lib/report/html_page.js";
import { readRun } from "../../lib/report/html_read.js";
import {
  blocksOf,
  exchangesOf,
  hills,
  opKind,
  parseTrace,
  queueUse,
  rankStep,
  type TraceOp,
} from "../../lib/report/html_trace.js";

const folder = mkdtempSync(join(tmpdir(), "longseq-report-"));
t.teardown(() => rmSync(folder, { recursive: true }));

const MiB = 2 ** 20;

function stepRecord(step: number, more: Record<string, unknown> = {}) {
  return {
    step,
    epoch: step / 10,
    loss: 6 / step,
    grad_norm: 2 / step,
    learning_rate: 1e-3,
    tokens: 1000,
    valid_tokens: 990,
    seconds: 0.5,
    tokens_per_second: 2000 + step,
    model_tflops: 0.1,
    hardware_tflops: 0.12,
    mfu: null,
    device_peak_bytes: 64 * MiB,
    device_live_bytes: 10 * MiB,
    host_peak_bytes: 8 * MiB,
    rss_peak_bytes: 128 * MiB,
    skipped: false,
    ...more,
  };
}

const plan = {
  event: "plan",
  steps: 4,
  device: "cpu (avx2, 2 threads)",
  dtype: "float32",
  parameters: 1_234_567,
  trainable: 12_345,
};

/** A trace as the recorder writes it: ops enqueued 10 us apart, allocations at the time given, or before all ops. */
function traceText(
  ops: [name: string, queue: number, start: number, duration: number][],
  memory: unknown[][],
  live: unknown = { device: {}, host: {}, disk: {} },
) {
  const events = [
    ...["compute", "copy_out", "copy_in", "comm"].map((name, tid) => ({
      name: "thread_name",
      ph: "M",
      pid: 1,
      tid,
      args: { name },
    })),
    ...ops.map(([name, tid, ts, dur], i) => ({
      name,
      cat: "op",
      ph: "X",
      pid: 1,
      tid,
      ts,
      dur,
      args: { bytes: 1024, flops: name === "matmul" ? 1e6 : 0, enqueued: 10 * (i + 1) },
    })),
    ...memory.map(([tier, category, bytes, ts = 1]) => ({
      name: "allocation",
      cat: "memory",
      ph: "i",
      s: "p",
      pid: 1,
      tid: 100,
      ts,
      args: { category, tier, bytes },
    })),
  ];
  return `${JSON.stringify({ displayTimeUnit: "ms", traceEvents: events, otherData: { live } })}\n`;
}

const trace = traceText(
  [
    ["matmul", 0, 100, 400],
    ["attention", 0, 500, 300],
    ["copy", 1, 450, 100],
    ["copy", 2, 850, 100],
    ["attention_backward", 0, 900, 200],
  ],
  [
    ["device", "activations", 4 * MiB],
    // For the attention, which is enqueued at 20 and runs at 500.
    ["device", "workspace", 2 * MiB, 15],
    ["host", "checkpoints", 3 * MiB, 25],
    ["device", "workspace", -2 * MiB, 25],
    ["device", "grads", 1 * MiB, 45],
    ["device", "activations", -4 * MiB, 55],
    ["host", "checkpoints", -3 * MiB, 55],
    ["device", "grads", -1 * MiB, 55],
  ],
  { device: { params: 8 * MiB, optimizer: 2 * MiB, grads: 0 }, host: {}, disk: {} },
);

let made = 0;
/** A run folder with these lines of metrics.jsonl (objects or text) and these traces. */
function runFolder(lines: readonly (object | string)[], traces: Record<string, string> = {}): string {
  const run = join(folder, `run-${++made}`);
  mkdirSync(run);
  writeFileSync(
    join(run, "metrics.jsonl"),
    lines.map((line) => (typeof line === "string" ? line : `${JSON.stringify(line)}\n`)).join(""),
  );
  for (const [name, text] of Object.entries(traces)) {
    mkdirSync(join(run, "trace"), { recursive: true });
    writeFileSync(join(run, "trace", name), text);
  }
  return run;
}

async function command(...argv: string[]) {
  const seen = { stdout: "", stderr: "" };
  const code = await main(argv, {
    stdout: { write: (text) => (seen.stdout += text) },
    stderr: { write: (text) => (seen.stderr += text) },
    env: {},
  });
  return { code, ...seen };
}

/** The text of one element of the page, by its id, without tags. */
function textOf(html: string, id: string): string {
  const section = new RegExp(`<section class="card" id="${id}">(.*?)</section>`, "s").exec(html)?.[1] ?? "";
  return section
    .replace(/<[^>]*>/g, " ")
    .replace(/\s+/g, " ")
    .trim();
}

const full = [
  plan,
  stepRecord(1),
  stepRecord(2),
  { event: "eval", step: 2, loss: 3.25 },
  { event: "progress", step: 3, fraction: 0.5 },
  stepRecord(3),
  stepRecord(4),
  { event: "eval", step: 4, loss: 1.75 },
  { event: "done", step: 4, path: "model", skipped: 0 },
];

t.test("a page with everything in it", async (t) => {
  const run = runFolder(full, { "step-1.json": trace, "step-2.json": trace, "notes.txt": "not a trace" });
  mkdirSync(join(run, "model"));
  writeFileSync(
    join(run, "model", "config.json"),
    JSON.stringify({
      model_type: "llama",
      num_hidden_layers: 2,
      hidden_size: 64,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      vocab_size: 32000,
    }),
  );
  const { code, stdout, stderr } = await command("report", run);
  t.equal(code, 0);
  t.equal(stderr, "");
  const path = join(run, "report.html");
  t.equal(stdout, `${path}: ${formatBytes(statSync(path).size)}, 4 steps\n`);
  t.same(readdirSync(run).sort(), ["metrics.jsonl", "model", "report.html", "trace"], "no temporary file stays");
  const html = readFileSync(path, "utf8");

  t.test("it stands alone", async (t) => {
    t.match(html, /^<!doctype html>\n<html lang="en">/);
    t.match(html, /default-src 'none'/, "the browser itself refuses to load anything");
    t.notMatch(html, /<(link|img|iframe|object|embed)\b|<script[^>]+src|@import|url\(|https?:\/\//);
    t.match(html, /prefers-color-scheme: dark/);
    // Parsing throws where the script is broken.
    t.doesNotThrow(() => new Function(script));
    t.equal(html.split("<script>").length, 2);
  });

  t.test("the summary", async (t) => {
    const text = textOf(html, "summary");
    t.match(text, "Model llama, 2 layers, hidden 64, 4/2 heads, vocabulary 32,000");
    t.match(text, "Parameters 1.23M (1,234,567), float32");
    t.match(text, "Trained 12.3K (12,345), 1.00%");
    t.match(text, "Steps 4 of 4, finished");
    t.match(text, "Tokens 4,000");
    t.match(text, "Training time 2.0s");
    t.match(text, "Final loss 1.5000 (first 6.0000)");
    t.match(text, "Evaluation loss 1.7500 after step 4");
    t.match(text, "Tokens/s, median 2.00K");
    t.match(text, "Peak device memory 64.0 MiB");
    t.match(text, "Peak host memory 8.00 MiB");
  });

  t.test("the lines over steps", async (t) => {
    for (const label of ["Loss", "Tokens per second", "Memory", "Gradient norm"]) {
      const svg = new RegExp(`<svg class="chart lines"[^>]* aria-label="${label} over steps".*?</svg>`, "s").exec(html);
      t.ok(svg, label);
      const line = /<path class="line"[^>]* d="([^"]+)"/.exec(svg?.[0] ?? "")?.[1] ?? "";
      t.equal(line.match(/[ML]/g)?.length, 4, `${label}: a point a step`);
    }
    const loss = /aria-label="Loss over steps" data-hover="([^"]+)"/.exec(html)?.[1] ?? "";
    const hover = JSON.parse(loss.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code))));
    t.same(hover.head, ["step 1", "step 2", "step 3", "step 4"]);
    t.same(hover.rows[0].text, ["6", "3", "2", "1.5"]);
    t.same(hover.rows[1].text, ["", "3.25", "", "1.75"], "evaluations at their steps");
    t.ok(hover.rows[0].y[0] < hover.rows[0].y[3], "a lower loss lies lower");
  });

  t.test("the waterfall", async (t) => {
    t.match(textOf(html, "waterfall-1"), "Step 1 took 1.00 ms on the device: 5 ops on 3 queues");
    for (const [queue, share, rects] of [
      ["compute", "90% busy", 3],
      ["copy_out", "10% busy", 1],
      ["copy_in", "10% busy", 1],
    ] as const) {
      const row = new RegExp(`<div class="queue" data-queue="${queue}">.*?</svg>`, "s").exec(html)?.[0] ?? "";
      t.match(row, share);
      t.equal(row.match(/<rect /g)?.length, rects, queue);
    }
    t.notMatch(html, 'data-queue="comm"', "a queue without work has no row");
    t.match(
      html,
      /<rect x="0" width="4000" [^>]*data-tip="matmul\n400 µs, from 0\.00 µs\n1\.00 KiB read and written\n2\.5 GFLOP\/s"/,
    );
    t.match(textOf(html, "waterfall-1"), "matmul 1 400 µs 36% 2.5");
    t.match(textOf(html, "waterfall-1"), "copy_out 1 100 µs 10% 100% 1.00 KiB");
    t.match(textOf(html, "waterfall-1"), "copy_in 1 100 µs 10% 50% 1.00 KiB", "half of it beside compute");
  });

  t.test("memory through the step", async (t) => {
    const text = textOf(html, "memory-2");
    t.match(text, "Device Live at most 16.0 MiB, of which 10.0 MiB lay there before the step");
    t.match(text, "peak 16.0 MiB");
    t.match(text, "Host Live at most 3.00 MiB; up to the step's end the allocator had reserved at most 8.00 MiB");
    t.match(text, "At the peak device 16.0 MiB 100% params 8.00 MiB 50% activations 4.00 MiB 25% optimizer 2.00 MiB");
    t.match(text, "time on the device");
    const hover = /aria-label="Device memory by category through step 2" data-hover="([^"]+)"/.exec(html)?.[1] ?? "";
    const { head, rows } = JSON.parse(hover.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code))));
    t.same(
      head.map((at: string, i: number) => [at, rows[0].text[i]]),
      [
        ["start of the step", "10.0 MiB"],
        ["at 0.00 µs", "14.0 MiB"],
        ["at 400 µs", "16.0 MiB"],
        ["at 800 µs", "14.0 MiB"],
        ["at 800 µs", "15.0 MiB"],
        ["at 1.00 ms", "11.0 MiB"],
        ["at 1.00 ms", "10.0 MiB"],
      ],
      "when the ops run that the memory is for",
    );
    const areas = [...html.matchAll(/<path class="area" data-category="([^"]+)"/g)].map((match) => match[1]);
    const tiers = ["params", "optimizer", "grads", "activations", "workspace", "checkpoints"];
    t.same(areas, [...tiers, ...tiers], "device, then host, of both steps");
    t.equal(html.match(/<path class="peak"/g)?.length, 4, "a flat line for each tier of each step");
  });

  t.test("it is the same page every time, and is replaced in one piece", async (t) => {
    const again = await command("report", "--json", run);
    t.equal(again.code, 0);
    t.same(JSON.parse(again.stdout), {
      event: "report",
      path,
      bytes: statSync(path).size,
      steps: 4,
      traced_steps: [1, 2],
      remarks: [],
    });
    t.equal(readFileSync(path, "utf8"), html);
  });
});

t.test("text from the run cannot become markup", async (t) => {
  const run = runFolder(
    [{ ...plan, device: "<b>cpu</b>" }, { event: "warning", message: "</p><script>x" }, stepRecord(1)],
    {
      "step-1.json": traceText([['<img src="x">', 0, 0, 10]], [["device", "<i>", 8]]),
    },
  );
  writeReport(run);
  const html = readFileSync(join(run, "report.html"), "utf8");
  t.notMatch(html, /<b>cpu|<img|<i>/);
  t.equal(html.split("<script").length, 2);
  t.match(html, "&#60;b&#62;cpu");
  t.match(textOf(html, "notes"), "&#60;script&#62;x");
});

t.test("what a run does not have", async (t) => {
  t.test("no trace: the page and a line say how to record one", async (t) => {
    const run = runFolder(full);
    const { code, stderr, stdout } = await command("report", run);
    t.equal(code, 0);
    t.match(stderr, /^no step was recorded: train with output\.trace_steps=1 to see [^\n]+\n$/);
    t.match(stdout, /report\.html/);
    const html = readFileSync(join(run, "report.html"), "utf8");
    t.match(textOf(html, "no-trace"), "No step was recorded. Train with output.trace_steps=1");
    t.match(textOf(html, "summary"), "Model not saved yet");
  });

  t.test("a run that is not finished; its newest checkpoint tells the model", async (t) => {
    const run = runFolder([{ ...plan, steps: 100 }, stepRecord(1), stepRecord(2)]);
    for (const [step, layers] of [
      [9, 7],
      [10, 8],
    ]) {
      const checkpoint = join(run, "checkpoints", `step-${step}`);
      mkdirSync(checkpoint, { recursive: true });
      writeFileSync(
        join(checkpoint, "config.json"),
        JSON.stringify({ model_type: "qwen3", num_hidden_layers: layers }),
      );
    }
    const text = textOf(reportHtml(readRun(run)), "summary");
    t.match(text, "Steps 2 of 100, not finished");
    t.match(text, "Model qwen3, 8 layers");
    t.match(text, "Evaluation loss none");
  });

  t.test("steps without a loss leave a gap and are counted", async (t) => {
    const run = runFolder([
      stepRecord(1),
      stepRecord(2, { loss: null, grad_norm: null, skipped: true }),
      stepRecord(3),
      stepRecord(4),
    ]);
    const html = reportHtml(readRun(run));
    t.match(textOf(html, "summary"), "Skipped steps 1 (loss");
    const loss = /aria-label="Loss over steps".*?<\/svg>/s.exec(html)?.[0] ?? "";
    t.match(
      /<path class="line"[^>]* d="([^"]+)"/.exec(loss)?.[1],
      /^M[\d. ]+M[\d. ]+L[\d. ]+$/,
      "no line across the gap",
    );
    t.match(loss, /<g class="dots"[^>]*><circle/, "a single step is a dot");
    t.match(
      reportHtml(readRun(runFolder([stepRecord(1, { loss: null })]))),
      /Loss over steps: no finite value to draw/,
      "no step with a loss",
    );
  });

  t.test("a trace whose step has no line", async (t) => {
    const html = reportHtml(readRun(runFolder([stepRecord(1)], { "step-7.json": trace })));
    t.match(textOf(html, "memory-7"), "Live at most 16.0 MiB, of which 10.0 MiB lay there before the step.");
  });

  t.test("an empty trace", async (t) => {
    const html = reportHtml(readRun(runFolder([stepRecord(1)], { "step-1.json": traceText([], []) })));
    t.match(textOf(html, "waterfall-1"), "the trace holds no ops");
  });

  t.test("a last line torn by a crash is left out, and said", async (t) => {
    const run = runFolder([stepRecord(1), '{"step":2,"lo']);
    const { code, stderr } = await command("report", run);
    t.equal(code, 0);
    t.match(stderr, `warning: ${join(run, "metrics.jsonl")}:2: the last line was torn by a crash and is left out\n`);
    t.match(textOf(readFileSync(join(run, "report.html"), "utf8"), "notes"), "the last line was torn");
  });
});

t.test("broken input: one message with the place, and no page", async (t) => {
  const file = join(folder, "file");
  writeFileSync(file, "");
  const empty = join(folder, "empty");
  mkdirSync(empty);
  const broken: [run: string, code: number, message: RegExp][] = [
    [join(folder, "nothing"), 2, /nothing: there is no such folder; give the output\.dir of a run\n$/],
    [file, 2, /file: not a folder; give the output\.dir/],
    [empty, 2, /metrics\.jsonl: there is no such file, so this is no run folder/],
    [runFolder([]), 1, /metrics\.jsonl: no finished step yet/],
    [runFolder([plan]), 1, /metrics\.jsonl: no finished step yet/],
    [
      runFolder([stepRecord(1), "{oops}\n", stepRecord(2)]),
      1,
      /metrics\.jsonl:2: not valid JSON \(.*\); repair or remove/,
    ],
    [runFolder([stepRecord(1), "[1]\n"]), 1, /metrics\.jsonl:2: expected an object, got \[1\]/],
    [runFolder([stepRecord(1, { tokens: "many" })]), 1, /metrics\.jsonl:1: tokens is "many"; expected a number/],
    [runFolder([stepRecord(1, { seconds: undefined })]), 1, /metrics\.jsonl:1: seconds is missing; expected a number/],
    [runFolder([stepRecord(1, { loss: "low" })]), 1, /metrics\.jsonl:1: loss is "low"; expected a number/],
    [runFolder([stepRecord(0)]), 1, /metrics\.jsonl:1: step is 0; expected a whole number from 1/],
    [runFolder([stepRecord(2), stepRecord(2)]), 1, /metrics\.jsonl:2: step 2 comes after step 2; steps must ascend/],
    [runFolder([stepRecord(1)], { "step-1.json": "{" }), 1, /step-1\.json: not valid JSON .*output\.trace_steps/],
    [runFolder([stepRecord(1)], { "step-1.json": "null" }), 1, /step-1\.json: no traceEvents in it/],
    [
      runFolder([stepRecord(1)], { "step-1.json": '{"traceEvents":[]}' }),
      1,
      /step-1\.json: otherData\.live does not say/,
    ],
    [
      runFolder([stepRecord(1)], { "step-1.json": traceText([], [], { device: { params: "much" } }) }),
      1,
      /step-1\.json: otherData\.live does not say .*output\.trace_steps/,
    ],
    [
      runFolder([stepRecord(1)], {
        "step-1.json": '{"otherData":{"live":{}},"traceEvents":[{"name":"matmul","ph":"X","tid":0,"ts":"x"}]}',
      }),
      1,
      /step-1\.json: event 1 \(matmul\): ts is "x"; expected a number/,
    ],
    [
      runFolder([stepRecord(1)], {
        "step-1.json": '{"otherData":{"live":{}},"traceEvents":[{"name":"allocation","cat":"memory","ph":"i"}]}',
      }),
      1,
      /step-1\.json: event 1 \(allocation\): bytes is missing; expected a number/,
    ],
  ];
  const config = runFolder([stepRecord(1)]);
  mkdirSync(join(config, "model"));
  writeFileSync(join(config, "model", "config.json"), "{");
  broken.push([config, 1, /model\/config\.json: not a valid config\.json/]);
  for (const [run, code, message] of broken) {
    const result = await command("report", run);
    t.equal(result.code, code, String(message));
    t.match(result.stderr, message);
    t.equal(result.stderr.split("\n").length, 2, "one line");
    t.match(result.stderr, /^error: /);
    t.equal(result.stdout, "");
    t.notOk(existsSync(join(run, "report.html")));
  }
});

t.test("a page that cannot be written", async (t) => {
  const run = runFolder([stepRecord(1)]);
  // A folder in its place stops root too.
  mkdirSync(join(run, "report.html", "in the way"), { recursive: true });
  const { code, stderr } = await command("report", run);
  t.equal(code, 1);
  t.match(stderr, /^error: .*report\.html: cannot be written \(\w+\); free some space or make the folder writable\n$/);
  t.same(readdirSync(run).sort(), ["metrics.jsonl", "report.html"], "no temporary file stays");
});

t.test("many steps, many ops and many traces stay drawable", async (t) => {
  const steps = Array.from({ length: 20_000 }, (_, i) => stepRecord(i + 1, { loss: i === 12_345 ? 99 : 2 }));
  const ops: Parameters<typeof traceText>[0] = Array.from({ length: 30_000 }, (_, i) => ["binary", 0, i * 2, 1]);
  const memory = Array.from({ length: 30_000 }, (_, i) => [
    "device",
    "activations",
    i === 15_000 ? 5000 : i === 15_001 ? -5000 : i % 2 ? -10 : 10,
    i * 10,
  ]);
  const text = traceText(ops, memory);
  const traces = Object.fromEntries(
    [1, 2, 3, 4, 5, 6, 10, 11].map((step) => [`step-${step}.json`, step === 1 ? text : trace]),
  );
  const run = readRun(runFolder(steps, traces));
  const html = reportHtml(run);
  t.same(
    run.traces.map(({ step }) => step),
    [1, 2, 3, 4, 5, 6],
  );
  t.same(run.omittedTraces, [10, 11]);
  t.match(html, "the traces of 2 later steps");
  t.ok(html.length < 3 * MiB, `${formatBytes(html.length)}`);
  t.match(html, /&#34;99&#34;/, "the one high loss is not lost");
  t.match(html, /<path class="line faint"/);
  t.match(textOf(html, "loss"), "training, mean of 400 steps");
  t.match(html, "&#34;2.2425&#34;", "97 / 400 above the rest while that step is in the mean");
  const [hill] = hills(run.traces[0] as (typeof run.traces)[0]);
  t.equal(hill?.peak, 5000, "nor is the peak");
  t.ok((hill?.at.length ?? 0) <= 802);
});

t.test("blocks keep the time of what they hold", async (t) => {
  const op = (name: string, start: number, duration: number): TraceOp => ({
    name,
    queue: "compute",
    enqueued: 0,
    start,
    duration,
    bytes: 1,
    flops: 2,
  });
  const ops = [
    op("matmul", 0, 100),
    op("rms_norm", 100, 2),
    op("swiglu", 102, 3),
    op("rms_norm", 106, 2),
    op("adamw", 200, 2),
  ];
  const blocks = blocksOf(ops, 10);
  t.same(
    blocks.map(({ kind, start, end, busy }) => [kind, start, end, busy]),
    [
      ["matrix products", 0, 100, 100],
      ["norms", 100, 108, 7],
      ["optimizer", 200, 202, 2],
    ],
  );
  t.same(
    [...(blocks[1]?.names ?? [])],
    [
      ["rms_norm", 2],
      ["swiglu", 1],
    ],
  );
  t.equal(blocksOf(ops, 0).length, ops.length, "none is small without a limit");
  t.same(
    queueUse(parseTrace(1, trace, "trace")).queues.map(({ queue, busy, besideCompute }) => [
      queue,
      busy,
      besideCompute,
    ]),
    [
      ["compute", 900, 900],
      ["copy_out", 100, 100],
      ["copy_in", 100, 50],
    ],
  );
});

t.test("exchanges between ranks: what of them nothing else ran beside", async (t) => {
  const op = (name: string, queue: string, start: number, duration: number, bytes = 0): TraceOp => ({
    ...{ name, queue, start, duration, bytes },
    ...{ enqueued: 0, flops: 0 },
  });
  const trace = {
    step: 1,
    ops: [
      op("matmul", "compute", 0, 100),
      op("all_gather", "comm", 50, 100, 8),
      op("all_gather", "comm", 200, 20, 8),
      op("all_to_all", "comm", 10, 30, 4),
      op("axpby", "comm", 220, 5, 2),
      op("matmul", "compute", 150, 60),
    ],
    allocations: [],
    live: {},
  };
  t.same(exchangesOf(trace), [
    { name: "all_gather", count: 2, bytes: 16, time: 120, exposed: 60 },
    { name: "all_to_all", count: 1, bytes: 4, time: 30, exposed: 0 },
  ]);
  t.same(rankStep(3, trace), { rank: 3, span: 225, compute: 160, comm: 155, exposed: 65 });
});

t.test("hills: what was there before, and when", async (t) => {
  const from = (...[ops, memory, live]: Parameters<typeof traceText>) =>
    hills(parseTrace(1, traceText(ops, memory, live), "trace"));
  const [freed] = from([], [["host", "checkpoints", -8, 3]], { host: { checkpoints: 10 } });
  t.match(freed, { tier: "host", before: 10, peak: 10, peakAt: 0, categories: ["checkpoints"], at: [0, 3] });
  t.same(freed?.live, [[10, 2]], "without ops the program's own time");
  const [held, other] = from([], [["elsewhere", "stranger", 5]], { device: { params: 3, unheard: 4, grads: 0 } });
  t.match(held, { tier: "device", before: 7, peak: 7, at: [0], categories: ["params", "unheard"] }, "nothing happens");
  t.match(other, { tier: "elsewhere", before: 0, peak: 5, categories: ["stranger"] });
  const [moved] = from(
    [
      ["fill", 0, 100, 50],
      // On a queue of its own, whose time says nothing about compute's.
      ["copy", 1, 500, 50],
      ["matmul", 0, 200, 100],
    ],
    [
      ["device", "grads", 8, 5],
      ["device", "grads", 8, 10],
      ["device", "grads", 8, 15],
      ["device", "grads", -24, 31],
    ],
  );
  t.same(moved?.at, [0, 100, 100, 200, 300], "the next op of the compute queue, or the end of the last");
  t.same(from([], [], { device: { params: 0 } }), []);
});

t.test("numbers on axes", async (t) => {
  t.same(ticks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  t.same(
    ticks(0, 100 * MiB, 5, 1024),
    [0, 20, 40, 60, 80, 100].map((value) => value * MiB),
  );
  t.same(ticks(3, 3, 5), [3]);
  t.equal(formatMicros(0), "0.00 µs");
  t.equal(formatMicros(1234), "1.23 ms");
  t.equal(formatMicros(12_345_678), "12.3 s");
  t.equal(opKind("embedding_backward"), "embedding and loss");
  t.equal(opKind("rms_norm_backward"), "norms");
  t.equal(opKind("reduce_scatter"), "exchanges");
  t.equal(opKind("copy"), "copies");
  t.equal(opKind("something_new"), "other");
  const one = lineChart({
    label: "One",
    steps: [5],
    series: [{ name: "a", colour: "blue", values: [1] }],
    format: String,
    zero: false,
  });
  t.match(one, /<circle/, "one step is a dot");
  t.notMatch(one, /NaN|Infinity/);
});
