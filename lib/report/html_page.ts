// The fixed parts of a report's page: its style for light and dark, and its script for tooltips, zoom and steps.

/** Colours are variables, so that one drawing serves light and dark. */
export const palette = `
:root {
  color-scheme: light dark;
  --page: #f6f6f4; --card: #fff; --text: #1d1d1b; --soft: #62625d; --rule: #e3e2de; --accent: #2a78d6;
  --blue: #2a78d6; --aqua: #17a377; --yellow: #e39c00; --green: #007a00; --violet: #4a3aa7; --red: #dd4645;
  --magenta: #dd6f9a; --orange: #e5642f; --grey: #a3a29c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141413; --card: #1e1e1d; --text: #f1f0ec; --soft: #a9a8a1; --rule: #383835; --accent: #5a9cf0;
    --blue: #3987e5; --aqua: #199e70; --yellow: #c98500; --green: #3c9a3c; --violet: #9085e9; --red: #e66767;
    --magenta: #d55181; --orange: #d95926; --grey: #73726c;
  }
}
`;

export const style = `${palette}:root {
  --m-other: var(--grey); --m-params: var(--violet); --m-optimizer: var(--green); --m-grads: var(--magenta);
  --m-checkpoints: var(--yellow); --m-activations: var(--blue); --m-logits: var(--red); --m-comm: var(--orange);
  --m-workspace: var(--aqua);
  --op-0: var(--blue); --op-1: var(--orange); --op-2: var(--aqua); --op-3: var(--yellow); --op-4: var(--red);
  --op-5: var(--green); --op-6: var(--violet); --op-7: var(--magenta); --op-8: var(--grey);
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 2px; }
h3 { font-size: 15px; margin: 18px 0 2px; }
p { margin: 0 0 10px; }
header p, .about, footer { color: var(--soft); font-size: 13.5px; }
.about { max-width: 110ch; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px; margin-top: 16px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 16px; margin-top: 16px; }
.pair > * { min-width: 0; }
.pair > .card { margin-top: 0; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 4px 36px; align-items: start; }
.beside { display: grid; grid-template-columns: minmax(0, 1.7fr) minmax(0, 1fr); gap: 4px 36px; align-items: start; }
@media (max-width: 760px) { .beside { grid-template-columns: minmax(0, 1fr); } }
.tables > * { min-width: 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; color: var(--soft); }
td { overflow-wrap: anywhere; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; padding-right: 0; padding-left: 14px; }
table.numbers td { overflow-wrap: normal; white-space: nowrap; }
td i, .legend i, #tip i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
.legend i.dot { border-radius: 50%; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0 4px; padding: 0; font-size: 13px; color: var(--soft); }
svg.chart { display: block; width: 100%; height: auto; outline-offset: 2px; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .grid, svg .axis, svg .tick { stroke: var(--rule); stroke-width: 1; fill: none; }
svg .axis, svg .tick { stroke: var(--soft); opacity: .55; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .faint { stroke-width: 1; opacity: .4; }
svg .dots circle, svg .at { stroke: var(--card); stroke-width: 1.5; }
svg .peak { stroke: var(--text); stroke-width: 1.3; stroke-dasharray: 6 4; fill: none; }
svg .summit { fill: var(--text); stroke: var(--card); stroke-width: 1.5; }
svg text.peak-label { fill: var(--text); font-weight: 600; }
svg .heat { fill: var(--blue); }
svg .under { fill: var(--card); stroke: var(--rule); stroke-width: 1; }
svg text.on { fill: #fff; font-weight: 600; }
svg text.off { fill: var(--text); }
svg .cross { stroke: var(--text); opacity: .45; }
.scroll { overflow-x: auto; margin-top: 6px; padding-bottom: 4px; }
.waterfall { position: relative; min-width: 100%; }
.queue > span { position: sticky; left: 0; font-size: 13px; }
.queue small { color: var(--soft); font-size: 12px; margin-left: 4px; }
.queue svg { display: block; width: 100%; height: 36px; background: color-mix(in srgb, var(--rule) 45%, transparent); border-radius: 3px; margin-bottom: 6px; }
.queue rect.wide { stroke: var(--card); stroke-width: 1; vector-effect: non-scaling-stroke; }
.queue rect:hover { filter: brightness(1.2); }
.times { position: relative; height: 20px; font-size: 12px; color: var(--soft); font-variant-numeric: tabular-nums; overflow: hidden; }
.times { display: none; }
[data-zoom="0"] .times:nth-last-child(3), [data-zoom="1"] .times:nth-last-child(2), [data-zoom="2"] .times:last-child { display: block; }
.times span { position: absolute; padding-left: 4px; border-left: 1px solid var(--soft); white-space: nowrap; line-height: 16px; }
.bar { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; font-size: 13px; color: var(--soft); }
.bar button { font: inherit; color: var(--text); background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: 2px 10px; cursor: pointer; }
.bar button[aria-pressed=true] { border-color: var(--accent); color: var(--accent); font-weight: 600; }
.bar .gap { width: 16px; }
.none, .note { border-left: 3px solid var(--yellow); padding: 6px 12px; margin: 8px 0; background: color-mix(in srgb, var(--yellow) 9%, transparent); }
code { font: 13px ui-monospace, monospace; background: color-mix(in srgb, var(--rule) 60%, transparent); padding: 1px 5px; border-radius: 4px; }
#tip { position: fixed; z-index: 9; pointer-events: none; max-width: 340px; padding: 7px 10px; font-size: 13px; background: var(--card); color: var(--text); border: 1px solid var(--rule); border-radius: 7px; box-shadow: 0 3px 14px #0004; white-space: pre-line; font-variant-numeric: tabular-nums; }
#tip b { display: block; font-weight: 600; }
#tip div { display: flex; align-items: center; }
#tip div span { margin-left: auto; padding-left: 18px; }
footer { margin-top: 22px; }
@media print { .bar { display: none; } .card { break-inside: avoid; } }
`;

