// jinja2's filters; tojson is transformers' own.

import { fixed, roundTo } from "./decimals.js";
import { fail } from "./errors.js";
import { percent } from "./format.js";
import { toJson } from "./json.js";
import { SPACE } from "./lexer.js";
import { attribute as attributeOf, binary, item as itemOf, joinTexts, toFloat } from "./operators.js";
import { Arguments, capitalize, repeated, replace, splitLines, stringMethods, strip } from "./strings.js";
import {
  compare,
  equal,
  hashable,
  isNumber,
  isPlain,
  items,
  type Keywords,
  Lazy,
  length,
  Markup,
  numeric,
  points,
  Tuple,
  text,
  truth,
  typeName,
  Undefined,
  type Value,
  View,
} from "./values.js";

/** Filters and tests by name, for those that take a name. */
export interface Named {
  filter: (name: string, value: Value, args: Value[], keywords: Keywords) => Value;
  test: (name: string, value: Value, args: Value[], keywords: Keywords) => boolean;
}

export type Filter = (value: Value, args: Arguments, named: Named) => Value;

/** What Python's soft_str gives of it; text that is marked as safe would stay marked. */
const soft = (value: Value): string =>
  value instanceof Markup ? fail("filters of text that is marked as safe are not supported") : text(value);

const flag = (args: Arguments, name: string, fallback = false): boolean => {
  const given = args.take(name);
  return given === undefined ? fallback : truth(given);
};

const ignoringCase = (value: Value): Value => (typeof value === "string" ? value.toLowerCase() : value);

/** The attribute at a path such as "a.b.0" of each item; null: the item itself. */
function getter(path: Value | undefined, fallback: Value = null): (of: Value) => Value {
  if (path === undefined || path === null) return (of) => of;
  const parts: Value[] =
    typeof path === "string" ? path.split(".").map((part) => (/^\p{Nd}+$/u.test(part) ? BigInt(part) : part)) : [path];
  return (of) =>
    parts.reduce<Value>((found, part) => {
      const next = itemOf(found, part);
      return fallback !== null && next instanceof Undefined ? fallback : next;
    }, of);
}

/** Python's sorted: stable, also in reverse. */
function sorted(values: readonly Value[], key: (of: Value) => Value, reverse: boolean): Value[] {
  const keyed = values.map((value) => ({ value, key: key(value) }));
  const sign = reverse ? -1 : 1;
  keyed.sort((a, b) => sign * compare(a.key, b.key, "<"));
  return keyed.map(({ value }) => value);
}

function extreme(value: Value, args: Arguments, better: (order: number) => boolean, operator: string): Value {
  const sensitive = flag(args, "case_sensitive");
  const of = getter(args.take("attribute"));
  const key = (one: Value) => (sensitive ? of(one) : ignoringCase(of(one)));
  const [first, ...rest] = items(value);
  if (first === undefined) return new Undefined("No aggregated item, sequence was empty.");
  let best = first;
  let bestKey = key(first);
  for (const one of rest) {
    const its = key(one);
    if (better(compare(its, bestKey, operator))) [best, bestKey] = [one, its];
  }
  return best;
}

function* each(value: Value): Generator<Value> {
  if (value instanceof Lazy) {
    for (let next = value.iterator.next(); !next.done; next = value.iterator.next()) yield next.value;
  } else yield* items(value);
}

const lazily = (make: () => Generator<Value>): Lazy => new Lazy(make());

/** select, reject and their relatives on an attribute. */
function choosing(wanted: boolean, onAttribute: boolean): Filter {
  return (value, args, named) => {
    const { positional, keywords } = args.rest();
    return lazily(function* () {
      if (!truth(value)) return;
      const given = [...positional];
      let of = (one: Value) => one;
      if (onAttribute) {
        const path = given.shift();
        if (path === undefined) fail("Missing parameter for attribute name");
        of = getter(path);
      }
      const name = given.shift();
      for (const one of each(value)) {
        const subject = of(one);
        const passes = name === undefined ? truth(subject) : named.test(text(name), subject, given, keywords);
        if (passes === wanted) yield one;
      }
    });
  };
}

const map: Filter = (value, args, named) => {
  const { positional, keywords } = args.rest();
  return lazily(function* () {
    if (!truth(value)) return;
    const [name, ...given] = positional;
    if (name === undefined && keywords.has("attribute")) {
      for (const key of keywords.keys())
        if (key !== "attribute" && key !== "default") fail(`Unexpected keyword argument '${key}'`);
      const of = getter(keywords.get("attribute"), keywords.get("default") ?? null);
      for (const one of each(value)) yield of(one);
      return;
    }
    if (name === undefined) fail("map requires a filter argument");
    for (const one of each(value)) yield named.filter(text(name as Value), one, given, keywords);
  });
};

