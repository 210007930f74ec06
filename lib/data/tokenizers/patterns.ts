// Regular expressions of tokenizer.json (Oniguruma's dialect) as JavaScript's, over the Unicode version Rust has.

import { UNASSIGNED } from "./unicode_tables.js";

const WORD = String.raw`\p{Alphabetic}\p{M}\p{Nd}\p{Pc}`;
/** Outside a class Oniguruma's \w also takes these digits of Latin-1. */
const WORD_ALONE = String.raw`${WORD}\xb2\xb3\xb9\xbc-\xbe`;
/** White space as Rust and Oniguruma have it; JavaScript's \s takes U+FEFF and leaves U+0085. */
export const SPACE = String.raw`\p{White_Space}`;
/** \w of Rust's regex crate, inside a class. */
export const RUST_WORD = String.raw`${WORD}\u200c\u200d`;

/** Names of classes that JavaScript has under another name; members of a class. */
const CLASSES: Record<string, string> = {
  alpha: String.raw`\p{Alphabetic}`,
  alnum: String.raw`\p{Alphabetic}\p{Nd}`,
  ascii: String.raw`\x00-\x7f`,
  blank: String.raw`\p{Zs}\t`,
  cntrl: String.raw`\p{Cc}`,
  digit: String.raw`\p{Nd}`,
  lower: String.raw`\p{Lowercase}`,
  punct: String.raw`\p{P}`,
  space: SPACE,
  upper: String.raw`\p{Uppercase}`,
  word: WORD,
  xdigit: "0-9a-fA-F",
};
const CONTROL: Record<string, string> = { n: "\n", r: "\r", t: "\t", f: "\f", v: "\v", a: "\x07", e: "\x1b" };

const literal = (code: number) => `\\u{${code.toString(16)}}`;

/** Every character that is the same but for case. */
function caseVariants(code: number): number[] {
  const c = String.fromCodePoint(code);
  const same = new RegExp(`^${literal(code)}$`, "iu");
  const others = [c, c.toLowerCase(), c.toUpperCase(), "\u017f", "\u212a", "\u212b", "\u2126", "\u1e9e"];
  return [...new Set(others.filter((other) => same.test(other)).map((other) => other.codePointAt(0) as number))];
}

/** One pass over a pattern. Groups become non-capturing: only matches count here, and atomic groups need names. */
class Translator {
  at = 0;
  atomic = 0;
  ignoreCase = false;
  dotAll = false;

  constructor(readonly source: string) {}

  fail(what: string): never {
    throw new Error(`the pattern ${JSON.stringify(this.source)} uses ${what}, which is not supported`);
  }

  take(text: string): boolean {
    if (!this.source.startsWith(text, this.at)) return false;
    this.at += text.length;
    return true;
  }

  next(): string {
    if (this.at >= this.source.length) this.fail("an unfinished construct");
    const c = String.fromCodePoint(this.source.codePointAt(this.at) as number);
    this.at += c.length;
    return c;
  }

  /** What matches once and is not tried again: \k of a lookahead's group. */
  once(inner: string): string {
    const name = `a${this.atomic++}`;
    return `(?=(?<${name}>${inner}))\\k<${name}>`;
  }

  alternatives(): string {
    const { ignoreCase, dotAll } = this;
    let out = "";
    while (this.at < this.source.length && this.source[this.at] !== ")") {
      if (this.take("|")) out += "|";
      else out += this.quantified();
    }
    this.ignoreCase = ignoreCase;
    this.dotAll = dotAll;
    return out;
  }

  quantified(): string {
    let atom = this.atom();
    for (;;) {
      const match = /^(?:[*+?]|\{\d*,?\d*\})/.exec(this.source.slice(this.at, this.at + 24));
      if (match === null || match[0] === "{}" || match[0] === "{,}") return atom;
      const bounds = match[0].startsWith("{,") ? `{0${match[0].slice(1)}` : match[0];
      this.at += match[0].length;
      const braces = bounds.startsWith("{");
      if (this.take("?")) atom = `(?:${atom})${bounds}?`;
      else if (!braces && this.take("+")) atom = this.once(`(?:${atom})${bounds}`);
      else atom = `(?:${atom})${bounds}`;
    }
  }

