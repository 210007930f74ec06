// The tests behind `is`.

import { fail } from "./errors.js";
import { binary, comparison } from "./operators.js";
import { isLower, isUpper } from "./strings.js";
import {
  Callable,
  equal,
  isNumber,
  Lazy,
  Loop,
  Markup,
  Namespace,
  Range,
  Tuple,
  text,
  Undefined,
  type Value,
  View,
} from "./values.js";

type Test = (value: Value, args: Value[]) => boolean;

const remainder = (value: Value, by: bigint, is: bigint): boolean => equal(binary("%", value, by), is);

const order =
  (operator: string): Test =>
  (value, [other]) =>
    comparison(operator, value, need(other));

const need = (value: Value | undefined): Value => (value === undefined ? fail("the test lacks an argument") : value);

const sequence = (value: Value): boolean =>
  typeof value === "string" ||
  Array.isArray(value) ||
  value instanceof Map ||
  value instanceof Tuple ||
  value instanceof Range ||
  value instanceof Undefined ||
  value instanceof Markup;

/** By name: what is tested, how many arguments it takes. */
export const tests = (names: {
  filters: ReadonlySet<string>;
  tests: () => ReadonlySet<string>;
}): Record<string, [Test, number]> => {
  const [eq, ne, lt, le, gt, ge] = ["==", "!=", "<", "<=", ">", ">="].map((operator): [Test, number] => [
    order(operator),
    1,
  ]) as [[Test, number], [Test, number], [Test, number], [Test, number], [Test, number], [Test, number]];
  return {
    odd: [(value) => remainder(value, 2n, 1n), 0],
    even: [(value) => remainder(value, 2n, 0n), 0],
    divisibleby: [(value, [by]) => equal(binary("%", value, need(by)), 0n), 1],
    defined: [(value) => !(value instanceof Undefined), 0],
    undefined: [(value) => value instanceof Undefined, 0],
    filter: [(value) => typeof value === "string" && names.filters.has(value), 0],
    test: [(value) => typeof value === "string" && names.tests().has(value), 0],
    none: [(value) => value === null, 0],
    boolean: [(value) => typeof value === "boolean", 0],
    false: [(value) => value === false, 0],
    true: [(value) => value === true, 0],
    integer: [(value) => typeof value === "bigint", 0],
    float: [(value) => typeof value === "number", 0],
    lower: [(value) => isLower(text(value)), 0],
    upper: [(value) => isUpper(text(value)), 0],
    string: [(value) => typeof value === "string" || value instanceof Markup, 0],
    mapping: [(value) => value instanceof Map, 0],
    number: [(value) => isNumber(value), 0],
    sequence: [sequence, 0],
    iterable: [
      (value) => sequence(value) || value instanceof View || value instanceof Lazy || value instanceof Loop,
      0,
    ],
    callable: [(value) => value instanceof Callable || value instanceof Loop || value instanceof Undefined, 0],
    sameas: [(value, [other]) => same(value, need(other)), 1],
    escaped: [(value) => value instanceof Markup, 0],
    in: [(value, [container]) => comparison("in", value, need(container)), 1],
    eq,
    equalto: eq,
    "==": eq,
    ne,
    "!=": ne,
    lt,
    lessthan: lt,
    "<": lt,
    le,
    "<=": le,
    gt,
    greaterthan: gt,
    ">": gt,
    ge,
    ">=": ge,
  };
};

/** Python's `is`, where that does not depend on what it keeps once. */
function same(a: Value, b: Value): boolean {
  if (typeof a !== typeof b) return false;
  if (typeof a === "bigint")
    return a === b && a >= -5n && a <= 256n
      ? true
      : a === b
        ? fail("whether equal integers are the same object is not known")
        : false;
  if (typeof a === "string" || typeof a === "number")
    return a === b ? fail("whether equal values are the same object is not known") : false;
  return a === b || (a instanceof Namespace && a === b);
}
