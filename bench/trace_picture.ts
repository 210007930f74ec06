// Draws recorded steps as one picture for the documentation: a lane for each queue of each trace, coloured by kind of work.
//
//   npx tsx bench/trace_picture.ts TRACE.json [TRACE.json ...] --write PICTURE.svg [--from 0] [--to 1] [--title TEXT]
//
// from, to: which part of the first trace's step is shown, as fractions of its time. Traces of several ranks begin at
// their first op: each rank's clock is its own.
import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { blocksOf, type OpKind, opKinds, parseTrace, queueUse } from "../lib/report/html_trace.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    write: { type: "string" },
    from: { type: "string", default: "0" },
    to: { type: "string", default: "1" },
    title: { type: "string", default: "" },
  },
});
if (values.write === undefined || positionals.length === 0)
  throw new Error("usage: trace_picture.ts TRACE.json ... --write PICTURE.svg");

// Of a colour-blind-safe palette, light to dark enough to tell apart in grey.
const colours: Record<OpKind, string> = {
  "matrix products": "#4477aa",
  attention: "#ee8866",
  norms: "#bbcc33",
  elementwise: "#99ddff",
  "embedding and loss": "#aa4499",
  optimizer: "#332288",
  copies: "#228833",
  exchanges: "#cc3311",
  other: "#bbbbbb",
};
const [WIDTH, LEFT, LANE, GAP, TOP] = [1000, 120, 26, 6, 34];
const traces = positionals.map((path) => parseTrace(0, readFileSync(path, "utf8"), path));
const uses = traces.map(queueUse);
const span = (uses[0]?.end ?? 0) - (uses[0]?.start ?? 0);
const [from, to] = [Number(values.from) * span, Number(values.to) * span];
const scale = (WIDTH - LEFT - 10) / (to - from);
const escape = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

const parts: string[] = [];
const seen = new Set<OpKind>();
let y = TOP;
uses.forEach(({ queues, start }, rank) => {
  for (const { queue, ops } of queues) {
    const name = traces.length > 1 ? `rank ${rank}, ${queue}` : queue;
    parts.push(`<text x="${LEFT - 8}" y="${y + LANE * 0.68}" text-anchor="end">${escape(name)}</text>`);
    parts.push(`<rect x="${LEFT}" y="${y}" width="${WIDTH - LEFT - 10}" height="${LANE}" fill="#f4f4f4"/>`);
    for (const block of blocksOf(ops, (to - from) / 500)) {
      const [begin, end] = [Math.max(from, block.start - start), Math.min(to, block.end - start)];
      if (end <= begin) continue;
      seen.add(block.kind);
      const width = Math.max(0.4, (end - begin) * scale);
      const title = escape([...block.names].map(([op, count]) => (count > 1 ? `${op} x ${count}` : op)).join(", "));
      parts.push(
        `<rect x="${(LEFT + (begin - from) * scale).toFixed(1)}" y="${y + 2}" width="${width.toFixed(1)}" ` +
          `height="${LANE - 4}" fill="${colours[block.kind]}"><title>${title}</title></rect>`,
      );
    }
    y += LANE + GAP;
  }
  y += GAP;
});
const seconds = (microseconds: number) => `${(microseconds / 1e6).toFixed(2)} s`;
parts.push(`<text x="${LEFT}" y="${y + 12}">${seconds(from)}</text>`);
parts.push(`<text x="${WIDTH - 10}" y="${y + 12}" text-anchor="end">${seconds(to)}</text>`);
y += 26;
let x = LEFT;
for (const kind of opKinds) {
  if (!seen.has(kind)) continue;
  parts.push(`<rect x="${x}" y="${y}" width="12" height="12" fill="${colours[kind]}"/>`);
  parts.push(`<text x="${x + 17}" y="${y + 11}">${kind}</text>`);
  x += 34 + kind.length * 7;
}
writeFileSync(
  values.write,
  `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${y + 24}" viewBox="0 0 ${WIDTH} ${y + 24}" ` +
    `font-family="sans-serif" font-size="12" fill="#222">\n<title>${escape(values.title || "Queues of a step")}</title>\n<rect width="100%" height="100%" fill="#fff"/>\n` +
    `<text x="${LEFT}" y="20" font-size="14">${escape(values.title)}</text>\n${parts.join("\n")}\n</svg>\n`,
);
console.log(`${values.write}: ${traces.length} traces, ${seconds(to - from)} of ${seconds(span)}`);
