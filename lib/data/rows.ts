// Training rows: bytes of one row, decoded strictly and checked; every error names FILE:LINE.

import { DataError, IoError } from "../errors.js";
import { JsonError, type JsonValue, parseJson } from "./json.js";
import { describe, parseTokens, TOKEN_FIELDS, type TokenRow } from "./token_fields.js";

/** One message of a conversation as it goes to the chat template: role, content and whatever else it has. */
export type ChatMessage = Map<string, JsonValue>;

export interface MessagesRow {
  kind: "messages";
  messages: ChatMessage[];
  tools: JsonValue[] | null;
  /** What the template sees beside them: `documents` and the row's chat_template_kwargs. */
  variables: Map<string, JsonValue>;
  /** Indices of messages that the loss leaves out, whatever their role. */
  untrained: number[];
  /** How many messages of the beginning are shown and not trained on: the prompt of a row of two lists. */
  shown: number;
}

export type Row =
  | { kind: "text"; text: string }
  | MessagesRow
  | { kind: "prompt"; prompt: string; completion: string }
  | ({ kind: "tokens" } & TokenRow);

/** A row, and what it holds that has no effect here although other tools give it one. */
export interface ParsedRow {
  row: Row;
  /** Phrases for the warning: columns in quotes, keys of messages. */
  unused: string[];
}

/** A DataError whose message begins with FILE:LINE. */
export function rowError(file: string, line: number, message: string, cause?: unknown): DataError {
  return new DataError(`${file}:${line}: ${message}`, { file, line }, cause === undefined ? undefined : { cause });
}

/** An operating system's refusal to read, as an IoError. */
export function readError(file: string, error: unknown): IoError {
  const { code, message } = error as NodeJS.ErrnoException;
  const what = code === "ENOENT" ? "there is no such file" : code === "EACCES" ? "permission denied" : message;
  return new IoError(`cannot read ${file}: ${what}`, { file }, { cause: error });
}

/** The offset of the first byte that is not well-formed UTF-8 (Unicode, table 3-7), or -1. */
export function invalidUtf8At(bytes: Uint8Array): number {
  let i = 0;
  while (i < bytes.length) {
    const lead = bytes[i] as number;
    if (lead < 0x80) {
      i++;
      continue;
    }
    const more =
      lead >= 0xc2 && lead <= 0xdf ? 1 : lead >= 0xe0 && lead <= 0xef ? 2 : lead >= 0xf0 && lead <= 0xf4 ? 3 : 0;
    if (more === 0) return i;
    for (let k = 1; k <= more; k++) {
      const byte = bytes[i + k];
      let low = 0x80;
      let high = 0xbf;
      if (k === 1) {
        if (lead === 0xe0) low = 0xa0;
        else if (lead === 0xed) high = 0x9f;
        else if (lead === 0xf0) low = 0x90;
        else if (lead === 0xf4) high = 0x8f;
      }
      if (byte === undefined || byte < low || byte > high) return i;
    }
    i += more + 1;
  }
  return -1;
}

const KINDS = "one of {text}, {messages}, {prompt, completion} or {input_ids, labels?}";
/** With the u flag, a whole pair is one code point outside this class. */
const LONE_SURROGATE = /\p{Surrogate}/u;
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Checks one string of a row: its type, that it is not empty, and that it is well-formed Unicode. */
function stringField(file: string, line: number, key: string, value: unknown, mayBeEmpty: boolean): string {
  if (typeof value !== "string") throw rowError(file, line, `"${key}" must be a string, not ${describe(value)}`);
  if (!mayBeEmpty && value === "") throw rowError(file, line, `"${key}" is empty`);
  if (LONE_SURROGATE.test(value)) {
    throw rowError(
      file,
      line,
      `"${key}" holds half of a surrogate pair (a \\ud800..\\udfff escape without its other half)`,
    );
  }
  return value;
}

