// The drawings of a report as SVG text: lines over steps, stacked bytes through a step, and the waterfall of its queues.

import { formatBytes } from "./format.js";
import { escapeHtml } from "./html_parts.js";
import { type Block, blocksOf, categoryNames, type Hill, type OpKind, opKinds, type QueueUse } from "./html_trace.js";

/** Microseconds for people: "12.3 µs", "4.56 ms", "7.89 s". */
export function formatMicros(micros: number): string {
  const digits = (value: number) => (value >= 99.95 ? value.toFixed(0) : value.toFixed(value >= 9.995 ? 1 : 2));
  if (micros < 999.5) return `${digits(micros)} µs`;
  return micros < 999_500 ? `${digits(micros / 1e3)} ms` : `${digits(micros / 1e6)} s`;
}

/** Units of a drawing, about the pixels it gets on a wide screen, so that its text keeps its size. */
interface Size {
  width: number;
  height: number;
}
const margin = { left: 66, right: 14, top: 14, bottom: 40 };
/** Between the margins. */
const innerWidth = ({ width }: Size) => width - margin.left - margin.right;

/** A coordinate with one decimal. */
const px = (value: number) => String(Math.round(value * 10) / 10);

/** "50.0 MiB" as "50 MiB": ticks are round numbers. */
const short = (text: string) => text.replace(/(\.\d*?)0+(?!\d)/, "$1").replace(/\.(?!\d)/, "");

/** Round values that cover low to high in about `count` parts; `base` 1024 gives round sizes. */
export function ticks(low: number, high: number, count: number, base: 10 | 1024 = 10): number[] {
  const span = high - low;
  if (!(span > 0)) return [low];
  const unit = base === 1024 ? 1024 ** Math.max(0, Math.floor(Math.log(high) / Math.log(1024))) : 1;
  const raw = span / unit / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999) ?? 10) * power * unit;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(1, last - first + 1) }, (_, i) => (first + i) * step);
}

/** What the script in the page shows over a chart: a place, a head and a value of each row at every point. */
interface Hover {
  x: number[];
  head: string[];
  /** Colour, name, value and place (null: none) at each point. */
  rows: { colour: string; name: string; text: string[]; y: (number | null)[] }[];
}

const round = (value: number) => Math.round(value * 10) / 10;

function chart(label: string, { width, height }: Size, className: string, content: string, hover: Hover): string {
  const rows = hover.rows.map(({ y, ...row }) => ({
    ...row,
    y: y.map((value) => (value === null ? null : round(value))),
  }));
  const data = JSON.stringify({
    ...hover,
    x: hover.x.map(round),
    rows,
    top: margin.top,
    bottom: height - margin.bottom,
  });
  return (
    `<svg class="chart ${className}" viewBox="0 0 ${width} ${height}" role="img" tabindex="0" ` +
    `aria-label="${escapeHtml(label)}" data-hover="${escapeHtml(data)}">${content}</svg>`
  );
}

function axes(
  size: Size,
  y: { ticks: number[]; at: (value: number) => number; format: (value: number) => string },
  x: { ticks: number[]; at: (value: number) => number; format: (value: number) => string; name: string },
): string {
  const { width, height } = size;
  const bottom = height - margin.bottom;
  const parts = y.ticks.map(
    (value) =>
      `<path class="grid" d="M${margin.left} ${px(y.at(value))}H${width - margin.right}"/>` +
      `<text x="${margin.left - 8}" y="${px(y.at(value) + 4)}" text-anchor="end">${escapeHtml(short(y.format(value)))}</text>`,
  );
  for (const value of x.ticks)
    parts.push(
      `<path class="tick" d="M${px(x.at(value))} ${bottom}v5"/>` +
        `<text x="${px(x.at(value))}" y="${bottom + 18}" text-anchor="${
          x.at(value) > width - 24 ? "end" : "middle"
        }" dx="${x.at(value) > width - 24 ? margin.right - 2 : 0}">${escapeHtml(x.format(value))}</text>`,
    );
  parts.push(
    `<path class="axis" d="M${margin.left} ${bottom}H${width - margin.right}"/>`,
    `<text class="name" x="${px(margin.left + innerWidth(size) / 2)}" y="${height - 5}" text-anchor="middle">${escapeHtml(x.name)}</text>`,
  );
  return parts.join("");
}

/** A row of coloured names. */
export function legend(entries: readonly { name: string; colour: string; dots?: boolean; faint?: boolean }[]): string {
  return `<ul class="legend">${entries
    .map(
      ({ name, colour, dots, faint }) =>
        `<li><i${dots ? ' class="dot"' : ""} style="background:var(--${colour})${faint ? ";opacity:.4" : ""}"></i>${escapeHtml(name)}</li>`,
    )
    .join("")}</ul>`;
}