/** Without it everything is still there to read: all recorded steps below each other, and no tooltips. */
export const script = `
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const make = (name, text, parent) => {
    const element = document.createElement(name);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const place = (x, y) => {
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, x + 16 + width > innerWidth ? x - width - 16 : x + 16) + "px";
    tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - height - 6)) + "px";
  };
  const hide = () => { tip.hidden = true; };

  for (const svg of document.querySelectorAll("svg[data-hover]")) {
    const data = JSON.parse(svg.dataset.hover);
    const layer = document.createElementNS(svg.namespaceURI, "g");
    svg.append(layer);
    let index = -1;
    const show = (i, clientY) => {
      index = i;
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const x = data.x[i];
      layer.innerHTML = '<path class="cross" d="M' + x + " " + data.top + "V" + data.bottom + '"/>';
      tip.textContent = "";
      make("b", data.head[i], tip);
      for (const row of data.rows) {
        if (row.text[i] === "") continue;
        const line = make("div", "", tip);
        make("i", "", line).style.background = "var(--" + row.colour + ")";
        line.append(row.name);
        make("span", row.text[i], line);
        if (row.y[i] !== null)
          layer.innerHTML += '<circle class="at" r="4" cx="' + x + '" cy="' + row.y[i] + '" style="fill:var(--' + row.colour + ')"/>';
      }
      place(box.left + x * scale, clientY ?? box.top + box.height / 3);
    };
    const leave = () => { layer.textContent = ""; index = -1; hide(); };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      let low = 0;
      let high = data.x.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if ((data.x[middle] + data.x[middle + 1]) / 2 < x) low = middle + 1;
        else high = middle;
      }
      show(low, event.clientY);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") leave();
      if (move === undefined) return;
      event.preventDefault();
      show(Math.min(data.x.length - 1, Math.max(0, index + move)));
    });
  }

  for (const fall of document.querySelectorAll(".waterfall")) {
    fall.addEventListener("pointermove", (event) => {
      const text = event.target.dataset.tip;
      if (text === undefined) return hide();
      const [head, ...rest] = text.split("\\n");
      tip.textContent = "";
      make("b", head, tip);
      tip.append(rest.join("\\n"));
      place(event.clientX, event.clientY);
    });
    fall.addEventListener("pointerleave", hide);
  }

  const choice = (bar, label, names, chosen, choose) => {
    bar.append(label);
    const buttons = names.map((name, i) => {
      const button = make("button", name, bar);
      button.type = "button";
      button.addEventListener("click", () => pick(i));
      return button;
    });
    const pick = (i) => {
      buttons.forEach((button, j) => button.setAttribute("aria-pressed", i === j));
      choose(i);
    };
    pick(chosen);
  };
  for (const bar of document.querySelectorAll(".zoom")) {
    const scroll = bar.parentElement.querySelector(".scroll");
    const fall = scroll.firstElementChild;
    const factors = [1, 4, 16];
    choice(bar, "zoom ", factors.map((factor) => factor + "\\u00d7"), 0, (i) => {
      const middle = (scroll.scrollLeft + scroll.clientWidth / 2) / scroll.scrollWidth;
      fall.dataset.zoom = i;
      fall.style.width = factors[i] * 100 + "%";
      scroll.scrollLeft = middle * scroll.scrollWidth - scroll.clientWidth / 2;
    });
  }
  const traces = [...document.querySelectorAll("section.trace")];
  const steps = document.getElementById("steps");
  if (steps !== null && traces.length > 1)
    choice(steps, "recorded step ", traces.map((trace) => trace.dataset.step), traces.length - 1, (i) => {
      traces.forEach((trace, j) => { trace.hidden = i !== j; });
    });
})();
`;