/** Keys of a message by which other tools choose what is trained on; here they do not. */
const UNUSED_MESSAGE_KEYS = ["training", "train_on_turn", "train_detail", "loss", "loss_weight", "mask"];
/** Which roles are trained on is said for all rows. */
export const TRAIN_ELSEWHERE = '"train": true of messages that are not the assistant\'s';

/** Whether a message's `weight` or `train` says that its turn is trained on; null where it does not say. */
function trained(value: JsonValue | undefined, fail: (shown: string) => DataError): boolean | null {
  if (value === undefined || value === null) return null;
  if (value === true || value === 1n || value === 1) return true;
  if (value === false || value === 0n || value === 0) return false;
  throw fail(describe(value));
}

/** The messages of a list, and those of them that say that they are not trained on. */
function checkMessages(
  file: string,
  line: number,
  column: string,
  messages: JsonValue | undefined,
  unused: Set<string>,
) {
  if (!Array.isArray(messages)) throw rowError(file, line, `"${column}" must be a list, not ${describe(messages)}`);
  if (messages.length === 0) throw rowError(file, line, `"${column}" is empty`);
  const untrained: number[] = [];
  const checked = messages.map((message, i): ChatMessage => {
    if (!(message instanceof Map)) {
      throw rowError(file, line, `"${column}"[${i}] must be an object with role and content, not ${describe(message)}`);
    }
    const [role, content, calls] = ["role", "content", "tool_calls"].map((key) => message.get(key));
    if (typeof role !== "string" || role === "") {
      throw rowError(
        file,
        line,
        `"${column}"[${i}].role must be a string such as "user" or "assistant", not ${describe(role)}`,
      );
    }
    const hasCalls = Array.isArray(calls) && calls.length > 0;
    if (typeof content === "string") stringField(file, line, `${column}[${i}].content`, content, true);
    else if (!(Array.isArray(content) || ((content === null || content === undefined) && hasCalls))) {
      throw rowError(file, line, `"${column}"[${i}].content must be a string, not ${describe(content)}`);
    }
    const says = ["weight", "train"].map((key) =>
      trained(message.get(key), (shown) =>
        rowError(file, line, `"${column}"[${i}].${key} is ${shown}; it is 1 or 0: a turn is trained on or not`),
      ),
    );
    if (says.includes(false)) untrained.push(i);
    if (role !== "assistant" && says[1] === true) unused.add(TRAIN_ELSEWHERE);
    for (const key of UNUSED_MESSAGE_KEYS) {
      if (!isEmpty(message.get(key))) unused.add(`${JSON.stringify(key)} of messages`);
    }
    return message;
  });
  return { messages: checked, untrained };
}

/** Tools as a list, or as the JSON text of one, which is how tables keep them. */
function parseTools(file: string, line: number, tools: JsonValue): JsonValue[] | null {
  let list = tools;
  if (typeof tools === "string" && tools !== "") {
    try {
      list = parseJson(tools);
    } catch (error) {
      throw rowError(file, line, `"tools" is a text that is no JSON: ${(error as Error).message}`, error);
    }
  }
  if (list === null || list === "") return null;
  if (Array.isArray(list)) return list;
  throw rowError(file, line, `"tools" must be a list, or the JSON text of one, not ${describe(list)}`);
}

function parseMessages(file: string, line: number, row: Map<string, JsonValue>, unused: Set<string>): MessagesRow {
  let found: ReturnType<typeof checkMessages>;
  let shown = 0;
  if (row.has("messages") && row.get("messages") !== null) {
    found = checkMessages(file, line, "messages", row.get("messages"), unused);
  } else {
    // A conversation in two columns: what stands in the first is not trained on.
    const [prompt, completion] = ["prompt", "completion"].map((key) =>
      checkMessages(file, line, key, row.get(key), unused),
    ) as [typeof found, typeof found];
    shown = prompt.messages.length;
    const untrained = [...prompt.untrained, ...completion.untrained.map((i) => shown + i)];
    found = { messages: [...prompt.messages, ...completion.messages], untrained };
  }
  const optional = (key: string) => row.get(key) ?? null;
  const [tools, documents, extra] = [optional("tools"), optional("documents"), optional("chat_template_kwargs")];
  if (documents !== null && !Array.isArray(documents)) {
    throw rowError(file, line, `"documents" must be a list, not ${describe(documents)}`);
  }
  if (extra !== null && !(extra instanceof Map)) {
    throw rowError(file, line, `"chat_template_kwargs" must be an object, not ${describe(extra)}`);
  }
  const variables = new Map(extra ?? []);
  if (documents !== null) variables.set("documents", documents);
  return { kind: "messages", ...found, shown, tools: parseTools(file, line, tools), variables };
}