/** One line, or dots, over the steps; null leaves a gap. */
export interface Series {
  name: string;
  /** A CSS variable's name without its dashes. */
  colour: string;
  values: readonly (number | null)[];
  dots?: boolean;
  /** Behind a smoother line. */
  faint?: boolean;
}

export interface LineChart {
  label: string;
  /** Places along the axis, ascending. */
  steps: readonly number[];
  /** The axis below, where it is not that of steps. A logarithmic one has places above 0. */
  x?: { name: string; logarithmic: boolean; format: (value: number) => string; head: (i: number) => string };
  series: readonly Series[];
  format: (value: number) => string;
  /** Y starts at zero. */
  zero: boolean;
  /** Sizes have round ticks in powers of 1024. */
  bytes?: boolean;
}

/** Points a line has at most, about two a pixel of a wide screen; low and high of each stretch stay. */
const MOST_POINTS = 1500;

/** The points that are drawn: all, or of each stretch each series' lowest and highest, and every dot. */
function kept(series: readonly Series[], length: number): number[] {
  if (length <= MOST_POINTS) return Array.from({ length }, (_, i) => i);
  const keep = new Set([0, length - 1]);
  const stretch = Math.ceil((length * 2) / MOST_POINTS);
  for (const { values, dots } of series)
    for (let from = 0; from < length; from += stretch) {
      let low = -1;
      let high = -1;
      for (let i = from; i < Math.min(length, from + stretch); i++) {
        const value = values[i];
        if (value === null || value === undefined) continue;
        if (dots) keep.add(i);
        if (low < 0 || value < (values[low] as number)) low = i;
        if (high < 0 || value > (values[high] as number)) high = i;
      }
      if (low >= 0) keep.add(low).add(high);
    }
  return [...keep].sort((a, b) => a - b);
}

/** Lines over steps with axes and hover data. */
export function lineChart({ label, steps, series, format, zero, bytes, x: axis }: LineChart): string {
  const size: Size = { width: 560, height: 240 };
  const inner = innerWidth(size);
  const bottom = size.height - margin.bottom;
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (const { values } of series)
    for (const value of values)
      if (value !== null) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
  if (low > high) return `<p class="none">${escapeHtml(label)}: no finite value to draw.</p>`;
  if (zero) low = 0;
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  high += pad;
  if (!zero) low -= pad;
  const [first, last] = [steps[0] as number, steps.at(-1) as number];
  const along = axis?.logarithmic ? Math.log2 : (value: number) => value;
  const [from, to] = [along(first), along(last)];
  const x = (step: number) =>
    to === from ? margin.left + inner / 2 : margin.left + ((along(step) - from) / (to - from)) * inner;
  const y = (value: number) => bottom - ((value - low) / (high - low)) * (bottom - margin.top);
  const points = kept(series, steps.length);
  const content = series.map(({ values, colour, dots, faint }) => {
    const marks: string[] = [];
    let path = "";
    let pen = false;
    points.forEach((i, order) => {
      const value = values[i] ?? null;
      if (value === null) {
        pen = false;
        return;
      }
      const at = `${px(x(steps[i] as number))} ${px(y(value))}`;
      const next = points[order + 1];
      const alone = !pen && (next === undefined || (values[next] ?? null) === null);
      if (dots || alone) marks.push(`<circle cx="${at.replace(" ", '" cy="')}" r="${dots ? 4 : 2.5}"/>`);
      if (!dots) path += `${pen ? "L" : "M"}${at}`;
      pen = true;
    });
    return (
      (path === "" ? "" : `<path class="line${faint ? " faint" : ""}" style="stroke:var(--${colour})" d="${path}"/>`) +
      (marks.length === 0 ? "" : `<g class="dots" style="fill:var(--${colour})">${marks.join("")}</g>`)
    );
  });
  // Of a logarithmic axis powers of 2, which lie evenly.
  const marks = axis?.logarithmic ? ticks(from, to, 8).map((power) => 2 ** power) : ticks(first, last, 8);
  const xTicks = marks.filter((value) => Number.isInteger(value) && value >= first);
  const frame = axes(
    size,
    { ticks: ticks(low, high, 5, bytes ? 1024 : 10), at: y, format },
    { ticks: xTicks.length > 0 ? xTicks : [first], at: x, format: axis?.format ?? String, name: axis?.name ?? "step" },
  );
  return chart(label, size, "lines", frame + content.join(""), {
    x: points.map((i) => x(steps[i] as number)),
    head: points.map((i) => axis?.head(i) ?? `step ${steps[i]}`),
    rows: series.map(({ name, colour, values, dots }) => {
      const at = points.map((i) => values[i] ?? null);
      return {
        colour,
        name,
        // A dot that is not there is no row; a line's is.
        text: at.map((value) => (value === null ? (dots ? "" : "none") : format(value))),
        y: at.map((value) => (value === null ? null : y(value))),
      };
    }),
  });
}

