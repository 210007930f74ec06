// Small pictures for the documentation, as SVG: panels of stacked areas, or of lines, in colours that a colour-blind reader and a
// grey printer tell apart.

import { ticks } from "../lib/report/html_chart.js";

/** Paul Tol's "bright" and "vibrant" schemes, in an order whose neighbours differ in lightness. */
export const palette = [
  "#4477aa",
  "#ee8866",
  "#bbcc33",
  "#332288",
  "#99ddff",
  "#aa4499",
  "#228833",
  "#cc3311",
  "#bbbbbb",
] as const;

export interface Line {
  name: string;
  points: readonly (readonly [x: number, y: number])[];
  /** Between these two as a band: a confidence interval. */
  band?: readonly (readonly [x: number, low: number, high: number])[];
}

export interface Panel {
  title: string;
  /** Stacked one on the other, with a sample each at the same places; or lines. */
  areas?: { names: readonly string[]; at: readonly number[]; values: readonly (readonly number[])[] };
  lines?: readonly Line[];
}

export interface Picture {
  title: string;
  x: string;
  /** How values are written at the axes. */
  formatX: (value: number) => string;
  formatY: (value: number) => string;
  /** Y is bytes: round in powers of 1024. */
  bytes?: boolean;
  /** Of all panels, so that they can be compared; default: from 0 to the highest. */
  y?: readonly [low: number, high: number];
  /** Whether each panel has axes of its own; otherwise all have the same. */
  apart?: boolean;
  /** Axes that rise by factors. Lines alone; each of their points is marked. */
  log?: { x?: boolean; y?: boolean };
  panels: readonly Panel[];
}

/** Round numbers by factors of 10, or of 2 where there are few of those. */
function factors(low: number, high: number): number[] {
  for (const base of [10, 2]) {
    const from = Math.ceil(Math.log(low) / Math.log(base) - 1e-9);
    const to = Math.floor(Math.log(high) / Math.log(base) + 1e-9);
    const every = Math.ceil((to - from) / 8);
    if (to - from >= 2 || base === 2)
      return Array.from({ length: to - from + 1 }, (_, i) => base ** (from + i)).filter(
        (_, i) => every < 2 || i % every === 0,
      );
  }
  return [];
}

const [WIDTH, PANEL, LEFT, RIGHT, TOP, BETWEEN] = [900, 190, 90, 20, 46, 54];
const escape = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
const px = (value: number) => value.toFixed(1);