/** What a JsonError says, as the fault of a row. */
function jsonFault(file: string, line: number, text: string, error: JsonError): DataError {
  const { at } = error;
  const only = text.trim();
  const hint =
    only === "[" || only === "{"
      ? "; this looks like one JSON document over several lines, but each line must hold one whole row"
      : text.charCodeAt(at) === 0xfeff
        ? " (a byte order mark inside the file; were files joined?)"
        : "";
  const found = at >= text.length ? "the line ends" : error.message;
  return rowError(file, line, `invalid JSON at column ${at + 1}: ${found}${hint}`, error);
}

/** `parse` of the text. What JSON.parse refuses, which does not always say where, is told with the place parseJson finds. */
function orFault<T>(file: string, line: number, text: string, parse: (text: string) => T): T {
  try {
    return parse(text);
  } catch (error) {
    if (error instanceof JsonError) throw jsonFault(file, line, text, error);
    try {
      parseJson(text);
    } catch (found) {
      if (found instanceof JsonError) throw jsonFault(file, line, text, found);
    }
    throw rowError(file, line, `invalid JSON: ${(error as Error).message}`, error);
  }
}

/**
 * Columns that other tools give an effect which they do not have here: preferences, media, instructions in columns of
 * their own, weights, other masks. A row that has one with something in it is trained on without it, and the run says so.
 */
export const UNUSED_COLUMNS: ReadonlySet<string> = new Set([
  ...["chosen", "rejected", "label"],
  ...["image", "images", "audio", "audios", "video", "videos", "pixel_values"],
  ...["system", "system_prompt", "instruction", "input", "output", "response", "history"],
  ...["conversations", "conversation", "reasoning", "reasoning_content", "thinking"],
  ...["tools", "functions", "documents", "chat_template", "chat_template_kwargs", "add_generation_prompt"],
  ...["weight", "weights", "sample_weight", "loss_weight", "loss_weights", "train"],
  ...["mask", "prompt_mask", "response_mask", "label_mask", "special_tokens_mask", "length"],
  ...["cu_seqlens", "cu_seq_lens_q", "seq_lens", "sub_seq_lengths", "packed_seq_lengths"],
  ...["segment_ids", "sequence_ids", "document_ids", "input_pos"],
]);
/** Those that a messages row does use. */
const CHAT_COLUMNS = new Set(["tools", "documents", "chat_template_kwargs"]);

/** Columns by which a row is read. */
export const ROW_COLUMNS: ReadonlySet<string> = new Set([
  ...["text", "messages", "prompt", "completion", "input_ids"],
  ...TOKEN_FIELDS,
  ...CHAT_COLUMNS,
]);

const isEmpty = (value: unknown) =>
  value === null || value === undefined || value === "" || (Array.isArray(value) && value.length === 0);

/**
 * Decodes and checks one line. Columns that are null are absent. Keys that no row kind knows (an "id", a "source") are
 * passed over.
 * @param vocabSize V: ids of an input_ids row must lie below it; null checks only that they are not negative.
 * @param columns the file's names of columns, by ours; a column of our name that the file has itself gives way.
 * Every fault is a DataError that begins with FILE:LINE.
 */
