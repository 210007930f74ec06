// How single values are written in a configuration: counts (500K), sizes (80GiB), and how a wrong one is shown.

const countPattern = /^\+?(\d+(?:_\d+)*)(\.\d+)?(?:[eE]([+-]?\d+))?([kKmM])?$/;
const numberPattern = /^[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?[kKmM]?$/;
const sizePattern = /^\+?(\d+(?:_\d+)*)(\.\d+)?\s*(B|KB|kB|KiB|MB|MiB|GB|GiB|TB|TiB)?$/;

const sizeUnits: Record<string, number> = {
  B: 1,
  KB: 1e3,
  kB: 1e3,
  KiB: 2 ** 10,
  MB: 1e6,
  MiB: 2 ** 20,
  GB: 1e9,
  GiB: 2 ** 30,
  TB: 1e12,
  TiB: 2 ** 40,
};

/**
 * A decimal number: a JavaScript number, or a string such as "500_000", "1.5e-3", "500K" (x 1e3), "1M" (x 1e6).
 * Returns undefined for anything else, and for numbers that are not finite.
 */
export function parseNumber(value: unknown): number | undefined {
  if (typeof value === "number") return Number.isFinite(value) ? value : undefined;
  if (typeof value !== "string" || !numberPattern.test(value)) return undefined;
  const suffix = value.at(-1)?.toUpperCase();
  const scale = suffix === "K" ? 1e3 : suffix === "M" ? 1e6 : 1;
  const digits = (scale === 1 ? value : value.slice(0, -1)).replaceAll("_", "");
  const number = Number(digits) * scale;
  return Number.isFinite(number) ? number : undefined;
}

/** A whole, safe number of at least zero, written as `parseNumber` reads it ("1.5M" is whole, "1.5" is not). */
export function parseCount(value: unknown): number | undefined {
  if (typeof value === "string" && !countPattern.test(value)) return undefined;
  const number = parseNumber(value);
  if (number === undefined) return undefined;
  // 1.1M is 1100000.0000000002 in binary floating point.
  const nearest = Math.round(number);
  const whole = typeof value === "string" && Math.abs(number - nearest) < 1e-6 ? nearest : number;
  return Number.isSafeInteger(whole) && whole >= 0 ? whole + 0 : undefined;
}

/** A number of bytes: a whole number, or one with B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024). */
export function parseSize(value: unknown): number | undefined {
  if (typeof value === "number") return parseCount(value);
  if (typeof value !== "string") return undefined;
  const match = sizePattern.exec(value);
  if (match === null) return undefined;
  const [, digits = "", fraction = "", unit] = match;
  if (fraction !== "" && (unit === undefined || unit === "B")) return undefined;
  const bytes = Math.round(Number(digits.replaceAll("_", "") + fraction) * (sizeUnits[unit ?? "B"] ?? 1));
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** The kind of a configuration value in the words of a YAML user. */
export function typeName(value: unknown): string {
  if (value === null) return "null";
  if (value === undefined) return "undefined";
  if (Array.isArray(value)) return "list";
  if (typeof value === "object") return "mapping";
  return typeof value;
}

/** A value for an error message: on one line, and short. */
export function showValue(value: unknown): string {
  let text: string;
  if (typeof value === "number" || typeof value === "bigint") text = String(value);
  else {
    try {
      text = JSON.stringify(value) ?? String(value);
    } catch {
      text = String(value);
    }
  }
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/** batch_size to batchSize. */
export function toCamel(key: string): string {
  return key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

/** batchSize to batch_size. */
export function toSnake(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`. */
export function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  const at = (i: number, j: number): number => rows[i]?.[j] ?? 0;
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    rows.push(row);
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let best = Math.min(at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) best = Math.min(best, at(i - 2, j - 2) + 1);
      row.push(best);
    }
  }
  return at(a.length, b.length);
}
