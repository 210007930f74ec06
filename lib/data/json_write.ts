// JSON text as Python's json.dumps writes it: floats keep their point or exponent, integers all their digits.

import type { JsonValue } from "./json.js";

/** A float as Python's repr has it: 64.0, 1e-05, 1e+16. */
export function floatText(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Infinity" : "-Infinity";
  if (Object.is(value, -0)) return "-0.0";
  // The shortest digits that give the value back are the same in both languages; where the exponent begins is not.
  const [digits, exponent] = value.toExponential().split("e") as [string, string];
  const power = Number(exponent);
  if (power < -4 || power >= 16) {
    const size = String(Math.abs(power)).padStart(2, "0");
    return `${digits}e${power < 0 ? "-" : "+"}${size}`;
  }
  const text = value.toString();
  if (text.includes("e")) return value.toFixed(digits.replace(/[-.]/g, "").length - 1 - power);
  return text.includes(".") ? text : `${text}.0`;
}

/** A string in ASCII alone. */
const stringText = (value: string): string =>
  JSON.stringify(value).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** `value` as json.dumps(value, indent=2) writes it, with no line break at its end. */
export function writeJson(value: JsonValue, indent = ""): string {
  if (typeof value === "bigint") return value.toString();
  if (typeof value === "number") return floatText(value);
  if (typeof value === "string") return stringText(value);
  if (value === null || typeof value === "boolean") return String(value);
  const inner = `${indent}  `;
  const list = Array.isArray(value);
  const parts = list
    ? value.map((item) => writeJson(item, inner))
    : Array.from(value, ([key, item]) => `${stringText(key)}: ${writeJson(item, inner)}`);
  const [open, close] = list ? "[]" : "{}";
  if (parts.length === 0) return `${open}${close}`;
  return `${open}\n${parts.map((part) => inner + part).join(",\n")}\n${indent}${close}`;
}