export interface HeatMap {
  label: string;
  columns: readonly string[];
  rows: readonly string[];
  /** By row and column: a value from 0 to 1, the text in the cell, and what it says when pointed at. */
  cells: readonly (readonly ({ value: number; text: string; tip: string } | null)[])[];
  /** Names of the axes. */
  x: string;
  y: string;
}

/** Cells whose share of blue grows with their value, the text in each, so that it reads in grey print as well. */
export function heatMap({ label, columns, rows, cells, x, y }: HeatMap): string {
  const [wide, high, left, top] = [Math.min(96, Math.max(52, 640 / columns.length)), 34, 64, 26];
  const [width, height] = [left + wide * columns.length + 8, top + high * rows.length + 22];
  const parts = columns.map(
    (name, c) =>
      `<text x="${px(left + (c + 0.5) * wide)}" y="${top - 8}" text-anchor="middle">${escapeHtml(name)}</text>`,
  );
  for (const [r, name] of rows.entries()) {
    const at = top + r * high;
    parts.push(`<text x="${left - 8}" y="${px(at + high / 2 + 4)}" text-anchor="end">${escapeHtml(name)}</text>`);
    for (const [c, cell] of (cells[r] ?? []).entries()) {
      if (cell === null) continue;
      const { value, text, tip } = cell;
      const place = `x="${px(left + c * wide + 1)}" y="${px(at + 1)}" width="${px(wide - 2)}" height="${high - 2}" rx="3"`;
      parts.push(
        `<rect class="under" ${place}/>` +
          `<rect class="heat" ${place} style="opacity:${(0.04 + 0.96 * value).toFixed(3)}" data-tip="${escapeHtml(tip)}"/>` +
          `<text class="${value > 0.5 ? "on" : "off"}" x="${px(left + (c + 0.5) * wide)}" y="${px(at + high / 2 + 4)}" ` +
          `text-anchor="middle">${escapeHtml(text)}</text>`,
      );
    }
  }
  parts.push(
    `<text class="name" x="${left - 8}" y="${top - 8}" text-anchor="end">${escapeHtml(y)}</text>`,
    `<text class="name" x="${px(left + (wide * columns.length) / 2)}" y="${height - 5}" text-anchor="middle">${escapeHtml(x)}</text>`,
  );
  return (
    `<svg class="chart heatmap" viewBox="0 0 ${px(width)} ${height}" style="max-width:${px(width * 1.2)}px" role="img" ` +
    `aria-label="${escapeHtml(label)}">${parts.join("")}</svg>`
  );
}

/**
 * Live bytes of one tier through a step, stacked by category, under a flat line at their peak. start, end: of the
 * step's waterfall, in microseconds.
 */
export function hillChart(hill: Hill, label: string, start: number, end: number): string {
  const size: Size = { width: 700, height: hill.tier === "device" ? 290 : 210 };
  const inner = innerWidth(size);
  const bottom = size.height - margin.bottom;
  const high = Math.max(1, hill.peak * 1.14);
  const span = Math.max(end - start, 1e-3);
  const x = (at: number) => margin.left + (Math.min(Math.max(at - start, 0), span) / span) * inner;
  const y = (bytes: number) => bottom - (bytes / high) * (bottom - margin.top);
  const right = px(margin.left + inner);
  const lower = hill.at.map(() => 0);
  const areas = hill.categories.map((category, c) => {
    const upper = hill.at.map((_, i) => (lower[i] as number) + (hill.live[c]?.[i] as number));
    // Bytes stay as they are until the next event, so the outline goes in steps, there and back.
    let path = `M${px(x(0))} ${px(y(upper[0] as number))}`;
    for (let i = 1; i < upper.length; i++) path += `H${px(x(hill.at[i] as number))}V${px(y(upper[i] as number))}`;
    path += `H${right}V${px(y(lower.at(-1) as number))}`;
    for (let i = upper.length - 1; i > 0; i--)
      path += `H${px(x(hill.at[i] as number))}V${px(y(lower[i - 1] as number))}`;
    path += `H${px(x(0))}Z`;
    for (const [i, value] of upper.entries()) lower[i] = value;
    return `<path class="area" data-category="${escapeHtml(category)}" style="fill:var(--${colourOf(category)})" d="${path}"/>`;
  });
  const peakY = px(y(hill.peak));
  const peakX = x(hill.at[hill.peakAt] as number);
  const early = peakX < margin.left + inner / 2;
  const flat =
    `<path class="peak" d="M${margin.left} ${peakY}H${right}"/>` +
    `<circle class="summit" cx="${px(peakX)}" cy="${peakY}" r="3.5"/>` +
    `<text class="peak-label" x="${early ? right : margin.left + 6}" y="${px(y(hill.peak) - 7)}" ` +
    `text-anchor="${early ? "end" : "start"}">peak ${escapeHtml(formatBytes(hill.peak))}</text>`;
  const frame = axes(
    size,
    { ticks: ticks(0, high, 5, 1024), at: y, format: formatBytes },
    {
      ticks: ticks(0, span, 6),
      at: (time) => x(start + time),
      format: (time) => short(formatMicros(time)),
      name: "time on the device",
    },
  );
  const total = hill.at.map((_, i) => hill.live.reduce((sum, bytes) => sum + (bytes[i] as number), 0));
  return chart(label, size, "hill", frame + areas.join("") + flat, {
    x: hill.at.map(x),
    head: hill.at.map((at, i) => (i === 0 ? "start of the step" : `at ${formatMicros(Math.max(0, at - start))}`)),
    rows: [
      { colour: "text", name: "total", text: total.map(formatBytes), y: total.map(y) },
      ...hill.categories
        .map((category, c) => ({
          colour: colourOf(category),
          name: category,
          text: (hill.live[c] as number[]).map((bytes) => (bytes === 0 ? "" : formatBytes(bytes))),
          y: hill.at.map(() => null),
        }))
        .reverse(),
    ],
  });
}

