// From tokens to a tree, by jinja2's grammar.

import { TemplateError } from "./errors.js";
import { type Token, type TokenType, tokenize } from "./lexer.js";

export interface Argument {
  kind: "positional" | "keyword" | "list" | "dict";
  name?: string;
  value: Expression;
}

export type Expression = { line: number } & (
  | { type: "constant"; value: null | boolean | bigint | number | string }
  | { type: "name"; name: string }
  | { type: "list"; items: Expression[] }
  | { type: "tuple"; items: Expression[] }
  | { type: "dict"; entries: [Expression, Expression][] }
  | { type: "attribute"; of: Expression; name: string }
  | { type: "item"; of: Expression; key: Expression }
  | { type: "slice"; start: Expression | null; stop: Expression | null; step: Expression | null }
  | { type: "call"; callee: Expression; args: Argument[] }
  | { type: "filter"; name: string; of: Expression | null; args: Argument[] }
  | { type: "test"; name: string; of: Expression; args: Argument[] }
  | { type: "not"; of: Expression }
  | { type: "unary"; operator: "-" | "+"; of: Expression }
  | { type: "binary"; operator: string; left: Expression; right: Expression }
  | { type: "concat"; parts: Expression[] }
  | { type: "logic"; operator: "and" | "or"; left: Expression; right: Expression }
  | { type: "compare"; first: Expression; rest: { operator: string; value: Expression }[] }
  | { type: "condition"; test: Expression; then: Expression; otherwise: Expression | null }
);

export type Target =
  | { type: "name"; name: string; line: number }
  | { type: "tuple"; items: Target[]; line: number }
  | { type: "attribute"; name: string; attribute: string; line: number };

export interface Signature {
  names: string[];
  /** Of the last ones. */
  defaults: Expression[];
}

export type Statement = { line: number } & (
  | { type: "output"; parts: (string | Expression)[] }
  | {
      type: "for";
      target: Target;
      of: Expression;
      test: Expression | null;
      recursive: boolean;
      body: Statement[];
      otherwise: Statement[];
    }
  | { type: "if"; branches: { test: Expression; body: Statement[] }[]; otherwise: Statement[] }
  | { type: "set"; target: Target; value: Expression }
  | { type: "capture"; target: Target; filter: Expression | null; body: Statement[] }
  | { type: "with"; targets: Target[]; values: Expression[]; body: Statement[] }
  | { type: "macro"; name: string; signature: Signature; body: Statement[] }
  | { type: "callBlock"; call: Expression & { type: "call" }; signature: Signature; body: Statement[] }
  | { type: "filterBlock"; filter: Expression; body: Statement[] }
  | { type: "block"; body: Statement[] }
  | { type: "generation"; body: Statement[] }
  | { type: "break" }
  | { type: "continue" }
);

const comparisons = new Set(["==", "!=", ">", ">=", "<", "<="]);
/** How deep expressions and statements may lie in each other. */
const MOST_DEEP = 200;

export const parse = (source: string): Statement[] => new Parser(tokenize(source)).template();

class Parser {
  readonly #tokens: Token[];
  #at = 0;
  #depth = 0;

  constructor(tokens: Token[]) {
    this.#tokens = tokens;
  }

  template(): Statement[] {
    const body = this.#statements([]);
    return body;
  }

  // ---- tokens ----

