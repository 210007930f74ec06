// npm run bench:gpu: a table an area, ours beside PyTorch's on the same GPU in one run, each side in a process of its own.
//
//   npm run bench:gpu [-- --part gemm,attention] [--call first|second] [--out FOLDER] [--budget SECONDS] [--patience X] [--list]
//
// PyTorch's Python is LONGSEQ_BENCH_PYTHON (python3). build/gpu/bench.json has all rows so far at any moment, bench.md the
// tables, bench.log all that was printed. A run of all parts on a GPU from a clone also goes to bench/results.
import { appendFileSync, copyFileSync, existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  Budget,
  type Ended,
  ending,
  endOnSignals,
  environment,
  options as parse,
  probe,
  Results,
  root,
  runCommand,
  runJob,
} from "../../test/gpu/suite.js";

const options = parse(process.argv.slice(2), "bench:gpu");
const python = process.env.LONGSEQ_BENCH_PYTHON ?? "python3";

interface Part {
  name: string;
  title: string;
  args: string[];
  /** Whether bench/pytorch/gpu.py has the same. */
  pytorch: boolean;
  /** The time limit of a program. */
  seconds: number;
  /** What follows args in each of our programs: where one crashes the other is still measured. */
  pieces: string[];
  /** Which of the two calls of a short loan runs it. */
  call: "first" | "second";
}
const K = 1024;
const of =
  (call: Part["call"]) =>
  (name: string, title: string, args: string[], pytorch: boolean, seconds: number): Part => {
    const pieces = name === "attention" ? ["cudnn", "native"] : [];
    return { name, title, args, pytorch, seconds, pieces, call };
  };
const [first, second] = [of("first"), of("second")];
/** What is most wanted comes first, in each call. */
const parts: Part[] = [
  first("attention", "Attention, 32/8 heads of 128, causal, T 32K", ["attention", `${32 * K}`], true, 60),
  first("gemm", "Matrix products of Llama-8B at 32K rows, bfloat16", ["gemm"], true, 60),
  first("mfu", "Four layers of Llama-8B, T 32K", ["mfu", `${32 * K}`], true, 60),
  second("mfu", "Four layers of Llama-8B, T 64K", ["mfu", `${64 * K}`], false, 40),
  second("streams", "Ops that read and write, as a share of the measured copy", ["streams"], true, 60),
  second("offload", "Host offload, four layers of Llama-8B, T 16K", ["offload", `${16 * K}`], false, 60),
  second("attention", "Attention, 32/8 heads of 128, causal, T 128K", ["attention", `${128 * K}`], true, 90),
  second("full", "One step of Llama-8B at the longest T that memory and time allow", ["full"], false, 480),
  second("mfu", "Four layers of Llama-8B, T 128K", ["mfu", `${128 * K}`], false, 120),
  second("offload", "Host offload, four layers of Llama-8B, T 128K", ["offload", `${128 * K}`], false, 150),
  second("mfu", "Four layers of Llama-8B, T 256K", ["mfu", `${256 * K}`], false, 180),
];

type Row = Record<string, unknown> & { row?: string };
/** What a side printed: also of one that ended badly. */
const rowsOf = (ended: Ended): Row[] =>
  ended.stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .flatMap((line) => {
      try {
        return [JSON.parse(line) as Row];
      } catch {
        return [];
      }
    });

const chosen = parts.filter(
  ({ name, args, call }, i) =>
    (options.call === null || options.call === call) &&
    (options.parts.length === 0 ||
      options.parts.some((one) => one === name || one === args.join(" ") || one === `${i + 1}`)),
);
if (chosen.length === 0) {
  console.error(
    `bench:gpu: there is no part ${options.parts.join(",")}; they are: ${parts.map((p) => p.args.join(" ")).join(", ")}`,
  );
  process.exit(2);
}
if (options.list) {
  console.log(JSON.stringify(parts));
  process.exit(0);
}
endOnSignals();
const budget = new Budget(options);
const results = new Results(options, "bench");
const found = await probe(options, "bench:gpu", results);
const report = join(options.out, "bench.md");
writeFileSync(report, "");
function say(text: string): void {
  console.log(text);
  appendFileSync(report, `${text}\n`);
}
const real = options.device.startsWith("cuda") && options.library === null;
results.write({ gpu: real });
const { driver, processor, cores } = results.found.machine as Record<string, unknown>;
say(`# ${found.name}${real && !options.small ? "" : ": tried with small sizes, no figure of a GPU"}\n`);
say(
  `${new Date().toISOString().slice(0, 10)}; ${driver ?? "no driver"}; ${processor}, ${cores} cores; cuDNN: ${found.cudnn}`,
);

const number = (value: unknown, digits: number, factor = 1) =>
  typeof value === "number" && !Number.isNaN(value) ? (value * factor).toFixed(digits) : "not measured";
const markdown = (head: string[], lines: string[][]) =>
  [head, head.map((_, i) => (i === 0 ? "---" : "---:")), ...lines].map((line) => `| ${line.join(" | ")} |`).join("\n");

