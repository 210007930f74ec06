// What `longseq eval` found, as the files DIR/eval/loss.json and DIR/eval/needle.json keep it for the report.

import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { writeFileDurably } from "../checkpoint/atomic.js";
import { toCamel } from "../config/values.js";
import { FormatError, IoError } from "../errors.js";
import { toJson } from "./metrics.js";

/** Token losses of some tokens. */
export interface LossFigures {
  /** Tokens that were predicted. */
  tokens: number;
  /** Mean of their losses, natural log; null: there are none, or it is not finite. */
  loss: number | null;
  /** e to the loss. */
  perplexity: number | null;
  /** Standard error of the mean, as if tokens were independent; null below two tokens. */
  standardError: number | null;
}

/** Of the tokens with `begin` up to `end` - 1 tokens of their document before them. */
export interface PositionFigures extends LossFigures {
  begin: number;
  end: number;
}

export interface FileFigures extends LossFigures {
  file: string;
  documents: number;
  positions: PositionFigures[];
}

export interface LossResults {
  version: 1;
  /** The folder that was asked. */
  model: string;
  /** Longer documents were cut into pieces of so many tokens; null: none was. */
  sequenceLength: number | null;
  files: FileFigures[];
  /** Of all files. */
  positions: PositionFigures[];
  total: LossFigures & { documents: number };
}

export interface NeedleCell {
  /** Tokens asked for, and of the longest prompt that was made. */
  length: number;
  tokens: number;
  /** Where the needle lay: 0 at the beginning, 100 just before the question. */
  depth: number;
  trials: number;
  /** Trials whose answer was right, greedily. */
  found: number;
  /** Mean loss of the answer's tokens, natural log; null: not finite. */
  loss: number | null;
}

export interface NeedleResults {
  version: 1;
  model: string;
  seed: number;
  chat: boolean;
  /** null: the built-in text. */
  haystack: string | null;
  /** By length, then depth. */
  cells: NeedleCell[];
}

export interface EvalResults {
  loss: LossResults | null;
  needle: NeedleResults | null;
}

const NAMES = { loss: "loss.json", needle: "needle.json" } as const;

/** Writes what was measured, each in one piece; what is null stays as it was. Returns the files. Throws IoError. */
export async function saveResults(folder: string, results: EvalResults): Promise<string[]> {
  const dir = join(folder, "eval");
  const written: string[] = [];
  for (const key of ["loss", "needle"] as const) {
    const value = results[key];
    if (value === null) continue;
    const file = join(dir, NAMES[key]);
    try {
      mkdirSync(dir, { recursive: true });
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      throw new IoError(`${dir}: cannot be made (${code}); give another --out`, { file: dir }, { cause: error });
    }
    await writeFileDurably(file, `${JSON.stringify(toJson(value), null, 1)}\n`);
    written.push(file);
  }
  return written;
}

/** Keys in camelCase again. */
function fromJson(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(fromJson);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [toCamel(key), fromJson(inner)]));
}

function read(file: string, holds: (value: Record<string, unknown>) => boolean): Record<string, unknown> | null {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return null;
    throw new IoError(`${file}: cannot be read (${code})`, { file, errno: code }, { cause: error });
  }
  try {
    const value = fromJson(JSON.parse(text)) as Record<string, unknown>;
    if (typeof value === "object" && value !== null && value.version === 1 && holds(value)) return value;
  } catch (error) {
    throw new FormatError(
      `${file}: not valid JSON (${(error as Error).message}); remove it, or run longseq eval again`,
      {
        file,
      },
    );
  }
  throw new FormatError(`${file}: not what longseq eval of this version writes; remove it, or run longseq eval again`, {
    file,
  });
}

const isNumber = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value);
const areCells = (cells: unknown, keys: readonly string[]): boolean =>
  Array.isArray(cells) && cells.every((cell) => cell !== null && keys.every((key) => isNumber(cell[key])));

/** The results of a folder; null: not measured. Throws FormatError for broken files, IoError. */
export function readResults(folder: string): EvalResults {
  const dir = join(folder, "eval");
  const loss = read(
    join(dir, NAMES.loss),
    ({ positions, files }) =>
      areCells(positions, ["begin", "end", "tokens"]) && areCells(files, ["tokens", "documents"]),
  );
  const needle = read(join(dir, NAMES.needle), ({ cells }) => areCells(cells, ["length", "depth", "trials", "found"]));
  return { loss: loss as LossResults | null, needle: needle as NeedleResults | null };
}
