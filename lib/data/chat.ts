// Chat templates: renders a conversation and finds which characters of it the assistant wrote.

import { DataError, FormatError } from "../errors.js";
import { Callable, compile, type Rendered, TemplateError, type Value } from "./jinja/index.js";
import type { JsonValue } from "./json.js";
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

const strftimeNow = new Callable("strftime_now", ([format]) => {
  if (typeof format !== "string") throw new TemplateError("strftime_now() takes a format");
  return formatDate(format);
});

/** A text that stands for another one when it is asked what of a rendering depends on that. */
const PROBE = "longseq probe";

/** A compiled chat template. */
export class ChatTemplate {
  readonly #template: ReturnType<typeof compile>;
  readonly #where: string;

  /** where: the file or key that it is of, for messages. FormatError with its line where it cannot be parsed. */
  constructor(template: string, where = "the chat template") {
    this.#where = where;
    try {
      this.#template = compile(template);
    } catch (error) {
      if (!(error instanceof TemplateError)) throw error;
      throw new FormatError(
        `${where}:${error.line}: the chat template cannot be parsed: ${error.message}`,
        {},
        { cause: error },
      );
    }
  }

  #render(
    messages: readonly ChatMessage[],
    chat: ChatVariables,
    prompt: boolean,
    subjects?: ReadonlySet<Value>,
  ): Rendered {
    const variables = new Map<string, Value>([["strftime_now", strftimeNow], ...chat.variables]);
    variables.set("messages", messages as Value[]);
    variables.set("tools", chat.tools);
    variables.set("documents", chat.variables.get("documents") ?? null);
    variables.set("add_generation_prompt", prompt);
    return this.#template.render(variables, subjects && { subjects });
  }

  /** A conversation up to where the assistant answers. DataError (without a place) where the template refuses it. */
  prompt(messages: readonly ChatMessage[], chat: ChatVariables): string {
    return this.#attempt(() => this.#render(messages, chat, true)).text;
  }

  /**
   * Renders a conversation. The assistant's spans come from `{% generation %}` marks where the template has them. Else an
   * assistant message spans what its rendering adds to the rendering of the messages before it (with the generation
   * prompt). Where that is not the beginning of the whole rendering, because a template shows earlier messages otherwise
   * or wants a user first, it spans what the round of the template's loop over this message printed, without the
   * generation prompt at its beginning; that the message decides nothing outside this part is then checked.
   * Other messages, where they are `wanted`, span their content within what the round of the loop over them printed.
   * DataError (without a place) where the template refuses the messages or a part cannot be told.
   * @param wanted the messages whose spans are asked for; the assistant's where absent.
   */
  render(
    messages: readonly ChatMessage[],
    chat: ChatVariables,
    wanted: (i: number) => boolean = (i) => messages[i]?.get("role") === "assistant",
  ): RenderedChat {
    const whole = this.#attempt(() => this.#render(messages, chat, false, new Set<Value>(messages)));
    const all = [...messages.keys()];
    const assistants = all.filter((i) => messages[i]?.get("role") === "assistant");
    const others = all.filter((i) => wanted(i) && !assistants.includes(i));
    let found: RenderedChat;
    if (this.#template.marked) {
      found = this.#marked(whole, messages, assistants);
      if (found.turns === null) {
        if (others.length === 0 && assistants.every(wanted)) return found;
        if (all.some(wanted))
          throw new DataError(
            `${this.#where}: its {% generation %} marks do not tell which part is of which message, which must be known ` +
              "where some of the assistant's turns are wanted and others not, or those of other roles",
          );
        return { ...found, spans: [], turns: [] };
      }
    } else found = this.#unmarked(whole, messages, chat, assistants.filter(wanted));
    const turns = found.turns as number[];
    const spans = turns.flatMap((turn, i) => (wanted(turn) ? [{ turn, span: found.spans[i] as Span }] : []));
    spans.push(...others.map((turn) => ({ turn, span: this.#contentOf(whole, messages, turn) })));
    spans.sort((a, b) => a.span[0] - b.span[0] || a.span[1] - b.span[1]);
    return { ...found, spans: spans.map(({ span }) => span), turns: spans.map(({ turn }) => turn) };
  }

  /** Where the content of a message stands in what the loop over it printed. */
  #contentOf({ text, stretches, elsewhere }: Rendered, messages: readonly ChatMessage[], i: number): Span {
    const message = messages[i] as ChatMessage;
    const content = message.get("content");
    const rounds = stretches.filter(({ subject }) => subject === message).sort((a, b) => b.depth - a.depth);
    const parts = typeof content === "string" ? [content, content.trim()] : [];
    for (const { begin, end } of elsewhere ? [] : rounds) {
      const shown = text.slice(begin, end);
      for (const part of parts) {
        const at = shown.indexOf(part);
        if (at >= 0 && shown.indexOf(part, at + 1) < 0) return [begin + at, begin + at + part.length];
      }
    }
    throw new DataError(
      `${this.#where}: which part of the text messages[${i}] (${String(message.get("role"))}) is cannot be found: its content ` +
        "does not stand once in what the template's loop prints for it; train on the assistant's turns, or on all",
    );
  }

  /** What the assistant's messages span in a template without marks. */
  #unmarked(
    whole: Rendered,
    messages: readonly ChatMessage[],
    chat: ChatVariables,
    assistants: number[],
  ): RenderedChat {
    const { text } = whole;
    /** The rendering of the first `count` messages; null where the template refuses them. Not kept: all are quadratic. */
    const beginning = (count: number, prompt: boolean): string | null => {
      if (count === messages.length && !prompt) return text;
      try {
        return this.#render(messages.slice(0, count), chat, prompt).text;
      } catch (error) {
        if (!(error instanceof TemplateError)) throw error;
        return null;
      }
    };
    let found: string | undefined;
    const prompt = () => {
      found ??= promptOf(messages, text, beginning);
      return found;
    };
    const spans = assistants.map((i): Span => {
      const [before, after] = [beginning(i, true), beginning(i + 1, false)];
      if (before !== null && after !== null && text.startsWith(after) && after.startsWith(before))
        return [before.length, after.length];
      return this.#ofRound(whole, messages, chat, i, prompt);
    });
    return { text, spans, turns: assistants, marked: false };
  }

  #attempt<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      if (!(error instanceof TemplateError)) throw error;
      throw new DataError(
        `${this.#where}:${error.line}: the chat template failed: ${error.message}`,
        {},
        { cause: error },
      );
    }
  }

  #marked(whole: Rendered, messages: readonly ChatMessage[], assistants: number[]): RenderedChat {
    const { text, generations: spans, misplaced, stretches } = whole;
    if (misplaced)
      throw new DataError(
        `${this.#where}: a {% generation %} stands within a macro, a call or a captured block, whose text may come to stand ` +
          "anywhere; put it into the template's own text",
      );
    const turnOf = ([begin, end]: Span) => {
      const of = stretches.find((stretch) => stretch.begin <= begin && end <= stretch.end);
      return of === undefined ? -1 : messages.indexOf(of.subject as ChatMessage);
    };
    const turns = spans.map(turnOf);
    const known = turns.every((turn) => turn >= 0);
    return { text, spans, turns: known ? turns : spans.length === assistants.length ? assistants : null, marked: true };
  }

  /** The part of an assistant message by what the loop's round over it printed. */
  #ofRound(
    whole: Rendered,
    messages: readonly ChatMessage[],
    chat: ChatVariables,
    i: number,
    generationPrompt: () => string,
  ): Span {
    const { text, stretches, elsewhere } = whole;
    const refuse = (why: string): never => {
      throw new DataError(
        `${this.#where}: which part of the text messages[${i}] is cannot be found: the rendering of its beginning is no beginning ` +
          `of the whole, and ${why}; mark the part in the template with {% generation %} ... {% endgeneration %}`,
      );
    };
    const message = messages[i] as ChatMessage;
    if (elsewhere) refuse("the template loops over messages within a macro or a captured block");
    const rounds = stretches.filter(({ subject }) => subject === message);
    const printed = rounds.filter(({ begin, end }) => end > begin);
    // Of loops within each other the innermost one: what the others printed holds it. A message may print nothing.
    const round = printed.length > 0 ? printed.toSorted((a, b) => b.depth - a.depth)[0] : rounds.at(-1);
    if (round === undefined) return refuse("no loop over the messages prints it");
    if (printed.some(({ begin, end }) => begin > round.begin || end < round.end)) refuse("several loops print it");
    // What the message says may change nothing outside.
    const changed = new Map(message).set("content", PROBE);
    const others = messages.map((one, k) => (k === i ? changed : one));
    const again = this.#attempt(() => this.#render(others, chat, false)).text;
    const after = again.length - (text.length - round.end);
    if (!again.startsWith(text.slice(0, round.begin)) || !again.endsWith(text.slice(round.end)) || after < round.begin)
      refuse("its content shows outside of what the loop prints for it");
    if (printed.length === 0) return [round.begin, round.end];
    const shown = text.slice(round.begin, round.end);
    const prompt = generationPrompt();
    const header = headerOf(shown, again.slice(round.begin, after), prompt);
    if (header === null)
      return refuse(
        `what the loop prints for it, ${quoted(shown)}, does not begin with the generation prompt ${quoted(prompt)}`,
      );
    return [round.begin + header.length, round.end];
  }
}

