// The fixed parts of the page: its HTML and its style. All that comes from runs is put in by scripts, as text.

import { palette } from "../report/html_page.js";

/** Where the scripts find uPlot; the server allows these very bytes by their hash. */
export const importMap = '{"imports":{"uplot":"./uplot.js"}}';

export const pageHtml = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>longseq watch</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="uplot.css">
<link rel="stylesheet" href="watch.css">
<script type="importmap">${importMap}</script>
<script type="module" src="watch/page/main.js"></script>
</head>
<body>
<header>
<h1>longseq watch</h1>
<p id="link" role="status">connecting</p>
</header>
<main>
<ul id="notes"></ul>
<section id="runs" aria-label="Runs"></section>
<form id="controls" hidden>
<label>Smoothing <input id="smoothing" type="range" min="0" max="0.99" step="0.01" value="0"><output id="smoothing-value">0</output></label>
<label>Across <select id="across"><option value="step">steps</option><option value="totalTokens">tokens</option><option value="totalSeconds">training time</option></select></label>
<label>Show <select id="range"><option value="1">all</option><option value="0.5">the last half</option><option value="0.1">the last tenth</option><option value="0.01">the last hundredth</option></select></label>
<label><input id="log-x" type="checkbox"> logarithmic across</label>
<button id="whole-range" type="button" hidden>whole range</button>
</form>
<section id="charts" aria-label="Curves"></section>
</main>
<footer><p>Drag across a curve to look closer, double-click for the whole range. Points that stand for several steps show their mean; gradient norm and memory their peak.</p></footer>
<noscript><p>This page draws with JavaScript, which is off.</p></noscript>
</body>
</html>
`;

export const style = `${palette}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
header, main, footer { max-width: 1500px; margin: 0 auto; padding: 0 16px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 16px; padding-top: 14px; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
p { margin: 0; }
header p, footer { color: var(--soft); font-size: 13px; }
footer { padding-bottom: 24px; margin-top: 14px; }
#notes { list-style: none; margin: 8px 0 0; padding: 0; }
#notes li, .remarks li { overflow-wrap: anywhere; }
#notes li { border-left: 3px solid var(--yellow); padding: 4px 10px; margin-bottom: 4px; font-size: 14px; }
#runs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 12px; margin-top: 10px; align-items: start; }
#charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); gap: 12px; margin-top: 12px; }
.card { min-width: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 10px 12px; }
.head { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; }
.head h2 { flex: 1 1 auto; min-width: 0; }
.head label { display: flex; align-items: center; gap: 8px; min-width: 0; flex: 1; }
.dot { width: 11px; height: 11px; border-radius: 50%; flex: none; }
.state { font-size: 12.5px; padding: 1px 8px; border-radius: 9px; border: 1px solid var(--rule); white-space: nowrap; }
.state[data-state=running] { border-color: var(--green); color: var(--green); }
.state[data-state=finished] { border-color: var(--accent); color: var(--accent); }
.state[data-state=stopped] { border-color: var(--red); color: var(--red); }
.state[data-state=quiet] { border-color: var(--yellow); }
.path, .soft { color: var(--soft); font-size: 12.5px; overflow-wrap: anywhere; }
progress { display: block; width: 100%; height: 8px; margin: 4px 0 2px; accent-color: var(--accent); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: 4px 10px; margin: 6px 0 2px; }
.figures div { min-width: 0; }
.figures dt { color: var(--soft); font-size: 12px; }
.figures dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
details { font-size: 13px; margin-top: 4px; }
summary { cursor: pointer; }
.warnings summary { color: var(--red); }
details ul { margin: 2px 0; padding-left: 18px; max-height: 12em; overflow: auto; }
details li { overflow-wrap: anywhere; white-space: pre-wrap; }
table.ranks { border-collapse: collapse; width: 100%; font-size: 12.5px; font-variant-numeric: tabular-nums; }
table.ranks th, table.ranks td { text-align: right; padding: 1px 0 1px 6px; font-weight: 400; white-space: nowrap; }
table.ranks th { color: var(--soft); }
table.ranks .most { color: var(--red); font-weight: 600; }
.ranks-box { max-height: 15em; overflow: auto; }
#controls { display: flex; flex-wrap: wrap; gap: 6px 18px; align-items: center; margin-top: 12px; font-size: 13.5px; }
#controls label { display: flex; align-items: center; gap: 6px; }
#controls output { width: 2.6em; font-variant-numeric: tabular-nums; }
select, button { font: inherit; color: var(--text); background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: 2px 8px; }
.head button { font-size: 12px; padding: 0 7px; color: var(--soft); }
.head button[aria-pressed=true] { color: var(--accent); border-color: var(--accent); }
.plot { height: 230px; overflow: hidden; }
.readout { min-height: 1.4em; font-size: 12.5px; color: var(--soft); font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.readout b { font-weight: 600; }
.u-select { background: color-mix(in srgb, var(--accent) 18%, transparent); }
.u-cursor-x, .u-cursor-y { border-color: var(--soft) !important; }
@media (max-width: 640px) {
  header, main, footer { padding-left: 10px; padding-right: 10px; }
  #runs, #charts { grid-template-columns: minmax(0, 1fr); }
  .plot { height: 190px; }
}
`;
