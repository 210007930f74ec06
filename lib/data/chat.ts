// Chat templates: renders a conversation and finds which characters of it the assistant wrote.

import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { DataError, FormatError } from "../errors.js";
import { type JsonValue, plainJson } from "./json.js";
import type { ChatMessage } from "./rows.js";
import type { Span } from "./tokenizer.js";

/** What a template sees beside the messages. */
export interface ChatVariables {
  tools: JsonValue[] | null;
  /** Special tokens by name (bos_token, ...), `documents` and the row's chat_template_kwargs. */
  variables: ReadonlyMap<string, JsonValue>;
}

/** A rendered conversation and the assistant's stretches of it, ascending. */
export interface RenderedChat {
  text: string;
  spans: Span[];
  /** The message that each span is of; null: which ones they are of is not known. */
  turns: number[] | null;
  /** Whether the spans come from `{% generation %}` marks. */
  marked: boolean;
}

const MARK = /\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}/g;

/**
 * Makes each `{% generation %}` and `{% endgeneration %}` print a sentinel. The tag becomes two statements around one
 * expression, so that white-space control and the stripping of lines with only a tag act on it as on the tag itself.
 */
function instrument(template: string): { source: string; marked: boolean } {
  let marked = false;
  const source = template.replace(MARK, (_, left: string, end: string | undefined, right: string) => {
    marked = true;
    const name = end === undefined ? "longseq_generation_begins" : "longseq_generation_ends";
    return `{%${left === "+" ? "" : left} if true %}{{ ${name} }}{% endif ${right === "+" ? "" : right}%}`;
  });
  return { source, marked };
}

/** The date that `strftime_now` shows: fixed, so that tokens are a function of the data alone. */
const TEMPLATE_DATE = { year: 2024, month: 7, day: 26 };
const MONTHS = "January February March April May June July August September October November December".split(" ");

function formatDate(format: string): string {
  const { year, month, day } = TEMPLATE_DATE;
  const two = (n: number) => String(n).padStart(2, "0");
  const name = MONTHS[month - 1] as string;
  const parts: Record<string, string> = {
    Y: String(year),
    y: two(year % 100),
    m: two(month),
    d: two(day),
    B: name,
    b: name.slice(0, 3),
    h: name.slice(0, 3),
    A: "Friday",
    a: "Fri",
    H: "00",
    I: "12",
    M: "00",
    S: "00",
    p: "AM",
    j: "208",
    "%": "%",
    F: `${year}-${two(month)}-${two(day)}`,
    T: "00:00:00",
    Z: "UTC",
    z: "+0000",
  };
  return format.replace(/%-?([A-Za-z%])/g, (whole, c: string) => {
    const part = parts[c];
    return part === undefined ? whole : whole[1] === "-" ? part.replace(/^0(?=.)/, "") : part;
  });
}

/** A compiled chat template. */
export class ChatTemplate {
  readonly #program: ReturnType<typeof parse>;
  readonly #marked: boolean;

  /** FormatError where the template cannot be parsed. */
  constructor(template: string) {
    const { source, marked } = instrument(template);
    this.#marked = marked;
    try {
      this.#program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
    } catch (error) {
      throw new FormatError(`the chat template cannot be parsed: ${(error as Error).message}`, {}, { cause: error });
    }
  }

