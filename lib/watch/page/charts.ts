// The curves of all shown runs over each other, one chart a figure, drawn by uPlot.

import uPlot from "uplot";
import { formatBytes, formatDuration, formatLoss, formatSi } from "../../report/format.js";
import type { StepColumn } from "../series.js";
import { lastPart, type Points, smooth, thin } from "./curves.js";
import { colourOf, cssColour, make, setText } from "./dom.js";
import type { PageRun } from "./store.js";

/** Points of a curve in view; a chart is not much wider. */
const MOST_DRAWN = 1600;

export type Across = "step" | "totalTokens" | "totalSeconds";

export interface View {
  /** 0 to below 1. */
  smoothing: number;
  across: Across;
  /** The newest share of the range, 1 for all; not looked at while `zoom` is set. */
  share: number;
  zoom: [number, number] | null;
  logX: boolean;
}

interface Spec {
  column: StepColumn;
  title: string;
  format: (value: number) => string;
  /** Of the marks beside the curve, where `format` is too long for them. */
  mark?: (value: number) => string;
  /** It has no noise to be smoothed away. */
  exact?: boolean;
  /** Its curve is drawn from 0 on. */
  fromZero?: boolean;
  evals?: boolean;
  /** Distances of its marks that may be taken; default: uPlot's, which are decimal. */
  incrs?: number[];
}

/** Powers of two, from a byte to a PiB. */
const binary = Array.from({ length: 51 }, (_, power) => 2 ** power);
const bytes = { format: formatBytes, fromZero: true, exact: true, incrs: binary };
const short = (value: number) => String(Number(value.toPrecision(4)));
const specs: readonly Spec[] = [
  { column: "loss", title: "Loss", format: formatLoss, mark: short, evals: true },
  { column: "gradNorm", title: "Gradient norm", format: formatLoss, mark: short },
  { column: "learningRate", title: "Learning rate", format: (value) => value.toExponential(2), exact: true },
  { column: "tokensPerSecond", title: "Tokens a second", format: formatSi, fromZero: true },
  { column: "seconds", title: "Seconds a step", format: formatDuration, fromZero: true },
  {
    column: "mfu",
    title: "MFU (model FLOPs utilisation)",
    format: (value) => `${(100 * value).toFixed(1)}%`,
    fromZero: true,
  },
  { column: "modelTflops", title: "Model TFLOP/s", format: (value) => value.toPrecision(3), fromZero: true },
  { column: "devicePeakBytes", title: "Device memory, peak", ...bytes },
  { column: "hostPeakBytes", title: "Host memory, peak", ...bytes },
  { column: "rssPeakBytes", title: "Memory of the process, peak", ...bytes },
];

const acrossFormat: Record<Across, (value: number) => string> = {
  step: (value) => String(Math.round(value)),
  totalTokens: formatSi,
  totalSeconds: formatDuration,
};

interface Drawn {
  plot: uPlot;
  /** What it was made for: another key needs another plot. */
  key: string;
  runs: PageRun[];
}

/** One chart with its heading, its button for a logarithmic scale, and a line that says what is under the pointer. */
class Chart {
  readonly element: HTMLElement;
  readonly #spec: Spec;
  readonly #box: HTMLElement;
  readonly #readout: HTMLElement;
  readonly #charts: Charts;
  #log = false;
  #drawn: Drawn | null = null;
  /** Whether it is in the window, where alone it is drawn. */
  visible = true;
  #width = 0;

  constructor(spec: Spec, charts: Charts, into: Element) {
    this.#spec = spec;
    this.#charts = charts;
    this.element = make("article", { into, class: "card chart" });
    this.element.dataset.chart = spec.column;
    this.element.hidden = true;
    const head = make("div", { into: this.element, class: "head" });
    make("h2", { into: head, text: spec.title });
    const button = make("button", { into: head, text: "log" });
    button.type = "button";
    button.title = "logarithmic scale";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      this.#log = !this.#log;
      button.setAttribute("aria-pressed", String(this.#log));
      charts.redraw();
    });
    this.#box = make("div", { into: this.element, class: "plot" });
    this.#readout = make("div", { into: this.element, class: "readout" });
  }

