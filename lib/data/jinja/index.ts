// Chat templates: jinja2 as transformers sets it up, with Python's values and texts.

import { compileTemplate } from "./evaluate.js";
import { parse } from "./parser.js";

export { LimitError, TemplateError } from "./errors.js";
export type { Limits, Rendered, Stretch, Template } from "./evaluate.js";
export { Callable, type Value } from "./values.js";

/** A template that can be rendered many times. Throws TemplateError with its line. */
export const compile = (source: string) => compileTemplate(parse(source));