  get #token(): Token {
    return this.#tokens[this.#at] as Token;
  }

  #next(): Token {
    const token = this.#token;
    if (token.type !== "eof") this.#at++;
    return token;
  }

  #is(type: TokenType, text?: string): boolean {
    return this.#token.type === type && (text === undefined || this.#token.text === text);
  }

  #skip(type: TokenType, text: string): boolean {
    if (!this.#is(type, text)) return false;
    this.#at++;
    return true;
  }

  #expect(type: TokenType, text?: string): Token {
    if (!this.#is(type, text))
      this.#fail(`expected ${text === undefined ? `a ${type}` : `'${text}'`}, got ${this.#shown()}`);
    return this.#next();
  }

  #shown(): string {
    return this.#is("eof")
      ? "the end of the template"
      : this.#is("end")
        ? "the end of the tag"
        : `'${this.#token.text}'`;
  }

  #fail(message: string, line = this.#token.line): never {
    throw new TemplateError(message, line);
  }

  #nested<T>(inner: () => T): T {
    if (++this.#depth > MOST_DEEP) this.#fail("the template is nested too deeply");
    try {
      return inner();
    } finally {
      this.#depth--;
    }
  }

  // ---- statements ----

  /** Up to a tag that begins with one of `ends`, whose name is the current token then; or to the template's end. */
  #statements(ends: readonly string[]): Statement[] {
    return this.#nested(() => {
      const body: Statement[] = [];
      let output: (Statement & { type: "output" }) | undefined;
      const print = (part: string | Expression, line: number) => {
        if (output === undefined) {
          output = { type: "output", parts: [], line };
          body.push(output);
        }
        output.parts.push(part);
      };
      for (;;) {
        const token = this.#next();
        if (token.type === "eof") {
          if (ends.length > 0)
            this.#fail(`the template ends before ${ends.map((end) => `'${end}'`).join(" or ")}`, token.line);
          return body;
        }
        if (token.type === "data") print(token.text, token.line);
        else if (token.text === "{{") {
          print(this.#tuple(), token.line);
          this.#expect("end", "}}");
        } else {
          output = undefined;
          if (this.#is("name") && ends.includes(this.#token.text)) return body;
          body.push(this.#statement());
          this.#expect("end", "%}");
        }
      }
    });
  }

  /** The body behind a tag, and the tag that ends it; its name is consumed. */
  #body(...ends: string[]): { body: Statement[]; end: string } {
    this.#skip("op", ":");
    this.#expect("end", "%}");
    const body = this.#statements(ends);
    return { body, end: this.#next().text };
  }

  #statement(): Statement {
    const { line } = this.#token;
    if (!this.#is("name")) this.#fail("tag name expected");
    const tag = this.#next().text;
    switch (tag) {
      case "for":
        return this.#for(line);
      case "if":
        return this.#if(line);
      case "set":
        return this.#set(line);
      case "with":
        return this.#with(line);
      case "macro": {
        const { text: name } = this.#expect("name");
        const signature = this.#signature();
        return { type: "macro", name, signature, body: this.#body("endmacro").body, line };
      }
      case "call": {
        const signature = this.#is("op", "(") ? this.#signature() : { names: [], defaults: [] };
        const call = this.#expression();
        if (call.type !== "call") this.#fail("expected call", line);
        return { type: "callBlock", call, signature, body: this.#body("endcall").body, line };
      }
      case "filter":
        return { type: "filterBlock", filter: this.#filters(null, true), body: this.#body("endfilter").body, line };
      case "block": {
        const { text: name } = this.#expect("name");
        this.#skip("name", "scoped");
        this.#skip("name", "required");
        const { body } = this.#body("endblock");
        this.#skip("name", name);
        return { type: "block", body, line };
      }
      case "print": {
        const parts: Expression[] = [];
        while (!this.#is("end")) {
          if (parts.length > 0) this.#expect("op", ",");
          parts.push(this.#expression());
        }
        return { type: "output", parts, line };
      }
      case "generation":
        return { type: "generation", body: this.#body("endgeneration").body, line };
      case "break":
      case "continue":
        return { type: tag, line };
      case "autoescape":
      case "extends":
      case "include":
      case "import":
      case "from":
        return this.#fail(`{% ${tag} %} is not supported in a chat template`, line);
      default:
        return this.#fail(`Encountered unknown tag '${tag}'`, line);
    }
  }

  #for(line: number): Statement {
    const target = this.#target(["in"]);
    this.#expect("name", "in");
    const of = this.#tuple({ condition: false, ends: ["recursive"] });
    const test = this.#skip("name", "if") ? this.#expression() : null;
    const recursive = this.#skip("name", "recursive");
    const { body, end } = this.#body("endfor", "else");
    const otherwise = end === "else" ? this.#body("endfor").body : [];
    return { type: "for", target, of, test, recursive, body, otherwise, line };
  }

  #if(line: number): Statement {
    const branches: { test: Expression; body: Statement[] }[] = [];
    for (;;) {
      const test = this.#tuple({ condition: false });
      const { body, end } = this.#body("elif", "else", "endif");
      branches.push({ test, body });
      if (end === "elif") continue;
      return { type: "if", branches, otherwise: end === "else" ? this.#body("endif").body : [], line };
    }
  }

  #set(line: number): Statement {
    const target = this.#target([], true);
    if (this.#skip("op", "=")) return { type: "set", target, value: this.#tuple(), line };
    const filter = this.#is("op", "|") ? this.#filters(null) : null;
    return { type: "capture", target, filter, body: this.#body("endset").body, line };
  }

  #with(line: number): Statement {
    const targets: Target[] = [];
    const values: Expression[] = [];
    while (!this.#is("end")) {
      if (targets.length > 0) this.#expect("op", ",");
      targets.push(this.#target());
      this.#expect("op", "=");
      values.push(this.#expression());
    }
    return { type: "with", targets, values, body: this.#body("endwith").body, line };
  }

  #signature(): Signature {
    this.#expect("op", "(");
    const names: string[] = [];
    const defaults: Expression[] = [];
    while (!this.#is("op", ")")) {
      if (names.length > 0) this.#expect("op", ",");
      names.push(this.#assignable(this.#expect("name")));
      if (this.#skip("op", "=")) defaults.push(this.#expression());
      else if (defaults.length > 0) this.#fail("non-default argument follows default argument");
    }
    this.#next();
    return { names, defaults };
  }

  #assignable({ text, line }: Token): string {
    if (["true", "false", "none", "True", "False", "None"].includes(text))
      this.#fail(`can't assign to '${text}'`, line);
    return text;
  }

  /** Names, or several in parentheses or behind commas. */
  #target(ends: readonly string[] = [], attributes = false): Target {
    const { line } = this.#token;
    const one = (): Target => {
      const token = this.#token;
      if (this.#skip("op", "(")) {
        const inner = this.#target([")"], attributes);
        this.#expect("op", ")");
        return inner;
      }
      const name = this.#assignable(this.#expect("name"));
      if (attributes && this.#skip("op", "."))
        return { type: "attribute", name, attribute: this.#expect("name").text, line: token.line };
      return { type: "name", name, line: token.line };
    };
    const items: Target[] = [];
    let tuple = false;
    for (;;) {
      if (items.length > 0) this.#expect("op", ",");
      if (
        this.#is("end") ||
        this.#is("op", ")") ||
        this.#is("op", "=") ||
        (this.#is("name") && ends.includes(this.#token.text))
      )
        break;
      items.push(one());
      if (!this.#is("op", ",")) break;
      tuple = true;
    }
    const [first] = items;
    if (first === undefined) this.#fail(`expected a name, got ${this.#shown()}`);
    return tuple ? { type: "tuple", items, line } : first;
  }

  // ---- expressions ----

  /** One expression, or several behind commas; parenthesised: none is a tuple too. */
  #tuple({ condition = true, ends = [] as readonly string[], parenthesised = false } = {}): Expression {
    const { line } = this.#token;
    const items: Expression[] = [];
    let tuple = false;
    for (;;) {
      if (items.length > 0) this.#expect("op", ",");
      if (this.#is("end") || this.#is("op", ")") || (this.#is("name") && ends.includes(this.#token.text))) break;
      items.push(condition ? this.#expression() : this.#or());
      if (!this.#is("op", ",")) break;
      tuple = true;
    }
    const [first] = items;
    if (!tuple && first !== undefined) return first;
    if (!tuple && !parenthesised) this.#fail(`Expected an expression, got ${this.#shown()}`);
    return { type: "tuple", items, line };
  }

  #expression(): Expression {
    return this.#nested(() => {
      let { line } = this.#token;
      let then = this.#or();
      while (this.#skip("name", "if")) {
        const test = this.#or();
        const otherwise = this.#skip("name", "else") ? this.#expression() : null;
        then = { type: "condition", test, then, otherwise, line };
        line = this.#token.line;
      }
      return then;
    });
  }

  #or(): Expression {
    const { line } = this.#token;
    let left = this.#and();
    while (this.#skip("name", "or")) left = { type: "logic", operator: "or", left, right: this.#and(), line };
    return left;
  }

  #and(): Expression {
    const { line } = this.#token;
    let left = this.#not();
    while (this.#skip("name", "and")) left = { type: "logic", operator: "and", left, right: this.#not(), line };
    return left;
  }

  #not(): Expression {
    const { line } = this.#token;
    if (this.#skip("name", "not")) return this.#nested(() => ({ type: "not", of: this.#not(), line }));
    return this.#compare();
  }

  #compare(): Expression {
    const { line } = this.#token;
    const first = this.#sum();
    const rest: { operator: string; value: Expression }[] = [];
    for (;;) {
      const token = this.#token;
      const following = this.#tokens[this.#at + 1];
      if (token.type === "op" && comparisons.has(token.text)) {
        this.#next();
        rest.push({ operator: token.text, value: this.#sum() });
      } else if (this.#skip("name", "in")) rest.push({ operator: "in", value: this.#sum() });
      else if (this.#is("name", "not") && following?.type === "name" && following.text === "in") {
        this.#at += 2;
        rest.push({ operator: "not in", value: this.#sum() });
      } else break;
    }
    return rest.length === 0 ? first : { type: "compare", first, rest, line };
  }

  #chain(operators: readonly string[], operand: () => Expression): Expression {
    const { line } = this.#token;
    let left = operand();
    while (this.#token.type === "op" && operators.includes(this.#token.text)) {
      const operator = this.#next().text;
      left = { type: "binary", operator, left, right: operand(), line };
    }
    return left;
  }

  #sum(): Expression {
    return this.#chain(["+", "-"], () => this.#concat());
  }

  #concat(): Expression {
    const { line } = this.#token;
    const parts = [this.#product()];
    while (this.#skip("op", "~")) parts.push(this.#product());
    return parts.length === 1 ? (parts[0] as Expression) : { type: "concat", parts, line };
  }

  #product(): Expression {
    return this.#chain(["*", "/", "//", "%"], () => this.#chain(["**"], () => this.#unary()));
  }

  #unary(filters = true): Expression {
    return this.#nested(() => {
      const { line } = this.#token;
      let node: Expression;
      if (this.#is("op", "-") || this.#is("op", "+")) {
        const operator = this.#next().text as "-" | "+";
        node = { type: "unary", operator, of: this.#unary(false), line };
      } else node = this.#primary();
      node = this.#postfix(node);
      return filters ? this.#filtered(node) : node;
    });
  }

  #primary(): Expression {
    const token = this.#next();
    const { line, text } = token;
    switch (token.type) {
      case "name":
        if (/^([tT]rue|[fF]alse)$/.test(text)) return { type: "constant", value: /^t/i.test(text), line };
        if (/^[nN]one$/.test(text)) return { type: "constant", value: null, line };
        return { type: "name", name: text, line };
      case "string": {
        let value = text;
        while (this.#is("string")) value += this.#next().text;
        return { type: "constant", value, line };
      }
      case "int":
        return { type: "constant", value: BigInt(text.replaceAll("_", "")), line };
      case "float":
        return { type: "constant", value: Number(text.replaceAll("_", "")), line };
      case "op":
        if (text === "(") {
          const inner = this.#tuple({ parenthesised: true });
          this.#expect("op", ")");
          return inner;
        }
        if (text === "[") {
          const items: Expression[] = [];
          while (!this.#is("op", "]")) {
            if (items.length > 0) this.#expect("op", ",");
            if (this.#is("op", "]")) break;
            items.push(this.#expression());
          }
          this.#next();
          return { type: "list", items, line };
        }
        if (text === "{") {
          const entries: [Expression, Expression][] = [];
          while (!this.#is("op", "}")) {
            if (entries.length > 0) this.#expect("op", ",");
            if (this.#is("op", "}")) break;
            const key = this.#expression();
            this.#expect("op", ":");
            entries.push([key, this.#expression()]);
          }
          this.#next();
          return { type: "dict", entries, line };
        }
    }
    this.#at -= token.type === "eof" ? 0 : 1;
    return this.#fail(`unexpected ${this.#shown()}`, line);
  }

  #postfix(given: Expression): Expression {
    let node = given;
    for (;;) {
      const { line } = this.#token;
      if (this.#skip("op", ".")) {
        const token = this.#next();
        if (token.type === "name") node = { type: "attribute", of: node, name: token.text, line };
        else if (token.type === "int")
          node = {
            type: "item",
            of: node,
            key: { type: "constant", value: BigInt(token.text.replaceAll("_", "")), line },
            line,
          };
        else this.#fail("expected name or number", token.line);
      } else if (this.#skip("op", "[")) {
        const keys: Expression[] = [];
        while (!this.#is("op", "]")) {
          if (keys.length > 0) this.#expect("op", ",");
          keys.push(this.#subscript());
        }
        this.#next();
        const key: Expression = keys.length === 1 ? (keys[0] as Expression) : { type: "tuple", items: keys, line };
        node = { type: "item", of: node, key, line };
      } else if (this.#is("op", "(")) node = { type: "call", callee: node, args: this.#args(), line };
      else return node;
    }
  }

  #subscript(): Expression {
    const { line } = this.#token;
    const absent = () => this.#is("op", ":") || this.#is("op", "]") || this.#is("op", ",");
    let start: Expression | null = null;
    if (!this.#is("op", ":")) {
      start = this.#expression();
      if (!this.#is("op", ":")) return start;
    }
    this.#next();
    const stop = absent() ? null : this.#expression();
    const step = this.#skip("op", ":") && !absent() ? this.#expression() : null;
    return { type: "slice", start, stop, step, line };
  }

  #filtered(given: Expression): Expression {
    let node = given;
    for (;;) {
      const { line } = this.#token;
      if (this.#is("op", "|")) node = this.#filters(node);
      else if (this.#skip("name", "is")) node = this.#test(node, line);
      else if (this.#is("op", "(")) node = { type: "call", callee: node, args: this.#args(), line };
      else return node;
    }
  }

  #dotted(): string {
    let name = this.#expect("name").text;
    while (this.#skip("op", ".")) name += `.${this.#expect("name").text}`;
    return name;
  }

  #filters(given: Expression | null, inline = false): Expression {
    let node = given;
    let first = inline;
    while (first || this.#skip("op", "|")) {
      first = false;
      const { line } = this.#token;
      const name = this.#dotted();
      node = { type: "filter", name, of: node, args: this.#is("op", "(") ? this.#args() : [], line };
    }
    return node as Expression;
  }

  #test(of: Expression, line: number): Expression {
    const negated = this.#skip("name", "not");
    const name = this.#dotted();
    let args: Argument[] = [];
    const { type, text } = this.#token;
    const begins =
      ["string", "int", "float"].includes(type) ||
      (type === "op" && (text === "[" || text === "{")) ||
      (type === "name" && !["else", "or", "and"].includes(text));
    if (this.#is("op", "(")) args = this.#args();
    else if (begins) {
      if (this.#is("name", "is")) this.#fail("You cannot chain multiple tests with is");
      args = [{ kind: "positional", value: this.#postfix(this.#primary()) }];
    }
    const node: Expression = { type: "test", name, of, args, line };
    return negated ? { type: "not", of: node, line } : node;
  }

  #args(): Argument[] {
    const { line } = this.#expect("op", "(");
    const args: Argument[] = [];
    const had = (...kinds: Argument["kind"][]) => args.some(({ kind }) => kinds.includes(kind));
    const ensure = (right: boolean) => {
      if (!right) this.#fail("invalid syntax for function call expression", line);
    };
    while (!this.#is("op", ")")) {
      if (args.length > 0) {
        this.#expect("op", ",");
        if (this.#is("op", ")")) break;
      }
      const following = this.#tokens[this.#at + 1];
      if (this.#skip("op", "*")) {
        ensure(!had("list", "dict"));
        args.push({ kind: "list", value: this.#expression() });
      } else if (this.#skip("op", "**")) {
        ensure(!had("dict"));
        args.push({ kind: "dict", value: this.#expression() });
      } else if (this.#is("name") && following?.type === "op" && following.text === "=") {
        ensure(!had("dict"));
        const name = this.#next().text;
        this.#next();
        args.push({ kind: "keyword", name, value: this.#expression() });
      } else {
        ensure(!had("list", "dict", "keyword"));
        args.push({ kind: "positional", value: this.#expression() });
      }
    }
    this.#next();
    return args;
  }
}
