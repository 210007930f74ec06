// JSON as Python's json module reads it: integers and floats stay apart, keys keep their order, RFC 8259 and no more.

/** A parsed value: an integer is a bigint, a number with a fraction or an exponent is a number, an object a Map. */
export type JsonValue = null | boolean | bigint | number | string | JsonValue[] | Map<string, JsonValue>;

/** Deepest nesting of lists and objects: what is rendered or written from the values goes down by recursion. */
export const MAX_JSON_DEPTH = 500;
/** Python reads no integer of more digits either, and making one takes more than linear time. */
const MAX_DIGITS = 4300;

/** Where a text stops being JSON. */
export class JsonError extends Error {
  override readonly name = "JsonError";
  /** Index of the first character that cannot stand there; the text's length where it ends too early. */
  readonly at: number;

  constructor(text: string, at: number, reason?: string) {
    const found =
      at >= text.length ? "the text ends" : `unexpected ${JSON.stringify(String.fromCodePoint(codeAt(text, at)))}`;
    super(reason ?? found);
    this.at = at;
  }
}

const codeAt = (text: string, at: number) => text.codePointAt(at) as number;

// Each matches at lastIndex as far as the text is well formed.
const SPACE = /[ \t\n\r]*/y;
const PLAIN = /[ !#-[\]-\uffff]*/y;
const INTEGER = /-?(?:0|[1-9][0-9]*)?/y;
const FRACTION = /\.[0-9]*/y;
const EXPONENT = /[eE][+-]?[0-9]*/y;

const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

/**
 * Parses a whole text. Of equal keys in an object the last value counts, at the first one's place; 1e400 is Infinity.
 * JsonError with the place where the text is no JSON, nests deeper than MAX_JSON_DEPTH, or has an integer of more than
 * 4300 digits.
 */
export function parseJson(text: string): JsonValue {
  let i = 0;
  // An explicit stack; an object's pending key lies beside it.
  const stack: { holder: JsonValue[] | Map<string, JsonValue>; key: string }[] = [];
  let value: JsonValue = null;
  for (;;) {
    // A value begins here.
    take(SPACE);
    const c = text[i];
    if (c === "{" || c === "[") {
      if (stack.length === MAX_JSON_DEPTH) {
        throw new JsonError(text, i, `lists and objects nest more than ${MAX_JSON_DEPTH} deep`);
      }
      const holder: JsonValue[] | Map<string, JsonValue> = c === "{" ? new Map<string, JsonValue>() : [];
      i++;
      take(SPACE);
      if (text[i] !== (c === "{" ? "}" : "]")) {
        stack.push({ holder, key: c === "{" ? key() : "" });
        continue;
      }
      i++;
      value = holder;
    } else if (c === '"') value = string();
    else if (c === "t") value = word("true", true);
    else if (c === "f") value = word("false", false);
    else if (c === "n") value = word("null", null);
    else value = number();
    // A value has ended: it goes into what holds it, which may end with it.
    for (;;) {
      take(SPACE);
      const top = stack.at(-1);
      if (top === undefined) {
        if (i < text.length) throw new JsonError(text, i);
        return value;
      }
      const { holder } = top;
      if (Array.isArray(holder)) holder.push(value);
      else holder.set(top.key, value);
      if (text[i] === ",") {
        i++;
        if (!Array.isArray(holder)) top.key = key();
        break;
      }
      if (text[i] !== (Array.isArray(holder) ? "]" : "}")) throw new JsonError(text, i);
      i++;
      value = holder;
      stack.pop();
    }
  }

  function take(pattern: RegExp): string {
    pattern.lastIndex = i;
    const taken = pattern.exec(text)?.[0] ?? "";
    i += taken.length;
    return taken;
  }

  function word<T>(expected: string, meaning: T): T {
    for (const c of expected) {
      if (text[i] !== c) throw new JsonError(text, i);
      i++;
    }
    return meaning;
  }

  function string(): string {
    i++;
    let result = "";
    for (;;) {
      result += take(PLAIN);
      const c = text[i];
      if (c === '"') {
        i++;
        return result;
      }
      if (c !== "\\") throw new JsonError(text, i);
      i++;
      const escaped = text[i] ?? "";
      if (escaped === "u") {
        const begin = ++i;
        for (; i < begin + 4; i++) if (!/[0-9a-fA-F]/.test(text[i] ?? "")) throw new JsonError(text, i);
        result += String.fromCharCode(Number.parseInt(text.slice(begin, i), 16));
      } else {
        const meaning = Object.hasOwn(ESCAPES, escaped) ? ESCAPES[escaped] : undefined;
        if (meaning === undefined) throw new JsonError(text, i);
        result += meaning;
        i++;
      }
    }
  }

  function number(): bigint | number {
    const begin = i;
    const integer = take(INTEGER);
    if (integer === "" || integer === "-") throw new JsonError(text, i);
    const rest = take(FRACTION);
    if (rest === ".") throw new JsonError(text, i);
    const exponent = take(EXPONENT);
    if (exponent !== "" && !/[0-9]$/.test(exponent)) throw new JsonError(text, i);
    if (rest !== "" || exponent !== "") return Number(text.slice(begin, i));
    if (integer.length > MAX_DIGITS) throw new JsonError(text, begin, `an integer has more than ${MAX_DIGITS} digits`);
    return BigInt(integer);
  }

  function key(): string {
    take(SPACE);
    if (text[i] !== '"') throw new JsonError(text, i);
    const name = string();
    take(SPACE);
    if (text[i] !== ":") throw new JsonError(text, i);
    i++;
    return name;
  }
}

/** The same value as JSON.parse would give it, but for keys named __proto__, which are data here too. */
export function plainJson(value: JsonValue): unknown {
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plainJson);
  if (!(value instanceof Map)) return value;
  return Object.fromEntries(Array.from(value, ([key, inner]) => [key, plainJson(inner)]));
}

/** Where in `text` a JsonError points: ":3". */
export function lineOf(text: string, error: unknown): string {
  return error instanceof JsonError ? `:${text.slice(0, error.at).split("\n").length}` : "";
}