export function parseRow(
  bytes: Uint8Array,
  file: string,
  line: number,
  vocabSize: number | null,
  columns: Readonly<Record<string, string>> | null = null,
): ParsedRow {
  let text: string;
  try {
    text = decoder.decode(bytes);
  } catch (error) {
    const at = invalidUtf8At(bytes);
    const shown = `0x${(bytes[at] as number).toString(16).padStart(2, "0")}`;
    throw rowError(file, line, `the line is not valid UTF-8: byte ${shown} at byte ${at + 1} of the line`, error);
  }
  const value = orFault(file, line, text, (text): unknown => JSON.parse(text));
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw rowError(file, line, `a row must be a JSON object, ${KINDS}, not ${describe(value)}`);
  }
  const object = renamed(value as Record<string, unknown>, columns);
  const has = (key: string) => Object.hasOwn(object, key) && object[key] !== null;
  const kinds = [
    ["text", has("text")],
    ["messages", has("messages")],
    ["prompt, completion", has("prompt") || has("completion")],
    ["input_ids", has("input_ids")],
  ].filter(([, present]) => present);
  if (kinds.length === 0) {
    const keys = Object.keys(object)
      .slice(0, 6)
      .map((key) => JSON.stringify(key) + (object[key] === null ? " (null)" : ""));
    throw rowError(
      file,
      line,
      `the row is none of the four kinds: ${KINDS}; its keys are ${keys.join(", ") || "none"}`,
    );
  }
  if (kinds.length > 1) {
    throw rowError(file, line, `the row has ${kinds.map(([kind]) => `{${kind}}`).join(" and ")}; it must be ${KINDS}`);
  }
  if (!has("input_ids")) {
    const stray = TOKEN_FIELDS.find(has);
    if (stray !== undefined) {
      throw rowError(file, line, `"${stray}" goes with "input_ids" only; here the tokens are made from the text`);
    }
  }
  const isChat = has("messages") || (Array.isArray(object.prompt) && Array.isArray(object.completion));
  const unused = new Set<string>();
  for (const key of Object.keys(object)) {
    if (!UNUSED_COLUMNS.has(key) || isEmpty(object[key])) continue;
    if (!(isChat && CHAT_COLUMNS.has(key))) unused.add(JSON.stringify(key));
  }
  const row = parseKind(object, has, file, line, text, vocabSize, unused, columns);
  return { row, unused: [...unused] };
}

/** A row under our names of columns. */
function renamed(
  row: Record<string, unknown>,
  columns: Readonly<Record<string, string>> | null,
): Record<string, unknown> {
  if (columns === null) return row;
  const theirs = new Set(Object.values(columns));
  const result = Object.fromEntries(Object.entries(row).filter(([name]) => !theirs.has(name)));
  for (const [name, their] of Object.entries(columns)) if (Object.hasOwn(row, their)) result[name] = row[their];
  return result;
}

function parseKind(
  object: Record<string, unknown>,
  has: (key: string) => boolean,
  file: string,
  line: number,
  text: string,
  vocabSize: number | null,
  unused: Set<string>,
  columns: Readonly<Record<string, string>> | null,
): Row {
  if (has("text")) return { kind: "text", text: stringField(file, line, "text", object.text, false) };
  if (has("messages") || (Array.isArray(object.prompt) && Array.isArray(object.completion))) {
    // What a template renders must keep its numbers' text and its keys' order.
    const exact = orFault(file, line, text, parseJson) as Map<string, JsonValue>;
    const row = columns === null ? exact : new Map(Object.entries(renamed(Object.fromEntries(exact), columns)));
    return parseMessages(file, line, row as Map<string, JsonValue>, unused);
  }
  if (has("input_ids")) {
    return { kind: "tokens", ...parseTokens(object, vocabSize, (message) => rowError(file, line, message)) };
  }
  for (const key of ["prompt", "completion"]) {
    if (!has(key)) {
      const other = key === "prompt" ? "completion" : "prompt";
      throw rowError(file, line, `the row has "${other}" but no "${key}"`);
    }
  }
  return {
    kind: "prompt",
    prompt: stringField(file, line, "prompt", object.prompt, true),
    completion: stringField(file, line, "completion", object.completion, false),
  };
}
