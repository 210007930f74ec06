// `longseq data`: the first samples as the model will see them, with ids and what the loss does not count marked.

import { loadConfig } from "../config/index.js";
import { openData, type SampleView, type TokenView } from "../data/index.js";
import { ConfigError } from "../errors.js";
import { dataOptions } from "../train/data_options.js";
import { showStatistics } from "./data_stats.js";
import { exitCode, type Output } from "./output.js";

export interface DataCommandOptions {
  samples: number;
  /** Most ids shown of one stretch; 0 for all. */
  tokens: number;
  eval: boolean;
  /** Statistics instead of samples. */
  stats: boolean;
}

/** Tokens next to each other that are all masked, or all counted. */
interface Stretch {
  masked: boolean;
  tokens: TokenView[];
}

function stretches(tokens: readonly TokenView[]): Stretch[] {
  const result: Stretch[] = [];
  for (const token of tokens) {
    const last = result.at(-1);
    if (last?.masked === !token.target) last.tokens.push(token);
    else result.push({ masked: !token.target, tokens: [token] });
  }
  return result;
}

const grouped = (value: number) => value.toLocaleString("en-US");

/** Ids of a stretch, the middle left out where there are more than `most`. */
function shorten<T>(list: readonly T[], most: number): { head: readonly T[]; omitted: number; tail: readonly T[] } {
  if (most === 0 || list.length <= most) return { head: list, omitted: 0, tail: [] };
  const tail = Math.min(4, Math.floor(most / 2));
  return { head: list.slice(0, most - tail), omitted: list.length - most, tail: tail > 0 ? list.slice(-tail) : [] };
}

function textOf(tokens: readonly TokenView[]): string {
  return tokens.map((token) => token.piece ?? "").join("");
}

/** One sample for people. */
export function sampleLines(sample: SampleView, of: number, most: number): string[] {
  const lines = [
    `sample ${sample.sequence + 1} of ${grouped(of)}: ${grouped(sample.tokens)} tokens, ` +
      `${grouped(sample.validTokens)} counted in the loss`,
  ];
  for (const document of sample.documents) {
    lines.push(`  ${document.file}:${document.line}, tokens ${document.begin} to ${document.end - 1}`);
    for (const stretch of stretches(document.tokens)) {
      const { head, omitted, tail } = shorten(stretch.tokens, most);
      const gap = omitted > 0 ? [`... ${grouped(omitted)} more ...`] : [];
      const ids = [...head.map(({ id }) => id), ...gap, ...tail.map(({ id }) => id)].join(" ");
      lines.push(`    ${stretch.masked ? "masked " : "counted"} ${ids}`);
      if (stretch.tokens.some((token) => token.piece !== null)) {
        const text = [JSON.stringify(textOf(head)), ...(omitted > 0 ? ["...", JSON.stringify(textOf(tail))] : [])];
        lines.push(`            ${text.join(" ")}`);
      }
    }
  }
  return lines;
}

/** Prints what a configuration's data looks like; returns the exit code. */
export async function showData(
  file: string,
  overrides: readonly string[],
  options: DataCommandOptions,
  output: Output,
): Promise<number> {
  const config = loadConfig(file, overrides);
  if (options.eval && config.data.eval.length === 0)
    throw new ConfigError(`${file}: data.eval: missing; --eval shows it`);
  if (options.stats) return showStatistics(config, options.eval, output);
  const dataset = await openData({
    ...dataOptions(config, options.eval),
    onWarning: (message) => {
      output.note(`warning: ${message}`);
      output.record({ event: "warning", message });
    },
  });
  try {
    const { sequences } = dataset.plan(0);
    const summary = {
      files: dataset.files.length,
      rows: dataset.documents,
      droppedRows: dataset.dropped,
      tokens: dataset.tokens,
      longest: dataset.longest,
      sequences,
    };
    output.record({ event: "data", ...summary });
    if (!output.json)
      output.line(
        `${grouped(summary.files)} ${summary.files === 1 ? "file" : "files"}, ${grouped(summary.rows)} rows, ` +
          `${grouped(summary.tokens)} tokens; the longest row has ${grouped(summary.longest)}; ` +
          `${grouped(sequences)} ${sequences === 1 ? "sequence" : "sequences"} an epoch, ` +
          `of up to ${grouped(dataset.sequenceLength)} tokens`,
      );
    for (let i = 0; i < Math.min(options.samples, sequences); i++) {
      const sample = await dataset.describeSample(i);
      output.record({
        event: "sample",
        sample: i + 1,
        tokens: sample.tokens,
        validTokens: sample.validTokens,
        documents: sample.documents.map(({ tokens, ...document }) => ({
          ...document,
          inputIds: tokens.map(({ id }) => id),
          labels: tokens.map(({ label }) => label),
          masked: tokens.map(({ target }) => !target),
          pieces: tokens.some(({ piece }) => piece !== null) ? tokens.map(({ piece }) => piece) : null,
        })),
      });
      if (!output.json) for (const line of ["", ...sampleLines(sample, sequences, options.tokens)]) output.line(line);
    }
  } finally {
    await dataset.close();
  }
  return exitCode.done;
}
