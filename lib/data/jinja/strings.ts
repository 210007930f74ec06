// Methods of Python's str.

import { fail } from "./errors.js";
import { SPACE } from "./lexer.js";
import { isPlain, type Keywords, points, printable, Tuple, textLength, typeName, type Value } from "./values.js";

const spaces = new RegExp(`[${SPACE}]`);
const leading = new RegExp(`^[${SPACE}]+`);
const onlySpaces = new RegExp(`^[${SPACE}]+$`);
const runs = new RegExp(`[${SPACE}]+`);
/** What splitlines takes for the end of a line. */
const LINE_ENDS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029";
const lineEnd = new RegExp(`\r\n|[${LINE_ENDS}]`, "g");

/** Texts longer than this are not made. */
export const MOST_TEXT = 1 << 28;

export function repeated(value: string, times: bigint): string {
  if (times <= 0n || value === "") return "";
  if (BigInt(value.length) * times > BigInt(MOST_TEXT))
    fail(`a text of ${BigInt(value.length) * times} characters is too long`);
  return value.repeat(Number(times));
}

export function strip(value: string, chars: string | null, side: "both" | "left" | "right"): string {
  let found = value;
  if (chars === null) {
    if (side !== "right") found = found.replace(leading, "");
    // Backwards by hand: the pattern would look at every run of spaces.
    if (side !== "left") found = trimmedEnd(found, (c) => spaces.test(c));
    return found;
  }
  const set = new Set(points(chars));
  const all = points(value);
  let [begin, end] = [0, all.length];
  if (side !== "right") while (begin < end && set.has(all[begin] as string)) begin++;
  if (side !== "left") while (end > begin && set.has(all[end - 1] as string)) end--;
  return all.slice(begin, end).join("");
}

function trimmedEnd(value: string, drop: (c: string) => boolean): string {
  let end = value.length;
  while (end > 0 && drop(value[end - 1] as string)) end--;
  return value.slice(0, end);
}

export const splitLines = (value: string, keepEnds = false): string[] => {
  const lines: string[] = [];
  let at = 0;
  for (const { index, 0: end } of value.matchAll(lineEnd)) {
    lines.push(value.slice(at, keepEnds ? index + end.length : index));
    at = index + end.length;
  }
  if (at < value.length) lines.push(value.slice(at));
  return lines;
};

function split(value: string, separator: string | null, most: number, fromRight: boolean): string[] {
  if (separator === null) {
    const parts: string[] = [];
    let rest = fromRight ? strip(value, null, "right") : value.replace(leading, "");
    while (rest !== "") {
      const whole = fromRight ? new RegExp(`[^${SPACE}]+$`).exec(rest) : runs.exec(rest);
      if (most >= 0 && parts.length >= most) {
        // What is left stays as it is, but for the spaces on the side where the parts were taken.
        parts.push(rest);
        break;
      }
      if (fromRight) {
        parts.push((whole as RegExpExecArray)[0]);
        rest = strip(rest.slice(0, (whole as RegExpExecArray).index), null, "right");
      } else {
        if (whole === null) {
          parts.push(rest);
          break;
        }
        parts.push(rest.slice(0, whole.index));
        rest = rest.slice(whole.index + whole[0].length);
      }
    }
    return fromRight ? parts.reverse() : parts;
  }
  if (separator === "") return fail("empty separator");
  if (most < 0) return value.split(separator);
  const parts: string[] = [];
  let rest = value;
  while (parts.length < most) {
    const at = fromRight ? rest.lastIndexOf(separator) : rest.indexOf(separator);
    if (at < 0) break;
    parts.push(fromRight ? rest.slice(at + separator.length) : rest.slice(0, at));
    rest = fromRight ? rest.slice(0, at) : rest.slice(at + separator.length);
  }
  parts.push(rest);
  return fromRight ? parts.reverse() : parts;
}

export function replace(value: string, from: string, to: string, most: number): string {
  const times = most < 0 ? Number.POSITIVE_INFINITY : most;
  if (times === 0) return value;
  const pieces: string[] = [];
  let length = 0;
  const add = (piece: string) => {
    length += piece.length;
    if (length > MOST_TEXT) fail(`a text of more than ${MOST_TEXT} characters is too long`);
    pieces.push(piece);
  };
  if (from === "") {
    const all = points(value);
    let done = 0;
    for (const c of all) {
      if (done < times) add(to);
      done++;
      add(c);
    }
    if (done < times) add(to);
    return pieces.join("");
  }
  let at = 0;
  for (let done = 0; done < times; done++) {
    const next = value.indexOf(from, at);
    if (next < 0) break;
    add(value.slice(at, next));
    add(to);
    at = next + from.length;
  }
  add(value.slice(at));
  return pieces.join("");
}