/** int(text, base) of Python; undefined where it is not one. */
function parseInteger(source: string, base: number): bigint | undefined {
  const trimmed = strip(source, null, "both").toLowerCase();
  const parts = /^([-+]?)(0[xbo])?([\da-z_]+)$/.exec(trimmed.replace(/\p{Nd}/gu, (c) => String(decimalOf(c))));
  if (parts === null) return undefined;
  const [, sign, prefix = "", digits = ""] = parts;
  const bases: Record<string, number> = { "0x": 16, "0o": 8, "0b": 2 };
  const prefixed = prefix !== "" && (base === 0 || bases[prefix] === base);
  const radix = prefixed ? (bases[prefix] as number) : base === 0 ? 10 : base;
  const body = prefixed ? digits.replace(/^_/, "") : prefix + digits;
  if (!/^[\da-z]+(_[\da-z]+)*$/.test(body)) return undefined;
  let value = 0n;
  for (const c of body.replaceAll("_", "")) {
    const digit = Number.parseInt(c, 36);
    if (!(digit < radix)) return undefined;
    value = value * BigInt(radix) + BigInt(digit);
  }
  if (base === 0 && prefix === "" && /^0+[1-9]/.test(body)) return undefined;
  return sign === "-" ? -value : value;
}

/** Of a decimal digit of any script: they lie in runs of ten. */
function decimalOf(c: string): number {
  let code = c.codePointAt(0) as number;
  if (code < 0x80) return code - 48;
  let value = 0;
  while (value < 9 && /\p{Nd}/u.test(String.fromCodePoint(code - 1))) {
    code--;
    value++;
  }
  return value;
}

/** float(text) of Python. */
function parseFloating(source: string): number | undefined {
  const trimmed = strip(source, null, "both").replace(/\p{Nd}/gu, (c) => String(decimalOf(c)));
  if (/^[-+]?(inf|infinity)$/i.test(trimmed)) return trimmed.startsWith("-") ? -Infinity : Infinity;
  if (/^[-+]?nan$/i.test(trimmed)) return Number.NaN;
  if (!/^[-+]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)(e[-+]?\d+(_\d+)*)?$/i.test(trimmed)) return undefined;
  return Number(trimmed.replaceAll("_", ""));
}

const int: Filter = (value, args) => {
  const fallback = args.take("default") ?? 0n;
  const base = args.integer("base", 10);
  if (typeof value === "string") {
    const whole = parseInteger(value, base);
    if (whole !== undefined) return whole;
    const float = parseFloating(value);
    return float !== undefined && Number.isFinite(float) ? BigInt(Math.trunc(float)) : fallback;
  }
  if (value instanceof Undefined) return fail(value.message);
  if (!isNumber(value)) return fallback;
  const plain = numeric(value);
  if (typeof plain === "bigint") return plain;
  if (Number.isNaN(plain)) return fallback;
  return Number.isFinite(plain) ? BigInt(Math.trunc(plain)) : fail("cannot convert float infinity to integer");
};

const float: Filter = (value, args) => {
  const fallback = args.take("default") ?? 0;
  if (typeof value === "string") return parseFloating(value) ?? fallback;
  if (value instanceof Undefined) return fail(value.message);
  return isNumber(value) ? toFloat(numeric(value)) : fallback;
};

const round: Filter = (value, args) => {
  const precision = args.integer("precision", 0);
  const method = args.take("method") ?? "common";
  if (method !== "common" && method !== "ceil" && method !== "floor")
    return fail("method must be common, ceil or floor");
  if (value instanceof Undefined) return fail(value.message);
  if (!isNumber(value)) return fail(`type ${typeName(value)} doesn't define __round__ method`);
  const plain = numeric(value);
  if (method === "common") {
    if (typeof plain === "number") return Number.isFinite(plain) ? roundTo(plain, precision) : plain;
    if (precision >= 0) return plain;
    const unit = 10n ** BigInt(Math.min(-precision, 5000));
    const rest = ((plain % unit) + unit) % unit;
    const low = plain - rest;
    const up = 2n * rest > unit || (2n * rest === unit && (low / unit) % 2n !== 0n);
    return up ? low + unit : low;
  }
  const scale = precision >= 0 ? 10n ** BigInt(Math.min(precision, 400)) : 10 ** precision;
  const scaled = binary("*", plain, scale);
  const whole =
    typeof scaled === "bigint"
      ? scaled
      : BigInt(method === "ceil" ? Math.ceil(scaled as number) : Math.floor(scaled as number));
  return binary("/", whole, scale);
};

