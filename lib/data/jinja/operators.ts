// Python's operators, attributes, items and slices, as jinja2's immutable sandbox gives them to a template.

import { fail } from "./errors.js";
import { format, percent } from "./format.js";
import { Arguments, MOST_TEXT, repeated, stringMethods } from "./strings.js";
import {
  Callable,
  compare,
  contains,
  defined,
  equal,
  hashable,
  isNumber,
  isPlain,
  items,
  type Keywords,
  Loop,
  length,
  Markup,
  Namespace,
  numeric,
  points,
  Range,
  repr,
  Tuple,
  truth,
  typeName,
  Undefined,
  type Value,
  View,
} from "./values.js";

/** Bits that a power may have. */
const MOST_BITS = 1 << 20;
/** Items that a list may have. */
const MOST_ITEMS = 1 << 22;

const unsupported = (operator: string, a: Value, b: Value): never =>
  fail(`unsupported operand type(s) for ${operator}: '${typeName(a)}' and '${typeName(b)}'`);

function floorDivide(a: bigint, b: bigint): bigint {
  if (b === 0n) return fail("integer division or modulo by zero");
  const quotient = a / b;
  return a % b !== 0n && a < 0n !== b < 0n ? quotient - 1n : quotient;
}

function floatModulo(a: number, b: number): number {
  if (b === 0) return fail("float modulo");
  const rest = a % b;
  if (rest !== 0) return rest < 0 !== b < 0 ? rest + b : rest;
  return b < 0 ? -0 : 0;
}

/** As a float; integers beyond its range are an error as in Python. */
export function toFloat(value: bigint | number): number {
  const float = Number(value);
  return typeof value === "bigint" && !Number.isFinite(float) ? fail("int too large to convert to float") : float;
}

function integers(operator: string, a: bigint, b: bigint): Value {
  switch (operator) {
    case "+":
      return a + b;
    case "-":
      return a - b;
    case "*":
      return bits(a) + bits(b) > MOST_BITS ? fail("an integer is too large") : a * b;
    case "/": {
      if (b === 0n) return fail("division by zero");
      return quotient(a, b);
    }
    case "//":
      return floorDivide(a, b);
    case "%":
      return a - floorDivide(a, b) * b;
    default: {
      if (b < 0n) return a === 0n ? fail("0.0 cannot be raised to a negative power") : toFloat(a) ** Number(b);
      if (a === 0n || a === 1n) return b === 0n ? 1n : a;
      if (a === -1n) return b % 2n === 0n ? 1n : -1n;
      return BigInt(bits(a)) * b > BigInt(MOST_BITS) ? fail("an integer is too large") : a ** b;
    }
  }
}

const bits = (value: bigint): number => {
  // Below 2^53 nearly always.
  const size = Number(value < 0n ? -value : value);
  return Number.isFinite(size) ? Math.ceil(Math.log2(size + 1)) : 4 * value.toString(16).length;
};

/** a / b, correctly rounded also where the integers are no floats. */
function quotient(a: bigint, b: bigint): number {
  const exact = (value: bigint) => value >= -(2n ** 53n) && value <= 2n ** 53n;
  if (exact(a) && exact(b)) return Number(a) / Number(b);
  const negative = a < 0n !== b < 0n;
  const [x, y] = [a < 0n ? -a : a, b < 0n ? -b : b];
  // A quotient of 66 bits or more and a mark for what is cut off round as the exact one does.
  const shift = BigInt(66 + y.toString(2).length - x.toString(2).length);
  const [top, bottom] = shift > 0n ? [x << shift, y] : [x, y << -shift];
  const cut = (top / bottom) | (top % bottom === 0n ? 0n : 1n);
  const value = Number(cut) * 2 ** -Number(shift);
  if (!Number.isFinite(value)) return fail("integer division result too large for a float");
  return negative ? -value : value;
}

function floats(operator: string, a: number, b: number): Value {
  switch (operator) {
    case "+":
      return a + b;
    case "-":
      return a - b;
    case "*":
      return a * b;
    case "/":
      return b === 0 ? fail("float division by zero") : a / b;
    case "//": {
      if (b === 0) return fail("float floor division by zero");
      const rest = floatModulo(a, b);
      const whole = (a - rest) / b;
      return whole === 0 ? (a < 0 !== b < 0 ? -0 : 0) : Math.round(whole);
    }
    case "%":
      return floatModulo(a, b);
    default: {
      if (a === 0 && b < 0) return fail("0.0 cannot be raised to a negative power");
      if (a < 0 && Number.isFinite(a) && Number.isFinite(b) && !Number.isInteger(b))
        return fail("a complex number is not supported");
      if (a === 1 || b === 0) return 1;
      const power = a ** b;
      return !Number.isFinite(power) && Number.isFinite(a) && Number.isFinite(b)
        ? fail("Numerical result out of range")
        : power;
    }
  }
}