/** Digraphs whose title case is neither their upper nor their lower case. */
const titleCase: Record<string, string> = {
  Ǆ: "ǅ",
  ǅ: "ǅ",
  ǆ: "ǅ",
  Ǉ: "ǈ",
  ǈ: "ǈ",
  ǉ: "ǈ",
  Ǌ: "ǋ",
  ǋ: "ǋ",
  ǌ: "ǋ",
  Ǳ: "ǲ",
  ǲ: "ǲ",
  ǳ: "ǲ",
};
const titled = (c: string): string => {
  const known = titleCase[c];
  if (known !== undefined) return known;
  const [first = "", ...rest] = points(c.toUpperCase());
  return first + rest.join("").toLowerCase();
};

const upper = (c: string) => /\p{Uppercase}/u.test(c);
const lower = (c: string) => /\p{Lowercase}/u.test(c);
const cased = (c: string) => upper(c) || lower(c) || /\p{Lt}/u.test(c);

export function capitalize(value: string): string {
  const [first = "", ...rest] = points(value);
  // Lowered as a whole, so that a final sigma is one.
  return titled(first) + `${first}${rest.join("")}`.toLowerCase().slice(first.toLowerCase().length);
}

function title(value: string): string {
  let shown = "";
  let within = false;
  for (const c of points(value)) {
    shown += within ? c.toLowerCase() : titled(c);
    within = cased(c);
  }
  return shown;
}

const swapCase = (value: string): string =>
  points(value)
    .map((c) => (upper(c) ? c.toLowerCase() : lower(c) ? c.toUpperCase() : c))
    .join("");

/** Whether it has a cased character and none of the other case. */
export const isLower = (value: string): boolean =>
  /\p{Lowercase}/u.test(value) && !/[\p{Uppercase}\p{Lt}]/u.test(value);
export const isUpper = (value: string): boolean =>
  /\p{Uppercase}/u.test(value) && !/[\p{Lowercase}\p{Lt}]/u.test(value);

function isTitle(value: string): boolean {
  let within = false;
  let any = false;
  for (const c of points(value)) {
    if (upper(c) || /\p{Lt}/u.test(c)) {
      if (within) return false;
      within = any = true;
    } else if (lower(c)) {
      if (!within) return false;
      any = true;
    } else within = false;
  }
  return any;
}

/** Digits beyond the decimal ones: superscripts, circled digits and the like. */
const otherDigit =
  /[\u00b2\u00b3\u00b9\u1369-\u1371\u19da\u2070\u2074-\u2079\u2080-\u2089\u2460-\u2468\u2474-\u247c\u2488-\u2490\u24ea\u24f5-\u24fd\u24ff\u2776-\u277e\u2780-\u2788\u278a-\u2792\u{10a40}-\u{10a43}\u{10e60}-\u{10e68}\u{11052}-\u{1105a}\u{1f100}-\u{1f10a}]/u;
const digit = (c: string) => /\p{Nd}/u.test(c) || otherDigit.test(c);
/** Ideographs that stand for numbers. */
const ideograph =
  /[\u3405\u3483\u382a\u3b4d\u4e00\u4e03\u4e07\u4e09\u4e24\u4e5d\u4e8c\u4e94\u4e96\u4ebf-\u4ec0\u4edf\u4ee8\u4f0d\u4f70\u5104\u5146\u5169\u516b\u516d\u5341\u5343-\u5345\u534c\u53c1-\u53c4\u56db\u58f1\u58f9\u5e7a\u5efe-\u5eff\u5f0c-\u5f0e\u5f10\u62fe\u634c\u67d2\u6f06\u7396\u767e\u8086\u842c\u8cae\u8cb3\u8d30\u9621\u9646\u964c\u9678\u96f6]/u;
const isNumeric = (c: string) => /\p{N}/u.test(c) || ideograph.test(c);
const alphabetic = (c: string) => /\p{L}/u.test(c);

const all = (value: string, test: (c: string) => boolean): boolean => value !== "" && points(value).every(test);

/** What a method does with its string; args are checked by `take`. */
type Method = (self: string, args: Arguments) => Value;