/**
 * What stands in a round before what the assistant wrote; null where that is not known. shown: the round; probed: the
 * same with another content.
 */
function headerOf(shown: string, probed: string, prompt: string): string | null {
  if (shown.startsWith(prompt)) return prompt;
  // The first round may also print the text's first token or a system turn.
  const behind = probed.indexOf(prompt + PROBE);
  // A prompt may go on with what the content lacks, as the beginning of thoughts that are dropped from earlier turns.
  let shared = 0;
  while (shared < prompt.length && prompt[shared] === probed[shared]) shared++;
  const length = behind >= 0 ? behind + prompt.length : probed.startsWith(PROBE, shared) ? shared : 0;
  return length > 0 && shown.startsWith(probed.slice(0, length)) ? probed.slice(0, length) : null;
}

/** What the template ends with when the assistant is to speak: of any number of messages that it renders. */
function promptOf(
  messages: readonly ChatMessage[],
  text: string,
  beginning: (count: number, prompt: boolean) => string | null,
): string {
  for (let count = messages.length; count > 0; count--) {
    const [plain, prompted] = [count === messages.length ? text : beginning(count, false), beginning(count, true)];
    if (plain !== null && prompted?.startsWith(plain)) return prompted.slice(plain.length);
  }
  return "";
}

const quoted = (text: string): string => JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}...` : text);
