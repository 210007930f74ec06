// From points to what is drawn: smoothing, the part in view, and few enough points for the width of a drawing.

/** A curve: as many values as places, NaN where there is none. Places ascend. */
export interface Curve {
  xs: ArrayLike<number>;
  ys: ArrayLike<number>;
}

/**
 * The exponential moving average, `weight` of it from the past (0: the values as they are, below 1), divided by its
 * weights' sum so that the first values count in full: bias correction as in Adam (arXiv 1412.6980, algorithm 1).
 */
export function smooth(ys: ArrayLike<number>, weight: number): Float64Array {
  const smoothed = new Float64Array(ys.length);
  let average = 0;
  let missing = 1;
  for (let i = 0; i < ys.length; i++) {
    const value = ys[i] as number;
    if (Number.isNaN(value)) {
      smoothed[i] = Number.NaN;
      continue;
    }
    average = weight * average + (1 - weight) * value;
    missing *= weight;
    smoothed[i] = average / (1 - missing);
  }
  return smoothed;
}

/** Where `value` would be put among ascending numbers. */
function lowerBound(xs: ArrayLike<number>, value: number): number {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((xs[middle] as number) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

export type Points = [xs: number[], ys: (number | null)[]];

/**
 * At most about `most` points of a curve between two places (and one beyond at each side, so that lines leave the
 * view): of each stretch its lowest and its highest, so that no peak is lost. A missing value is null, which leaves a
 * gap. positiveX, positiveY: leaves out what a logarithmic scale cannot show.
 */
export function thin(
  { xs, ys }: Curve,
  view: readonly [number, number] | null,
  most: number,
  { positiveX = false, positiveY = false } = {},
): Points {
  const from = view === null ? 0 : Math.max(0, lowerBound(xs, view[0]) - 1);
  const to = view === null ? xs.length : Math.min(xs.length, lowerBound(xs, view[1]) + 1);
  const points: Points = [[], []];
  const add = (i: number) => {
    const [x, y] = [xs[i] as number, ys[i] as number];
    if (positiveX && x <= 0) return;
    points[0].push(x);
    points[1].push(Number.isNaN(y) || (positiveY && y <= 0) ? null : y);
  };
  const stretch = Math.max(1, Math.ceil((2 * (to - from)) / most));
  for (let start = from; start < to; start += stretch) {
    const end = Math.min(start + stretch, to);
    let [least, largest] = [-1, -1];
    for (let i = start; i < end; i++) {
      const y = ys[i] as number;
      if (Number.isNaN(y)) continue;
      if (least < 0 || y < (ys[least] as number)) least = i;
      if (largest < 0 || y > (ys[largest] as number)) largest = i;
    }
    if (least < 0) add(start);
    else {
      add(Math.min(least, largest));
      if (least !== largest) add(Math.max(least, largest));
    }
  }
  return points;
}

/** The newest `share` of a range, 0 to 1: what "the last tenth" shows. Null: nothing is there. */
export function lastPart(curves: readonly ArrayLike<number>[], share: number): [number, number] | null {
  let [least, largest] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const xs of curves) {
    if (xs.length === 0) continue;
    least = Math.min(least, xs[0] as number);
    largest = Math.max(largest, xs[xs.length - 1] as number);
  }
  return least < largest ? [largest - (largest - least) * share, largest] : null;
}
