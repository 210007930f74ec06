// Turns the file patterns of data.train and data.eval into a sorted list of files.

import fs from "node:fs";
import path from "node:path";
import { ConfigError } from "../errors.js";

/** Splits `{a,b}` alternatives of a pattern into plain patterns; nesting is allowed, an unclosed brace is literal. */
function expandBraces(pattern: string): string[] {
  let open = -1;
  for (let i = 0; i < pattern.length; i++) {
    if (pattern[i] === "\\") i++;
    else if (pattern[i] === "{") {
      open = i;
      break;
    }
  }
  if (open < 0) return [pattern];
  let depth = 0;
  let start = open + 1;
  const parts: string[] = [];
  for (let i = open; i < pattern.length; i++) {
    const c = pattern[i];
    if (c === "\\") i++;
    else if (c === "{") depth++;
    else if (c === "," && depth === 1) {
      parts.push(pattern.slice(start, i));
      start = i + 1;
    } else if (c === "}" && --depth === 0) {
      parts.push(pattern.slice(start, i));
      const head = pattern.slice(0, open);
      const tails = expandBraces(pattern.slice(i + 1));
      if (parts.length === 1) return tails.map((tail) => `${head}\\{${parts[0]}\\}${tail}`);
      return parts.flatMap((part) => expandBraces(part).flatMap((middle) => tails.map((tail) => head + middle + tail)));
    }
  }
  return [`${pattern.slice(0, open)}\\${pattern.slice(open)}`];
}

const hasMagic = (segment: string) => /[*?[\\]/.test(segment);

/** The regular expression of one path segment: `*`, `?`, `[...]`, `[!...]` and `\` before a literal character. */
function segmentExpression(segment: string): RegExp {
  let source = "";
  for (let i = 0; i < segment.length; i++) {
    const c = segment[i] as string;
    if (c === "*") source += ".*";
    else if (c === "?") source += ".";
    else if (c === "\\" && i + 1 < segment.length)
      source += (segment[++i] as string).replace(/[^A-Za-z0-9_]/gu, "\\$&");
    else if (c === "[") {
      const close = segment.indexOf("]", segment[i + 1] === "!" || segment[i + 1] === "^" ? i + 3 : i + 2);
      if (close < 0) {
        source += "\\[";
        continue;
      }
      let body = segment.slice(i + 1, close);
      const negated = body.startsWith("!") || body.startsWith("^");
      if (negated) body = body.slice(1);
      source += `[${negated ? "^" : ""}${body.replace(/[\\\]^[]/g, "\\$&")}]`;
      i = close;
    } else source += c.replace(/[.+^${}()|\]/]/g, "\\$&");
  }
  return new RegExp(`^${source}$`, "su");
}

function directoryEntries(directory: string): fs.Dirent[] {
  try {
    return fs.readdirSync(directory === "" ? "." : directory, { withFileTypes: true });
  } catch {
    return [];
  }
}

function isDirectory(file: string): boolean {
  return fs.statSync(file, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

function matchSegments(base: string, segments: string[], found: Set<string>): void {
  if (segments.length === 0) {
    found.add(base);
    return;
  }
  const [segment, ...rest] = segments as [string, ...string[]];
  if (segment === "**") {
    matchSegments(base, rest, found);
    for (const entry of directoryEntries(base)) {
      // Links to folders are not followed below **: a loop would never end.
      if (entry.isDirectory() && !entry.name.startsWith(".")) {
        matchSegments(path.join(base, entry.name), segments, found);
      }
    }
    return;
  }
  if (!hasMagic(segment)) {
    const next = base === "" ? segment : path.join(base, segment);
    if (rest.length > 0 ? isDirectory(next) : fs.existsSync(next)) matchSegments(next, rest, found);
    return;
  }
  const expression = segmentExpression(segment);
  for (const entry of directoryEntries(base)) {
    if (entry.name.startsWith(".") && !segment.startsWith(".")) continue;
    if (!expression.test(entry.name)) continue;
    const next = base === "" ? entry.name : path.join(base, entry.name);
    if (rest.length === 0 || isDirectory(next)) matchSegments(next, rest, found);
  }
}

/**
 * The files that `patterns` name, each pattern's in ascending order of their paths' code units, no file twice.
 * Patterns know `*`, `?`, `[abc]`, `[!a-c]`, `{a,b}` and `**` (any depth); names that begin with a dot need a
 * pattern that does. A path that exists as written is taken as it is. A pattern without a match, or a folder, is a
 * ConfigError that names it.
 * @param key the configuration key, for messages.
 * @param directory where relative patterns start; the working directory if absent.
 */
export function expandPatterns(patterns: readonly string[], key = "data.train", directory?: string): string[] {
  if (patterns.length === 0) throw new ConfigError(`${key} names no files; give at least one .jsonl file or pattern`);
  const files: string[] = [];
  const seen = new Set<string>();
  for (const pattern of patterns) {
    if (typeof pattern !== "string" || pattern === "") {
      throw new ConfigError(`${key} must hold file names or patterns, not ${JSON.stringify(pattern)}`);
    }
    const whole = directory === undefined ? pattern : path.resolve(directory, pattern);
    const found = new Set<string>();
    if (fs.existsSync(whole)) found.add(whole);
    else {
      for (const plain of expandBraces(whole)) {
        const segments = plain.split("/").filter((segment, i) => segment !== "" || i === 0);
        if (segments[0] === "") matchSegments("/", segments.slice(1), found);
        else matchSegments("", segments, found);
      }
    }
    if (found.size === 0) {
      const magic = /[*?[{]/.test(pattern);
      throw new ConfigError(
        magic
          ? `${key}: no file matches ${JSON.stringify(pattern)} (relative patterns start at ${directory ?? process.cwd()})`
          : `${key}: there is no file ${JSON.stringify(pattern)} (relative paths start at ${directory ?? process.cwd()})`,
        { key, pattern },
      );
    }
    const sorted = [...found].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
    const plainFiles = sorted.filter((file) => !isDirectory(file));
    if (plainFiles.length === 0) {
      const folder = sorted[0] as string;
      throw new ConfigError(
        `${key}: ${JSON.stringify(folder)} is a folder; name its files, for example ${JSON.stringify(path.join(folder, "*.jsonl"))}`,
        { key, pattern },
      );
    }
    for (const file of plainFiles) {
      const identity = path.resolve(file);
      if (seen.has(identity)) continue;
      seen.add(identity);
      files.push(file);
    }
  }
  return files;
}
