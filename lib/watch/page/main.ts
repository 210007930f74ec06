// The page's beginning: controls, events from the server, and a drawing at most ten times a second.

import { Cards } from "./cards.js";
import { type Across, Charts } from "./charts.js";
import { byId, make, setText } from "./dom.js";
import { Store } from "./store.js";

/** Between drawings, at least; after a slow one longer, so that the page stays free for whoever uses it. Milliseconds. */
const FRAME = 100;
const SLOW = 4;
/** Ages and times left go on without news. Milliseconds. */
const TICK = 1000;

let timer: number | undefined;
let curvesChanged = false;
let frames = 0;
let cost = 0;
let drawnAt = Number.NEGATIVE_INFINITY;

const store = new Store((curves) => {
  curvesChanged ||= curves;
  schedule();
});
const charts = new Charts(byId("charts"), () => {
  curvesChanged = true;
  schedule();
});
const cards = new Cards(byId("runs"), (id, shown) => {
  const run = store.runs.get(id);
  if (run === undefined) return;
  run.shown = shown;
  charts.redraw();
});

function schedule(): void {
  // A page that nobody sees is drawn when it is seen again.
  if (timer !== undefined || document.hidden) return;
  const wait = Math.max(FRAME, SLOW * cost) - (performance.now() - drawnAt);
  timer = window.setTimeout(draw, Math.max(0, wait));
}

function draw(): void {
  timer = undefined;
  drawnAt = performance.now();
  const { runs } = store;
  cards.update(runs);
  showLink();
  byId("controls").hidden = runs.size === 0;
  byId("whole-range").hidden = charts.view.zoom === null;
  if (curvesChanged) {
    curvesChanged = false;
    charts.draw([...runs.values()]);
  }
  cost = performance.now() - drawnAt;
  document.body.dataset.frames = String(++frames);
  document.body.dataset.event = store.lastId;
}

let shownNotes = "";
function showLink(): void {
  const { link, runs, folders } = store;
  const count = `${runs.size} ${runs.size === 1 ? "run" : "runs"}`;
  const words = {
    connecting: "connecting",
    live: `live, ${count}`,
    lost: "the server does not answer: what is shown is from before (is longseq watch still at work?)",
  };
  setText(byId("link"), words[link]);
  document.body.dataset.link = link;
  const notes = runs.size === 0 && link === "live" ? [...store.notes, "waiting for a run"] : store.notes;
  const key = [...notes, ...folders].join("\n");
  if (key === shownNotes) return;
  shownNotes = key;
  byId("notes").replaceChildren(...notes.map((text) => make("li", { text })));
}

const input = (id: string) => byId<HTMLInputElement>(id);
input("smoothing").addEventListener("input", () => {
  setText(byId("smoothing-value"), input("smoothing").value);
  charts.set({ smoothing: Number(input("smoothing").value) });
});
byId("across").addEventListener("change", () => {
  charts.set({ across: byId<HTMLSelectElement>("across").value as Across, zoom: null });
});
byId("range").addEventListener("change", () => {
  charts.set({ share: Number(byId<HTMLSelectElement>("range").value), zoom: null });
});
input("log-x").addEventListener("change", () => charts.set({ logX: input("log-x").checked }));
byId("whole-range").addEventListener("click", () => charts.zoom(null));
document.addEventListener("visibilitychange", () => schedule());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  cards.forget();
  charts.forget();
});
// Browsers keep what a form had: the page begins as it is drawn.
byId<HTMLFormElement>("controls").reset();
byId("controls").addEventListener("submit", (event) => event.preventDefault());
setInterval(schedule, TICK);
schedule();
store.connect("events");
