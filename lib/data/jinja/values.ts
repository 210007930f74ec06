// Python's values as templates see them: int is bigint, float is number, str is string, None is null, list is Array, dict
// is Map. What they print as, when they are equal, how they compare.

import { fail } from "./errors.js";

export type Value =
  | null
  | boolean
  | bigint
  | number
  | string
  | Value[]
  | Map<Value, Value>
  | Tuple
  | Undefined
  | Range
  | View
  | Lazy
  | Callable
  | Namespace
  | Markup
  | Loop;

export class Tuple {
  constructor(
    readonly items: Value[],
    /** Attributes of a named tuple, by position. */
    readonly names: readonly string[] = [],
  ) {}
}

/** What a name, an attribute or an item that is not there gives: it prints as nothing, and most else is an error. */
export class Undefined {
  constructor(readonly message: string) {}
}

export class Range {
  readonly length: number;
  constructor(
    readonly start: bigint,
    readonly stop: bigint,
    readonly step: bigint,
  ) {
    const span = step > 0n ? stop - start : start - stop;
    const by = step > 0n ? step : -step;
    this.length = span <= 0n ? 0 : Number((span + by - 1n) / by);
  }
  at(i: number): bigint {
    return this.start + BigInt(i) * this.step;
  }
}

/** keys(), values() or items() of a dict. */
export class View {
  constructor(
    readonly kind: "keys" | "values" | "items",
    readonly dict: Map<Value, Value>,
  ) {}
  *[Symbol.iterator](): Generator<Value> {
    if (this.kind === "items") for (const [key, value] of this.dict) yield new Tuple([key, value]);
    else yield* this.kind === "keys" ? this.dict.keys() : this.dict.values();
  }
}

/** What can be walked once, as the result of a filter such as map. */
export class Lazy {
  constructor(readonly iterator: Iterator<Value>) {}
}

export type Keywords = ReadonlyMap<string, Value>;

/** A function, a macro, or a method bound to its object. */
export class Callable {
  constructor(
    readonly name: string,
    readonly call: (args: Value[], keywords: Keywords) => Value,
    readonly macro = false,
  ) {}
}

export class Namespace {
  readonly values = new Map<string, Value>();
}

/** A string that is marked as safe. What Python makes of it elsewhere than in output is not done here. */
export class Markup {
  constructor(readonly text: string) {}
}

/** The `loop` of a for. */
export abstract class Loop {
  abstract attribute(name: string): Value | undefined;
  abstract call(args: Value[]): Value;
}

export function typeName(value: Value): string {
  if (value === null) return "NoneType";
  switch (typeof value) {
    case "boolean":
      return "bool";
    case "bigint":
      return "int";
    case "number":
      return "float";
    case "string":
      return "str";
  }
  if (Array.isArray(value)) return "list";
  if (value instanceof Map) return "dict";
  if (value instanceof Tuple) return "tuple";
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Range) return "range";
  if (value instanceof View) return `dict_${value.kind}`;
  if (value instanceof Lazy) return "generator";
  if (value instanceof Namespace) return "Namespace";
  if (value instanceof Markup) return "Markup";
  if (value instanceof Loop) return "LoopContext";
  return value.macro ? "Macro" : "builtin_function_or_method";
}

/** Raises the error that an undefined value is for. */
export function defined(value: Value): Value {
  return value instanceof Undefined ? fail(value.message) : value;
}

export function truth(value: Value): boolean {
  if (value === null || value instanceof Undefined) return false;
  switch (typeof value) {
    case "boolean":
      return value;
    case "bigint":
      return value !== 0n;
    case "number":
      return value !== 0;
    case "string":
      return value !== "";
  }
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Map) return value.size > 0;
  if (value instanceof Tuple) return value.items.length > 0;
  if (value instanceof Range) return value.length > 0;
  if (value instanceof View) return value.dict.size > 0;
  if (value instanceof Markup) return value.text !== "";
  return true;
}

/** Python's repr of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on. */
export function floatRepr(value: number): string {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (value === 0) return Object.is(value, -0) ? "-0.0" : "0.0";
  const [mantissa, power] = value.toExponential().split("e") as [string, string];
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    const digits = String(Math.abs(exponent)).padStart(2, "0");
    return `${mantissa}e${exponent < 0 ? "-" : "+"}${digits}`;
  }
  const sign = mantissa.startsWith("-") ? "-" : "";
  const digits = mantissa.replace(/[-.]/g, "");
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, "0");
  return `${sign}${whole}.${digits.slice(exponent + 1) || "0"}`;
}