function table({ name }: Part, ours: Row[], theirs: Row[]): string {
  const other = (row: unknown) => theirs.find((line) => line.row === row);
  const good = ours.filter(({ seconds }) => typeof seconds === "number");
  if (name === "gemm" || name === "attention")
    return markdown(
      ["", "ms", "TFLOP/s", "PyTorch ms", "PyTorch TFLOP/s", "rate to PyTorch's", ""],
      good.map(({ row, engine, seconds, flops, note }) => {
        const them = other(row);
        const rate = (time: unknown) => (typeof time === "number" ? (flops as number) / time : undefined);
        return [
          [row, engine].filter(Boolean).join(", "),
          number(seconds, 2, 1e3),
          number(rate(seconds), 0, 1e-12),
          number(them?.seconds, 2, 1e3),
          number(rate(them?.seconds), 0, 1e-12),
          typeof them?.seconds === "number" ? number(them.seconds / (seconds as number), 3) : "not measured",
          [note, them?.note].filter(Boolean).join("; "),
        ];
      }),
    );
  if (name === "streams") {
    const speed = (line: Row | undefined) =>
      typeof line?.seconds === "number" && typeof line.bytes === "number" ? line.bytes / line.seconds : undefined;
    // The faster copy of the two sides is what the memory can do.
    const copy = Math.max(speed(ours.find(({ row }) => row === "copy")) ?? 0, speed(other("copy")) ?? 0);
    return markdown(
      ["", "ms", "GB/s", "of the copy", "PyTorch ms", "time to PyTorch's", ""],
      good.map((line) => {
        const [them, compiled] = [other(line.row), other(`${line.row} compiled`)];
        const best = [them, compiled].filter((one) => typeof one?.seconds === "number") as {
          seconds: number;
          note?: string;
        }[];
        const fastest = best.sort((a, b) => a.seconds - b.seconds)[0];
        const share = (speed(line) ?? Number.NaN) / copy;
        return [
          String(line.row),
          number(line.seconds, 3, 1e3),
          number(speed(line), 0, 1e-9),
          number(share, 3),
          number(fastest?.seconds, 3, 1e3),
          fastest ? number((line.seconds as number) / fastest.seconds, 3) : "not measured",
          [line.note, fastest?.note].filter(Boolean).join("; PyTorch: "),
        ];
      }),
    );
  }
  if (name === "offload")
    return markdown(
      ["", "s", "s without", "ratio", "bytes copied more", "of all four layers, O too", "host peak"],
      good.map((line) => [
        String(line.row),
        number(line.seconds, 3),
        number(line.without, 3),
        number(line.ratio, 4),
        String(line.copied),
        String(line.expected),
        number(line.hostPeak, 2, 1e-9),
      ]),
    );
  return markdown(
    [
      ...["", "s", "mfu", "model TFLOP/s", "tokens/s", "device peak GB", "meta", "host peak GB", "meta"],
      ...["PyTorch s", "time to PyTorch's", "PyTorch peak GB", ""],
    ],
    good.map((line) => [
      String(line.row),
      number(line.seconds, 2),
      number(line.mfu, 3),
      number((line.flops as number) / (line.seconds as number), 0, 1e-12),
      number(line.tokensPerSecond, 0),
      number(line.peak, 2, 1e-9),
      number(line.metaPeak, 2, 1e-9),
      number(line.hostPeak, 2, 1e-9),
      number(line.metaHostPeak, 2, 1e-9),
      number(other(line.row)?.seconds, 2),
      number((line.seconds as number) / ((other(line.row)?.seconds as number | undefined) ?? Number.NaN), 3),
      number(other(line.row)?.peak, 2, 1e-9),
      [line.note, other(line.row)?.note].filter(Boolean).join("; PyTorch: "),
    ]),
  );
}

const failures: string[] = [];
for (const one of chosen) {
  const named = one.args.join(" ");
  say(`\n## ${one.title}\n`);
  /** Runs a side in what time there is, and keeps its rows. */
  const side = async (name: string, run: (seconds: number) => Promise<Ended>): Promise<Row[]> => {
    const limit = budget.limit(one.seconds);
    if (typeof limit === "string") {
      failures.push(`${named}, ${name}: ${limit}`);
      results.add({ part: named, side: name, notRun: limit });
      return [];
    }
    const ended = await run(limit);
    results.note(`${named}, ${name}, ${ended.seconds.toFixed(1)} s`, ended.text);
    const rows = rowsOf(ended);
    for (const line of rows) if (line.failed) failures.push(`${named}, ${name}, ${line.row}: ${line.failed}`);
    let why = "";
    if (ended.code !== 0) {
      const last =
        ended.text
          .trim()
          .split("\n")
          .filter((line) => /Error|error|GPU/.test(line))
          .pop() ?? "";
      why = `${ending(ended)}${last ? `: ${last.trim().slice(0, 300)}` : ""}`;
      failures.push(`${named}, ${name}: ${why}`);
    }
    results.add({ part: named, side: name, seconds: ended.seconds, limit, why, rows });
    return rows;
  };
  const ours: Row[] = [];
  for (const piece of one.pieces.length > 0 ? one.pieces.map((name) => [name]) : [[]]) {
    const job = { name: one.name, file: "bench/gpu/area", args: [...one.args, ...piece], seconds: one.seconds };
    ours.push(...(await side(["longseq", ...piece].join(" "), (seconds) => runJob(job, options, seconds))));
  }
  let theirs: Row[] = [];
  if (one.pytorch) {
    const script = join(root, "bench/pytorch/gpu.py");
    const command = [python, script, ...one.args, ...(options.small ? ["--small"] : [])];
    theirs = await side("PyTorch", (seconds) => runCommand(command, environment(options), seconds));
  }
  say(table(one, ours, theirs));
}
if (failures.length > 0) say("");
for (const failure of failures) say(`not measured: ${failure}`);
results.write({ failures, seconds: budget.seconds, complete: failures.length === 0 });
const kept = join(root, "bench/results");
if (real && !options.small && existsSync(kept) && chosen.length === parts.length) {
  const slug = found.name.toLowerCase().replace(/[^a-z0-9]+/g, "-");
  copyFileSync(report, join(kept, `gpu-${slug}.md`));
}
console.log(
  `\n${results.json}\n${results.log}\n${report}\n${budget.seconds.toFixed(0)} s, ${failures.length} not measured`,
);
process.exitCode = failures.length > 0 ? 1 : 0;
