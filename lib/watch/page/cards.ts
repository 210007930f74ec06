// The cards of the runs, side by side: how each stands, where its step is, what it warned of, and its ranks.

import { formatBytes, formatDuration, formatLoss, formatSi } from "../../report/format.js";
import type { RanksInfo, RunInfo } from "../protocol.js";
import { colourOf, make, setText } from "./dom.js";
import type { PageRun } from "./store.js";

/** A rank stands out from this much above the lowest on. */
const STANDS_OUT = 1.05;

const stateNames = { running: "running", quiet: "no news", stopped: "stopped", finished: "finished" } as const;

/** A list under a heading that opens; hidden while it is empty. */
class Texts {
  readonly #box: HTMLDetailsElement;
  readonly #summary: HTMLElement;
  readonly #list: HTMLElement;
  #shown = "";

  constructor(into: Element, kind: string) {
    this.#box = make("details", { into, class: kind });
    this.#summary = make("summary", { into: this.#box });
    this.#list = make("ul", { into: this.#box });
    this.#box.hidden = true;
  }

  show(texts: readonly string[], count: number, one: string, many: string): void {
    const key = `${count}\n${texts.at(-1) ?? ""}`;
    if (key === this.#shown) return;
    this.#shown = key;
    this.#box.hidden = count === 0;
    const newest = texts.length < count ? `, the newest ${texts.length}` : "";
    setText(this.#summary, `${count} ${count === 1 ? one : many}${newest}`);
    this.#list.replaceChildren(...[...texts].reverse().map((text) => make("li", { text })));
  }
}

class Card {
  readonly element: HTMLElement;
  readonly #name: HTMLElement;
  readonly #state: HTMLElement;
  readonly #path: HTMLElement;
  readonly #whole: HTMLProgressElement;
  readonly #where: HTMLElement;
  readonly #step: HTMLProgressElement;
  readonly #figures = new Map<string, HTMLElement>();
  readonly #list: HTMLElement;
  readonly #facts: HTMLElement;
  readonly #warnings: Texts;
  readonly #remarks: Texts;
  readonly #ranks: HTMLElement;
  #ranksStep = -1;

  constructor(run: PageRun, toggled: (shown: boolean) => void) {
    this.element = make("article", { class: "card run" });
    this.element.dataset.run = String(run.id);
    const head = make("div", { into: this.element, class: "head" });
    const label = make("label", { into: head });
    const box = make("input", { into: label });
    box.type = "checkbox";
    box.checked = run.shown;
    box.title = "draw this run";
    box.addEventListener("change", () => toggled(box.checked));
    const dot = make("span", { into: label, class: "dot" });
    dot.style.background = colourOf(run.id);
    this.#name = make("h2", { into: label });
    this.#state = make("span", { into: head, class: "state" });
    this.#path = make("p", { into: this.element, class: "path" });
    this.#whole = make("progress", { into: this.element, class: "whole" });
    this.#where = make("p", { into: this.element, class: "where" });
    this.#step = make("progress", { into: this.element, class: "step" });
    this.#list = make("dl", { into: this.element, class: "figures" });
    this.#facts = make("p", { into: this.element, class: "soft facts" });
    this.#ranks = make("div", { into: this.element, class: "ranks-box" });
    this.#warnings = new Texts(this.element, "warnings");
    this.#remarks = new Texts(this.element, "remarks");
  }

  update(run: PageRun, now: number): void {
    const { info } = run;
    // What the server said is a moment old.
    const since = (now - run.heard) / 1000;
    const age = info.age + since;
    setText(this.#name, info.name);
    setText(this.#path, info.path);
    this.#state.dataset.state = info.state;
    const old = info.state === "quiet" || info.state === "stopped" ? `, ${formatDuration(age)} ago` : "";
    setText(this.#state, info.read < 1 ? `reading ${Math.floor(100 * info.read)}%` : `${stateNames[info.state]}${old}`);
    this.#whole.max = Math.max(1, info.steps ?? info.step);
    this.#whole.value = info.step + (info.progress?.fraction ?? 0);
    setText(this.#where, whereText(info, since));
    this.#step.hidden = info.progress === null;
    this.#step.value = info.progress?.fraction ?? 0;
    this.#showFigures(run);
    setText(this.#facts, info.facts.map(([name, value]) => `${name}: ${value}`).join(" · "));
    this.#facts.hidden = info.facts.length === 0;
    this.#warnings.show(info.warnings, info.warningCount, "warning", "warnings");
    this.#remarks.show(info.remarks, info.remarkCount, "remark about its file", "remarks about its file");
    this.#showRanks(info.ranks);
  }

  #showFigures({ series, evals, info }: PageRun): void {
    const last = (name: Parameters<typeof series.column>[0]) => series.column(name).at(-1) ?? Number.NaN;
    const lastEval = evals.length > 0 ? (evals.column("loss").at(-1) as number) : null;
    const limit = info.deviceLimitBytes === null ? "" : ` of ${formatBytes(info.deviceLimitBytes)}`;
    const any = series.length > 0;
    const number = (value: number, format: (value: number) => string) => (Number.isNaN(value) ? null : format(value));
    this.#figure("loss", any ? formatLoss(last("loss")) : null);
    this.#figure("evaluation", lastEval === null ? null : formatLoss(lastEval));
    this.#figure("gradient norm", any ? formatLoss(last("gradNorm")) : null);
    this.#figure("tokens/s", number(last("tokensPerSecond"), formatSi));
    this.#figure("a step", number(last("seconds"), formatDuration));
    this.#figure(
      "MFU",
      number(last("mfu"), (value) => `${(100 * value).toFixed(1)}%`),
    );
    this.#figure(
      "device",
      number(last("devicePeakBytes"), (value) => formatBytes(value) + limit),
    );
    const host = last("hostPeakBytes");
    this.#figure("host", host > 0 ? formatBytes(host) : null);
    this.#figure("process", number(last("rssPeakBytes"), formatBytes));
    this.#figure("skipped steps", info.skipped > 0 ? String(info.skipped) : null);
    this.#figure("saved", info.saved === null ? null : `step ${info.saved.step}`);
  }

  #figure(name: string, value: string | null): void {
    let element = this.#figures.get(name);
    if (element === undefined) {
      // Made where it belongs, though its first value may come late.
      const box = make("div", { into: this.#list });
      make("dt", { into: box, text: name });
      element = make("dd", { into: box });
      element.dataset.figure = name;
      this.#figures.set(name, element);
    }
    (element.parentElement as HTMLElement).hidden = value === null;
    if (value !== null) setText(element, value);
  }

  #showRanks(ranks: RanksInfo | null): void {
    if ((ranks?.step ?? -1) === this.#ranksStep) return;
    this.#ranksStep = ranks?.step ?? -1;
    this.#ranks.replaceChildren(...(ranks === null ? [] : [ranksTable(ranks)]));
  }
}

/** "step 12 of 100: backward, layer 3 of 16, 54%; 3m 20s left". `since`: seconds since it was said. */
function whereText(info: RunInfo, since: number): string {
  const of = info.steps === null ? "" : ` of ${info.steps}`;
  const { progress } = info;
  if (progress === null) {
    const left = info.secondsLeft === null ? "" : `; ${formatDuration(Math.max(0, info.secondsLeft - since))} left`;
    if (info.step === 0) return info.state === "running" ? `before the first step${of === "" ? "" : of}` : "no step";
    return `step ${info.step}${of}${info.state === "running" ? " done" : ""}${left}`;
  }
  const layer =
    progress.layer === null
      ? ""
      : `, layer ${progress.layer}${progress.layers === null ? "" : ` of ${progress.layers}`}`;
  const left = info.secondsLeft === null ? "" : `; ${formatDuration(Math.max(0, info.secondsLeft - since))} left`;
  return `step ${progress.step}${of}: ${progress.phase || "at work"}${layer}, ${Math.floor(100 * progress.fraction)}%${left}`;
}

/** Each rank's figures of the newest step, or where those are not told, the lowest and the highest. */
function ranksTable({ step, seconds, devicePeakBytes, hostPeakBytes }: RanksInfo): HTMLTableElement {
  const columns = [
    { name: "seconds", figure: seconds, format: formatDuration },
    { name: "device", figure: devicePeakBytes, format: formatBytes },
    ...(hostPeakBytes.max > 0 ? [{ name: "host", figure: hostPeakBytes, format: formatBytes }] : []),
  ];
  const table = make("table", { class: "ranks" });
  const head = make("tr", { into: make("thead", { into: table }) });
  make("th", { into: head, text: `ranks, step ${step}` });
  for (const { name } of columns) make("th", { into: head, text: name });
  const body = make("tbody", { into: table });
  const add = (title: string, values: { text: string; most: boolean }[]) => {
    const row = make("tr", { into: body });
    make("th", { into: row, text: title });
    for (const { text, most } of values) make("td", { into: row, text, class: most ? "most" : "" });
  };
  const count = seconds.each?.length ?? 0;
  for (let rank = 0; rank < count; rank++)
    add(
      String(rank),
      columns.map(({ figure, format }) => ({
        text: format(figure.each?.[rank] ?? Number.NaN),
        most: rank === figure.maxRank && figure.max > STANDS_OUT * figure.min,
      })),
    );
  if (count === 0) {
    add(
      "least",
      columns.map(({ figure, format }) => ({ text: format(figure.min), most: false })),
    );
    add(
      "most",
      columns.map(({ figure, format }) => ({
        text: `${format(figure.max)} (rank ${figure.maxRank})`,
        most: figure.max > STANDS_OUT * figure.min,
      })),
    );
  }
  return table;
}

/** Keeps a card for each run. */
export class Cards {
  readonly #into: Element;
  readonly #cards = new Map<number, Card>();
  readonly #toggled: (run: number, shown: boolean) => void;

  constructor(into: Element, toggled: (run: number, shown: boolean) => void) {
    this.#into = into;
    this.#toggled = toggled;
  }

  update(runs: ReadonlyMap<number, PageRun>): void {
    const now = performance.now();
    for (const [id, card] of this.#cards) {
      if (runs.has(id)) continue;
      card.element.remove();
      this.#cards.delete(id);
    }
    for (const [id, run] of runs) {
      let card = this.#cards.get(id);
      if (card === undefined) {
        card = new Card(run, (shown) => this.#toggled(id, shown));
        this.#cards.set(id, card);
        this.#into.append(card.element);
      }
      card.update(run, now);
    }
  }

  /** Colours have changed. */
  forget(): void {
    for (const { element } of this.#cards.values()) element.remove();
    this.#cards.clear();
  }
}