/** What Python's str.isprintable calls not printable, apart from the space. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Zs}]/u;
export const printable = (character: string): boolean => character === " " || !UNPRINTABLE.test(character);

export function stringRepr(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  let shown = quote;
  for (const c of text) {
    const code = c.codePointAt(0) as number;
    if (c === quote || c === "\\") shown += `\\${c}`;
    else if (c === "\n") shown += "\\n";
    else if (c === "\r") shown += "\\r";
    else if (c === "\t") shown += "\\t";
    else if (printable(c)) shown += c;
    else if (code < 0x100) shown += `\\x${code.toString(16).padStart(2, "0")}`;
    else if (code < 0x10000) shown += `\\u${code.toString(16).padStart(4, "0")}`;
    else shown += `\\U${code.toString(16).padStart(8, "0")}`;
  }
  return shown + quote;
}

/** How deep values may lie in each other when they are printed or compared. */
const MOST_DEEP = 500;

export function repr(value: Value, depth = 0): string {
  if (depth > MOST_DEEP) fail("values lie too deep in each other to be printed");
  const each = (items: Iterable<Value>) => Array.from(items, (item) => repr(item, depth + 1)).join(", ");
  if (value === null) return "None";
  switch (typeof value) {
    case "boolean":
      return value ? "True" : "False";
    case "bigint":
      return intText(value);
    case "number":
      return floatRepr(value);
    case "string":
      return stringRepr(value);
  }
  if (Array.isArray(value)) return `[${each(value)}]`;
  if (value instanceof Tuple) return `(${each(value.items)}${value.items.length === 1 ? "," : ""})`;
  if (value instanceof Map)
    return `{${Array.from(value, ([key, item]) => `${repr(key, depth + 1)}: ${repr(item, depth + 1)}`).join(", ")}}`;
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Range) {
    const { start, stop, step } = value;
    return `range(${start}, ${stop}${step === 1n ? "" : `, ${step}`})`;
  }
  if (value instanceof View) return `dict_${value.kind}([${each(value)}])`;
  if (value instanceof Markup) return `Markup(${stringRepr(value.text)})`;
  return fail(`a ${typeName(value)} has no text that is the same in every run`);
}

/** Python refuses to print integers of more digits. */
const MOST_DIGITS = 4300;
function intText(value: bigint): string {
  if (value > 10n ** 20n || value < -(10n ** 20n)) {
    const text = value.toString();
    if (text.replace("-", "").length > MOST_DIGITS)
      fail("Exceeds the limit (4300 digits) for integer string conversion");
    return text;
  }
  return value.toString();
}

/** What `str` gives, and what is printed. */
export function text(value: Value): string {
  if (typeof value === "string") return value;
  if (value instanceof Undefined) return "";
  if (value instanceof Markup) return value.text;
  return repr(value);
}

const isNumber = (value: Value): value is bigint | number | boolean =>
  typeof value === "bigint" || typeof value === "number" || typeof value === "boolean";

/** True is 1. */
export const numeric = (value: bigint | number | boolean): bigint | number =>
  typeof value === "boolean" ? (value ? 1n : 0n) : value;

export { isNumber };

export function equal(a: Value, b: Value, depth = 0): boolean {
  if (a === b) return true;
  if (depth > MOST_DEEP) fail("values lie too deep in each other to be compared");
  // JavaScript compares integers and floats by value, exactly, as Python does.
  // biome-ignore lint/suspicious/noDoubleEquals: see above
  if (isNumber(a) && isNumber(b)) return numeric(a) == numeric(b);
  const same = (x: readonly Value[], y: readonly Value[]) =>
    x.length === y.length && x.every((item, i) => equal(item, y[i] as Value, depth + 1));
  if (Array.isArray(a) && Array.isArray(b)) return same(a, b);
  if (a instanceof Tuple && b instanceof Tuple) return same(a.items, b.items);
  if (a instanceof Map && b instanceof Map) {
    if (a.size !== b.size) return false;
    for (const [key, value] of a) if (!b.has(key) || !equal(value, b.get(key) as Value, depth + 1)) return false;
    return true;
  }
  if (a instanceof Undefined && b instanceof Undefined) return true;
  if (a instanceof Range && b instanceof Range) {
    if (a.length !== b.length) return false;
    return a.length === 0 || (a.start === b.start && (a.length === 1 || a.step === b.step));
  }
  if (a instanceof View && b instanceof View && a.kind === b.kind && a.kind !== "values") {
    const items = [...a];
    const others = [...b];
    return items.length === others.length && items.every((x) => others.some((y) => equal(x, y, depth + 1)));
  }
  const plain = (value: Value) => (value instanceof Markup ? value.text : value);
  if (a instanceof Markup || b instanceof Markup) return plain(a) === plain(b);
  return false;
}