  /** Called when the box has another width. */
  resize(width: number): void {
    this.#width = Math.floor(width);
    this.#drawn?.plot.setSize(this.#size());
  }

  #size(): { width: number; height: number } {
    return { width: Math.max(120, this.#width || this.#box.clientWidth), height: this.#box.clientHeight || 230 };
  }

  forget(): void {
    this.#drawn?.plot.destroy();
    this.#drawn = null;
  }

  draw(runs: readonly PageRun[], view: View, range: [number, number] | null): void {
    const spec = this.#spec;
    const withData = runs.filter(
      (run) => hasValue(run.series.column(spec.column)) || (spec.evals === true && run.evals.length > 0),
    );
    this.element.hidden = withData.length === 0;
    if (this.element.hidden) {
      this.forget();
      return;
    }
    const smoothing = spec.exact === true ? 0 : view.smoothing;
    const options = { positiveX: view.logX, positiveY: this.#log };
    const tables: Points[] = [];
    for (const run of withData) {
      const xs = run.series.column(view.across);
      const ys = run.series.column(spec.column);
      tables.push(thin({ xs, ys }, range, MOST_DRAWN, options));
      if (smoothing > 0) tables.push(thin({ xs, ys: smooth(ys, smoothing) }, range, MOST_DRAWN, options));
      if (spec.evals === true)
        tables.push(
          thin({ xs: run.evals.column(view.across), ys: run.evals.column("loss") }, range, MOST_DRAWN, options),
        );
    }
    // Runs have their points at other places: joined, a place that a run lacks is undefined, which lines pass over;
    // null is a value that is missing, which leaves a gap.
    const data = uPlot.join(
      tables as uPlot.AlignedData[],
      tables.map(() => [0, 2]),
    ) as uPlot.AlignedData;
    const key = JSON.stringify([withData.map(({ id }) => id), smoothing > 0, view.across, view.logX, this.#log]);
    if (this.#drawn === null || this.#drawn.key !== key) {
      this.forget();
      const plot = new uPlot(this.#options(withData, view), data, this.#box);
      this.#drawn = { plot, key, runs: withData };
    } else {
      this.#drawn.runs = withData;
      this.#drawn.plot.setData(data, range === null);
    }
    if (range !== null) this.#drawn.plot.setScale("x", { min: range[0], max: range[1] });
    this.#read();
  }

  #options(runs: readonly PageRun[], view: View): uPlot.Options {
    const spec = this.#spec;
    const soft = cssColour("soft");
    const grid = { stroke: cssColour("rule"), width: 1 };
    const series: uPlot.Series[] = [{}];
    for (const run of runs) {
      const stroke = colourOf(run.id);
      const line = { stroke, width: 1.5, points: { show: false } };
      if (view.smoothing > 0 && spec.exact !== true) series.push({ ...line, width: 1, alpha: 0.3 });
      series.push(line);
      if (spec.evals === true)
        series.push({ stroke, fill: stroke, paths: () => null, points: { show: true, size: 7, fill: stroke } });
    }
    const across = acrossFormat[view.across];
    return {
      ...this.#size(),
      series,
      legend: { show: false },
      cursor: {
        sync: { key: "runs" },
        drag: { x: true, y: false, setScale: false },
        points: { size: 6 },
        bind: {
          dblclick: () => () => {
            this.#charts.zoom(null);
            return null;
          },
        },
      },
      scales: {
        x: { time: false, distr: view.logX ? 3 : 1 },
        y: { distr: this.#log ? 3 : 1, ...(spec.fromZero === true && !this.#log && { range: fromZero }) },
      },
      axes: [
        { stroke: soft, grid, ticks: grid, size: 34, values: (_, splits) => splits.map((x) => label(x, across)) },
        {
          stroke: soft,
          grid,
          ticks: grid,
          size: 66,
          values: (_, splits) => splits.map((y) => label(y, spec.mark ?? spec.format)),
          ...(spec.incrs && { incrs: spec.incrs }),
        },
      ],
      hooks: {
        setSelect: [
          (plot) => {
            const { left, width } = plot.select;
            if (width < 4) return;
            const ends = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")] as [number, number];
            plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            this.#charts.zoom(ends);
          },
        ],
        setCursor: [() => this.#read()],
      },
    };
  }

  /** What each run has under the pointer, or at its end. */
  #read(): void {
    const drawn = this.#drawn;
    if (drawn === null) return;
    const { view } = this.#charts;
    const { plot, runs } = drawn;
    const at = plot.cursor.idx;
    const x = at === null || at === undefined ? undefined : plot.data[0][at];
    const parts = runs.flatMap((run) => {
      const xs = run.series.column(view.across);
      const ys = run.series.column(this.#spec.column);
      const place = x === undefined ? ys.length - 1 : nearest(xs, x);
      const value = ys[place];
      if (value === undefined || Number.isNaN(value)) return [];
      const name = runs.length > 1 ? `${run.info.name.slice(0, 40)} ` : "";
      return [`${name}${this.#spec.format(value)}`];
    });
    const where = x === undefined ? "now" : `${view.across === "step" ? "step " : ""}${acrossFormat[view.across](x)}`;
    setText(this.#readout, `${where}: ${parts.join(" · ")}`);
  }
}

const hasValue = (values: Float64Array): boolean => values.some((value) => value > 0 || value < 0);

/** A logarithmic scale leaves most of its marks without a label. */
const label = (value: number | null, format: (value: number) => string): string =>
  value === null || value === undefined ? "" : format(value);

const fromZero: uPlot.Range.Function = (_, __, most) => [0, most > 0 ? most * 1.08 : 1];

function nearest(xs: ArrayLike<number>, x: number): number {
  let low = 0;
  let high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((xs[middle] as number) < x) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && x - (xs[low - 1] as number) < (xs[low] as number) - x) return low - 1;
  return low;
}

/** All charts, which share the part of the run that is in view. */
export class Charts {
  view: View = { smoothing: 0, across: "step", share: 1, zoom: null, logX: false };
  readonly #charts: Chart[];
  readonly #changed: () => void;

  /** changed: asks for a drawing. */
  constructor(into: Element, changed: () => void) {
    this.#changed = changed;
    this.#charts = specs.map((spec) => new Chart(spec, this, into));
    const chartOf = (element: Element) => this.#charts.find((chart) => chart.element === element.closest(".chart"));
    const sizes = new ResizeObserver((entries) => {
      for (const { target, contentRect } of entries) chartOf(target)?.resize(contentRect.width);
    });
    const seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const chart = chartOf(target);
        if (chart === undefined) continue;
        const before = chart.visible;
        // What is hidden has no place yet: it is drawn once, which shows it.
        chart.visible = isIntersecting || chart.element.hidden;
        if (chart.visible && !before) changed();
      }
    });
    for (const { element } of this.#charts) {
      sizes.observe(element.querySelector(".plot") as Element);
      seen.observe(element);
    }
  }

  /** The part that all charts show; null: all of it. */
  zoom(range: [number, number] | null): void {
    this.view = { ...this.view, zoom: range };
    this.#changed();
  }

  set(change: Partial<View>): void {
    this.view = { ...this.view, ...change };
    this.#changed();
  }

  redraw(): void {
    this.#changed();
  }

  /** Colours have changed. */
  forget(): void {
    for (const chart of this.#charts) chart.forget();
    this.#changed();
  }

  draw(runs: readonly PageRun[]): void {
    const shown = runs.filter((run) => run.shown);
    const { view } = this;
    const range =
      view.zoom ??
      (view.share < 1
        ? lastPart(
            shown.map(({ series }) => series.column(view.across)),
            view.share,
          )
        : null);
    for (const chart of this.#charts) if (chart.visible) chart.draw(shown, view, range);
  }
}
