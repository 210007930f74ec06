// npm run bench:gpu: a table an area, ours beside PyTorch's on the same GPU in one run, each side in a process of its own.
//
//   npm run bench:gpu [-- --part gemm,attention] [--out FOLDER] [--patience X]
//
// PyTorch's Python is LONGSEQ_BENCH_PYTHON (python3). build/gpu/bench.jsonl has all rows, bench.log all that was printed,
// bench.md the tables.
import { appendFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  type Ended,
  ending,
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
  seconds: number;
}
const part = (name: string, title: string, args: string[], pytorch: boolean, seconds: number): Part => ({
  name,
  title,
  args,
  pytorch,
  seconds,
});
const K = 1024;
const parts: Part[] = [
  part("gemm", "Matrix products of Llama-8B at 32K rows, bfloat16", ["gemm"], true, 120),
  ...[32, 128].map((k) =>
    part("attention", `Attention, 32/8 heads of 128, causal, T ${k}K`, ["attention", `${k * K}`], true, 120),
  ),
  part("streams", "Ops that read and write, as a share of the measured copy", ["streams"], true, 150),
  ...[16, 128].map((k) =>
    part("offload", `Host offload, four layers of Llama-8B, T ${k}K`, ["offload", `${k * K}`], false, 240),
  ),
  ...[64, 128, 256].map((k) => part("mfu", `Four layers of Llama-8B, T ${k}K`, ["mfu", `${k * K}`], false, 240)),
  part("full", "One step of Llama-8B at the longest T that memory allows", ["full"], false, 570),
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
  ({ name, args }, i) =>
    options.parts.length === 0 ||
    options.parts.some((one) => one === name || one === args.join(" ") || one === `${i + 1}`),
);
if (chosen.length === 0) {
  console.error(
    `bench:gpu: there is no part ${options.parts.join(",")}; they are: ${parts.map((p) => p.args.join(" ")).join(", ")}`,
  );
  process.exit(2);
}
const found = await probe(options, "bench:gpu");
const results = new Results(options.out, "bench");
const report = join(options.out, "bench.md");
writeFileSync(report, "");
function say(text: string): void {
  console.log(text);
  appendFileSync(report, `${text}\n`);
}
results.add({ device: found, date: new Date().toISOString(), small: options.small });
say(`${found.name}${options.small ? ", small sizes: no figure of a GPU" : ""}`);

const number = (value: unknown, digits: number, factor = 1) =>
  typeof value === "number" ? (value * factor).toFixed(digits) : "not measured";
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
    ["", "s", "mfu", "model TFLOP/s", "tokens/s", "device peak GB", "meta", "host peak GB", "meta"],
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
    ]),
  );
}

const failures: string[] = [];
for (const one of chosen) {
  say(`\n${one.title}\n`);
  const sides: [string, Ended][] = [];
  const ours = await runJob({ name: one.name, file: "bench/gpu/area", args: one.args, seconds: one.seconds }, options);
  sides.push(["longseq", ours]);
  let theirs: Row[] = [];
  if (one.pytorch) {
    const script = join(root, "bench/pytorch/gpu.py");
    const command = [python, script, ...one.args, ...(options.small ? ["--small"] : [])];
    const ended = await runCommand(command, environment(options), one.seconds * options.patience);
    sides.push(["PyTorch", ended]);
    theirs = rowsOf(ended);
  }
  say(table(one, rowsOf(ours), theirs));
  for (const [side, ended] of sides) {
    results.note(`${one.args.join(" ")}, ${side}`, ended.text);
    for (const line of rowsOf(ended)) {
      results.add({ part: one.args.join(" "), side, ...line });
      if (line.failed) failures.push(`${one.args.join(" ")}, ${line.row}: ${line.failed}`);
    }
    if (ended.code === 0) continue;
    const last =
      ended.text
        .trim()
        .split("\n")
        .filter((line) => /Error|error|GPU/.test(line))
        .pop() ?? "";
    failures.push(`${one.args.join(" ")}, ${side}: ${ending(ended)}${last ? `: ${last.trim().slice(0, 300)}` : ""}`);
  }
}
for (const failure of failures) say(`not measured: ${failure}`);
say(`\n${results.lines}`);
process.exitCode = failures.length > 0 ? 1 : 0;
