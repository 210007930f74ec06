// Bounded series, smoothing and thinning against plain arithmetic.

import t from "tap";
import { lastPart, smooth, thin } from "../../lib/watch/page/curves.js";
import { Series, stepColumns, toWire } from "../../lib/watch/series.js";

const row = (step: number, loss: number | null, gradNorm = 1): (number | null)[] =>
  stepColumns.map((name) => (name === "step" ? step : name === "loss" ? loss : name === "gradNorm" ? gradNorm : 1));

t.test("a series keeps every step up to its limit, then means and peaks of several", async (t) => {
  const series = new Series(stepColumns, 8);
  for (let i = 1; i <= 8; i++) series.push(row(i, i, i));
  t.same([...series.column("loss")], [1, 2, 3, 4, 5, 6, 7, 8]);
  t.equal(series.per, 1);
  for (let i = 9; i <= 13; i++) series.push(row(i, i, 20 - i));
  t.equal(series.per, 2);
  t.same([...series.column("step")], [2, 4, 6, 8, 10, 12, 13], "where each point has got to");
  t.same([...series.column("loss")], [1.5, 3.5, 5.5, 7.5, 9.5, 11.5, 13], "means");
  t.same([...series.column("gradNorm")], [2, 4, 6, 8, 11, 9, 7], "peaks");
});

t.test("means and peaks are those of all rows, whatever is missing", async (t) => {
  const series = new Series(stepColumns, 16);
  const losses: (number | null)[] = [];
  for (let i = 1; i <= 1000; i++) {
    losses.push(i % 7 === 0 ? null : Math.sin(i));
    series.push(row(i, losses.at(-1) as number | null, (i * 37) % 101));
  }
  t.ok(series.length <= 16);
  const { per } = series;
  t.equal(per, 64);
  series.column("loss").forEach((value, i) => {
    const own = losses.slice(i * per, (i + 1) * per).filter((loss) => loss !== null);
    const mean = own.reduce((sum, loss) => sum + loss, 0) / own.length;
    // Pairs that lack a value weigh a little differently when they are joined.
    t.ok(Math.abs(value - mean) < 0.1, `${value} ${mean}`);
  });
  t.same(
    [...series.column("gradNorm")],
    Array.from({ length: series.length }, (_, i) =>
      Math.max(...Array.from({ length: Math.min(per, 1000 - i * per) }, (_, j) => ((i * per + j + 1) * 37) % 101)),
    ),
  );
});

t.test("a snapshot goes on as the series does", async (t) => {
  for (const count of [0, 1, 7, 8, 9, 30, 31]) {
    const series = new Series(stepColumns, 8);
    for (let i = 1; i <= count; i++) series.push(row(i, i % 4 === 0 ? null : i));
    const copy = Series.restore(stepColumns, 8, JSON.parse(JSON.stringify(series.snapshot())));
    for (let i = count + 1; i <= count + 20; i++) for (const each of [series, copy]) each.push(row(i, i));
    t.equal(copy.per, series.per);
    for (const name of ["step", "gradNorm"] as const) t.same([...copy.column(name)], [...series.column(name)], name);
    t.equal(copy.column("loss").length, series.column("loss").length);
  }
  t.equal(toWire("loss", 1 / 3), 0.3333333);
  t.equal(toWire("totalTokens", 2 ** 52 + 1), 2 ** 52 + 1, "counts stay whole");
  t.equal(toWire("loss", Number.NaN), null);
});

t.test("smoothing is a bias-corrected average that passes over gaps", async (t) => {
  t.same([...smooth([3, 1, 2], 0)], [3, 1, 2]);
  const constant = smooth([2, 2, Number.NaN, 2], 0.9);
  t.ok(Number.isNaN(constant[2] as number));
  for (const i of [0, 1, 3]) t.ok(Math.abs((constant[i] as number) - 2) < 1e-12);
  const two = smooth([0, 1], 0.5);
  t.ok(Math.abs((two[1] as number) - 0.5 / 0.75) < 1e-12);
});

t.test("thinning keeps ends and peaks, and the view's neighbours", async (t) => {
  const xs = Float64Array.from({ length: 10_000 }, (_, i) => i + 1);
  const ys = xs.map((x) => (x === 7777 ? 50 : Math.sin(x / 100)));
  const [places, values] = thin({ xs, ys }, null, 400);
  t.ok(places.length <= 402, String(places.length));
  t.equal(Math.max(...(values as number[])), 50);
  t.ok(
    places.every((x, i) => i === 0 || x > (places[i - 1] as number)),
    "ascending",
  );
  t.same(thin({ xs, ys }, [100.5, 102.5], 400)[0], [100, 101, 102, 103]);
  t.same(thin({ xs: [0, 1, 2], ys: [-1, Number.NaN, 3] }, null, 400, { positiveX: true, positiveY: true }), [
    [1, 2],
    [null, 3],
  ]);
  t.same(lastPart([[1, 2, 101], []], 0.1), [91, 101]);
  t.equal(lastPart([[], [5]], 0.5), null);
});
