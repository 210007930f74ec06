// What a configuration says of data beyond single values: entries of data.train and data.eval, and what is trained on.

import { z } from "zod";
import type { DataEntry } from "../data/entries.js";
import type { ProblemParams } from "./schema.js";
import { editDistance, parseCount, parseNumber, showValue, typeName } from "./values.js";

const isText = (value: unknown): value is string =>
  typeof value === "string" && value.trim() !== "" && !value.includes("\0");

/** Columns that rows have here and that a file may name otherwise. */
const columnNames = ["text", "messages", "prompt", "completion", "input_ids", "labels", "tools"];

interface Rule {
  expected: string;
  /** Undefined where the value is refused. */
  parse: (value: unknown) => unknown;
}

const oneOf = (...choices: string[]): Rule => ({
  expected: `one of ${choices.join(", ")}`,
  parse: (value) => (choices.includes(value as string) ? value : undefined),
});

const above0 = (value: unknown) => {
  const number = parseNumber(value);
  return number !== undefined && number > 0 ? number : undefined;
};

const id: Rule = {
  expected: "a token id, 0 or more",
  parse: (value) => {
    const number = parseCount(value);
    return number !== undefined && number <= 0x7fffffff ? number : undefined;
  },
};

// One word each, so that YAML and the API spell them alike.
const rules: Readonly<Record<keyof DataEntry, Rule>> = {
  path: { expected: "a file, a pattern or a folder", parse: (value) => (isText(value) ? value : undefined) },
  weight: { expected: "a number above 0", parse: above0 },
  epochs: { expected: "a number above 0", parse: above0 },
  type: oneOf("jsonl", "json", "parquet", "text", "tokens"),
  dtype: oneOf("uint16", "uint32"),
  eos: id,
  bos: id,
  columns: {
    expected: `a mapping of ${columnNames.join(", ")} to the files' names of columns (such as {text: content})`,
    parse: (value) => {
      if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
      const pairs = Object.entries(value);
      const fine = pairs.every(([name, theirs]) => columnNames.includes(name) && isText(theirs));
      return fine && pairs.length > 0 ? { ...value } : undefined;
    },
  },
  expansion: { expected: "a number above 0", parse: above0 },
};

const known = Object.keys(rules) as (keyof DataEntry)[];

/** An entry as it is given, or what is wrong with it. */
function parseEntry(value: unknown, mixes: boolean): { entry: string | DataEntry } | { wrong: string } {
  if (isText(value)) return { entry: value };
  if (typeof value !== "object" || value === null || Array.isArray(value))
    return {
      wrong: `got ${showValue(value)} (${typeName(value)}); expected a file name or pattern, or a mapping with a path`,
    };
  const entry: Record<string, unknown> = {};
  for (const [key, given] of Object.entries(value)) {
    if (given === undefined || given === null) continue;
    if (!(known as string[]).includes(key)) {
      const nearest = known.toSorted((a, b) => editDistance(key, a) - editDistance(key, b))[0] as string;
      const hint = editDistance(key, nearest) <= 2 ? `did you mean ${nearest}? ` : "";
      return { wrong: `${key}: unknown key; ${hint}known here: ${known.join(", ")}` };
    }
    if (!mixes && (key === "weight" || key === "epochs"))
      return { wrong: `${key}: all rows are evaluated, each once; leave it out` };
    const rule = rules[key as keyof DataEntry];
    const parsed = rule.parse(given);
    if (parsed === undefined)
      return { wrong: `${key}: got ${showValue(given)} (${typeName(given)}); expected ${rule.expected}` };
    entry[key] = parsed;
  }
  if (entry.path === undefined) return { wrong: `missing its path; expected ${rules.path.expected}` };
  return { entry: entry as unknown as DataEntry };
}

/**
 * A list of at least `least` entries, which may say how often they come where `mixes`. A single one may stand without a
 * list, and null is none where none are needed.
 */
export const dataEntries = (least: number, mixes: boolean) =>
  z
    .custom<string | DataEntry | readonly (string | DataEntry)[] | null>()
    .transform((value, context): (string | DataEntry)[] => {
      const refuse = (message: string, params?: ProblemParams) => {
        context.issues.push({ code: "custom", input: value, message, ...(params === undefined ? {} : { params }) });
        return z.NEVER;
      };
      const single = isText(value) || (typeof value === "object" && value !== null && !Array.isArray(value));
      const list: unknown = single ? [value] : value === null && least === 0 ? [] : value;
      const expected = `a list of ${least > 0 ? "one or more " : ""}file names or patterns (such as ["data/*.jsonl"])`;
      if (!Array.isArray(list) || list.length < least) return refuse(expected, { expected });
      // Of a list of names alone that is wrong as a whole.
      const entries: (string | DataEntry)[] = [];
      for (const [i, one] of list.entries()) {
        const parsed = parseEntry(one, mixes);
        if ("entry" in parsed) entries.push(parsed.entry);
        else if (typeof one !== "object" || one === null) return refuse(expected, { expected });
        else return refuse(`entry ${i + 1}: ${parsed.wrong}`);
      }
      return entries;
    });

/** The roles whose turns are trained on: the assistant's, several, or all of a conversation. */
export const trainOn = z
  .custom<string | readonly string[]>()
  .transform((value, context): "assistant" | "all" | string[] => {
    const roles = Array.isArray(value) ? value : [value];
    const fine = roles.length > 0 && roles.every(isText) && (roles.length === 1 || !roles.includes("all"));
    if (fine)
      return roles[0] === "all" ? "all" : roles.length === 1 && roles[0] === "assistant" ? "assistant" : [...roles];
    const expected = "assistant, all, or a list of roles (such as [user, assistant])";
    context.issues.push({ code: "custom", input: value, message: expected, params: { expected } });
    return z.NEVER;
  });