/** Arguments of a call by position or name. */
export class Arguments {
  readonly #name: string;
  readonly #args: readonly Value[];
  readonly #keywords: Keywords;
  #next = 0;
  readonly #used = new Set<string>();

  constructor(name: string, args: readonly Value[], keywords: Keywords) {
    this.#name = name;
    this.#args = args;
    this.#keywords = keywords;
  }

  /** The next one; undefined where it is not given. */
  take(name: string): Value | undefined {
    const at = this.#next++;
    if (this.#keywords.has(name)) {
      if (at < this.#args.length) fail(`${this.#name}() got multiple values for argument '${name}'`);
      this.#used.add(name);
      return this.#keywords.get(name);
    }
    return this.#args[at];
  }

  need(name: string): Value {
    const found = this.take(name);
    return found === undefined ? fail(`${this.#name}() missing required argument: '${name}'`) : found;
  }

  string(name: string): string {
    const found = this.need(name);
    return typeof found === "string"
      ? found
      : fail(`${this.#name}() argument '${name}' must be str, not ${typeName(found)}`);
  }

  integer(name: string, fallback: number): number {
    const found = this.take(name);
    if (found === undefined) return fallback;
    if (typeof found === "boolean") return found ? 1 : 0;
    if (typeof found !== "bigint") return fail(`'${typeName(found)}' object cannot be interpreted as an integer`);
    return Number(found);
  }

  /** All that were not taken, for what takes any. */
  rest(): { positional: readonly Value[]; keywords: Keywords } {
    const positional = this.#args.slice(this.#next);
    this.#next = this.#args.length;
    for (const name of this.#keywords.keys()) this.#used.add(name);
    return { positional, keywords: this.#keywords };
  }

  /** Throws where there are more than were taken. */
  end(): void {
    if (this.#args.length > this.#next)
      fail(`${this.#name}() takes at most ${this.#next} arguments (${this.#args.length} given)`);
    for (const name of this.#keywords.keys())
      if (!this.#used.has(name)) fail(`${this.#name}() got an unexpected keyword argument '${name}'`);
  }
}

const chars = (args: Arguments): string | null => {
  const given = args.take("chars");
  if (given === undefined || given === null) return null;
  return typeof given === "string" ? given : fail(`strip arg must be None or str, not ${typeName(given)}`);
};

/** self[start:end] by code points, and where it begins. */
function part(self: string, args: Arguments): { part: string; offset: number; valid: boolean } {
  const size = textLength(self);
  const bound = (name: string, fallback: number) => {
    const given = args.take(name);
    if (given === undefined || given === null) return fallback;
    if (typeof given !== "bigint") return fail("slice indices must be integers or None or have an __index__ method");
    const at = Number(given);
    return at < 0 ? Math.max(0, at + size) : at;
  };
  const start = bound("start", 0);
  const end = Math.min(bound("end", size), size);
  const slice =
    start === 0 && end === size
      ? self
      : isPlain(self)
        ? self.slice(start, end)
        : points(self).slice(start, end).join("");
  return { part: start > end ? "" : slice, offset: start, valid: start <= end && start <= size };
}

function find(self: string, args: Arguments, last: boolean): bigint {
  const wanted = args.string("sub");
  const { part: where, offset, valid } = part(self, args);
  if (!valid) return -1n;
  const at = last ? where.lastIndexOf(wanted) : where.indexOf(wanted);
  return at < 0 ? -1n : BigInt(offset + textLength(where.slice(0, at)));
}

function affix(self: string, args: Arguments, name: "startswith" | "endswith"): boolean {
  const given = args.need("prefix");
  const options = given instanceof Tuple ? given.items : [given];
  const { part: where, valid } = part(self, args);
  return options.some((option) => {
    if (typeof option !== "string")
      return fail(`${name} first arg must be str or a tuple of str, not ${typeName(option)}`);
    return valid && (name === "startswith" ? where.startsWith(option) : where.endsWith(option));
  });
}

function justify(self: string, args: Arguments, side: "left" | "right" | "both"): string {
  const width = args.integer("width", 0);
  const filler = args.take("fillchar") ?? " ";
  if (typeof filler !== "string" || textLength(filler) !== 1)
    return fail("The fill character must be exactly one character long");
  const room = width - textLength(self);
  if (room <= 0) return self;
  const pad = (count: number) => repeated(filler, BigInt(count));
  if (side === "left") return self + pad(room);
  if (side === "right") return pad(room) + self;
  const before = Math.floor(room / 2) + (room & width & 1);
  return pad(before) + self + pad(room - before);
}

function partition(self: string, args: Arguments, last: boolean): Tuple {
  const separator = args.string("sep");
  if (separator === "") return fail("empty separator");
  const at = last ? self.lastIndexOf(separator) : self.indexOf(separator);
  if (at < 0) return new Tuple(last ? ["", "", self] : [self, "", ""]);
  return new Tuple([self.slice(0, at), separator, self.slice(at + separator.length)]);
}

const splitMethod =
  (fromRight: boolean): Method =>
  (self, args) => {
    const separator = args.take("sep") ?? null;
    if (separator !== null && typeof separator !== "string")
      return fail(`must be str or None, not ${typeName(separator)}`);
    return split(self, separator, args.integer("maxsplit", -1), fromRight);
  };

const found = (name: string, at: bigint): bigint => (at < 0n ? fail(`ValueError: substring not found (${name})`) : at);

export const stringMethods: Record<string, Method> = {
  strip: (self, args) => strip(self, chars(args), "both"),
  lstrip: (self, args) => strip(self, chars(args), "left"),
  rstrip: (self, args) => strip(self, chars(args), "right"),
  split: splitMethod(false),
  rsplit: splitMethod(true),
  splitlines: (self, args) => splitLines(self, args.take("keepends") === true),
  partition: (self, args) => partition(self, args, false),
  rpartition: (self, args) => partition(self, args, true),
  upper: (self) => self.toUpperCase(),
  lower: (self) => self.toLowerCase(),
  casefold: (self) =>
    points(self)
      .map((c) => (c === "ı" ? c : c.toUpperCase().toLowerCase()).replaceAll("ς", "σ"))
      .join(""),
  capitalize,
  title,
  swapcase: swapCase,
  startswith: (self, args) => affix(self, args, "startswith"),
  endswith: (self, args) => affix(self, args, "endswith"),
  find: (self, args) => find(self, args, false),
  rfind: (self, args) => find(self, args, true),
  index: (self, args) => found("index", find(self, args, false)),
  rindex: (self, args) => found("rindex", find(self, args, true)),
  count: (self, args) => {
    const wanted = args.string("sub");
    const { part: where, valid } = part(self, args);
    if (!valid) return 0n;
    return BigInt(wanted === "" ? textLength(where) + 1 : where.split(wanted).length - 1);
  },
  replace: (self, args) => {
    const [from, to] = [args.string("old"), args.string("new")];
    return replace(self, from, to, args.integer("count", -1));
  },
  ljust: (self, args) => justify(self, args, "left"),
  rjust: (self, args) => justify(self, args, "right"),
  center: (self, args) => justify(self, args, "both"),
  zfill: (self, args) => {
    const width = args.integer("width", 0);
    const sign = /^[-+]/.test(self) ? (self[0] as string) : "";
    return sign + repeated("0", BigInt(Math.max(0, width - textLength(self)))) + self.slice(sign.length);
  },
  removeprefix: (self, args) => {
    const prefix = args.string("prefix");
    return self.startsWith(prefix) ? self.slice(prefix.length) : self;
  },
  removesuffix: (self, args) => {
    const suffix = args.string("suffix");
    return suffix !== "" && self.endsWith(suffix) ? self.slice(0, -suffix.length) : self;
  },
  expandtabs: (self, args) => {
    const size = args.integer("tabsize", 8);
    let column = 0;
    return points(self)
      .map((c) => {
        if (c === "\t") {
          const room = size > 0 ? size - (column % size) : 0;
          column += room;
          return " ".repeat(room);
        }
        column = c === "\n" || c === "\r" ? 0 : column + 1;
        return c;
      })
      .join("");
  },
  isalpha: (self) => all(self, alphabetic),
  isdecimal: (self) => all(self, (c) => /\p{Nd}/u.test(c)),
  isdigit: (self) => all(self, digit),
  isnumeric: (self) => all(self, isNumeric),
  isalnum: (self) => all(self, (c) => alphabetic(c) || isNumeric(c)),
  isspace: (self) => onlySpaces.test(self),
  islower: isLower,
  isupper: isUpper,
  istitle: isTitle,
  isascii: (self) => !/[^\0-\x7f]/.test(self),
  isprintable: (self) => points(self).every(printable),
  isidentifier: (self) => /^[\p{L}\p{Nl}_][\p{L}\p{Nl}\p{Nd}\p{Mn}\p{Mc}\p{Pc}]*$/u.test(self),
};
