// Reads a configuration from YAML and overrides, or from an object, and turns every mistake into one clear line.

import { readFileSync } from "node:fs";
import { isMap, isScalar, LineCounter, type Node, type ParsedNode, parseAllDocuments, visit } from "yaml";
import type { z } from "zod";
import { ConfigError } from "../errors.js";
import {
  type Config,
  type ConfigInput,
  configSchema,
  leafPaths,
  type ProblemParams,
  sectionShape,
  verbatimKeys,
  verbatimPaths,
} from "./schema.js";
import { editDistance, parseNumber, showValue, toCamel, toSnake, typeName } from "./values.js";

/** One mistake of a configuration. */
export interface ConfigProblem {
  /** The key as its author spells it, such as train.batch_size. */
  key: string;
  /** What is wrong and what to do, without file, line and key. */
  message: string;
  /** 1-based line in the file, where there is one. */
  line?: number;
  /** True if the value came from the command line. */
  override?: boolean;
}

type Tree = Record<string, unknown>;
type Spelling = "snake" | "camel";

/** Where a key was given. */
type Locate = (path: readonly string[]) => { line?: number; override?: boolean };

const isTree = (value: unknown): value is Tree => typeof value === "object" && value !== null && !Array.isArray(value);

/** Within a verbatim section, plain scalars such as 500_000 and 128K are numbers, as everywhere else. */
function convertVerbatimNumbers(node: Node | null, path: readonly string[]): void {
  if (node === null) return;
  const camel = path.map(toCamel).join(".");
  if (verbatimPaths.some((verbatim) => camel === verbatim || camel.startsWith(`${verbatim}.`))) {
    visit(node, {
      Scalar(key, scalar) {
        if (key === "key" || scalar.type !== "PLAIN" || typeof scalar.value !== "string") return;
        const number = parseNumber(scalar.value);
        if (number !== undefined) scalar.value = number;
      },
    });
  } else if (isMap(node)) {
    for (const pair of node.items) convertVerbatimNumbers(pair.value as Node | null, [...path, String(pair.key)]);
  }
}

/** Parses one YAML document; throws a ConfigError whose message starts with `name:LINE:`. */
function parseYaml(source: string, name: string, path: readonly string[], lines: boolean) {
  const lineCounter = new LineCounter();
  const documents = parseAllDocuments<ParsedNode>(source, { version: "1.2", lineCounter, prettyErrors: false });
  const list = Array.isArray(documents) ? documents : [];
  const first = list[0];
  if (first === undefined) return { tree: null as unknown, contents: null as Node | null, lineCounter };
  const where = (offset: number) => (lines ? `${name}:${lineCounter.linePos(offset).line}` : name);
  // After a mistake in the syntax the rest of what the parser reports is guesswork; duplicate keys stand for themselves.
  const found = [...first.errors, ...first.warnings];
  const syntax = found.find((problem) => problem.code !== "DUPLICATE_KEY");
  const problems = (syntax === undefined ? found : [syntax]).map((problem) => {
    let message = problem.message.split("\n")[0] ?? problem.message;
    if (problem.code === "DUPLICATE_KEY") {
      const key = /^\s*(?:"([^"]*)"|'([^']*)'|([^\s:,}\]]+))/.exec(source.slice(problem.pos[0]));
      message = `${key?.[1] ?? key?.[2] ?? key?.[3] ?? "a key"}: this key is given twice in the same mapping; keep one`;
    } else message = `not valid YAML: ${message}`;
    return `${where(problem.pos[0])}: ${message}`;
  });
  if (problems.length === 0 && list.length > 1)
    problems.push(`${where(list[1]?.range[0] ?? 0)}: a second YAML document starts here; expected one`);
  if (problems.length > 0) throw new ConfigError(problems.join("\n"), { file: name, problems });
  convertVerbatimNumbers(first.contents, path);
  try {
    return {
      tree: first.toJS({ maxAliasCount: 100 }) as unknown,
      contents: first.contents as Node | null,
      lineCounter,
    };
  } catch (error) {
    throw new ConfigError(`${name}: not valid YAML: ${(error as Error).message}`, { file: name });
  }
}

/** The key of a path as its author spells it: verbatim sections keep Hugging Face's names. */
function spell(path: readonly string[], spelling: Spelling): string {
  let camel = "";
  return path
    .map((key) => {
      const verbatim = verbatimPaths.includes(camel);
      camel = camel === "" ? key : verbatim ? camel : `${camel}.${key}`;
      return verbatim || spelling === "camel" ? key : toSnake(key);
    })
    .join(".");
}

const fold = (key: string) => key.toLowerCase().replaceAll(/[_-]/g, "");

