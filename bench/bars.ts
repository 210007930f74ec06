// Bars for the documentation, as SVG: groups of them, one below the other, with their values behind them.
import { palette } from "./picture.js";

export interface Bars {
  title: string;
  /** What the bars of a group are, in their order. */
  names: readonly string[];
  groups: readonly { label: string; values: readonly number[] }[];
  format: (value: number) => string;
  /** By factors, from this value on. */
  from?: number;
}

const [WIDTH, LEFT, RIGHT, TOP, BAR, GAP] = [900, 230, 110, 66, 14, 10];
const escape = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

/** The picture as SVG. */
export function bars({ title, names, groups, format, from }: Bars): string {
  const most = Math.max(...groups.flatMap(({ values }) => values));
  const share = (value: number) =>
    from === undefined ? value / most : Math.log(Math.max(value, from) / from) / Math.log(most / from);
  const parts = [`<text x="16" y="20" class="title">${escape(title)}</text>`];
  names.forEach((name, i) => {
    const at = 16 + i * 200;
    parts.push(`<rect x="${at}" y="34" width="14" height="12" fill="${palette[i % palette.length]}"/>`);
    parts.push(`<text x="${at + 20}" y="45">${escape(name)}</text>`);
  });
  let y = TOP;
  for (const { label, values } of groups) {
    const height = values.length * BAR;
    parts.push(`<text x="${LEFT - 8}" y="${y + height / 2 + 4}" text-anchor="end">${escape(label)}</text>`);
    for (const [i, value] of values.entries()) {
      const width = (share(value) * (WIDTH - LEFT - RIGHT)).toFixed(1);
      parts.push(
        `<rect x="${LEFT}" y="${y + 1}" width="${width}" height="${BAR - 2}" fill="${palette[i % palette.length]}"/>`,
      );
      parts.push(`<text x="${LEFT + Number(width) + 6}" y="${y + BAR - 3}">${escape(format(value))}</text>`);
      y += BAR;
    }
    y += GAP;
  }
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y}" font-family="sans-serif" font-size="12">` +
    `<title>${escape(title)}</title><style>.title{font-size:14px;font-weight:bold}</style>` +
    `<rect width="${WIDTH}" height="${y}" fill="#ffffff"/>${parts.join("\n")}</svg>\n`
  );
}