/** The picture as SVG. */
export function picture({ title, x, formatX, formatY, bytes, y, apart, log = {}, panels }: Picture): string {
  const names = [
    ...new Set(
      panels.flatMap(({ areas, lines }) => [...(areas?.names ?? []), ...(lines ?? []).map(({ name }) => name)]),
    ),
  ];
  const colour = (name: string) => palette[names.indexOf(name) % palette.length] as string;
  /** From where to where the axes of these go. */
  const axesOf = (shown: readonly Panel[]) => {
    const xs = shown.flatMap(({ areas, lines }) => [
      ...(areas?.at ?? []),
      ...(lines ?? []).flatMap(({ points }) => points.map(([at]) => at)),
    ]);
    const heights = shown.flatMap(({ areas, lines }) => [
      ...(areas?.at ?? []).map((_, i) => (areas?.values ?? []).reduce((sum, one) => sum + (one[i] as number), 0)),
      ...(lines ?? []).flatMap(({ points, band = [] }) => [
        ...points.map(([, at]) => at),
        ...band.map(([, , high]) => high),
      ]),
    ]);
    const [low, high] =
      y ?? (log.y ? [0.8 * Math.min(...heights), 1.25 * Math.max(...heights)] : [0, 1.05 * Math.max(...heights)]);
    return { left: Math.min(...xs), right: Math.max(...xs), low, high };
  };
  const shared = axesOf(panels);
  /** Where a value lies from the one end of an axis to the other. */
  const share = (value: number, from: number, to: number, byFactors = false) =>
    byFactors ? Math.log(value / from) / Math.log(to / from) : (value - from) / (to - from);
  const parts: string[] = [`<text x="${LEFT}" y="20" class="title">${escape(title)}</text>`];
  for (const [i, panel] of panels.entries()) {
    const { title: name, areas, lines } = panel;
    const { left, right, low, high } = apart ? axesOf([panel]) : shared;
    const atX = (value: number) => LEFT + share(value, left, right, log.x) * (WIDTH - LEFT - RIGHT);
    const top = TOP + i * (PANEL + BETWEEN);
    const atY = (value: number) => top + PANEL - share(value, low, high, log.y) * PANEL;
    parts.push(`<text x="${LEFT}" y="${top - 6}">${escape(name)}</text>`);
    for (const tick of log.y ? factors(low, high) : ticks(low, high, 5, bytes ? 1024 : 10)) {
      parts.push(`<path d="M${LEFT} ${px(atY(tick))}H${WIDTH - RIGHT}" stroke="#dddddd"/>`);
      parts.push(`<text x="${LEFT - 8}" y="${px(atY(tick) + 4)}" text-anchor="end">${escape(formatY(tick))}</text>`);
    }
    for (const tick of log.x ? factors(left, right) : ticks(left, right, 8))
      parts.push(
        `<text x="${px(atX(tick))}" y="${top + PANEL + 16}" text-anchor="middle">${escape(formatX(tick))}</text>`,
      );
    if (areas) {
      const base = areas.at.map(() => 0);
      areas.names.forEach((each, c) => {
        const upper = base.map((under, k) => under + (areas.values[c]?.[k] as number));
        // What is there stays until the next sample; where nothing changes nothing is written.
        const sampleX = (k: number) => px(atX(areas.at[k] as number));
        const end = upper.length - 1;
        const [over, under] = [upper, base].map((heights) => heights.map((value) => px(atY(value)))) as [
          string[],
          string[],
        ];
        let path = `M${sampleX(0)} ${over[0]}`;
        for (let k = 1; k <= end; k++) if (over[k] !== over[k - 1]) path += `H${sampleX(k)}V${over[k]}`;
        path += `H${sampleX(end)}V${under[end]}`;
        for (let k = end; k > 0; k--) if (under[k] !== under[k - 1]) path += `H${sampleX(k)}V${under[k - 1]}`;
        parts.push(`<path d="${path}H${sampleX(0)}Z" fill="${colour(each)}"/>`);
        for (const [k, value] of upper.entries()) base[k] = value;
      });
    }
    for (const { name: each, points, band } of lines ?? []) {
      if (band && band.length > 0) {
        const forth = band.map(([at, under]) => `${px(atX(at))} ${px(atY(under))}`);
        const back = band.toReversed().map(([at, , over]) => `${px(atX(at))} ${px(atY(over))}`);
        parts.push(`<path d="M${[...forth, ...back].join("L")}Z" fill="${colour(each)}" fill-opacity="0.25"/>`);
      }
      const path = points.map(([at, value]) => `${px(atX(at))} ${px(atY(value))}`).join("L");
      parts.push(`<path d="M${path}" fill="none" stroke="${colour(each)}" stroke-width="1.8"/>`);
      if (log.x || log.y)
        for (const [at, value] of points)
          parts.push(`<circle cx="${px(atX(at))}" cy="${px(atY(value))}" r="3" fill="${colour(each)}"/>`);
    }
    parts.push(`<path d="M${LEFT} ${top + PANEL}H${WIDTH - RIGHT}" stroke="#333333"/>`);
  }
  const bottom = TOP + panels.length * (PANEL + BETWEEN) - 8;
  parts.push(`<text x="${(LEFT + WIDTH - RIGHT) / 2}" y="${bottom}" text-anchor="middle">${escape(x)}</text>`);
  const perRow = 5;
  names.forEach((name, i) => {
    const [at, line] = [LEFT + (i % perRow) * 160, bottom + 22 + Math.floor(i / perRow) * 20];
    parts.push(`<rect x="${at}" y="${line - 11}" width="14" height="12" fill="${colour(name)}"/>`);
    parts.push(`<text x="${at + 20}" y="${line}">${escape(name)}</text>`);
  });
  const height = bottom + 22 + Math.ceil(names.length / perRow) * 20;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="12">` +
    `<title>${escape(title)}</title>` +
    `<style>.title{font-size:14px;font-weight:bold}</style><rect width="${WIDTH}" height="${height}" fill="#ffffff"/>` +
    `${parts.join("\n")}</svg>\n`
  );
}
