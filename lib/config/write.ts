// A configuration as text: complete and canonical, or short for people.

import { stringify } from "yaml";
import { type Config, configSchema, leafPaths } from "./schema.js";
import { valueAt } from "./value_at.js";
import { toSnake } from "./values.js";

/** Sorts the keys of Hugging Face's mappings, whose order says nothing. */
export function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))
      .map(([key, inner]) => [key, sorted(inner)]),
  );
}

/** The values whose paths `wanted` picks, under YAML's keys in the schema's order. */
function treeOf(config: Config, wanted: (path: string[], value: unknown) => boolean): Record<string, unknown> {
  const tree: Record<string, unknown> = {};
  for (const path of leafPaths()) {
    const value = sorted(valueAt(config, path));
    if (!wanted(path, value)) continue;
    let section = tree;
    for (const key of path.slice(0, -1).map(toSnake)) {
      section[key] ??= {};
      section = section[key] as Record<string, unknown>;
    }
    section[toSnake(path.at(-1) ?? "")] = value;
  }
  return tree;
}

/**
 * The complete configuration as JSON with YAML's keys, in the schema's order: equal configurations give equal text,
 * and the text is itself a configuration file.
 */
export const canonicalJson = (config: Config): string =>
  `${JSON.stringify(
    treeOf(config, () => true),
    null,
    2,
  )}\n`;

/** What no configuration can leave out, with values of no meaning. */
const least = {
  model: { path: "-" },
  data: { train: ["-"], sequenceLength: 2 },
  train: { epochs: 1 },
  output: { dir: "-" },
};
const required = new Set(["data.train", "data.sequenceLength", "train.epochs", "output.dir"]);

/** A configuration file that means the same, with what is not as it is by default. */
export function yamlOf(config: Config): string {
  const defaults = configSchema.parse(least);
  const tree = treeOf(config, (path, value) => {
    const key = path.join(".");
    if (value === null) return false;
    return required.has(key) || JSON.stringify(value) !== JSON.stringify(sorted(valueAt(defaults, path)));
  });
  return stringify(tree);
}
