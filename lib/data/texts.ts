// Plain texts: one file, or all texts of a folder, as documents.

import { isUtf8 } from "node:buffer";
import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { CancelledError, ConfigError, DataError } from "../errors.js";
import { isRowsName, isTextName, refusePointer } from "./formats.js";
import { MAX_LINE_BYTES, RANGE_BYTES } from "./lines.js";
import { invalidUtf8At, readError, rowError } from "./rows.js";

/** Whole files, each a document; the first is number `firstText` (from 1) of its folder. */
export interface TextFiles {
  texts: string[];
  firstText: number;
}

/** Folders of what was installed or built. */
const FOREIGN_FOLDERS = new Set(["node_modules", "__pycache__", "site-packages"]);

/** Bytes of a file that are looked at for a zero, as git does to tell what is no text. */
const LOOKED_AT = 8000;

/** What the walk through a folder left out. */
interface Skipped {
  hidden: number;
  other: number;
  empty: number;
  binary: number;
}

const byName = (a: fs.Dirent, b: fs.Dirent) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

/** Texts below a folder, by name; links are not followed. */
function walk(folder: string, found: string[], skipped: Skipped): string | null {
  let entries: fs.Dirent[];
  try {
    entries = fs.readdirSync(folder, { withFileTypes: true }).sort(byName);
  } catch (error) {
    throw readError(folder, error);
  }
  let rows: string | null = null;
  for (const entry of entries) {
    const whole = path.join(folder, entry.name);
    if (entry.name.startsWith(".")) skipped.hidden++;
    else if (entry.isDirectory()) {
      if (FOREIGN_FOLDERS.has(entry.name)) skipped.hidden++;
      else rows = walk(whole, found, skipped) ?? rows;
    } else if (entry.isFile() && isTextName(entry.name)) found.push(whole);
    else {
      if (entry.isFile() && isRowsName(entry.name)) rows ??= whole;
      skipped.other++;
    }
  }
  return rows;
}

function read(file: string): Buffer {
  try {
    const { size } = fs.statSync(file);
    if (size > MAX_LINE_BYTES)
      throw new DataError(`${file} is a text of more than 512 MiB; cut it into several files`, { file });
    return fs.readFileSync(file);
  } catch (error) {
    if (error instanceof DataError) throw error;
    throw readError(file, error);
  }
}

/** A text with its byte order mark taken off. DataError where it is not UTF-8. */
export function readText(file: string): string {
  const bytes = read(file);
  const at = isUtf8(bytes) ? -1 : invalidUtf8At(bytes);
  if (at >= 0) {
    const line = bytes.subarray(0, at).reduce((count, byte) => count + (byte === 10 ? 1 : 0), 1);
    const shown = `0x${(bytes[at] as number).toString(16).padStart(2, "0")}`;
    throw rowError(file, line, `the text is not valid UTF-8: byte ${shown} at byte ${at + 1} of the file`);
  }
  return bytes.toString("utf8", bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? 3 : 0);
}

/** What one pass over texts found. */
export interface TextScan {
  /** Hexadecimal SHA-256 of the texts, in order. */
  hash: string;
  bytes: number;
  texts: string[];
  groups: TextFiles[];
  /** What is to be said. */
  notes: string[];
}

/**
 * Finds the texts of a source. Of a folder: all below it whose names say so, folder by folder, names in ascending order of
 * their code units; hidden ones, links and what is no UTF-8 text are left out, which one note counts.
 * @param forced whether the entry says that the folder is one of texts.
 * ConfigError where the folder has none, or holds files of rows and nobody said that its texts are meant.
 */
export async function scanTexts(
  file: string,
  folder: boolean,
  forced: boolean,
  signal?: AbortSignal,
): Promise<TextScan> {
  const skipped: Skipped = { hidden: 0, other: 0, empty: 0, binary: 0 };
  let found = [file];
  if (folder) {
    found = [];
    const rows = walk(file, found, skipped);
    if (rows !== null && !forced)
      throw new ConfigError(
        `${file} is a folder with files of rows (${rows}); name them, for example ${JSON.stringify(path.join(file, `*${path.extname(rows)}`))}, ` +
          "or say that its texts are meant: {path: ..., type: text}",
        { file },
      );
  }
  const hash = createHash("sha256");
  const texts: string[] = [];
  const groups: TextFiles[] = [];
  let bytes = 0;
  let groupBytes = 0;
  for (const one of found) {
    if (signal?.aborted) throw new CancelledError(`reading ${file} was given up`, { file });
    const content = read(one);
    refusePointer(one, content);
    if (folder && content.length === 0) skipped.empty++;
    else if (folder && (content.subarray(0, LOOKED_AT).includes(0) || !isUtf8(content))) skipped.binary++;
    else {
      if (content.length === 0) throw new DataError(`${one} is empty`, { file: one });
      hash.update(`${content.length}\n`).update(content);
      const last = groups.at(-1);
      if (last === undefined || groupBytes >= RANGE_BYTES || last.texts.length >= 1000) {
        groups.push({ texts: [one], firstText: texts.length + 1 });
        groupBytes = 0;
      } else last.texts.push(one);
      texts.push(one);
      groupBytes += content.length;
      bytes += content.length;
    }
    // Between files others get their turn.
    if (texts.length % 64 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const left = [
    [skipped.hidden, "hidden or installed"],
    [skipped.other, "not named as texts"],
    [skipped.empty, "empty"],
    [skipped.binary, "not UTF-8 text"],
  ] as const;
  const told = left.filter(([count]) => count > 0).map(([count, what]) => `${count} ${what}`);
  if (folder && texts.length === 0) {
    const why = told.length > 0 ? ` (left out: ${told.join(", ")})` : "";
    throw new ConfigError(`${file} is a folder without texts or source files${why}; docs/data.md lists their names`, {
      file,
    });
  }
  const notes =
    folder && told.length > 0 ? [`${file}: ${texts.length} texts are read; left out: ${told.join(", ")}`] : [];
  return { hash: hash.digest("hex"), bytes, texts, groups, notes };
}