/** The colour variable of a memory category; unknown ones share one. */
export function colourOf(category: string): string {
  return (categoryNames as readonly string[]).includes(category) ? `m-${category}` : "m-other";
}

/** The colour variable of a kind of op. */
export function kindColour(kind: OpKind): string {
  return `op-${opKinds.indexOf(kind)}`;
}

/** Units across the waterfall, whatever its width on the screen. */
const UNITS = 10_000;

function blockText(block: Block, start: number): string {
  const names = [...block.names].sort((a, b) => b[1] - a[1]);
  const count = names.reduce((sum, [, times]) => sum + times, 0);
  const title =
    count === 1
      ? (names[0]?.[0] ?? "")
      : `${count} short ops: ${names
          .slice(0, 4)
          .map(([name, times]) => (times > 1 ? `${name} ×${times}` : name))
          .join(", ")}${names.length > 4 ? ", ..." : ""}`;
  const rate = block.flops > 0 && block.busy > 0 ? `\n${(block.flops / block.busy / 1e3).toFixed(1)} GFLOP/s` : "";
  return (
    `${title}\n${formatMicros(block.busy)}, from ${formatMicros(block.start - start)}` +
    `${block.bytes > 0 ? `\n${formatBytes(block.bytes)} read and written` : ""}${rate}`
  );
}

/** The ops of each queue over the time of a step; the page's script widens it. Times in microseconds. */
export function waterfall(queues: readonly QueueUse[], start: number, end: number): string {
  const span = Math.max(end - start, 1e-3);
  const rows = queues.map(({ queue, ops, busy }) => {
    const rects = blocksOf(ops, span / 2000).map((block) => {
      const x = ((block.start - start) / span) * UNITS;
      const wide = Math.max(((block.end - block.start) / span) * UNITS, 4);
      return (
        `<rect x="${px(x)}" width="${px(wide)}" y="0" height="10" style="fill:var(--${kindColour(block.kind)})"` +
        `${wide > 40 ? ' class="wide"' : ""} data-tip="${escapeHtml(blockText(block, start))}"/>`
      );
    });
    const share = `${((busy / span) * 100).toFixed(0)}% busy`;
    return (
      `<div class="queue" data-queue="${escapeHtml(queue)}"><span>${escapeHtml(queue)} <small>${share}</small></span>` +
      `<svg viewBox="0 0 ${UNITS} 10" preserveAspectRatio="none" role="img" ` +
      `aria-label="${escapeHtml(`${queue}: ${ops.length} ops, ${share}`)}">${rects.join("")}</svg></div>`
    );
  });
  // One set of marks for each zoom of the page's script; a mark's text stands to its right.
  const times = [8, 32, 128].map((count) => {
    const marks = ticks(0, span, count).filter((value) => value < span * (1 - 0.4 / count));
    return `<div class="times">${marks
      .map((value) => `<span style="left:${((value / span) * 100).toFixed(3)}%">${short(formatMicros(value))}</span>`)
      .join("")}</div>`;
  });
  return `<div class="scroll"><div class="waterfall" data-zoom="0">${rows.join("")}${times.join("")}</div></div>`;
}