  #render(
    messages: readonly ChatMessage[],
    chat: ChatVariables,
    generationPrompt: boolean,
    marks: [string, string],
  ): string {
    const environment = new Environment();
    const set = (name: string, value: unknown) => environment.set(name, value);
    set("true", true);
    set("false", false);
    set("none", null);
    set("True", true);
    set("False", false);
    set("None", null);
    set("range", range);
    set("raise_exception", (message: unknown) => {
      throw new Error(String(message));
    });
    set("strftime_now", (format: unknown) => formatDate(String(format)));
    for (const [name, value] of chat.variables) set(name, plainJson(value));
    set("messages", messages.map(plainJson));
    set("tools", plainJson(chat.tools));
    set("add_generation_prompt", generationPrompt);
    set("longseq_generation_begins", marks[0]);
    set("longseq_generation_ends", marks[1]);
    const result = new Interpreter(environment).run(this.#program) as { value: unknown };
    return String(result.value);
  }

  /**
   * Renders a conversation. The assistant's spans come from `{% generation %}` marks where the template has them. Else
   * each assistant message spans what its rendering adds to the rendering of the messages before it (with the
   * generation prompt), which asks of the template that renderings of beginnings are beginnings of the rendering.
   * DataError (without a place) where the template refuses the messages or is not prefix-stable.
   */
  render(messages: readonly ChatMessage[], chat: ChatVariables): RenderedChat {
    const attempt = (count: number, prompt: boolean, marks: [string, string]) => {
      try {
        return this.#render(messages.slice(0, count), chat, prompt, marks);
      } catch (error) {
        const part =
          count === messages.length ? "" : ` on the first ${count} messages, which finding the assistant's part needs`;
        throw new DataError(`the chat template failed${part}: ${(error as Error).message}`, {}, { cause: error });
      }
    };
    if (this.#marked) {
      const { tools, variables } = chat;
      const marks = sentinels(
        JSON.stringify([messages.map(plainJson), plainJson(tools), plainJson(new Map(variables))]),
      );
      const found = splitMarks(attempt(messages.length, false, marks), marks);
      const assistants = [...messages.keys()].filter((i) => messages[i]?.get("role") === "assistant");
      return { ...found, turns: found.spans.length === assistants.length ? assistants : null, marked: true };
    }
    const none: [string, string] = ["", ""];
    const text = attempt(messages.length, false, none);
    const spans: Span[] = [];
    const turns: number[] = [];
    for (let i = 0; i < messages.length; i++) {
      if (messages[i]?.get("role") !== "assistant") continue;
      const before = attempt(i, true, none);
      const after = i + 1 === messages.length ? text : attempt(i + 1, false, none);
      if (!text.startsWith(after) || !after.startsWith(before)) {
        const at = commonPrefix(text, text.startsWith(after) ? before : after);
        throw new DataError(
          `the chat template is not prefix-stable: at character ${at} the rendering of messages[${i}] depends on what comes after it, ` +
            "so the assistant's part cannot be found; mark it in the template with {% generation %} ... {% endgeneration %}",
        );
      }
      spans.push([before.length, after.length]);
      turns.push(i);
    }
    return { text, spans, turns, marked: false };
  }
}

function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop];
  if (step === 0) throw new Error("range() step must not be zero");
  const values: number[] = [];
  for (let value = from; step > 0 ? value < to : value > to; value += step) values.push(value);
  return values;
}

function commonPrefix(a: string, b: string): number {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

/** Two strings that the conversation does not contain, so that what they mark is unambiguous. */
function sentinels(content: string): [string, string] {
  for (let n = 0; ; n++) {
    const begin = `\uE000${n}\uE001`;
    const end = `\uE002${n}\uE001`;
    if (!content.includes(begin) && !content.includes(end)) return [begin, end];
  }
}

function splitMarks(rendered: string, [begin, end]: [string, string]): { text: string; spans: Span[] } {
  let text = "";
  const spans: Span[] = [];
  let at = 0;
  for (;;) {
    const from = rendered.indexOf(begin, at);
    if (from < 0) break;
    const to = rendered.indexOf(end, from);
    if (to < 0) throw new DataError("the chat template has a {% generation %} without its {% endgeneration %}");
    text += rendered.slice(at, from);
    const start = text.length;
    text += rendered.slice(from + begin.length, to);
    if (text.length > start) spans.push([start, text.length]);
    at = to + end.length;
  }
  return { text: text + rendered.slice(at), spans };
}
