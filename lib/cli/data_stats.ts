// `longseq data --stats`: what a configuration's data holds, as tables and bars for people.

import type { Config } from "../config/index.js";
import { type DataStatistics, type Overlong, openData, statisticsOf } from "../data/index.js";
import { dataOptions } from "../train/data_options.js";
import { exitCode, type Output } from "./output.js";

const grouped = (value: number) => value.toLocaleString("en-US");
const percent = (part: number, of: number) => `${(of === 0 ? 0 : (100 * part) / of).toFixed(1)}%`;
/** Sources that are told one by one; with --json all are. */
const TOLD = 30;
const BAR = 40;

/** Columns padded to the widest cell; the first to the left, the others to the right. */
function table(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map((row) =>
    `  ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join("  ")}`.trimEnd(),
  );
}

/** The statistics as lines. `overlong`: what the configuration does with rows that are too long. */
export function statisticsLines(found: DataStatistics, overlong: Overlong, sequenceLength: number): string[] {
  const { rows, tokens, sources } = found;
  const lines = [
    `${grouped(rows)} rows, ${grouped(tokens)} tokens, of which ${percent(found.trainedTokens, tokens)} count in the loss`,
    ...(found.unlabelledRows > 0 ? [`${grouped(found.unlabelledRows)} rows have nothing that counts`] : []),
    "",
    "by source:",
    ...table([
      ["", "rows", "tokens", "of all", "in the loss", "longest"],
      ...sources
        .slice(0, TOLD)
        .map((source) => [
          source.file,
          grouped(source.rows),
          grouped(source.tokens),
          percent(source.tokens, tokens),
          percent(source.trainedTokens, source.tokens),
          grouped(source.longest),
        ]),
    ]),
    ...(sources.length > TOLD ? [`  and ${grouped(sources.length - TOLD)} more (--json has all)`] : []),
    "",
    `rows by tokens (the median row has ${grouped(found.median)}, the longest ${grouped(found.longest)}):`,
  ];
  const most = Math.max(...found.lengths.map((bucket) => bucket.rows));
  lines.push(
    ...table(
      found.lengths.map(({ from, to, rows: count }) => [
        from === to ? grouped(from) : `${grouped(from)} to ${grouped(to)}`,
        grouped(count),
        // Whatever is there shows.
        "#".repeat(count === 0 ? 0 : Math.max(1, Math.round((BAR * count) / most))).padEnd(BAR),
      ]),
    ),
    "",
  );
  if (found.overlongRows > 0) {
    const what = {
      raise: "a run refuses them (data.overlong: raise); the figures below are those of split",
      truncate: `cut (data.overlong: truncate), which loses ${grouped(found.lostTokens)} tokens`,
      split: "split (data.overlong: split)",
      drop: `dropped (data.overlong: drop), with ${grouped(found.lostTokens)} tokens`,
    }[overlong];
    lines.push(`${grouped(found.overlongRows)} rows have more than ${grouped(sequenceLength)} tokens: ${what}`);
  }
  lines.push(
    `an epoch: ${grouped(found.sequences)} sequences of up to ${grouped(sequenceLength)} tokens, ` +
      `${grouped(found.sequenceTokens)} tokens (${(100 * found.filled).toFixed(1)}% filled); ${grouped(found.stepsPerEpoch)} ${found.stepsPerEpoch === 1 ? "step" : "steps"}`,
  );
  return lines;
}

/** Prints the statistics of training or evaluation data; returns the exit code. */
export async function showStatistics(config: Config, evaluation: boolean, output: Output): Promise<number> {
  const { overlong } = config.data;
  const dataset = await openData({
    ...dataOptions(config, evaluation),
    // Who looks wants to know which rows are too long, not to be refused.
    overlong: overlong === "raise" ? "split" : overlong,
    onWarning: (message) => {
      output.note(`warning: ${message}`);
      output.record({ event: "warning", message });
    },
  });
  try {
    const found = statisticsOf(dataset, overlong, evaluation ? 1 : config.train.batchSize);
    output.record({ event: "data_statistics", sequenceLength: dataset.sequenceLength, overlong, ...found });
    if (output.json) return exitCode.done;
    for (const line of statisticsLines(found, overlong, dataset.sequenceLength)) output.line(line);
    const entries = evaluation ? [] : config.data.train;
    found.passes?.forEach((passes, i) => {
      const entry = entries[i];
      const name = typeof entry === "string" ? entry : entry?.path;
      output.line(`  ${name}: ${passes.toFixed(3)} passes an epoch`);
    });
    return exitCode.done;
  } finally {
    await dataset.close();
  }
}