/** "did you mean ...": the nearest of the keys known at this place, or the same name elsewhere in the schema. */
function suggest(key: string, prefix: readonly string[], known: readonly string[], spelling: Spelling): string {
  const distance = (candidate: string) => {
    const last = candidate.split(".").at(-1) ?? candidate;
    return editDistance(fold(key), fold(last)) + editDistance(key, last) / 1000;
  };
  const nearest = (candidates: readonly string[]) =>
    candidates.reduce<{ key: string; distance: number } | null>((best, candidate) => {
      const d = distance(candidate);
      return best === null || d < best.distance ? { key: candidate, distance: d } : best;
    }, null);
  const start = prefix.length > 0 ? `${spell(prefix, spelling)}.` : "";
  const here = nearest(known.map((name) => start + name));
  const everywhere = nearest(leafPaths().map((path) => spell(path, spelling)));
  const near = Math.max(2, Math.floor(key.length / 3)) + 0.999;
  if (
    here !== null &&
    here.distance <= near &&
    !(everywhere !== null && everywhere.distance < 0.5 && here.distance >= 1)
  )
    return `did you mean ${here.key}?`;
  if (everywhere !== null && everywhere.distance < 2) return `did you mean ${everywhere.key}?`;
  if (here === null) return "no key is known here";
  return `the nearest known key is ${here.key}; known here: ${known.join(", ")}`;
}

/** Maps the keys of `tree` to the schema's and notes unknown ones. */
function toSchemaKeys(
  tree: unknown,
  schema: z.ZodType,
  spelling: Spelling,
  path: readonly string[],
  unknown: (path: readonly string[], key: string, suggestion: string) => void,
): unknown {
  const shape = sectionShape(schema);
  const camel = path.join(".");
  if (shape === null) {
    const known = verbatimKeys[camel];
    if (known === undefined || !isTree(tree)) return tree;
    const kept: Tree = {};
    for (const [key, value] of Object.entries(tree)) {
      if (known.includes(key)) kept[key] = value;
      else unknown(path, key, suggest(key, path, known, spelling));
    }
    return kept;
  }
  // An empty section (all of its lines commented out) is the same as none.
  if (tree === null || tree === undefined) return {};
  if (!isTree(tree)) return tree;
  const bySpelling = new Map(Object.keys(shape).map((key) => [spelling === "snake" ? toSnake(key) : key, key]));
  const result: Tree = {};
  for (const [key, value] of Object.entries(tree)) {
    const name = bySpelling.get(key);
    const inner = name === undefined ? undefined : shape[name];
    if (name === undefined || inner === undefined) {
      unknown(path, key, suggest(key, path, [...bySpelling.keys()], spelling));
      continue;
    }
    if (value === undefined) continue;
    result[name] = toSchemaKeys(value, inner, spelling, [...path, name], unknown);
  }
  return result;
}

/** Validates a tree with the author's spelling of keys; throws a ConfigError that lists every problem. */
function validate(tree: unknown, spelling: Spelling, source: string, locate: Locate): Config {
  const problems: ConfigProblem[] = [];
  const add = (path: readonly string[], message: string) =>
    problems.push({ key: spell(path, spelling), message, ...locate(path) });

  const camel = toSchemaKeys(tree, configSchema, spelling, [], (path, key, suggestion) =>
    problems.push({
      key: [...path.map((name) => (spelling === "snake" ? toSnake(name) : name)), key].join("."),
      message: `unknown key; ${suggestion}`,
      ...locate([...path, key]),
    }),
  );
  const parsed = configSchema.safeParse(camel);
  if (!parsed.success) {
    for (const issue of parsed.error.issues) {
      const path = issue.path.map(String);
      let value: unknown = camel;
      for (const key of path) value = isTree(value) ? value[key] : undefined;
      const params = (issue.code === "custom" ? issue.params : undefined) as ProblemParams | undefined;
      const expected = params?.expected ?? (issue.code === "invalid_type" ? "a mapping of keys to values" : undefined);
      if (expected === undefined) {
        // Keys in braces are named as the author spells them.
        add(
          path,
          issue.message.replaceAll(/\{([A-Za-z.]+)\}/g, (_, key: string) => spell(key.split("."), spelling)),
        );
      } else if (value === undefined) add(path, `missing; expected ${expected}`);
      else add(path, `got ${showValue(value)} (${typeName(value)}); expected ${expected}`);
    }
  }
  if (!parsed.success || problems.length > 0) {
    problems.sort((a, b) => Number(a.override ?? false) - Number(b.override ?? false) || (a.line ?? 0) - (b.line ?? 0));
    const message = problems
      .map((problem) => {
        const where = problem.override ? "command line" : problem.line ? `${source}:${problem.line}` : source;
        return problem.key === "" ? `${where}: ${problem.message}` : `${where}: ${problem.key}: ${problem.message}`;
      })
      .join("\n");
    throw new ConfigError(message, { file: source, problems });
  }
  return parsed.data;
}

