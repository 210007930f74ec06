// The points of a run's curves, in bounded memory: server and page keep the same ones by the same rules.

/** What a point holds, in the order of a row. Seconds and bytes; `total` columns count from the run's first step. */
export const stepColumns = [
  "step",
  "totalTokens",
  "totalSeconds",
  "loss",
  "gradNorm",
  "learningRate",
  "tokensPerSecond",
  "modelTflops",
  "mfu",
  "seconds",
  "devicePeakBytes",
  "deviceLiveBytes",
  "hostPeakBytes",
  "rssPeakBytes",
] as const;
export type StepColumn = (typeof stepColumns)[number];

export const evalColumns = ["step", "totalTokens", "totalSeconds", "loss"] as const;

/** How rows become one point: where the curve has got to, its mean, or its peak, which a mean would hide. */
type Rule = "last" | "mean" | "largest";

const rules: Record<StepColumn, Rule> = {
  step: "last",
  totalTokens: "last",
  totalSeconds: "last",
  loss: "mean",
  gradNorm: "largest",
  learningRate: "mean",
  tokensPerSecond: "mean",
  modelTflops: "mean",
  mfu: "mean",
  seconds: "mean",
  devicePeakBytes: "largest",
  deviceLiveBytes: "largest",
  hostPeakBytes: "largest",
  rssPeakBytes: "largest",
};

/** Most points of a run's steps; an even number. Ten thousand steps are shown one by one. */
export const MOST_POINTS = 16_384;
/** Most points of a run's evaluations; an even number. */
export const MOST_EVALS = 2048;

/** A number, or null for one that is missing or not finite. */
export type Row = (number | null)[];

/** A series as JSON. */
export interface SeriesSnapshot {
  /** Rows of a point. */
  per: number;
  /** Rows of the last point, 1 to `per`; 0 without any. */
  last: number;
  /** By column, as many as there are points. */
  values: Row[];
}

/**
 * Points of some columns. When there are `most`, neighbours become one point and every later point takes twice as many
 * rows: memory stays below 8 * most * columns bytes however long a run is. Missing values are NaN.
 */
export class Series {
  readonly #columns: readonly StepColumn[];
  readonly #most: number;
  #data: Float64Array[];
  #size = 0;
  #per = 1;
  /** Rows of the last point, and by column how many of them have a value. */
  #last = 0;
  #present: number[];

  constructor(columns: readonly StepColumn[], most: number) {
    this.#columns = columns;
    this.#most = most;
    this.#data = columns.map(() => new Float64Array(Math.min(256, most)));
    this.#present = columns.map(() => 0);
  }

  /** Points. */
  get length(): number {
    return this.#size;
  }

  /** Rows of a point. */
  get per(): number {
    return this.#per;
  }

  /** The values of a column: a view that the next `push` may change. */
  column(name: StepColumn): Float64Array {
    const values = this.#data[this.#columns.indexOf(name)];
    if (values === undefined) throw new RangeError(`${name} is no column of this series`);
    return values.subarray(0, this.#size);
  }

  /** Adds one row; `step` must be larger than in the one before. */
  push(row: Row): void {
    if (this.#size > 0 && this.#last < this.#per) {
      this.#columns.forEach((name, i) => {
        const value = row[i] ?? Number.NaN;
        const values = this.#data[i] as Float64Array;
        if (Number.isNaN(value)) return;
        const present = this.#present[i] as number;
        this.#present[i] = present + 1;
        const at = this.#size - 1;
        const before = values[at] as number;
        values[at] = present === 0 ? value : join(rules[name], before, value, present, 1);
      });
      this.#last++;
      return;
    }
    if (this.#size === this.#most) this.#halve();
    if (this.#size === (this.#data[0] as Float64Array).length) this.#grow();
    this.#columns.forEach((_, i) => {
      const value = row[i] ?? Number.NaN;
      (this.#data[i] as Float64Array)[this.#size] = value;
      this.#present[i] = Number.isNaN(value) ? 0 : 1;
    });
    this.#size++;
    this.#last = 1;
  }

  #grow(): void {
    const capacity = Math.min(this.#most, 2 * (this.#data[0] as Float64Array).length);
    this.#data = this.#data.map((values) => {
      const more = new Float64Array(capacity);
      more.set(values);
      return more;
    });
  }

  /** Makes one point of every two. The last one is full: only then is there a need. */
  #halve(): void {
    this.#columns.forEach((name, c) => {
      const values = this.#data[c] as Float64Array;
      for (let i = 0; i < this.#size / 2; i++) {
        const [a, b] = [values[2 * i] as number, values[2 * i + 1] as number];
        values[i] = Number.isNaN(a) ? b : Number.isNaN(b) ? a : join(rules[name], a, b, 1, 1);
      }
    });
    this.#size /= 2;
    this.#per *= 2;
    this.#last = this.#per;
  }

  snapshot(): SeriesSnapshot {
    return {
      per: this.#per,
      last: this.#last,
      values: this.#columns.map((name) => Array.from(this.column(name), (value) => toWire(name, value))),
    };
  }

  static restore(columns: readonly StepColumn[], most: number, { per, last, values }: SeriesSnapshot): Series {
    const series = new Series(columns, most);
    const points = values[0]?.length ?? 0;
    for (let i = 0; i < points; i++) {
      series.#last = series.#per;
      series.push(values.map((column) => column[i] ?? null));
    }
    series.#per = per;
    series.#last = last;
    series.#present = series.#present.map((present) => (present === 0 ? 0 : last));
    return series;
  }
}

function join(rule: Rule, a: number, b: number, countA: number, countB: number): number {
  if (rule === "last") return b;
  if (rule === "largest") return Math.max(a, b);
  return a + ((b - a) * countB) / (countA + countB);
}

/** A value as it is sent: seven digits are more than a drawing shows. Counts stay whole. */
export function toWire(column: StepColumn, value: number): number | null {
  if (!Number.isFinite(value)) return null;
  return Number.isSafeInteger(value) || rules[column] === "last" ? value : Number(value.toPrecision(7));
}