const tojson: Filter = (value, args) => {
  const ascii = flag(args, "ensure_ascii");
  const indent = args.take("indent") ?? null;
  const separators = args.take("separators") ?? null;
  const inOrder = flag(args, "sort_keys");
  const levels =
    indent === null
      ? null
      : typeof indent === "string"
        ? indent
        : isNumber(indent)
          ? repeated(" ", BigInt(Number(numeric(indent))))
          : fail(`indent is a ${typeName(indent)}`);
  let [item, key] = [levels === null ? ", " : ",", ": "];
  if (separators !== null) {
    const pair = items(separators);
    if (pair.length !== 2 || pair.some((one) => typeof one !== "string")) return fail("separators must be two strings");
    [item, key] = pair as [string, string];
  }
  return toJson(value, { ascii, indent: levels, separators: [item, key], sorted: inOrder });
};

const title: Filter = (value) =>
  soft(value)
    .split(new RegExp(`([-${SPACE}({\\[<]+)`))
    .filter((part) => part !== "")
    .map((part) => {
      const [first = "", ...rest] = points(part);
      return first.toUpperCase() + rest.join("").toLowerCase();
    })
    .join("");

const indent: Filter = (value, args) => {
  const width = args.take("width") ?? 4n;
  const [first, blank] = [flag(args, "first"), flag(args, "blank")];
  const by =
    typeof width === "string"
      ? width
      : typeof width === "bigint"
        ? repeated(" ", width)
        : fail("width must be an integer or a string");
  if (typeof value !== "string") return fail(`can only indent a str, not ${typeName(value)}`);
  const lines = splitLines(`${value}\n`);
  const [head = "", ...rest] = lines;
  const shown = blank
    ? lines.join(`\n${by}`)
    : [head, ...rest.map((line) => (line === "" ? line : by + line))].join("\n");
  return first ? by + shown : shown;
};

const truncate: Filter = (value, args) => {
  const size = args.integer("length", 255);
  const kill = flag(args, "killwords");
  const end = text(args.take("end") ?? "...");
  const leeway = args.integer("leeway", 5);
  const dots = length(end);
  if (size < dots) return fail(`expected length >= ${dots}, got ${size}`);
  if (leeway < 0) return fail(`expected leeway >= 0, got ${leeway}`);
  if (typeof value !== "string")
    return length(value) <= size + leeway ? value : fail(`can only truncate a str, not ${typeName(value)}`);
  const all = isPlain(value) ? value : points(value);
  if (all.length <= size + leeway) return value;
  const cut = typeof all === "string" ? all.slice(0, size - dots) : all.slice(0, size - dots).join("");
  if (kill) return cut + end;
  const space = cut.lastIndexOf(" ");
  return (space < 0 ? cut : cut.slice(0, space)) + end;
};

/** What Python's \w is. */
const words = /[\p{L}\p{N}_]+/gu;

const urlencode: Filter = (value) => {
  const quote = (one: Value, query: boolean) => {
    const bytes = Array.from(Buffer.from(text(one), "utf8"), (byte) => {
      const c = String.fromCharCode(byte);
      if (/[\w.~-]/.test(c) || (c === "/" && !query)) return c;
      return query && c === " " ? "+" : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
    });
    return bytes.join("");
  };
  if (typeof value === "string" || isNumber(value) || value === null) return quote(value, false);
  const pairs = value instanceof Map ? items(new View("items", value)) : items(value);
  return pairs
    .map((pair) => {
      const [key, one, ...more] = items(pair);
      return key === undefined || one === undefined || more.length > 0
        ? fail("urlencode takes pairs")
        : `${quote(key, true)}=${quote(one, true)}`;
    })
    .join("&");
};

