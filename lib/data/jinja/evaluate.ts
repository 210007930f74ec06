// From the tree of a template to closures, and a rendering.

import { fail, LimitError, TemplateError } from "./errors.js";
import { filters, type Named } from "./filters.js";
import { attribute, binary, comparison, item, joined, slice, unary } from "./operators.js";
import type { Argument, Expression, Signature, Statement, Target } from "./parser.js";
import { Arguments, MOST_TEXT } from "./strings.js";
import { tests as makeTests } from "./tests.js";
import {
  Callable,
  equal,
  hashable,
  items,
  type Keywords,
  Loop,
  Markup,
  Namespace,
  Range,
  Tuple,
  text,
  truth,
  typeName,
  Undefined,
  type Value,
} from "./values.js";

/** What a rendering may take. */
export interface Limits {
  /** Iterations, calls and statements. */
  steps: number;
  /** Characters that are printed, captures included. */
  output: number;
}

const defaultLimits: Limits = { steps: 10_000_000, output: MOST_TEXT };

/** Part of the text that one round of a loop over `subject` printed. */
export interface Stretch {
  subject: Value;
  begin: number;
  end: number;
  /** How many loops over subjects lie around it. */
  depth: number;
}

export interface Rendered {
  text: string;
  /** What stood within {% generation %}, in UTF-16 units. */
  generations: [begin: number, end: number][];
  /** Whether one stood within a macro or captured block, whose text may stand anywhere. */
  misplaced: boolean;
  /** What each round of a loop printed whose variable was one of the subjects. */
  stretches: Stretch[];
  /** Whether a subject was also looped over within a macro or captured block, whose text may stand anywhere. */
  elsewhere: boolean;
}

export interface Template {
  /** Whether it has {% generation %} somewhere. */
  marked: boolean;
  /**
   * subjects: values, told apart as objects, whose rounds in loops are to be noted. Throws TemplateError with its line,
   * and LimitError where more is needed than the limits give.
   */
  render: (
    variables: ReadonlyMap<string, Value>,
    options?: { limits?: Partial<Limits>; subjects?: ReadonlySet<Value> },
  ) => Rendered;
}

class Scope {
  readonly values = new Map<string, Value>();
  constructor(readonly parent: Scope | null) {}
}

/** One rendering. */
class Run {
  line = 0;
  #steps: number;
  #printed = 0;
  readonly #limits: Limits;
  /** Texts that are being made: the template's own, and above it those of macros and captured blocks. */
  readonly #buffers: { parts: string[]; length: number }[] = [{ parts: [], length: 0 }];
  readonly generations: [number, number][] = [];
  readonly stretches: Stretch[] = [];
  misplaced = false;
  elsewhere = false;
  subjectDepth = 0;
  callDepth = 0;

  constructor(
    readonly variables: ReadonlyMap<string, Value>,
    readonly subjects: ReadonlySet<Value>,
    limits: Limits,
  ) {
    this.#limits = limits;
    this.#steps = limits.steps;
  }

