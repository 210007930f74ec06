// `longseq eval`: loss and perplexity of files by position, and the needle test.

import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { tokenCacheDir } from "../config/index.js";
import { type Dataset, type Overlong, openData } from "../data/index.js";
import { ConfigError } from "../errors.js";
import { sentencesOf } from "../eval/haystack.js";
import { evaluateLosses } from "../eval/losses.js";
import { findNeedles } from "../eval/needle.js";
import { openSpeaker, type Speaker } from "../generate/open.js";
import type { LossFigures, LossResults, NeedleResults } from "../report/eval_results.js";
import { saveResults } from "../report/eval_results.js";
import { formatLoss } from "../report/format.js";
import { writeEvalPage } from "../report/html.js";
import { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { readText } from "./generate.js";
import { exitCode, type Output, UsageError } from "./output.js";

export interface EvalCommandOptions {
  length?: number;
  overlong: Overlong;
  bucket?: number;
  tokenizer?: string;
  needle: boolean;
  lengths?: number[];
  depths: number[];
  trials: number;
  seed: number;
  haystack?: string;
  chat: boolean;
  chatTemplate?: string;
  out?: string;
  base?: string;
  device: string;
  dtype?: DType;
  threads?: number;
}

/** Lengths of the needle test where none are given, as far as the model's positions go. */
const LENGTHS = [1024, 2048, 4096, 8192] as const;
/** The most bytes of logits at a time. */
const LOGITS_BYTES = { cpu: 64 * 2 ** 20, gpu: 2 ** 30 } as const;
/** Rows of a tile of the feed-forward half. */
const MLP_ROWS = 4096;
/** The most tokens of a document that is not cut. */
const ANY_LENGTH = 0x7fffffff;

const whole = (value: number): string => value.toLocaleString("en-US");

export async function evaluate(
  dir: string,
  files: string[],
  options: EvalCommandOptions,
  output: Output,
): Promise<number> {
  if (files.length === 0 && !options.needle)
    throw new UsageError("nothing to evaluate; usage: longseq eval DIR FILE..., or --needle for the needle test");
  const { device: name, threads, dtype, base } = options;
  const chatTemplate = options.chatTemplate === undefined ? undefined : readText(options.chatTemplate);
  const haystack = options.haystack === undefined ? null : sentencesOf(readText(options.haystack));
  if (haystack?.length === 0)
    throw new ConfigError(`${options.haystack} has no sentences; give a text`, { file: options.haystack });
  const device = new Device(name, threads === undefined ? {} : { threads });
  const speaker = await openSpeaker(dir, { device, dtype, base, chatTemplate });
  try {
    const { vocabSize } = speaker.model.config;
    const bytes = device.isGpu ? LOGITS_BYTES.gpu : LOGITS_BYTES.cpu;
    speaker.model.configureMemory({ tileMlp: MLP_ROWS, tileLoss: Math.max(1, Math.floor(bytes / (4 * vocabSize))) });
    const loss = files.length > 0 ? await lossOf(speaker, files, options, output) : null;
    const needle = options.needle ? await needleOf(speaker, haystack, options, output) : null;
    const folder = options.out ?? (existsSync(join(dir, "metrics.jsonl")) ? dir : undefined);
    if (folder === undefined) output.note("--out FOLDER keeps this, with its drawings");
    else {
      const results = { loss, needle };
      const written = await saveResults(folder, results);
      const isRun = existsSync(join(folder, "metrics.jsonl"));
      if (!isRun) written.push(writeEvalPage(folder, basename(resolve(speaker.folder)), results));
      output.note(`${written.join(", ")}${isRun ? `; longseq report ${folder} draws it` : ""}`);
    }
    return exitCode.done;
  } finally {
    speaker.model.dispose();
  }
}

/** Rows of text with aligned columns, the first to the left. */
function lines(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => (row[i] ?? "").length)));
  return rows.map((row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] as number) : cell.padStart(widths[i] as number))).join("  "),
  );
}

const figures = ({ tokens, loss, perplexity, standardError }: LossFigures): string[] => [
  whole(tokens),
  formatLoss(loss),
  standardError === null ? "" : standardError.toPrecision(2),
  perplexity === null ? "none" : perplexity.toPrecision(5),
];

