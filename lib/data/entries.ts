// The entries of data.train and data.eval: a path or a pattern, or a mapping that says more of it; and the files they name.

import fs from "node:fs";
import path from "node:path";
import { ConfigError } from "../errors.js";
import { type FileType, formatOf, type IdType, type Source } from "./formats.js";
import { expandPatterns } from "./glob.js";
import type { Share } from "./mixture.js";

/** A mapping of data.train. */
export interface DataEntry {
  /** A file, a pattern or a folder. */
  path: string;
  /** Its part of the tokens beside the other entries' weights, of which then each has one. */
  weight?: number | undefined;
  /** How often its rows come in an epoch of the run; may have a fraction. Default 1. */
  epochs?: number | undefined;
  /** How its files are read; absent: by their names. */
  type?: FileType | undefined;
  /** How a token file stores its ids; absent: by its name or header. */
  dtype?: IdType | undefined;
  /** The id that ends a document of a token file. */
  eos?: number | undefined;
  /** The id that begins one. */
  bos?: number | undefined;
  /** The files' names of columns, by those that rows have here. */
  columns?: Readonly<Record<string, string>> | undefined;
  /** How many times its compressed size a file may have. Absent: 200 times, and always 1 GiB. */
  expansion?: number | undefined;
}

const pathOf = (entry: string | DataEntry): string => (typeof entry === "string" ? entry : entry.path);

/**
 * How often each entry is taken. ConfigError where some have weights and others none, or one has a weight and a number of
 * epochs.
 */
export function sharesOf(entries: readonly (string | DataEntry)[], key = "data.train"): Share[] {
  const shares = entries.map((entry): Share => {
    const { weight = null, epochs = null } = typeof entry === "string" ? {} : entry;
    for (const [name, value] of Object.entries({ weight, epochs }))
      if (value !== null && !(Number.isFinite(value) && value > 0))
        throw new ConfigError(`${key}: ${name} of ${pathOf(entry)} must be a number above 0, not ${value}`, { key });
    if (weight !== null && epochs !== null)
      throw new ConfigError(
        `${key}: ${pathOf(entry)} has a weight and a number of epochs; with weights, how often its rows come follows from ` +
          "them: give one of the two",
        { key },
      );
    return { name: `${key}: ${pathOf(entry)}`, weight, epochs };
  });
  const lacking = shares.findIndex(({ weight }) => weight === null);
  if (lacking >= 0 && shares.some(({ weight }) => weight !== null))
    throw new ConfigError(
      `${key}: ${pathOf(entries[lacking] as DataEntry)} has no weight, but other entries have; give each entry one, or none`,
      { key },
    );
  return shares;
}

/** A pattern that finds rows and texts may have found a README beside the rows: that is said. */
function noteMixed(key: string, pattern: string, found: Source[]): void {
  const texts = found.filter(({ type }) => type === "text");
  const [text] = texts;
  if (text === undefined || texts.length === found.length) return;
  text.note =
    `${key}: ${JSON.stringify(pattern)} finds ${found.length - texts.length} files of rows and ${texts.length} of text, each of ` +
    `which is a document (${text.file}); a narrower pattern leaves them out`;
}

/**
 * The files that the entries name, in their order, no file twice. A folder that is named as it is stands for its texts.
 * Throws ConfigError for what matches nothing (see `expandPatterns`), and DataError for formats that are not read.
 */
export function sourcesOf(entries: readonly (string | DataEntry)[], key = "data.train", directory?: string): Source[] {
  if (entries.length === 0) expandPatterns([], key);
  const sources: Source[] = [];
  /** The entry that named a file first. */
  const seen = new Map<string, number>();
  const mixed = entries.some((entry) => typeof entry === "object" && (entry.weight ?? entry.epochs) !== undefined);
  entries.forEach((entry, index) => {
    const given: DataEntry = typeof entry === "string" ? { path: entry } : entry;
    const { type = null, dtype = null, eos = null, bos = null, columns = null, expansion = null } = given;
    const whole = typeof given.path === "string" ? path.resolve(directory ?? "", given.path) : "";
    const folder = given.path !== "" && (fs.statSync(whole, { throwIfNoEntry: false })?.isDirectory() ?? false);
    if (folder && type !== null && type !== "text")
      throw new ConfigError(
        `${key}: ${JSON.stringify(given.path)} is a folder, which can only hold texts, but its type is ${type}; name its ` +
          `files, for example ${JSON.stringify(path.join(given.path, `*.${type === "tokens" ? "bin" : type}`))}`,
        { key },
      );
    const files = folder
      ? [directory === undefined ? given.path : whole]
      : expandPatterns([given.path], key, directory);
    const before = sources.length;
    for (const file of files) {
      const identity = path.resolve(file);
      const first = seen.get(identity);
      if (mixed && first !== undefined && first !== index)
        throw new ConfigError(
          `${key}: ${file} belongs to two entries, ${pathOf(entries[first] as DataEntry)} and ${given.path}, which may want it ` +
            "with different weights or epochs; name it in one",
          { key },
        );
      if (first !== undefined) continue;
      seen.set(identity, index);
      const format = folder
        ? { type: "text" as const, compression: "none" as const, dtype: null }
        : formatOf(file, type);
      const isIds = format.type === "tokens";
      const stray = (["dtype", "eos", "bos"] as const).find((name) => given[name] !== undefined);
      if (!isIds && stray !== undefined)
        throw new ConfigError(
          `${key}: ${stray} is for files of token ids, and ${file} is one of ${format.type}; leave it out, or say type: tokens`,
          { key },
        );
      if ((isIds || format.type === "text") && columns !== null)
        throw new ConfigError(`${key}: ${file} has no columns (${format.type}); leave columns out`, { key });
      if (eos !== null && bos !== null)
        throw new ConfigError(`${key}: ${file}: eos and bos both say where documents part; give one of them`, { key });
      sources.push({
        file,
        folder,
        ...format,
        told: type !== null,
        dtype: dtype ?? format.dtype,
        eos,
        bos,
        columns,
        expansion,
        entry: index,
        note: null,
      });
    }
    noteMixed(key, given.path, sources.slice(before));
  });
  return sources;
}
