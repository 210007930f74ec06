// Python's two ways of formatting: "%s" % x, and str.format with its mini-language.

import { exponential, fixed, general } from "./decimals.js";
import { fail } from "./errors.js";
import {
  isNumber,
  isPlain,
  numeric,
  points,
  Range,
  repr,
  Tuple,
  text,
  textLength,
  typeName,
  Undefined,
  type Value,
} from "./values.js";

/** Longest text that a width may ask for. */
const MOST_WIDTH = 1 << 20;

const widthOf = (value: number): number => (value > MOST_WIDTH ? fail(`a width of ${value} is too large`) : value);

const ascii = (value: string): string =>
  value.replace(/[^\x20-\x7e]/gu, (c) => {
    const code = c.codePointAt(0) as number;
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  });

function notFinite(value: number): string | undefined {
  if (Number.isNaN(value)) return "nan";
  return Number.isFinite(value) ? undefined : value < 0 ? "-inf" : "inf";
}

/** A float in one of C's conversions. */
function floatText(value: number, conversion: string, precision: number, alternate: boolean): string {
  const kind = conversion.toLowerCase();
  const shown =
    notFinite(value) ??
    (kind === "f"
      ? fixed(value, precision)
      : kind === "e"
        ? exponential(value, precision)
        : general(value, precision, alternate));
  return conversion === kind ? shown : shown.toUpperCase();
}

const float = (value: Value): number =>
  isNumber(value) ? Number(numeric(value)) : fail(`must be real number, not ${typeName(value)}`);