async function openDocuments(
  { folder, model }: Speaker,
  files: string[],
  { tokenizer, overlong }: EvalCommandOptions,
  sequenceLength: number,
  output: Output,
): Promise<Dataset> {
  return openData({
    files,
    key: "the data",
    tokenizer: tokenizer ?? folder,
    sequenceLength,
    overlong,
    packing: false,
    shuffle: false,
    vocabSize: model.config.vocabSize,
    cacheDir: tokenCacheDir(),
    onWarning: (text) => output.note(`warning: ${text}`),
  });
}

async function lossOf(
  speaker: Speaker,
  files: string[],
  options: EvalCommandOptions,
  output: Output,
): Promise<LossResults> {
  const { model, folder } = speaker;
  const { learnedPositions, maxPositionEmbeddings } = model.config;
  const most = options.length ?? (learnedPositions ? maxPositionEmbeddings : ANY_LENGTH);
  if (learnedPositions && most > maxPositionEmbeddings)
    throw new UsageError(
      `--length is ${most}, but ${folder} has learned positions for ${maxPositionEmbeddings} tokens`,
    );
  const dataset = await openDocuments(speaker, files, options, most, output);
  try {
    const { longest } = dataset;
    if (!learnedPositions && Math.min(longest, most) > maxPositionEmbeddings)
      output.note(
        `warning: documents have up to ${whole(Math.min(longest, most))} tokens, and the model was made for ` +
          `${whole(maxPositionEmbeddings)} (max_position_embeddings); --length cuts them`,
      );
    const results = await evaluateLosses(model, dataset, {
      folder,
      sequenceLength: longest > most ? most : null,
      bucket: options.bucket ?? null,
      onProgress: ({ sequences, of, loss }) =>
        output.status(`${sequences} of ${of} documents or pieces, loss ${formatLoss(loss)}`),
    });
    show(results, output);
    return results;
  } finally {
    output.status(null);
    await dataset.close();
  }
}

function show({ files, positions, total, sequenceLength }: LossResults, output: Output): void {
  for (const { positions: _, ...file } of files) output.record({ event: "eval_file", ...file });
  for (const position of positions) output.record({ event: "eval_position", ...position });
  output.record({ event: "eval_total", ...total, sequenceLength });
  if (output.json) return;
  const head = ["predicted", "loss", "error", "perplexity"];
  const rows = files.map((file) => [file.file, whole(file.documents), ...figures(file)]);
  if (files.length > 1) rows.push(["all", whole(total.documents), ...figures(total)]);
  for (const line of lines([["file", "documents", ...head], ...rows])) output.line(line);
  output.line("");
  const buckets = positions.map((one) => [`${whole(one.begin)} to ${whole(one.end - 1)}`, ...figures(one)]);
  for (const line of lines([["tokens before", ...head], ...buckets])) output.line(line);
}

async function needleOf(
  speaker: Speaker,
  haystack: string[] | null,
  options: EvalCommandOptions,
  output: Output,
): Promise<NeedleResults> {
  const { maxPositionEmbeddings, learnedPositions } = speaker.model.config;
  const lengths = options.lengths ?? LENGTHS.filter((length) => length <= maxPositionEmbeddings);
  if (lengths.length === 0)
    throw new UsageError(`the model was made for ${maxPositionEmbeddings} tokens; give --lengths`);
  const beyond = lengths.find((length) => length > maxPositionEmbeddings);
  if (beyond !== undefined && learnedPositions)
    throw new UsageError(
      `--lengths: ${beyond} tokens, but the model has learned positions for ${maxPositionEmbeddings}`,
    );
  if (beyond !== undefined)
    output.note(
      `warning: the model was made for ${whole(maxPositionEmbeddings)} tokens (max_position_embeddings), --lengths has ${whole(beyond)}`,
    );
  const { depths, trials, seed, chat } = options;
  const cells = await findNeedles(speaker, {
    ...{ lengths, depths, trials, seed, haystack, chat },
    onProgress: ({ trials: done, of }) => output.status(`needle test: ${done} of ${of}`),
  }).finally(() => output.status(null));
  for (const cell of cells) output.record({ event: "eval_needle", ...cell });
  if (!output.json) {
    output.line(`needles found of ${trials}, by depth and tokens:`);
    const rows = depths.map((depth) => [
      `${depth}%`,
      ...cells.filter((cell) => cell.depth === depth).map(({ found }) => String(found)),
    ]);
    for (const line of lines([["depth", ...lengths.map(whole)], ...rows])) output.line(line);
  }
  return { version: 1, model: speaker.folder, seed, chat, haystack: options.haystack ?? null, cells };
}