/** The line on which a path (camelCase, as far as it is ours) stands in a YAML tree, or that of its nearest parent. */
function lineOf(contents: Node | null, lineCounter: LineCounter, path: readonly string[]): number | undefined {
  let node: unknown = contents;
  let offset: number | undefined;
  for (const key of path) {
    if (!isMap(node)) break;
    const pair = node.items.find((item) => {
      const name = isScalar(item.key) ? String(item.key.value) : String(item.key);
      return name === key || name === toSnake(key);
    });
    if (pair === undefined) break;
    offset = (pair.key as Node).range?.[0] ?? offset;
    node = pair.value;
  }
  return offset === undefined ? undefined : lineCounter.linePos(offset).line;
}

/** True for a command-line word that is an override (`key.sub=value`). */
export function isOverride(word: string): boolean {
  return /^[A-Za-z_][\w-]*(\.[\w-]+)*=/.test(word);
}

/**
 * Parses a configuration from YAML text. `name` stands in messages.
 * `overrides` are `key.sub=value` words, value in YAML; later ones win over earlier ones and over the text.
 * Throws ConfigError: one line a problem.
 */
export function parseConfig(text: string, name: string, overrides: readonly string[] = []): Config {
  const { tree: parsed, contents, lineCounter } = parseYaml(text, name, [], true);
  if (parsed !== null && parsed !== undefined && !isTree(parsed))
    throw new ConfigError(
      `${name}:1: got ${showValue(parsed)} (${typeName(parsed)}); expected a mapping with model, data, train and output`,
      { file: name },
    );
  const tree: Tree = (parsed as Tree | null) ?? {};
  const overridden: string[] = [];
  for (const word of overrides) {
    if (!isOverride(word))
      throw new ConfigError(`command line: got ${showValue(word)}; expected an override like train.steps=10`, {
        override: word,
      });
    const split = word.indexOf("=");
    const path = word.slice(0, split).split(".");
    const source = word.slice(split + 1);
    const value = parseYaml(source, `command line: ${word.slice(0, split)}`, path, false).tree;
    let section = tree;
    for (const [depth, key] of path.slice(0, -1).entries()) {
      if (key === "__proto__") break;
      const inner = Object.hasOwn(section, key) ? section[key] : undefined;
      if (inner !== null && inner !== undefined && !isTree(inner))
        throw new ConfigError(
          `command line: ${path.join(".")}: ${path.slice(0, depth + 1).join(".")} is ${showValue(inner)} ` +
            `(${typeName(inner)}), which has no keys of its own`,
          { override: word },
        );
      const next: Tree = inner ?? {};
      section[key] = next;
      section = next;
    }
    Object.defineProperty(section, path.at(-1) ?? "", { value, enumerable: true, configurable: true, writable: true });
    overridden.push(path.map(toCamel).join("."));
  }
  return validate(tree, "snake", name, (path) => {
    const camel = path.map(toCamel).join(".");
    if (overridden.some((key) => camel === key || camel.startsWith(`${key}.`))) return { override: true };
    const line = lineOf(contents, lineCounter, path);
    return line === undefined ? {} : { line };
  });
}

/** Reads a YAML file and applies overrides; see `parseConfig`. A file that cannot be read is a ConfigError too. */
export function loadConfig(file: string, overrides: readonly string[] = []): Config {
  let bytes: Buffer;
  try {
    bytes = readFileSync(file);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    const reason =
      code === "ENOENT"
        ? "there is no such file"
        : code === "EISDIR"
          ? "this is a folder; give the path of a YAML file"
          : `cannot be read (${code ?? String(error)})`;
    throw new ConfigError(`${file}: ${reason}`, { file, errno: code }, { cause: error });
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    throw new ConfigError(`${file}: not valid UTF-8 text`, { file }, { cause: error });
  }
  return parseConfig(text, file, overrides);
}

/**
 * Completes and checks an object with the YAML's keys in camelCase, as `new Trainer(config)` takes it.
 * A complete Config passes through unchanged. Throws ConfigError: one line a problem.
 */
export function parseConfigObject(config: ConfigInput | Config): Config {
  if (!isTree(config))
    throw new ConfigError(`config: got ${showValue(config)} (${typeName(config)}); expected an object`);
  return validate(config, "camel", "config", () => ({}));
}