  atom(): string {
    const c = this.next();
    if (c === "(") return this.group();
    if (c === "[") return this.set();
    if (c === ".") return this.dotAll ? "[\\s\\S]" : "[^\\n]";
    if (c === "^") return "(?<![^\\n])";
    if (c === "$") return "(?![^\\n])";
    if (c !== "\\") return this.character(c);
    const e = this.next();
    if (e === "A") return "(?<![\\s\\S])";
    if (e === "z") return "(?![\\s\\S])";
    if (e === "Z") return "(?=\\n?(?![\\s\\S]))";
    if (e === "R") return "(?:\\r\\n|[\\n-\\r\\x85\\u2028\\u2029])";
    if (e === "b" || e === "B") {
      const edge = `(?<=[${WORD_ALONE}])(?![${WORD_ALONE}])|(?<![${WORD_ALONE}])(?=[${WORD_ALONE}])`;
      return e === "b" ? `(?:${edge})` : `(?!${edge})`;
    }
    const members = this.classEscape(e, WORD_ALONE);
    return members === null ? this.character(this.escaped(e)) : `[${members}]`;
  }

  character(c: string): string {
    const code = c.codePointAt(0) as number;
    return this.ignoreCase ? `[${caseVariants(code).map(literal).join("")}]` : literal(code);
  }

  group(): string {
    let open = "(?:";
    let isAtomic = false;
    const { ignoreCase, dotAll } = this;
    if (this.take("?")) {
      const kind = /^(?:<?[=!]|[:>]|#[^)]*|<\w+>|[imx]*(?:-[imx]+)?[:)])/.exec(this.source.slice(this.at))?.[0];
      if (kind === undefined) this.fail(`(?${this.source[this.at] ?? ""}`);
      this.at += kind.length;
      if (kind.startsWith("#")) {
        this.at++;
        return "";
      }
      if (/^<?[=!]/.test(kind)) open = `(?${kind}`;
      else if (kind === ">") isAtomic = true;
      else if (/[imx:)]$/.test(kind) && !kind.startsWith("<")) {
        const [on = "", off = ""] = kind.slice(0, -1).split("-");
        if (on.includes("x")) this.fail("(?x)");
        if (on.includes("i")) this.ignoreCase = true;
        if (on.includes("m")) this.dotAll = true;
        if (off.includes("i")) this.ignoreCase = false;
        if (off.includes("m")) this.dotAll = false;
        // Options without a colon hold to the end of the group around them.
        if (kind.endsWith(")")) return `(?:${this.alternatives()})`;
      }
    }
    const inner = this.alternatives();
    if (!this.take(")")) this.fail("a group without end");
    this.ignoreCase = ignoreCase;
    this.dotAll = dotAll;
    return isAtomic ? this.once(inner) : `${open}${inner})`;
  }

  /** The members of a class that an escape names; null where it names one character. */
  classEscape(e: string, word: string): string | null {
    if (e === "s") return SPACE;
    if (e === "S") return String.raw`\P{White_Space}`;
    if (e === "d") return String.raw`\p{Nd}`;
    if (e === "D") return String.raw`\P{Nd}`;
    if (e === "w") return word;
    if (e === "W") return `[^${word}]`;
    if (e === "h") return "0-9a-fA-F";
    if (e === "H") return "[^0-9a-fA-F]";
    if (e !== "p" && e !== "P") return null;
    const name = /^\{(\^?)([\w =-]+)\}/.exec(this.source.slice(this.at));
    if (name === null) this.fail(`\\${e}`);
    this.at += name[0].length;
    if (name[2]?.toLowerCase() === "word") return e === "P" ? `[^${word}]` : word;
    return this.property(name[2] as string, (e === "P") !== (name[1] === "^"));
  }

  property(name: string, negated: boolean): string {
    const known = CLASSES[name.toLowerCase()];
    if (known !== undefined) return negated ? `[^${known}]` : known;
    for (const spelling of [name, `Script=${name}`]) {
      const property = `\\${negated ? "P" : "p"}{${spelling}}`;
      try {
        new RegExp(property, "u");
        return property;
      } catch {}
    }
    return this.fail(`\\p{${name}}`);
  }

