// From a template's text to tokens, as jinja2 reads it with trim_blocks and lstrip_blocks.

import { TemplateError } from "./errors.js";

export type TokenType = "data" | "begin" | "end" | "name" | "string" | "int" | "float" | "op" | "eof";

/** begin, end: "{{", "{%" and "}}", "%}" as text. */
export interface Token {
  type: TokenType;
  text: string;
  line: number;
}

/** White space as Python's str and re have it. */
export const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const trailingSpace = new RegExp(`[${SPACE}]+$`);
const onlySpace = new RegExp(`^[${SPACE}]*$`);
const leadingSpace = new RegExp(`[${SPACE}]*`, "y");
const opening = /\{%|\{\{|\{#/g;
const rawTag = new RegExp(`\\{%[-+]?[${SPACE}]*raw[${SPACE}]*(-%\\}[${SPACE}]*|%\\})`, "y");
const endRaw = new RegExp(`\\{%([-+]?)[${SPACE}]*endraw[${SPACE}]*(\\+%\\}|-%\\}[${SPACE}]*|%\\}\\n?)`, "g");
const endComment = new RegExp(`\\+#\\}|-#\\}[${SPACE}]*|#\\}\\n?`, "g");
const endBlock = new RegExp(`\\+%\\}|-%\\}[${SPACE}]*|%\\}\\n?`, "y");
const endVariable = new RegExp(`-\\}\\}[${SPACE}]*|\\}\\}`, "y");
const float = /(?<!\.)(\d+_)*\d+((\.(\d+_)*\d+)?e[+-]?(\d+_)*\d+|\.(\d+_)*\d+)/iy;
const integer = /0b(_?[0-1])+|0o(_?[0-7])+|0x(_?[\da-f])+|[1-9](_?\d)*|0(_?0)*/iy;
const name = /[\p{L}\p{Nl}_][\p{L}\p{Nl}\p{Nd}\p{Mn}\p{Mc}\p{Pc}]*/uy;
const string = /'([^'\\]*(?:\\[\s\S][^'\\]*)*)'|"([^"\\]*(?:\\[\s\S][^"\\]*)*)"/y;
const operator = /\/\/|\*\*|==|!=|>=|<=|[-+*/~%[\](){}<>=.:|,;]/y;
const closing: Record<string, string> = { "{": "}", "(": ")", "[": "]" };

const newlines = (text: string): number => {
  let count = 0;
  for (let i = text.indexOf("\n"); i >= 0; i = text.indexOf("\n", i + 1)) count++;
  return count;
};

/** What a string literal stands for. */
function unescape(body: string, line: number): string {
  return body.replace(
    /\\(?:([0-7]{1,3})|x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|([\s\S]))/g,
    (whole, octal, x, u, big, c: string | undefined) => {
      if (octal !== undefined) return String.fromCharCode(Number.parseInt(octal, 8));
      const hex = x ?? u ?? big;
      if (hex !== undefined) {
        const code = Number.parseInt(hex, 16);
        if (code > 0x10ffff) throw new TemplateError("illegal Unicode character", line);
        return String.fromCodePoint(code);
      }
      const known: Record<string, string> = {
        "\n": "",
        "\\": "\\",
        "'": "'",
        '"': '"',
        a: "\x07",
        b: "\b",
        f: "\f",
        n: "\n",
        r: "\r",
        t: "\t",
        v: "\v",
      };
      if (c === "x" || c === "u" || c === "U") throw new TemplateError(`truncated \\${c} escape in a string`, line);
      if (c === "N") throw new TemplateError("\\N{...} escapes in strings are not supported", line);
      return known[c as string] ?? whole;
    },
  );
}

export function tokenize(template: string): Token[] {
  let source = template.replace(/\r\n?/g, "\n");
  if (source.endsWith("\n")) source = source.slice(0, -1);
  const tokens: Token[] = [];
  let at = 0;
  let line = 1;
  const match = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = at;
    return pattern.exec(source)?.[0];
  };
  const skip = (text: string) => {
    at += text.length;
    line += newlines(text);
  };
  /** Text before a tag, without what the tag's sign or lstrip_blocks takes from it. */
  const data = (text: string, sign: string, variable: boolean) => {
    let kept = text;
    if (sign === "-") kept = text.replace(trailingSpace, "");
    else if (sign !== "+" && !variable) {
      const begin = text.lastIndexOf("\n") + 1;
      const startsLine = begin > 0 || at === 0 || source[at - 1] === "\n";
      if (startsLine && onlySpace.test(text.slice(begin))) kept = text.slice(0, begin);
    }
    if (kept !== "") tokens.push({ type: "data", text: kept, line });
    skip(text);
  };

  for (;;) {
    opening.lastIndex = at;
    const found = opening.exec(source);
    if (found === null) {
      if (at < source.length) tokens.push({ type: "data", text: source.slice(at), line });
      break;
    }
    const tag = found[0];
    const before = source.slice(at, found.index);
    const sign = /[-+]/.test(source[found.index + 2] ?? "") ? (source[found.index + 2] as string) : "";
    rawTag.lastIndex = found.index;
    const raw = tag === "{%" ? rawTag.exec(source) : null;
    data(before, sign, tag === "{{");
    if (raw) {
      skip(raw[0]);
      endRaw.lastIndex = at;
      const end = endRaw.exec(source);
      if (end === null) throw new TemplateError("Missing end of raw directive", line);
      data(source.slice(at, end.index), end[1] as string, false);
      skip(end[0]);
      continue;
    }
    if (tag === "{#") {
      const begun = line;
      endComment.lastIndex = at + 2;
      const end = endComment.exec(source);
      if (end === null) throw new TemplateError("Missing end of comment tag", begun);
      skip(source.slice(at, end.index + end[0].length));
      continue;
    }
    tokens.push({ type: "begin", text: tag, line });
    skip(tag + sign);
    const end = tag === "{%" ? endBlock : endVariable;
    const open: string[] = [];
    for (;;) {
      skip(match(leadingSpace) ?? "");
      const ended = open.length === 0 ? match(end) : undefined;
      if (ended !== undefined) {
        tokens.push({ type: "end", text: tag === "{%" ? "%}" : "}}", line });
        skip(ended);
        break;
      }
      let text = match(float);
      let type: TokenType = "float";
      if (text === undefined) [text, type] = [match(integer), "int"];
      if (text === undefined) [text, type] = [match(name), "name"];
      if (text === undefined) [text, type] = [match(string), "string"];
      if (text === undefined) [text, type] = [match(operator), "op"];
      if (text === undefined) {
        if (at >= source.length)
          throw new TemplateError(`the template ends within a tag, expected ${tag === "{%" ? "%}" : "}}"}`, line);
        throw new TemplateError(`unexpected char ${JSON.stringify(source[at])}`, line);
      }
      if (type === "op") {
        if (text in closing) open.push(closing[text] as string);
        else if (text === ")" || text === "]" || text === "}") {
          const expected = open.pop();
          if (expected !== text)
            throw new TemplateError(`unexpected '${text}'${expected ? `, expected '${expected}'` : ""}`, line);
        }
      }
      tokens.push({ type, text: type === "string" ? unescape(text.slice(1, -1), line) : text, line });
      skip(text);
    }
  }
  tokens.push({ type: "eof", text: "", line });
  return tokens;
}