export function binary(operator: string, a: Value, b: Value): Value {
  // An integer that no JavaScript number takes exactly stays one.
  if (typeof a === "bigint" && typeof b === "bigint") return integers(operator, a, b);
  if (typeof a === "string" && typeof b === "string" && operator === "+") return joined(a, b);
  if (a instanceof Markup || b instanceof Markup)
    return fail("operators on text that is marked as safe are not supported");
  if (typeof a === "string" && operator === "%") return percent(a, b);
  defined(a);
  defined(b);
  if (isNumber(a) && isNumber(b)) {
    const [x, y] = [numeric(a), numeric(b)];
    return typeof x === "bigint" && typeof y === "bigint"
      ? integers(operator, x, y)
      : floats(operator, toFloat(x), toFloat(y));
  }
  if (operator === "+") {
    const tuples = a instanceof Tuple && b instanceof Tuple;
    if (tuples || (Array.isArray(a) && Array.isArray(b))) {
      const [x, y] = [items(a), items(b)];
      if (x.length + y.length > MOST_ITEMS) return fail("a list is too long");
      return tuples ? new Tuple([...x, ...y]) : [...x, ...y];
    }
    if (typeof a === "string" || Array.isArray(a) || a instanceof Tuple)
      return fail(`can only concatenate ${typeName(a)} (not "${typeName(b)}") to ${typeName(a)}`);
  }
  if (operator === "*") {
    const [many, times] = isNumber(a) ? [b, a] : [a, b];
    const count = typeof times === "boolean" ? numeric(times) : times;
    if (typeof many === "string" || Array.isArray(many) || many instanceof Tuple) {
      if (typeof count !== "bigint") return fail(`can't multiply sequence by non-int of type '${typeName(times)}'`);
      if (typeof many === "string") return repeated(many, count);
      const each = items(many);
      if (BigInt(each.length) * count > BigInt(MOST_ITEMS)) return fail("a list is too long");
      const all = Array.from({ length: Math.max(0, Number(count)) }, () => each).flat();
      return Array.isArray(many) ? all : new Tuple(all);
    }
  }
  return unsupported(operator === "**" ? "** or pow()" : operator, a, b);
}

export const joined = (a: string, b: string): string =>
  a.length + b.length > MOST_TEXT ? fail(`a text of ${a.length + b.length} characters is too long`) : a + b;

export function unary(operator: "-" | "+", value: Value): Value {
  defined(value);
  if (!isNumber(value)) return fail(`bad operand type for unary ${operator}: '${typeName(value)}'`);
  const plain = numeric(value);
  return operator === "-" ? -plain : plain;
}

export function comparison(operator: string, a: Value, b: Value): boolean {
  switch (operator) {
    case "==":
      return equal(a, b);
    case "!=":
      return !equal(a, b);
    case "in":
      return contains(b, a);
    case "not in":
      return !contains(b, a);
    case "<":
      return compare(a, b, operator) < 0;
    case "<=":
      return compare(a, b, operator) <= 0;
    case ">":
      return compare(a, b, operator) > 0;
    default:
      return compare(a, b, operator) >= 0;
  }
}

// ---- attributes and items ----

const method = (owner: string, name: string, call: (args: Arguments) => Value): Callable =>
  new Callable(`${owner}.${name}`, (args, keywords) => {
    const given = new Arguments(name, args, keywords);
    const made = call(given);
    given.end();
    return made;
  });

const refused = (owner: string, name: string): Undefined =>
  new Undefined(`access to attribute '${name}' of '${owner}' object is unsafe.`);

