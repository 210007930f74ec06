// Which chat templates come with a tokenizer, and which of them a row takes: as transformers finds and chooses them.

import fs from "node:fs";
import path from "node:path";
import { ConfigError, DataError } from "../errors.js";

/** Files that hold chat templates, beside tokenizer_config.json, and the folder of named ones. */
export const CHAT_TEMPLATE_FILES = ["chat_template.jinja", "chat_template.json"];
export const CHAT_TEMPLATE_FOLDER = "additional_chat_templates";

/** A template and where it stands. */
export interface NamedTemplate {
  source: string;
  /** A file, or a file and the key in it. */
  where: string;
}

/** By name; one without a name is "default". */
export type ChatTemplates = ReadonlyMap<string, NamedTemplate>;

/** Files of a folder's named templates, sorted. */
export function namedTemplateFiles(folder: string): string[] {
  const inner = path.join(folder, CHAT_TEMPLATE_FOLDER);
  if (!fs.existsSync(inner)) return [];
  return fs
    .readdirSync(inner)
    .filter((name) => name.endsWith(".jinja"))
    .sort()
    .map((name) => path.join(inner, name));
}

/** A template as a JSON file may hold it: a string, or a list of {name, template}. */
function held(value: unknown, where: string): Map<string, NamedTemplate> {
  if (typeof value === "string") return new Map([["default", { source: value, where }]]);
  const found = new Map<string, NamedTemplate>();
  if (!Array.isArray(value)) return found;
  for (const one of value as { name?: unknown; template?: unknown }[])
    if (typeof one?.name === "string" && typeof one.template === "string")
      found.set(one.name, { source: one.template, where: `${where} (${one.name})` });
  return found;
}

/**
 * Templates of a tokenizer's folder. Files come before tokenizer_config.json, which is not looked at where there are any;
 * chat_template.json is an old form of processors.
 */
export function findChatTemplates(
  folder: string,
  config: Readonly<Record<string, unknown>>,
  readJson: (file: string) => Record<string, unknown> | null,
): ChatTemplates {
  const found = new Map<string, NamedTemplate>();
  const take = (name: string, file: string) => {
    if (fs.existsSync(file)) found.set(name, { source: fs.readFileSync(file, "utf8"), where: file });
  };
  take("default", path.join(folder, "chat_template.jinja"));
  for (const file of namedTemplateFiles(folder)) take(path.basename(file, ".jinja"), file);
  if (found.size > 0) return found;
  const configured = held(config.chat_template, path.join(folder, "tokenizer_config.json"));
  if (configured.size > 0) return configured;
  const file = path.join(folder, "chat_template.json");
  return held(readJson(file)?.chat_template, file);
}

/**
 * The template that a configuration names: a file, else one of the tokenizer's. ConfigError where there is neither, or the
 * file cannot be read.
 */
export function givenTemplate(name: string, templates: ChatTemplates): NamedTemplate {
  const file = fs.statSync(name, { throwIfNoEntry: false });
  if (file?.isFile()) {
    try {
      return { source: new TextDecoder("utf-8", { fatal: true }).decode(fs.readFileSync(name)), where: name };
    } catch (error) {
      throw new ConfigError(`data.chat_template: ${name} cannot be read: ${(error as Error).message}`, { file: name });
    }
  }
  const named = templates.get(name);
  if (named !== undefined) return named;
  const known =
    templates.size === 0 ? "the tokenizer has no templates" : `the tokenizer has ${[...templates.keys()].join(", ")}`;
  throw new ConfigError(
    `data.chat_template: there is no file ${JSON.stringify(name)}, nor a template of this name (${known})`,
    {
      name,
    },
  );
}

/** The template of a row: tool_use where it has tools and there is one, else the default. DataError where none fits. */
export function chooseTemplate(templates: ChatTemplates, tools: boolean): NamedTemplate {
  const chosen = (tools ? templates.get("tool_use") : undefined) ?? templates.get("default");
  if (chosen !== undefined) return chosen;
  if (templates.size === 0)
    throw new DataError(
      "a messages row needs a chat template, and the tokenizer has none (chat_template in tokenizer_config.json, or a file chat_template.jinja beside it)",
    );
  throw new DataError(
    `the tokenizer has several chat templates (${[...templates.keys()].join(", ")}), but none is named default; ` +
      "name one so, or give data.chat_template",
  );
}
