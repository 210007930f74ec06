// Pieces of a report's page that its parts share: cards, tables of figures, numbers for people.

import { script, style } from "./html_page.js";

/** Text that is safe between tags and in quoted attributes. */
export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

/** 1234567 as "1,234,567". */
export const whole = (value: number): string => value.toLocaleString("en-US");

/** title, about and content are HTML. */
export function card(id: string, title: string, about: string, content: string): string {
  return `<section class="card" id="${id}"><h2>${title}</h2><p class="about">${about}</p>${content}</section>`;
}

/** A table whose columns but the first are numbers. Cells are HTML. */
export function numbers(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = (tag: string, row: readonly string[]) =>
    `<tr>${row.map((cell, i) => `<${tag}${i > 0 ? ' class="n"' : ""}>${cell}</${tag}>`).join("")}</tr>`;
  return `<table class="numbers">${cells("th", head)}${rows.map((row) => cells("td", row)).join("")}</table>`;
}

/** A page that needs nothing else. title is text, main and footer are HTML. */
export function page(title: string, main: string, footer: string): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>${escapeHtml(title)}</title>
<style>${style}</style>
</head>
<body>
<main>
${main}
<footer>${footer} Nothing in this page is loaded from elsewhere. Point at a drawing for its figures, or focus it and use the arrow keys.</footer>
</main>
<div id="tip" hidden></div>
<script>${script}</script>
</body>
</html>
`;
}
