// json.dumps, as transformers hands it to templates by the name tojson.

import { fail } from "./errors.js";
import { compare, floatRepr, items, repr, Tuple, typeName, type Value } from "./values.js";

const shortEscapes: Record<string, string> = {
  '"': '\\"',
  "\\": "\\\\",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\f": "\\f",
  "\b": "\\b",
};
const unit = (c: string) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;

export function jsonString(value: string, ascii: boolean): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is escaped
  const pattern = ascii ? /["\\\u0000-\u001f]|[^ -~]/g : /["\\\u0000-\u001f]/g;
  return `"${value.replace(pattern, (c) => shortEscapes[c] ?? unit(c))}"`;
}

const number = (value: number): string =>
  Number.isNaN(value) ? "NaN" : Number.isFinite(value) ? floatRepr(value) : value > 0 ? "Infinity" : "-Infinity";

export interface JsonOptions {
  ascii: boolean;
  /** What a level is indented by; null: all in one line. */
  indent: string | null;
  separators: [item: string, key: string];
  sorted: boolean;
}

export function toJson(value: Value, options: JsonOptions): string {
  const { ascii, indent, separators, sorted } = options;
  const pieces: string[] = [];
  const write = (piece: string) => pieces.push(piece);
  const line = (level: number) => {
    if (indent !== null) write(`\n${indent.repeat(level)}`);
  };
  const key = (given: Value): string => {
    if (typeof given === "string") return jsonString(given, ascii);
    if (given === null) return '"null"';
    if (typeof given === "boolean") return given ? '"true"' : '"false"';
    if (typeof given === "number") return `"${number(given)}"`;
    if (typeof given === "bigint") return `"${given}"`;
    return fail(`keys must be str, int, float, bool or None, not ${typeName(given)}`);
  };
  const each = <T>(all: readonly T[], [open, close]: [string, string], level: number, one: (item: T) => void) => {
    if (all.length === 0) return void write(open + close);
    write(open);
    for (const [i, item] of all.entries()) {
      if (i > 0) write(separators[0]);
      line(level + 1);
      one(item);
    }
    line(level);
    write(close);
  };
  const dump = (given: Value, level: number): void => {
    if (level > 500) fail("values lie too deep in each other for JSON");
    if (given === null) write("null");
    else if (typeof given === "boolean") write(given ? "true" : "false");
    else if (typeof given === "bigint") write(repr(given));
    else if (typeof given === "number") write(number(given));
    else if (typeof given === "string") write(jsonString(given, ascii));
    else if (Array.isArray(given) || given instanceof Tuple)
      each(items(given), ["[", "]"], level, (item) => dump(item, level + 1));
    else if (given instanceof Map) {
      const entries = [...given];
      if (sorted) entries.sort(([a], [b]) => compare(a, b, "<"));
      each(entries, ["{", "}"], level, ([name, item]) => {
        write(key(name) + separators[1]);
        dump(item, level + 1);
      });
    } else fail(`Object of type ${typeName(given)} is not JSON serializable`);
  };
  dump(value, 0);
  return pieces.join("");
}