const filesize: Filter = (value, args) => {
  const base = flag(args, "binary") ? 1024 : 1000;
  const bytes =
    typeof value === "string"
      ? (parseFloating(value) ?? fail("could not convert string to float"))
      : isNumber(value)
        ? toFloat(numeric(value))
        : fail(`float() argument must be a string or a real number, not '${typeName(value)}'`);
  if (bytes === 1) return "1 Byte";
  if (bytes < base) return `${Math.trunc(bytes)} Bytes`;
  const letters = "kMGTPEZY";
  let [i, unit] = [0, base ** 2];
  while (i < letters.length - 1 && bytes >= unit) [i, unit] = [i + 1, unit * base];
  const letter = base === 1024 ? `${(letters[i] as string).toUpperCase()}i` : letters[i];
  return `${fixed((base * bytes) / unit, 1)} ${letter}B`;
};

const groupby: Filter = (value, args) => {
  const path = args.need("attribute");
  const of = getter(path, args.take("default") ?? null);
  const sensitive = flag(args, "case_sensitive");
  const key = (one: Value) => (sensitive ? of(one) : ignoringCase(of(one)));
  const groups: { key: Value; list: Value[] }[] = [];
  for (const one of sorted(items(value), key, false)) {
    const last = groups.at(-1);
    if (last !== undefined && equal(last.key, key(one))) last.list.push(one);
    else groups.push({ key: key(one), list: [one] });
  }
  return groups.map(
    (group) => new Tuple([sensitive ? group.key : of(group.list[0] as Value), group.list], ["grouper", "list"]),
  );
};

const absolute = (value: Value): Value => {
  if (value instanceof Undefined) return fail(value.message);
  if (!isNumber(value)) return fail(`bad operand type for abs(): '${typeName(value)}'`);
  const plain = numeric(value);
  return typeof plain === "bigint" ? (plain < 0n ? -plain : plain) : Math.abs(plain);
};

const count: Filter = (value) => BigInt(length(value));

const fallback: Filter = (value, args) => {
  const other = args.take("default_value") ?? "";
  const boolean = flag(args, "boolean");
  return value instanceof Undefined || (boolean && !truth(value)) ? other : value;
};