/** Order of strings by code points; JavaScript's own is by UTF-16 units. */
function compareText(a: string, b: string): number {
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i++) {
    const [x, y] = [a.charCodeAt(i), b.charCodeAt(i)];
    if (x === y) continue;
    // Surrogates stand for code points above all others.
    const rank = (unit: number) => (unit >= 0xd800 && unit <= 0xdfff ? unit + 0x10000 : unit);
    return rank(x) - rank(y);
  }
  return a.length - b.length;
}

/** Negative, zero or positive; NaN where a float is one. Throws where Python does. */
export function compare(a: Value, b: Value, operator: string, depth = 0): number {
  if (depth > MOST_DEEP) fail("values lie too deep in each other to be compared");
  defined(a);
  defined(b);
  if (isNumber(a) && isNumber(b)) {
    const [x, y] = [numeric(a), numeric(b)];
    if (x < y) return -1;
    if (x > y) return 1;
    // biome-ignore lint/suspicious/noDoubleEquals: an integer and a float may be equal
    return x == y ? 0 : Number.NaN;
  }
  if (typeof a === "string" && typeof b === "string") return compareText(a, b);
  const lists =
    Array.isArray(a) && Array.isArray(b)
      ? [a, b]
      : a instanceof Tuple && b instanceof Tuple
        ? [a.items, b.items]
        : undefined;
  if (lists) {
    const [x, y] = lists as [Value[], Value[]];
    for (let i = 0; i < x.length && i < y.length; i++)
      if (!equal(x[i] as Value, y[i] as Value)) return compare(x[i] as Value, y[i] as Value, operator, depth + 1);
    return x.length - y.length;
  }
  return fail(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
}

/** A key as dicts hold it: equal numbers are one key. Throws for what cannot be one. */
export function hashable(key: Value): Value {
  if (Array.isArray(key) || key instanceof Map || key instanceof View)
    return fail(`unhashable type: '${typeName(key)}'`);
  if (key instanceof Tuple) return fail("tuples as keys are not supported");
  if (typeof key === "number" && Number.isInteger(key)) return BigInt(key);
  return key;
}

/** Characters as Python counts them: code points. */
const PAIR = /[\ud800-\udbff][\udc00-\udfff]/;
export const isPlain = (value: string): boolean => !PAIR.test(value);
export const points = (value: string): string[] => Array.from(value);
export const textLength = (value: string): number => (isPlain(value) ? value.length : points(value).length);

/** Longest text that is taken apart into characters. */
const MOST_WALKED = 1 << 24;

/** The items of anything that can be walked. */
export function items(value: Value): Value[] {
  if (Array.isArray(value)) return value;
  if (typeof value === "string")
    return value.length > MOST_WALKED
      ? fail(`a text of ${value.length} characters is too long to be walked`)
      : points(value);
  if (value instanceof Map) return [...value.keys()];
  if (value instanceof Tuple) return value.items;
  if (value instanceof Undefined) return [];
  if (value instanceof Range) return Array.from({ length: value.length }, (_, i) => value.at(i));
  if (value instanceof View) return [...value];
  if (value instanceof Markup) return points(value.text);
  if (value instanceof Lazy) {
    const found: Value[] = [];
    for (let next = value.iterator.next(); !next.done; next = value.iterator.next()) found.push(next.value);
    return found;
  }
  return fail(`'${typeName(value)}' object is not iterable`);
}

export function length(value: Value): number {
  if (typeof value === "string") return textLength(value);
  if (Array.isArray(value)) return value.length;
  if (value instanceof Map) return value.size;
  if (value instanceof Tuple) return value.items.length;
  if (value instanceof Undefined) return 0;
  if (value instanceof Range) return value.length;
  if (value instanceof View) return value.dict.size;
  if (value instanceof Markup) return textLength(value.text);
  return fail(`object of type '${typeName(value)}' has no len()`);
}

export function contains(container: Value, item: Value): boolean {
  if (typeof container === "string") {
    if (typeof item !== "string") return fail(`'in <string>' requires string as left operand, not ${typeName(item)}`);
    return container.includes(item);
  }
  if (container instanceof Map) return container.has(hashable(item));
  if (container === null || isNumber(container) || container instanceof Callable || container instanceof Namespace)
    return fail(`argument of type '${typeName(container)}' is not iterable`);
  if (container instanceof View && container.kind !== "values") hashable(item);
  return items(container).some((each) => equal(each, item));
}
