// Prompts: a text, a conversation or token ids, from arguments and from files, as the ids that the model reads.

import { readFileSync } from "node:fs";
import type { JsonValue } from "../data/json.js";
import { parseJson } from "../data/json.js";
import { type ChatMessage, parseRow, readError } from "../data/rows.js";
import { ConfigError, DataError } from "../errors.js";
import type { Speaker } from "./open.js";

export type Prompt =
  | { readonly kind: "text"; readonly text: string }
  | {
      readonly kind: "messages";
      readonly messages: readonly ChatMessage[];
      readonly tools: JsonValue[] | null;
      readonly variables: ReadonlyMap<string, JsonValue>;
    }
  | { readonly kind: "ids"; readonly ids: Int32Array };

/** A turn of a conversation. */
export const message = (role: string, content: string): ChatMessage =>
  new Map<string, JsonValue>([
    ["role", role],
    ["content", content],
  ]);

/** Turns that the assistant is to answer. */
export const conversation = (messages: readonly ChatMessage[]): Prompt => ({
  kind: "messages",
  messages,
  tools: null,
  variables: new Map(),
});

/**
 * Prompts of a file: of .jsonl each line, {prompt} or {text}, {messages} or {input_ids}; any other file is one prompt as
 * it is; "-" is standard input. Throws IoError, and DataError that begins with FILE:LINE.
 */
export function readPrompts(file: string, vocabSize: number): Prompt[] {
  let bytes: Buffer;
  try {
    bytes = readFileSync(file === "-" ? 0 : file);
  } catch (error) {
    const isFolder = (error as NodeJS.ErrnoException).code === "EISDIR";
    throw isFolder ? new ConfigError(`${file} is a folder; give a file`, { file }) : readError(file, error);
  }
  if (!/\.jsonl$/i.test(file)) {
    let text: string;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch (error) {
      throw new DataError(`${file} is not valid UTF-8`, { file }, { cause: error });
    }
    if (text === "") throw new DataError(`${file} is empty; expected a prompt`, { file });
    return [{ kind: "text", text }];
  }
  const prompts: Prompt[] = [];
  // Behind a byte order mark.
  let begin = bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? 3 : 0;
  for (let line = 1; begin < bytes.length; line++) {
    const end = bytes.indexOf(10, begin);
    const row = bytes.subarray(begin, end < 0 ? bytes.length : end);
    begin = end < 0 ? bytes.length : end + 1;
    if (row.toString("utf8").trim() !== "") prompts.push(promptOf(row, file, line, vocabSize));
  }
  if (prompts.length === 0) throw new DataError(`${file} has no rows`, { file });
  return prompts;
}

/** The prompt of a row. */
function promptOf(bytes: Uint8Array, file: string, line: number, vocabSize: number): Prompt {
  const alone = promptAlone(bytes, `${file}:${line}`);
  if (alone !== undefined) return { kind: "text", text: alone };
  const { row } = parseRow(bytes, file, line, vocabSize);
  switch (row.kind) {
    case "text":
      return { kind: "text", text: row.text };
    case "prompt":
      return { kind: "text", text: row.prompt };
    case "tokens":
      return { kind: "ids", ids: row.inputIds };
    case "messages":
      return { kind: "messages", messages: row.messages, tools: row.tools, variables: row.variables };
  }
}

/** A prompt whose completion is what is asked for; undefined: another kind of row, or one that parseRow refuses. */
function promptAlone(bytes: Uint8Array, where: string): string | undefined {
  let row: JsonValue;
  try {
    row = parseJson(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return undefined;
  }
  if (!(row instanceof Map) || !row.has("prompt")) return undefined;
  const others = ["completion", "messages", "text", "input_ids"].filter((key) => row.has(key));
  if (others.length > 0) return undefined;
  const prompt = row.get("prompt");
  if (typeof prompt === "string" && prompt !== "") return prompt;
  throw new DataError(
    `${where}: prompt is ${prompt === "" ? "empty" : Array.isArray(prompt) ? "a list" : `${prompt}`}; expected a text ` +
      "(a conversation goes into messages)",
    { prompt: String(prompt) },
  );
}

/** Ids that were written out: "1, 2, 3" or "1 2 3". Throws ConfigError. */
export function parseIds(text: string, vocabSize: number): Prompt {
  const words = text.split(/[\s,]+/).filter((word) => word !== "");
  const ids = words.map(Number);
  const wrong = words.find((word, i) => !/^\d+$/.test(word) || (ids[i] as number) >= vocabSize);
  if (wrong !== undefined || ids.length === 0)
    throw new ConfigError(
      `--ids: ${wrong === undefined ? "there are none" : `${JSON.stringify(wrong)} is no token of this model`}; expected ` +
        `whole numbers from 0 to ${vocabSize - 1}, separated by commas`,
    );
  return { kind: "ids", ids: Int32Array.from(ids) };
}

/**
 * The ids that the model reads. A text has the tokenizer's leading special tokens before it, a conversation is rendered
 * up to where the assistant answers, whose answer begins with `begin`. Throws ConfigError where the folder has no tokenizer, DataError for a prompt
 * without tokens or with one that the model does not have.
 */
export function encodePrompt({ tokenizer, model, folder, template }: Speaker, prompt: Prompt, begin = ""): Int32Array {
  if (prompt.kind === "ids") return prompt.ids;
  if (tokenizer === null)
    throw new ConfigError(
      `${folder} has no tokenizer.json, so a prompt must be token ids: --ids, or rows of {input_ids} in a file`,
      { path: folder },
    );
  let ids: Int32Array;
  if (prompt.kind === "text") {
    const own = tokenizer.encode(prompt.text + begin);
    const { prefixIds } = tokenizer;
    const has = prefixIds.every((id, i) => own[i] === id);
    ids = has ? own : Int32Array.of(...prefixIds, ...own);
  } else {
    const variables = new Map<string, JsonValue>([...Object.entries(tokenizer.specialTokens), ...prompt.variables]);
    const { tools } = prompt;
    ids = tokenizer.encode(template(tools !== null).prompt(prompt.messages, { tools, variables }) + begin);
  }
  const { vocabSize } = model.config;
  const beyond = ids.find((id) => id >= vocabSize);
  if (beyond !== undefined)
    throw new DataError(
      `the tokenizer gives id ${beyond} (${JSON.stringify(tokenizer.piece(beyond))}), but the model has ${vocabSize} tokens`,
      { id: beyond },
    );
  if (ids.length === 0)
    throw new DataError(
      "the prompt gives no tokens, and the tokenizer puts none before it; write at least a character",
    );
  return ids;
}
