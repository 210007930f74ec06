// What goes wrong in a template, with the line it stands on.

/** A fault of a template, when it is compiled or rendered. */
export class TemplateError extends Error {
  /** Line of the template, from 1; 0 where it is not known yet. */
  line: number;
  constructor(message: string, line = 0) {
    super(message);
    this.line = line;
  }
}

/** The template took more than it was given: it may never end. */
export class LimitError extends TemplateError {}

export const fail = (message: string): never => {
  throw new TemplateError(message);
};