  step(): void {
    if (--this.#steps < 0)
      throw new LimitError(`it takes more than ${this.#limits.steps} steps, so it may never end`, this.line);
  }

  print(piece: string): void {
    const buffer = this.#buffers.at(-1) as { parts: string[]; length: number };
    this.#printed += piece.length;
    if (this.#printed > this.#limits.output)
      throw new LimitError(`it prints more than ${this.#limits.output} characters`, this.line);
    buffer.length += piece.length;
    buffer.parts.push(piece);
  }

  /** Length of the text so far; null within a macro or captured block. */
  get at(): number | null {
    return this.#buffers.length === 1 ? (this.#buffers[0] as { length: number }).length : null;
  }

  capture(body: () => void): string {
    this.#buffers.push({ parts: [], length: 0 });
    body();
    return (this.#buffers.pop() as { parts: string[] }).parts.join("");
  }

  get text(): string {
    return (this.#buffers[0] as { parts: string[] }).parts.join("");
  }
}

type Evaluate = (run: Run, scope: Scope) => Value;
/** What a statement did: went on, or left a loop's round. */
type Flow = 0 | 1 | 2;
const [NEXT, BREAK, CONTINUE] = [0, 1, 2] as const;
type Execute = (run: Run, scope: Scope) => Flow;

const MOST_RANGE = 100_000;
/** How deep macros and recursive loops may call each other. */
const MOST_CALLS = 200;

const integer = (value: Value): bigint =>
  typeof value === "bigint"
    ? value
    : typeof value === "boolean"
      ? BigInt(value)
      : fail(`'${typeName(value)}' object cannot be interpreted as an integer`);

const globals = new Map<string, Value>([
  [
    "range",
    new Callable("range", (args, keywords) => {
      if (keywords.size > 0) return fail("range() takes no keyword arguments");
      if (args.length === 0 || args.length > 3) return fail(`range expected 1 to 3 arguments, got ${args.length}`);
      const [a, b, c] = args.map(integer) as [bigint, bigint?, bigint?];
      const made = b === undefined ? new Range(0n, a, 1n) : new Range(a, b, c ?? 1n);
      if (made.step === 0n) return fail("range() arg 3 must not be zero");
      return made.length > MOST_RANGE
        ? fail(`Range too big. The sandbox blocks ranges larger than MAX_RANGE (${MOST_RANGE}).`)
        : made;
    }),
  ],
  [
    "dict",
    new Callable("dict", (args, keywords) => {
      const made = new Map<Value, Value>();
      const [given] = args;
      if (given instanceof Map) for (const [key, value] of given) made.set(key, value);
      else if (given !== undefined)
        for (const pair of items(given)) {
          const [key, value, ...more] = items(pair);
          if (key === undefined || value === undefined || more.length > 0) return fail("dict() takes pairs");
          made.set(hashable(key), value);
        }
      for (const [key, value] of keywords) made.set(key, value);
      return made;
    }),
  ],
  [
    "namespace",
    new Callable("namespace", (args, keywords) => {
      const made = new Namespace();
      for (const given of args) {
        if (!(given instanceof Map)) return fail("namespace() takes dicts and keyword arguments");
        for (const [key, value] of given) made.values.set(text(key), value);
      }
      for (const [key, value] of keywords) made.values.set(key, value);
      return made;
    }),
  ],
  ["cycler", new Callable("cycler", () => fail("cycler() is not supported"))],
  ["joiner", new Callable("joiner", () => fail("joiner() is not supported"))],
  ["self", new Callable("self", () => fail("self is not supported"))],
  ["lipsum", new Callable("lipsum", () => fail("lipsum() is random, and not supported"))],
  [
    "raise_exception",
    new Callable("raise_exception", (args) =>
      fail(args.length === 1 ? text(args[0] as Value) : "raise_exception() takes one argument"),
    ),
  ],
]);

const filterNames = new Set(Object.keys(filters));
const tests = makeTests({ filters: filterNames, tests: () => testNames });
const testNames = new Set(Object.keys(tests));

const named: Named = {
  filter: (name, value, args, keywords) => applyFilter(name, value, args, keywords),
  test: (name, value, args, keywords) => applyTest(name, value, args, keywords),
};

function applyFilter(name: string, value: Value, args: readonly Value[], keywords: Keywords): Value {
  const filter = Object.hasOwn(filters, name) ? filters[name] : undefined;
  if (filter === undefined) return fail(`No filter named '${name}'.`);
  const given = new Arguments(name, args, keywords);
  const made = filter(value, given, named);
  given.end();
  return made;
}

function applyTest(name: string, value: Value, args: readonly Value[], keywords: Keywords): boolean {
  const found = Object.hasOwn(tests, name) ? tests[name] : undefined;
  if (found === undefined) return fail(`No test named '${name}'.`);
  const [test, most] = found;
  if (keywords.size > 0) return fail(`the test '${name}' takes no keyword arguments`);
  if (args.length !== most) return fail(`the test '${name}' takes ${most} arguments, ${args.length} are given`);
  return test(value, [...args]);
}

function lookUp(run: Run, scope: Scope, name: string): Value {
  for (let at: Scope | null = scope; at !== null; at = at.parent) {
    const found = at.values.get(name);
    if (found !== undefined) return found;
  }
  return run.variables.get(name) ?? globals.get(name) ?? nothing(run, name);
}

/** A variable may be None, which Map.get cannot tell from an absent one by itself. */
function nothing(run: Run, name: string): Value {
  return run.variables.has(name) ? null : new Undefined(`'${name}' is undefined`);
}

function call(callee: Value, args: Value[], keywords: Keywords, run: Run): Value {
  run.step();
  if (callee instanceof Callable) return callee.call(args, keywords);
  if (callee instanceof Loop) {
    if (keywords.size > 0) return fail("loop() takes no keyword arguments");
    return callee.call(args);
  }
  if (callee instanceof Undefined) return fail(callee.message);
  return fail(`'${typeName(callee)}' object is not callable`);
}

// ---- expressions ----

/** soft: within an if, where names of filters and tests are looked up when they are used. */
function expression(node: Expression, soft: boolean): Evaluate {
  const made = bare(node, soft);
  const { line } = node;
  // Only these can fail, or take a callee to where it fails.
  if (["constant", "name", "not", "logic", "condition"].includes(node.type)) return made;
  return (run, scope) => {
    run.line = line;
    return made(run, scope);
  };
}

function bare(node: Expression, soft: boolean): Evaluate {
  const of = (inner: Expression) => expression(inner, soft);
  switch (node.type) {
    case "constant": {
      const { value } = node;
      return () => value;
    }
    case "name": {
      const { name } = node;
      return (run, scope) => lookUp(run, scope, name);
    }
    case "list":
    case "tuple": {
      const each = node.items.map(of);
      if (node.type === "list") return (run, scope) => each.map((one) => one(run, scope));
      return (run, scope) => new Tuple(each.map((one) => one(run, scope)));
    }
    case "dict": {
      const entries = node.entries.map(([key, value]) => [of(key), of(value)] as const);
      return (run, scope) => {
        const made = new Map<Value, Value>();
        for (const [key, value] of entries) {
          const name = hashable(key(run, scope));
          // Python takes True and 1 for one key, and keeps the first of them.
          const twin = typeof name === "boolean" ? BigInt(name) : name === 0n || name === 1n ? name === 1n : name;
          if (twin !== name && made.has(twin))
            fail("True and 1 (or False and 0) as keys of one dict are not supported");
          made.set(name, value(run, scope));
        }
        return made;
      };
    }
    case "attribute": {
      const [value, { name }] = [of(node.of), node];
      return (run, scope) => attribute(value(run, scope), name);
    }
    case "item": {
      const value = of(node.of);
      const { key } = node;
      if (key.type === "slice") {
        const [start, stop, step] = [key.start, key.stop, key.step].map((part) => part && of(part));
        const at = (part: Evaluate | null | undefined, run: Run, scope: Scope) => (part ? part(run, scope) : null);
        return (run, scope) => {
          const given = value(run, scope);
          return slice(given, at(start, run, scope), at(stop, run, scope), at(step, run, scope));
        };
      }
      const index = of(key);
      return (run, scope) => item(value(run, scope), index(run, scope));
    }
    case "slice":
      throw new TemplateError("a slice among several indices is not supported", node.line);
    case "call": {
      const callee = of(node.callee);
      const args = argumentList(node.args, soft);
      const { line } = node;
      return (run, scope) => {
        const called = callee(run, scope);
        const [positional, keywords] = args(run, scope);
        run.line = line;
        return call(called, positional, keywords, run);
      };
    }
    case "filter": {
      const { name, line } = node;
      if (!soft && !filterNames.has(name)) throw new TemplateError(`No filter named '${name}'.`, line);
      const value = of(node.of as Expression);
      const args = argumentList(node.args, soft);
      return (run, scope) => {
        const given = value(run, scope);
        const [positional, keywords] = args(run, scope);
        run.line = line;
        run.step();
        return applyFilter(name, given, positional, keywords);
      };
    }
    case "test": {
      const { name, line } = node;
      if (!soft && !testNames.has(name)) throw new TemplateError(`No test named '${name}'.`, line);
      const value = of(node.of);
      const args = argumentList(node.args, soft);
      return (run, scope) => {
        const given = value(run, scope);
        const [positional, keywords] = args(run, scope);
        run.line = line;
        return applyTest(name, given, positional, keywords);
      };
    }
    case "not": {
      const value = of(node.of);
      return (run, scope) => !truth(value(run, scope));
    }
    case "unary": {
      const [value, { operator }] = [of(node.of), node];
      return (run, scope) => unary(operator, value(run, scope));
    }
    case "binary": {
      const [left, right] = [of(node.left), of(node.right)];
      const { operator, line } = node;
      return (run, scope) => {
        const [a, b] = [left(run, scope), right(run, scope)];
        run.line = line;
        return binary(operator, a, b);
      };
    }
    case "concat": {
      const parts = node.parts.map(of);
      return (run, scope) => {
        let made = "";
        for (const part of parts) {
          const value = part(run, scope);
          if (value instanceof Markup) return fail("~ on text that is marked as safe is not supported");
          made = joined(made, text(value));
        }
        return made;
      };
    }
    case "logic": {
      const [left, right] = [of(node.left), of(node.right)];
      if (node.operator === "and")
        return (run, scope) => {
          const value = left(run, scope);
          return truth(value) ? right(run, scope) : value;
        };
      return (run, scope) => {
        const value = left(run, scope);
        return truth(value) ? value : right(run, scope);
      };
    }
    case "compare": {
      const first = of(node.first);
      const rest = node.rest.map(({ operator, value }) => ({ operator, value: of(value) }));
      const { line } = node;
      return (run, scope) => {
        let left = first(run, scope);
        for (const { operator, value } of rest) {
          const right = value(run, scope);
          run.line = line;
          if (!comparison(operator, left, right)) return false;
          left = right;
        }
        return true;
      };
    }
    case "condition": {
      const [test, then] = [expression(node.test, true), expression(node.then, true)];
      const otherwise = node.otherwise && expression(node.otherwise, true);
      return (run, scope) => {
        if (truth(test(run, scope))) return then(run, scope);
        if (otherwise) return otherwise(run, scope);
        return new Undefined("the inline if-expression evaluated to false and no else section was defined.");
      };
    }
  }
}

const noKeywords: Keywords = new Map();

function argumentList(args: readonly Argument[], soft: boolean): (run: Run, scope: Scope) => [Value[], Keywords] {
  const each = args.map(({ kind, name, value }) => ({ kind, name, value: expression(value, soft) }));
  if (each.every(({ kind }) => kind === "positional"))
    return (run, scope) => [each.map(({ value }) => value(run, scope)), noKeywords];
  return (run, scope) => {
    const positional: Value[] = [];
    const keywords = new Map<string, Value>();
    const add = (name: string, value: Value) => {
      if (keywords.has(name)) fail(`got multiple values for keyword argument '${name}'`);
      keywords.set(name, value);
    };
    for (const { kind, name, value } of each) {
      const given = value(run, scope);
      if (kind === "positional") positional.push(given);
      else if (kind === "keyword") add(name as string, given);
      else if (kind === "list") positional.push(...items(given));
      else if (given instanceof Map)
        for (const [key, one] of given) add(typeof key === "string" ? key : fail("keywords must be strings"), one);
      else fail(`argument after ** must be a mapping, not ${typeName(given)}`);
    }
    return [positional, keywords];
  };
}

// ---- statements ----

function block(body: readonly Statement[], soft: boolean): Execute {
  const each = body.map((statement) => execute(statement, soft));
  return (run, scope) => {
    for (const one of each) {
      const flow = one(run, scope);
      if (flow !== NEXT) return flow;
    }
    return NEXT;
  };
}

function assign(target: Target): (value: Value, run: Run, scope: Scope) => void {
  if (target.type === "name") {
    const { name } = target;
    return (value, _run, scope) => {
      scope.values.set(name, value);
    };
  }
  if (target.type === "attribute") {
    const { name, attribute: key } = target;
    return (value, run, scope) => {
      const of = lookUp(run, scope, name);
      if (!(of instanceof Namespace)) fail("cannot assign attribute on non-namespace object");
      (of as Namespace).values.set(key, value);
    };
  }
  const each = target.items.map(assign);
  return (value, run, scope) => {
    const parts = items(value);
    if (parts.length !== each.length)
      fail(
        parts.length > each.length
          ? `too many values to unpack (expected ${each.length})`
          : `not enough values to unpack (expected ${each.length}, got ${parts.length})`,
      );
    for (const [i, one] of each.entries()) one(parts[i] as Value, run, scope);
  };
}

function execute(node: Statement, soft: boolean): Execute {
  const { line } = node;
  switch (node.type) {
    case "output": {
      const parts = node.parts.map((part) => (typeof part === "string" ? part : expression(part, soft)));
      return (run, scope) => {
        run.step();
        for (const part of parts) {
          if (typeof part === "string") run.print(part);
          else {
            const value = part(run, scope);
            run.line = line;
            run.print(text(value));
          }
        }
        return NEXT;
      };
    }
    case "for":
      return loop(node);
    case "if": {
      const branches = node.branches.map(({ test, body }) => ({
        test: expression(test, true),
        body: block(body, true),
      }));
      const otherwise = block(node.otherwise, true);
      return (run, scope) => {
        run.step();
        for (const { test, body } of branches) if (truth(test(run, scope))) return body(run, scope);
        return otherwise(run, scope);
      };
    }
    case "set": {
      const [value, to] = [expression(node.value, soft), assign(node.target)];
      return (run, scope) => {
        run.step();
        const made = value(run, scope);
        run.line = line;
        to(made, run, scope);
        return NEXT;
      };
    }
    case "capture": {
      const [body, to] = [block(node.body, false), assign(node.target)];
      const filter = node.filter && filterOf(node.filter);
      return (run, scope) => {
        const made = run.capture(() => void body(run, new Scope(scope)));
        run.line = line;
        to(filter ? filter(made, run, scope) : made, run, scope);
        return NEXT;
      };
    }
    case "filterBlock": {
      const [body, filter] = [block(node.body, false), filterOf(node.filter)];
      return (run, scope) => {
        const made = run.capture(() => void body(run, new Scope(scope)));
        run.line = line;
        run.print(text(filter(made, run, scope)));
        return NEXT;
      };
    }
    case "with": {
      const values = node.values.map((value) => expression(value, soft));
      const targets = node.targets.map(assign);
      const body = block(node.body, false);
      return (run, scope) => {
        const inner = new Scope(scope);
        const made = values.map((value) => value(run, scope));
        for (const [i, to] of targets.entries()) to(made[i] as Value, run, inner);
        return body(run, inner);
      };
    }
    case "macro": {
      const make = macro(node.name, node.signature, node.body);
      return (run, scope) => {
        scope.values.set(node.name, make(run, scope));
        return NEXT;
      };
    }
    case "callBlock": {
      const callee = expression(node.call.callee, soft);
      const args = argumentList(node.call.args, soft);
      const caller = macro("caller", node.signature, node.body);
      return (run, scope) => {
        const called = callee(run, scope);
        const [positional, keywords] = args(run, scope);
        run.line = line;
        const all = new Map(keywords).set("caller", caller(run, scope));
        run.print(text(call(called, positional, all, run)));
        return NEXT;
      };
    }
    case "block": {
      const body = block(node.body, false);
      return (run, scope) => {
        let root = scope;
        while (root.parent !== null) root = root.parent;
        body(run, new Scope(root));
        return NEXT;
      };
    }
    case "generation": {
      const body = block(node.body, false);
      return (run, scope) => {
        const begin = run.at;
        const made = run.capture(() => void body(run, new Scope(scope)));
        run.print(made);
        if (begin === null) run.misplaced = true;
        else if (made !== "") run.generations.push([begin, begin + made.length]);
        return NEXT;
      };
    }
    case "break":
      return () => BREAK;
    case "continue":
      return () => CONTINUE;
  }
}

/** The filters behind a captured block: their innermost takes the text. */
function filterOf(node: Expression): (value: string, run: Run, scope: Scope) => Value {
  if (node.type !== "filter") throw new TemplateError("a filter was expected", node.line);
  const before = node.of === null ? null : filterOf(node.of);
  if (!filterNames.has(node.name)) throw new TemplateError(`No filter named '${node.name}'.`, node.line);
  const args = argumentList(node.args, false);
  return (value, run, scope) => {
    const given = before ? before(value, run, scope) : value;
    const [positional, keywords] = args(run, scope);
    return applyFilter(node.name, given, positional, keywords);
  };
}

/** Names that a body reads: whether it asks for `caller`, varargs or kwargs. */
function mentions(body: readonly Statement[], name: string): boolean {
  const seen = (value: unknown): boolean => {
    if (Array.isArray(value)) return value.some(seen);
    if (typeof value !== "object" || value === null) return false;
    const node = value as Record<string, unknown>;
    if (node.type === "name" && node.name === name) return true;
    return Object.values(node).some(seen);
  };
  return seen(body);
}

function macro(
  name: string,
  { names, defaults }: Signature,
  body: readonly Statement[],
): (run: Run, scope: Scope) => Callable {
  const inner = block(body, false);
  const given = defaults.map((value) => expression(value, false));
  const first = names.length - given.length;
  const [varargs, kwargs, caller] = ["varargs", "kwargs", "caller"].map((one) => mentions(body, one));
  return (run, scope) =>
    new Callable(
      name,
      (args, keywords) => {
        if (++run.callDepth > MOST_CALLS) fail("maximum recursion depth exceeded");
        const at = new Scope(scope);
        const left = new Map(keywords);
        for (const [i, one] of names.entries()) {
          if (i < args.length) at.values.set(one, args[i] as Value);
          else if (left.has(one)) at.values.set(one, left.get(one) as Value);
          else if (i >= first) at.values.set(one, (given[i - first] as Evaluate)(run, at));
          else at.values.set(one, new Undefined(`parameter '${one}' was not provided`));
          if (i >= args.length) left.delete(one);
        }
        if (caller && !names.includes("caller")) {
          at.values.set("caller", left.get("caller") ?? new Undefined("No caller defined"));
          left.delete("caller");
        }
        if (kwargs) at.values.set("kwargs", new Map<Value, Value>(left));
        else if (left.has("caller"))
          fail(`macro '${name}' was invoked with two values for the special caller argument, or takes none`);
        else if (left.size > 0) fail(`macro '${name}' takes no keyword argument '${left.keys().next().value}'`);
        if (varargs) at.values.set("varargs", new Tuple(args.slice(names.length)));
        else if (args.length > names.length) fail(`macro '${name}' takes not more than ${names.length} argument(s)`);
        const made = run.capture(() => void inner(run, at));
        run.callDepth--;
        return made;
      },
      true,
    );
}

/** `loop` in the body of a for. */
class Round extends Loop {
  index = 0;
  #last: Value[] | undefined;

  constructor(
    readonly all: readonly Value[],
    readonly depth: number,
    readonly again: ((of: Value, depth: number) => string) | null,
  ) {
    super();
  }

  attribute(name: string): Value | undefined {
    const { index, depth } = this;
    const { length } = this.all;
    switch (name) {
      case "index":
        return BigInt(index + 1);
      case "index0":
        return BigInt(index);
      case "revindex":
        return BigInt(length - index);
      case "revindex0":
        return BigInt(length - index - 1);
      case "first":
        return index === 0;
      case "last":
        return index === length - 1;
      case "length":
        return BigInt(length);
      case "depth":
        return BigInt(depth + 1);
      case "depth0":
        return BigInt(depth);
      case "previtem":
        return index > 0 ? (this.all[index - 1] as Value) : new Undefined("there is no previous item");
      case "nextitem":
        return index + 1 < length ? (this.all[index + 1] as Value) : new Undefined("there is no next item");
      case "cycle":
        return new Callable("loop.cycle", (args) => {
          if (args.length === 0) return fail("no items for cycling given");
          return args[index % args.length] as Value;
        });
      case "changed":
        return new Callable("loop.changed", (args) => {
          const same = this.#last !== undefined && equal(this.#last, args);
          if (!same) this.#last = args;
          return !same;
        });
    }
    return undefined;
  }

  call([of]: Value[]): Value {
    if (this.again === null) return fail("The loop must have the 'recursive' marker to be called recursively.");
    if (of === undefined) return fail("loop() takes what to loop over");
    return this.again(of, this.depth + 1);
  }
}

function loop(node: Statement & { type: "for" }): Execute {
  const of = expression(node.of, false);
  const to = assign(node.target);
  const test = node.test && expression(node.test, false);
  const body = block(node.body, false);
  const otherwise = block(node.otherwise, false);
  const { line, recursive } = node;
  const single = node.target.type === "name";

  const walk = (given: Value, depth: number, run: Run, scope: Scope): void => {
    run.line = line;
    if (given instanceof Undefined && given.message.startsWith("access to attribute")) fail(given.message);
    let all: readonly Value[] = items(given);
    if (test)
      all = all.filter((one) => {
        run.step();
        const inner = new Scope(scope);
        to(one, run, inner);
        return truth(test(run, inner));
      });
    const again = (next: Value, deeper: number): string => {
      if (++run.callDepth > MOST_CALLS) fail("maximum recursion depth exceeded");
      const made = run.capture(() => walk(next, deeper, run, scope));
      run.callDepth--;
      return made;
    };
    const round = new Round(all, depth, recursive ? again : null);
    for (const [i, one] of all.entries()) {
      run.step();
      round.index = i;
      const inner = new Scope(scope);
      inner.values.set("loop", round);
      to(one, run, inner);
      const subject = single && run.subjects.has(one);
      const begin = run.at;
      if (subject) {
        if (begin === null) run.elsewhere = true;
        run.subjectDepth++;
      }
      const flow = body(run, inner);
      if (subject) {
        run.subjectDepth--;
        if (begin !== null) run.stretches.push({ subject: one, begin, end: run.at as number, depth: run.subjectDepth });
      }
      if (flow === BREAK) break;
    }
    if (all.length === 0) otherwise(run, new Scope(scope));
  };
  return (run, scope) => {
    run.step();
    walk(of(run, scope), 0, run, scope);
    return NEXT;
  };
}

function hasMarks(node: unknown): boolean {
  if (typeof node !== "object" || node === null) return false;
  return (node as { type?: string }).type === "generation" || Object.values(node).some(hasMarks);
}

export function compileTemplate(statements: readonly Statement[]): Template {
  const body = block(statements, false);
  return {
    marked: hasMarks(statements),
    render(variables, { limits = {}, subjects = new Set<Value>() } = {}) {
      const run = new Run(variables, subjects, { ...defaultLimits, ...limits });
      try {
        body(run, new Scope(null));
      } catch (error) {
        if (error instanceof TemplateError) {
          error.line ||= run.line;
          throw error;
        }
        if (error instanceof RangeError) throw new LimitError(`it is nested too deeply (${error.message})`, run.line);
        throw error;
      }
      const { generations, misplaced, stretches, elsewhere } = run;
      return { text: run.text, generations, misplaced, stretches, elsewhere };
    },
  };
}