/** template % values. */
export function percent(template: string, given: Value): string {
  const list = given instanceof Tuple ? given.items : null;
  let next = 0;
  // What has items by key may go unused.
  let used = given instanceof Map || Array.isArray(given) || given instanceof Range || given instanceof Undefined;
  const take = (): Value => {
    if (list !== null) {
      if (next >= list.length) return fail("not enough arguments for format string");
      return list[next++] as Value;
    }
    if (next++ > 0) return fail("not enough arguments for format string");
    used = true;
    return given;
  };
  const pattern = /%(?:\(((?:[^()]|\([^()]*\))*)\))?([-+ #0]*)(\*|\d+)?(?:\.(\*|\d*))?[hlL]?([\s\S]?)/gu;
  const shown = template.replace(pattern, (whole, key, flags: string, width, precision, conversion: string) => {
    if (conversion === "") return fail("incomplete format");
    if (conversion === "%") return whole === "%%" ? "%" : fail("unsupported format character '%'");
    const number = (part: string): number => {
      if (part !== "*") return Number(part || "0");
      const value = take();
      return typeof value === "bigint" ? Number(value) : fail("* wants int");
    };
    let fieldWidth = width === undefined ? 0 : number(width);
    const digits = precision === undefined ? undefined : number(precision);
    if (digits !== undefined) widthOf(digits);
    const left = flags.includes("-") || fieldWidth < 0;
    fieldWidth = widthOf(Math.abs(fieldWidth));
    let value: Value;
    if (key !== undefined) {
      if (!(given instanceof Map)) return fail("format requires a mapping");
      const item = given.get(key);
      value = item === undefined ? fail(`KeyError: ${repr(key)}`) : item;
    } else value = take();
    let sign = "";
    let body: string;
    const signed = (shown: string) => {
      sign = shown.startsWith("-") ? "-" : flags.includes("+") ? "+" : flags.includes(" ") ? " " : "";
      return shown.replace(/^-/, "");
    };
    if ("srac".includes(conversion)) {
      if (conversion === "c") {
        if (typeof value === "bigint") body = String.fromCodePoint(Number(value));
        else if (typeof value === "string" && textLength(value) === 1) body = value;
        else return fail("%c requires int or char");
      } else body = conversion === "s" ? text(value) : conversion === "r" ? repr(value) : ascii(repr(value));
      if (digits !== undefined) body = points(body).slice(0, digits).join("");
    } else if ("diuxXo".includes(conversion)) {
      if (!isNumber(value)) return fail(`%${conversion} format: a real number is required, not ${typeName(value)}`);
      const plain = numeric(value);
      if (typeof plain === "number" && !"diu".includes(conversion))
        return fail(`%${conversion} format: an integer is required, not float`);
      if (typeof plain === "number" && !Number.isFinite(plain)) return fail("cannot convert float to integer");
      const whole = typeof plain === "bigint" ? plain : BigInt(Math.trunc(plain));
      const base = conversion === "o" ? 8 : conversion.toLowerCase() === "x" ? 16 : 10;
      const magnitude = signed(whole.toString(base)).padStart(digits ?? 0, "0");
      const prefix = flags.includes("#") ? (base === 16 ? "0x" : base === 8 ? "0o" : "") : "";
      body = conversion === "X" ? (prefix + magnitude).toUpperCase() : prefix + magnitude;
    } else if ("eEfFgG".includes(conversion))
      body = signed(floatText(float(value), conversion, digits ?? 6, flags.includes("#")));
    else return fail(`unsupported format character '${conversion}'`);
    const room = fieldWidth - textLength(sign + body);
    if (room <= 0) return sign + body;
    if (left) return sign + body + " ".repeat(room);
    const zero = flags.includes("0") && !"srac".includes(conversion);
    return zero ? sign + "0".repeat(room) + body : " ".repeat(room) + sign + body;
  });
  const spent = list !== null ? next >= list.length : used || next > 0;
  if (!spent) return fail("not all arguments converted during string formatting");
  return shown;
}

/** Looks up .name and [key] behind a field's name. */
export interface Lookup {
  attribute: (of: Value, name: string) => Value;
  item: (of: Value, key: Value) => Value;
}

/** template.format(*args, **keywords). */
export function format(
  template: string,
  args: readonly Value[],
  keywords: ReadonlyMap<string, Value>,
  look: Lookup,
): string {
  let automatic = 0;
  let manual = false;
  const fill = (source: string, depth: number): string => {
    if (source === "") return "";
    if (depth > 2) return fail("Max string recursion exceeded");
    let shown = "";
    for (let i = 0; i < source.length; i++) {
      const c = source[i] as string;
      if (c === "}") {
        if (source[i + 1] !== "}") return fail("Single '}' encountered in format string");
        shown += "}";
        i++;
        continue;
      }
      if (c !== "{") {
        shown += c;
        continue;
      }
      if (source[i + 1] === "{") {
        shown += "{";
        i++;
        continue;
      }
      let open = 1;
      let end = i + 1;
      for (; end < source.length && open > 0; end++) open += source[end] === "{" ? 1 : source[end] === "}" ? -1 : 0;
      if (open > 0) return fail("expected '}' before end of string");
      shown += field(source.slice(i + 1, end - 1), depth);
      i = end - 1;
    }
    return shown;
  };
  const field = (source: string, depth: number): string => {
    const parts = /^((?:[^!:[\]]|\[[^\]]*\])*)(?:!([^:]*))?(?::([\s\S]*))?$/.exec(source);
    if (parts === null) return fail(`expected '}' or ':' in the field {${source}}`);
    const [, path = "", conversion, spec = ""] = parts;
    const [, first = "", rest = ""] = /^([^.[]*)([\s\S]*)$/.exec(path) as RegExpExecArray;
    let value: Value;
    if (first === "" || /^\d+$/.test(first)) {
      if ((first === "") === manual && (automatic > 0 || manual))
        return fail("cannot switch between manual field specification and automatic field numbering");
      manual = first !== "";
      const index = manual ? Number(first) : automatic++;
      if (index >= args.length) return fail(`Replacement index ${index} out of range for positional args tuple`);
      value = args[index] as Value;
    } else {
      const found = keywords.get(first);
      value = found === undefined ? fail(`KeyError: ${repr(first)}`) : found;
    }
    for (const [, name, key] of rest.matchAll(/\.([^.[]+)|\[([^\]]+)\]/g))
      value =
        name !== undefined
          ? look.attribute(value, name)
          : look.item(value, /^\d+$/.test(key as string) ? BigInt(key as string) : (key as string));
    if (conversion === "r") value = repr(value);
    else if (conversion === "s") value = text(value);
    else if (conversion === "a") value = ascii(repr(value));
    else if (conversion !== undefined) return fail(`Unknown conversion specifier '${conversion}'`);
    return formatted(value, fill(spec, depth + 1));
  };
  return fill(template, 1);
}

/** format(value, spec). */
function formatted(value: Value, spec: string): string {
  if (spec === "") return text(value);
  const parts = /^(?:([\s\S])?([<>=^]))?([-+ ])?(#)?(0)?(\d+)?([,_])?(?:\.(\d+))?([a-zA-Z%])?$/u.exec(spec);
  if (parts === null) return fail(`Invalid format specifier '${spec}'`);
  const [, fillCharacter, align, sign, alternate, zero, width, grouping, precision, type] = parts;
  const digits = precision === undefined ? undefined : widthOf(Number(precision));
  const wanted = widthOf(Number(width ?? 0));
  let prefix = "";
  let body: string;
  let fallback = ">";
  if (typeof value === "string") {
    if (type !== undefined && type !== "s") return fail(`Unknown format code '${type}' for object of type 'str'`);
    if (sign || alternate || grouping || align === "=")
      return fail(`Invalid format specifier '${spec}' for object of type 'str'`);
    body =
      digits === undefined ? value : isPlain(value) ? value.slice(0, digits) : points(value).slice(0, digits).join("");
    fallback = "<";
  } else if (isNumber(value)) {
    if (typeof value === "boolean" && type === undefined) return formatted(text(value), spec);
    const plain = numeric(value);
    let shown: string;
    const kind = type ?? (typeof plain === "bigint" ? "d" : "");
    if (typeof plain === "bigint" && "bcdoxXn".includes(kind)) {
      if (digits !== undefined) return fail("Precision not allowed in integer format specifier");
      if (kind === "c") shown = String.fromCodePoint(Number(plain));
      else {
        const base = { b: 2, o: 8, x: 16, X: 16 }[kind] ?? 10;
        shown = plain.toString(base);
        if (alternate && base !== 10) prefix = `0${kind}`;
        if (kind === "X") shown = shown.toUpperCase();
      }
    } else if (kind === "") {
      const number = plain as number;
      if (digits === undefined) shown = text(number);
      else {
        shown = notFinite(number) ?? general(number, digits, alternate !== undefined);
        const exponent = number === 0 ? 0 : Math.floor(Math.log10(Math.abs(number)));
        if (exponent >= digits - 1 && /^-?\d+$/.test(shown)) shown = exponential(number, Math.max(digits - 1, 0));
        else if (/^-?\d+$/.test(shown)) shown += ".0";
      }
    } else if ("eEfFgGn%".includes(kind)) {
      const number = Number(plain);
      if (kind === "%") shown = `${notFinite(number) ?? fixed(number * 100, digits ?? 6)}%`;
      else shown = floatText(number, kind === "n" ? "g" : kind, digits ?? 6, alternate !== undefined);
    } else return fail(`Unknown format code '${kind}' for object of type '${typeName(value)}'`);
    const negative = shown.startsWith("-");
    body = negative ? shown.slice(1) : shown;
    prefix = (negative ? "-" : sign === "+" ? "+" : sign === " " ? " " : "") + prefix;
    if (grouping) {
      const [, whole, rest] = /^(\w*)([\s\S]*)$/.exec(body) as unknown as [string, string, string];
      const size = "bxXo".includes(kind) ? 4 : 3;
      body = whole.replace(new RegExp(`\\B(?=(\\w{${size}})+$)`, "g"), grouping) + rest;
      if (zero) return fail("zero padding with grouping is not supported");
    }
  } else if (value instanceof Undefined) return fail("unsupported format string passed to Undefined.__format__");
  else return fail(`unsupported format string passed to ${typeName(value)}.__format__`);
  const room = wanted - textLength(prefix + body);
  if (room <= 0) return prefix + body;
  const side = align ?? (zero && typeof value !== "string" ? "=" : fallback);
  const filler = (fillCharacter ?? (zero ? "0" : " ")) as string;
  if (side === "=") return prefix + filler.repeat(room) + body;
  if (side === "<") return prefix + body + filler.repeat(room);
  if (side === ">") return filler.repeat(room) + prefix + body;
  const before = room >> 1;
  return filler.repeat(before) + prefix + body + filler.repeat(room - before);
}
