// `longseq report`: writes a run's report.html and says where it is.

import { formatBytes } from "../report/format.js";
import { recordAdvice, writeReport } from "../report/html.js";
import { exitCode, type Output } from "./output.js";

/** Writes DIR/report.html; returns the exit code. Throws what the reading and the writing throw. */
export function report(folder: string, output: Output): number {
  const { path, bytes, run } = writeReport(folder);
  for (const remark of run.remarks) output.note(`warning: ${remark}`);
  if (run.traces.length === 0) output.note(recordAdvice);
  output.record({
    event: "report",
    path,
    bytes,
    steps: run.steps.length,
    tracedSteps: run.traces.map(({ step }) => step),
    remarks: run.remarks,
  });
  if (!output.json)
    output.line(`${path}: ${formatBytes(bytes)}, ${run.steps.length === 1 ? "1 step" : `${run.steps.length} steps`}`);
  return exitCode.done;
}