const mutating: Record<string, ReadonlySet<string>> = {
  list: new Set(["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"]),
  dict: new Set(["clear", "pop", "popitem", "setdefault", "update"]),
};
/** Attributes that Python's objects have and templates have no use for: an error, not an absent attribute. */
const beyond: Record<string, ReadonlySet<string>> = {
  str: new Set(["encode", "translate", "maketrans"]),
  int: new Set([
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "imag",
    "numerator",
    "real",
    "to_bytes",
  ]),
  float: new Set(["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "real"]),
  dict: new Set(["fromkeys"]),
};

function indexOf(list: readonly Value[], args: Arguments, owner: string): bigint {
  const wanted = args.need("value");
  const bound = (name: string, fallback: number) => {
    const at = args.integer(name, fallback);
    return at < 0 ? Math.max(0, at + list.length) : Math.min(at, list.length);
  };
  const [start, stop] = [bound("start", 0), bound("stop", list.length)];
  for (let i = start; i < stop; i++) if (equal(list[i] as Value, wanted)) return BigInt(i);
  return fail(`ValueError: ${repr(wanted)} is not in ${owner}`);
}

const lookup = {
  attribute: (of: Value, name: string) => attribute(of, name),
  item: (of: Value, key: Value) => item(of, key),
};

/** What Python's getattr finds; undefined: nothing. */
function own(value: Value, name: string): Value | undefined {
  const type = typeName(value);
  if (/^__\w+__$/.test(name) && !(value instanceof Undefined)) {
    // Every object has these; the sandbox gives none of them.
    return dunders.has(name) ? refused(type, name) : undefined;
  }
  if (mutating[type]?.has(name)) return refused(type, name);
  if (beyond[type]?.has(name)) return fail(`the attribute '${name}' of '${type}' objects is not supported`);
  if (typeof value === "string") {
    if (name === "join") return method("str", name, (args) => joinTexts(value, items(args.need("iterable"))));
    if (name === "format") return new Callable("str.format", (args, keywords) => format(value, args, keywords, lookup));
    if (name === "format_map")
      return method("str", name, (args) => {
        const given = args.need("mapping");
        if (!(given instanceof Map)) return fail("format_map() takes a dict");
        return format(value, [], given as unknown as Keywords, lookup);
      });
    const found = Object.hasOwn(stringMethods, name) ? stringMethods[name] : undefined;
    return found && method("str", name, (args) => found(value, args));
  }
  if (Array.isArray(value) || value instanceof Tuple) {
    const list = Array.isArray(value) ? value : value.items;
    if (value instanceof Tuple && value.names.includes(name)) return list[value.names.indexOf(name)];
    if (name === "index") return method(type, name, (args) => indexOf(list, args, type));
    if (name === "count")
      return method(type, name, (args) => {
        const wanted = args.need("value");
        return BigInt(list.filter((one) => equal(one, wanted)).length);
      });
    if (name === "copy" && Array.isArray(value)) return method(type, name, () => [...list]);
    return undefined;
  }
  if (value instanceof Map) {
    switch (name) {
      case "items":
      case "keys":
      case "values":
        return method(type, name, () => new View(name, value));
      case "get":
        return method(type, name, (args) => {
          const found = value.get(hashable(args.need("key")));
          const fallback = args.take("default");
          return found === undefined ? (fallback ?? null) : found;
        });
      case "copy":
        return method(type, name, () => new Map(value));
    }
    return undefined;
  }
  if (typeof value === "number" && name === "is_integer") return method(type, name, () => Number.isInteger(value));
  if (typeof value === "bigint" && name === "is_integer") return undefined;
  if (value instanceof Namespace) return value.values.get(name);
  if (value instanceof Loop) return value.attribute(name);
  if (value instanceof Range) {
    if (name === "start" || name === "stop" || name === "step") return value[name];
    if (name === "index" || name === "count") return fail(`range.${name} is not supported`);
    return undefined;
  }
  if (value instanceof Markup) return fail("methods of text that is marked as safe are not supported");
  if (value instanceof Callable && value.macro) {
    if (name === "name") return value.name;
    if (["arguments", "caller", "catch_kwargs", "catch_varargs", "defaults", "explicit_caller"].includes(name))
      return fail(`the attribute '${name}' of macros is not supported`);
  }
  return undefined;
}

const dunders = new Set(
  [
    "class",
    "delattr",
    "dir",
    "doc",
    "eq",
    "format",
    "ge",
    "getattribute",
    "getstate",
    "gt",
    "hash",
    "init",
    "init_subclass",
  ]
    .concat(["le", "lt", "ne", "new", "reduce", "reduce_ex", "repr", "setattr", "sizeof", "str", "subclasshook", "len"])
    .concat(["add", "contains", "getitem", "iter", "mul", "rmul", "mod", "rmod"])
    .map((name) => `__${name}__`),
);

const absent = (value: Value, name: string): Undefined => {
  const of = value === null ? "None" : `'${typeName(value)} object'`;
  return new Undefined(`${of} has no attribute '${name}'`);
};

/** value.name */
export function attribute(value: Value, name: string): Value {
  defined(value);
  const found = own(value, name);
  if (found !== undefined) return found;
  const entry = value instanceof Map ? value.get(name) : undefined;
  return entry === undefined ? absent(value, name) : entry;
}

/** What Python's value[key] finds; undefined: a TypeError or LookupError. */
function entry(value: Value, key: Value): Value | undefined {
  if (value instanceof Map) return Array.isArray(key) || key instanceof Map ? undefined : value.get(hashable(key));
  if (
    typeof value === "string" ||
    Array.isArray(value) ||
    value instanceof Tuple ||
    value instanceof Range ||
    value instanceof Markup
  ) {
    const index = typeof key === "boolean" ? numeric(key) : key;
    if (typeof index !== "bigint") return undefined;
    const list =
      typeof value === "string"
        ? isPlain(value)
          ? value
          : points(value)
        : value instanceof Tuple
          ? value.items
          : value;
    const size = value instanceof Range || value instanceof Markup ? length(value) : (list as Value[]).length;
    const at = Number(index < 0n ? index + BigInt(size) : index);
    if (at < 0 || at >= size) return undefined;
    if (value instanceof Range) return value.at(at);
    return value instanceof Markup ? new Markup(points(value.text)[at] as string) : ((list as Value[])[at] as Value);
  }
  return undefined;
}

/** value[key] */
export function item(value: Value, key: Value): Value {
  defined(value);
  const found = entry(value, key);
  if (found !== undefined) return found;
  if (typeof key === "string") return own(value, key) ?? absent(value, key);
  const of = value === null ? "None" : `${typeName(value)} object`;
  return new Undefined(`${of} has no element ${key instanceof Undefined ? "Undefined" : repr(key)}`);
}

/** value[start:stop:step] */
export function slice(value: Value, start: Value, stop: Value, step: Value): Value {
  defined(value);
  const part = (given: Value, what: string): number | null => {
    if (given === null) return null;
    if (typeof given === "boolean") return given ? 1 : 0;
    if (typeof given === "bigint") return Number(given);
    return fail(`slice indices must be integers or None or have an __index__ method (${what} is ${typeName(given)})`);
  };
  const sliced =
    typeof value === "string" ||
    Array.isArray(value) ||
    value instanceof Tuple ||
    value instanceof Range ||
    value instanceof Markup;
  if (!sliced)
    return fail(value instanceof Map ? "unhashable type: 'slice'" : `'${typeName(value)}' object is not subscriptable`);
  const by = part(step, "step") ?? 1;
  if (by === 0) return fail("slice step cannot be zero");
  const list: readonly Value[] | string = typeof value === "string" && isPlain(value) ? value : items(value);
  const size = list.length;
  const clamp = (given: number | null, fallback: number) => {
    if (given === null) return fallback;
    const at = given < 0 ? given + size : given;
    return by > 0 ? Math.min(Math.max(at, 0), size) : Math.min(Math.max(at, -1), size - 1);
  };
  const [begin, end] = [
    clamp(part(start, "start"), by > 0 ? 0 : size - 1),
    clamp(part(stop, "stop"), by > 0 ? size : -1),
  ];
  const picked: Value[] = [];
  if (by === 1) {
    const cut = list.slice(begin, Math.max(begin, end));
    if (typeof cut === "string") return cut;
    picked.push(...cut);
  } else for (let i = begin; by > 0 ? i < end : i > end; i += by) picked.push(list[i] as Value);
  if (typeof value === "string") return picked.join("");
  if (value instanceof Markup) return new Markup(picked.join(""));
  if (value instanceof Range) return fail("slices of a range are not supported");
  return Array.isArray(value) ? picked : new Tuple(picked);
}

export function joinTexts(separator: string, parts: readonly Value[]): string {
  let size = 0;
  for (const [i, part] of parts.entries()) {
    if (typeof part !== "string") return fail(`sequence item ${i}: expected str instance, ${typeName(part)} found`);
    size += part.length + separator.length;
  }
  return size > MOST_TEXT ? fail(`a text of ${size} characters is too long`) : (parts as string[]).join(separator);
}

export { truth };
