// Elements of the page. Texts of runs reach it here and in no other way, and never as HTML.

/** A new element with a class and a text, put into `parent`. */
export function make<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  options: { into?: Element; class?: string; text?: string } = {},
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  if (options.class !== undefined) element.className = options.class;
  if (options.text !== undefined) element.textContent = options.text;
  options.into?.append(element);
  return element;
}

/** The element of the page's HTML with this id. */
export function byId<E extends HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no #${id}`);
  return element as E;
}

/** Sets a text that is not there already: equal ones cost no layout. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Colours of runs, in their order; names of variables of the style. */
const colours = ["blue", "orange", "aqua", "violet", "red", "green", "magenta", "yellow"];

/** The colour of the run with this number as CSS has it now, in light or dark. */
export function colourOf(run: number): string {
  return cssColour(colours[(run - 1) % colours.length] as string);
}

export function cssColour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