const escapes: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;" };
const escape: Filter = (value) =>
  value instanceof Markup ? value : new Markup(text(value).replace(/[&<>'"]/g, (c) => escapes[c] as string));

/** A filter that is a method of str. */
const asMethod =
  (name: string): Filter =>
  (value, args) =>
    (stringMethods[name] as (self: string, args: Arguments) => Value)(soft(value), args);

const absent =
  (name: string): Filter =>
  () =>
    fail(`the filter '${name}' is not supported`);

export const filters: Record<string, Filter> = {
  abs: absolute,
  attr: (value, args) => {
    const name = args.string("name");
    const found = attributeOf(value instanceof Map ? new Map() : value, name);
    return found instanceof Undefined || !(value instanceof Map) ? found : attributeOf(value, name);
  },
  batch: (value, args) => {
    const size = args.integer("linecount", 0);
    const filler = args.take("fill_with") ?? null;
    return lazily(function* () {
      let row: Value[] = [];
      for (const one of each(value)) {
        if (row.length === size) {
          yield row;
          row = [];
        }
        row.push(one);
      }
      if (row.length === 0) return;
      if (filler !== null) while (row.length < size) row.push(filler);
      yield row;
    });
  },
  capitalize: (value) => capitalize(soft(value)),
  center: (value, args) => {
    const width = args.take("width") ?? 80n;
    const given = new Arguments("center", [width], new Map());
    return (stringMethods.center as (self: string, args: Arguments) => Value)(soft(value), given);
  },
  count,
  d: fallback,
  default: fallback,
  dictsort: (value, args) => {
    const sensitive = flag(args, "case_sensitive");
    const by = args.take("by") ?? "key";
    const reverse = flag(args, "reverse");
    if (by !== "key" && by !== "value") return fail('You can only sort by either "key" or "value"');
    if (!(value instanceof Map)) return fail(`'${typeName(value)}' object has no attribute 'items'`);
    const at = by === "key" ? 0 : 1;
    const key = (pair: Value) => {
      const found = (pair as Tuple).items[at] as Value;
      return sensitive ? found : ignoringCase(found);
    };
    return sorted(items(new View("items", value)), key, reverse);
  },
  e: escape,
  escape,
  filesizeformat: filesize,
  first: (value) => {
    const found = value instanceof Lazy ? value.iterator.next().value : items(value)[0];
    return found === undefined ? new Undefined("No first item, sequence was empty.") : found;
  },
  float,
  forceescape: (value) => escape(text(value), new Arguments("forceescape", [], new Map()), {} as Named),
  format: (value, args) => {
    const { positional, keywords } = args.rest();
    if (positional.length > 0 && keywords.size > 0)
      return fail("can't handle positional and keyword arguments at the same time");
    return percent(soft(value), keywords.size > 0 ? new Map<Value, Value>(keywords) : new Tuple([...positional]));
  },
  groupby,
  indent,
  int,
  items: (value) =>
    lazily(function* () {
      if (value instanceof Undefined) return;
      if (!(value instanceof Map)) fail("Can only get item pairs from a mapping.");
      yield* new View("items", value as Map<Value, Value>);
    }),
  join: (value, args) => {
    const separator = text(args.take("d") ?? "");
    const of = getter(args.take("attribute"));
    return joinTexts(
      separator,
      items(value).map((one) => text(of(one))),
    );
  },
  last: (value) => {
    if (value instanceof Lazy) return fail("'generator' object is not reversible");
    const found = items(value).at(-1);
    return found === undefined ? new Undefined("No last item, sequence was empty.") : found;
  },
  length: count,
  list: (value) => [...items(value)],
  lower: asMethod("lower"),
  map,
  max: (value, args) => extreme(value, args, (order) => order > 0, ">"),
  min: (value, args) => extreme(value, args, (order) => order < 0, "<"),
  pprint: absent("pprint"),
  random: absent("random"),
  reject: choosing(false, false),
  rejectattr: choosing(false, true),
  replace: (value, args) => {
    const [from, to] = [text(args.need("old")), text(args.need("new"))];
    const most = args.take("count") ?? null;
    if (most !== null && typeof most !== "bigint")
      return fail(`'${typeName(most)}' object cannot be interpreted as an integer`);
    return replace(text(value), from, to, most === null ? -1 : Number(most));
  },
  reverse: (value) => {
    if (typeof value === "string") return points(value).reverse().join("");
    const reversed = items(value).toReversed();
    // Python gives an iterator of those it can walk backwards, and a list of the others.
    return value instanceof Lazy || value instanceof Undefined ? reversed : new Lazy(reversed.values());
  },
  round,
  safe: (value) => new Markup(text(value)),
  select: choosing(true, false),
  selectattr: choosing(true, true),
  slice: (value, args) => {
    const slices = args.integer("slices", 0);
    const filler = args.take("fill_with") ?? null;
    return lazily(function* () {
      const all = items(value);
      if (slices === 0) fail("integer division or modulo by zero");
      const [each, more] = [Math.floor(all.length / slices), all.length % slices];
      let offset = 0;
      for (let i = 0; i < slices; i++) {
        const start = offset + i * each;
        if (i < more) offset++;
        const row = all.slice(start, offset + (i + 1) * each);
        if (filler !== null && i >= more) row.push(filler);
        yield row;
      }
    });
  },
  sort: (value, args) => {
    const reverse = flag(args, "reverse");
    const sensitive = flag(args, "case_sensitive");
    const path = args.take("attribute");
    const paths = typeof path === "string" ? path.split(",").map((one) => getter(one)) : [getter(path)];
    const key = (one: Value): Value => paths.map((of) => (sensitive ? of(one) : ignoringCase(of(one))));
    return sorted(items(value), key, reverse);
  },
  string: (value) => (value instanceof Markup ? value : text(value)),
  striptags: absent("striptags"),
  sum: (value, args) => {
    const of = getter(args.take("attribute"));
    const start = args.take("start") ?? 0n;
    if (typeof start === "string") return fail("sum() can't sum strings [use ''.join(seq) instead]");
    return items(value).reduce<Value>((total, one) => binary("+", total, of(one)), start);
  },
  title,
  tojson,
  trim: (value, args) => {
    const given = args.take("chars") ?? null;
    if (given !== null && typeof given !== "string")
      return fail(`strip arg must be None or str, not ${typeName(given)}`);
    return strip(soft(value), given, "both");
  },
  truncate,
  unique: (value, args) => {
    const sensitive = flag(args, "case_sensitive");
    const of = getter(args.take("attribute"));
    return lazily(function* () {
      const seen = new Set<Value>();
      for (const one of each(value)) {
        const key = hashable(sensitive ? of(one) : ignoringCase(of(one)));
        if (seen.has(key)) continue;
        seen.add(key);
        yield one;
      }
    });
  },
  upper: asMethod("upper"),
  urlencode,
  urlize: absent("urlize"),
  wordcount: (value) => BigInt(soft(value).match(words)?.length ?? 0),
  wordwrap: absent("wordwrap"),
  xmlattr: absent("xmlattr"),
};