  escaped(e: string): string {
    if (e === "x" || e === "u") {
      const digits = /^\{([0-9a-fA-F]+)\}|^[0-9a-fA-F]{2,4}/.exec(
        this.source.slice(this.at, this.at + (e === "x" ? 10 : 4)),
      );
      if (digits === null) this.fail(`\\${e}`);
      const hex = digits[1] ?? digits[0].slice(0, e === "x" ? 2 : 4);
      this.at += digits[1] === undefined ? hex.length : digits[0].length;
      return String.fromCodePoint(Number.parseInt(hex, 16));
    }
    const control = CONTROL[e];
    if (control !== undefined) return control;
    if (/[0-9a-zA-Z]/.test(e)) this.fail(`\\${e}`);
    return e;
  }

  /** A class, after its "[". */
  set(): string {
    const open = this.take("^") ? "[^" : "[";
    const sides: string[] = [];
    let members = "";
    let isFirst = true;
    for (;;) {
      if (this.at >= this.source.length) this.fail("a class without end");
      if (!isFirst && this.take("]")) break;
      if (this.take("&&")) {
        sides.push(members);
        members = "";
      } else if (this.take("[:")) {
        const name = /^(\^?)(\w+):\]/.exec(this.source.slice(this.at));
        if (name === null) this.fail("[:");
        this.at += name[0].length;
        // Only here does it hold symbols too.
        const isPunct = name[2] === "punct";
        const inner = isPunct ? String.raw`\p{P}\p{S}` : this.property(name[2] as string, false);
        members += name[1] === "^" ? `[^${inner}]` : inner;
      } else if (this.take("[")) {
        members += this.set();
      } else {
        members += this.member();
      }
      isFirst = false;
    }
    sides.push(members);
    return `${open}${sides.length === 1 ? members : sides.map((side) => `[${side}]`).join("&&")}]`;
  }

  /** One character, range or escape of a class. */
  member(): string {
    const single = (): string | { members: string } => {
      const c = this.next();
      if (c !== "\\") return c;
      const e = this.next();
      const members = this.classEscape(e, WORD);
      if (members !== null) return { members };
      return e === "b" ? "\b" : this.escaped(e);
    };
    const from = single();
    if (typeof from !== "string") return from.members;
    const first = from.codePointAt(0) as number;
    let last = first;
    if (/^-[^\]]/.test(this.source.slice(this.at, this.at + 2))) {
      const mark = this.at++;
      const to = single();
      if (typeof to === "string") last = to.codePointAt(0) as number;
      else this.at = mark;
    }
    if (last < first) this.fail(`the range ${from}-${String.fromCodePoint(last)}`);
    let out = first === last ? literal(first) : `${literal(first)}-${literal(last)}`;
    if (this.ignoreCase) {
      if (last - first > 0x500) this.fail("a long range that ignores case");
      for (let code = first; code <= last; code++) {
        for (const variant of caseVariants(code)) if (variant < first || variant > last) out += literal(variant);
      }
    }
    return out;
  }
}

/** The pattern as JavaScript's, with flags g and v. Throws an Error that names what it cannot spell. */
export function translatePattern(source: string): RegExp {
  const translator = new Translator(source);
  const out = translator.alternatives();
  if (translator.at < source.length) translator.fail("a parenthesis without beginning");
  return new RegExp(out, "gv");
}

export const escapeLiteral = (text: string) => Array.from(text, (c) => literal(c.codePointAt(0) as number)).join("");

/** The members of a class from a table of ranges. */
export function decodeRanges(table: string): [number, number][] {
  let at = 0;
  return table.split(" ").map((entry) => {
    const [gap = "0", extra = "0"] = entry.split("+");
    const first = at + Number.parseInt(gap, 36);
    at = first + Number.parseInt(extra, 36);
    return [first, at];
  });
}

export function classOf(table: string): string {
  const ranges = decodeRanges(table).map(([a, b]) => (a === b ? literal(a) : `${literal(a)}-${literal(b)}`));
  return `[${ranges.join("")}]`;
}

const later = new RegExp(`${classOf(UNASSIGNED)}|\u0295`, "gu");

/**
 * A text to match patterns on instead of this one: characters that Rust's Unicode version does not know stand as ones
 * that no version knows, in the same number of units.
 */
export function patternText(text: string): string {
  // U+0295 became a lower-case letter in Unicode 17; before, it was a letter without case as U+0294 is.
  if (!/[\u0295\u0378-\uffff]/.test(text)) return text;
  return text.replace(later, (c) => (c === "\u0295" ? "\u0294" : c.length === 1 ? "\ufdd0" : "\u{1fffe}"));
}
