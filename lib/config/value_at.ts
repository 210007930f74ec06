// A value of a configuration by its path.

import type { Config } from "./schema.js";

/** Reads a value of a configuration by its camelCase path. */
export function valueAt(config: Config, path: readonly string[]): unknown {
  let value: unknown = config;
  for (const key of path) value = (value as Record<string, unknown> | null | undefined)?.[key];
  return value;
}
