// Which values of known keys this version can act on; any other one is refused instead of ignored.

import type { Config } from "./schema.js";

export interface Availability {
  /** The key as YAML spells it. */
  readonly key: string;
  /** The resolved values that work. */
  readonly values: readonly (string | number | boolean | null)[];
}

/** One line a key whose feature is not complete; a feature that is built changes or removes its line. */
export const availability: readonly Availability[] = [];

/** Reads a value of a configuration by its camelCase path. */
export function valueAt(config: Config, path: readonly string[]): unknown {
  let value: unknown = config;
  for (const key of path) value = (value as Record<string, unknown> | null | undefined)?.[key];
  return value;
}
