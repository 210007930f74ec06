// Learning rates by step, against the formulas written out by hand.
import t from "tap";
import { learningRateAt, type ScheduleOptions } from "../../lib/train/schedule.js";
import { evenRows } from "../../lib/train/trials.js";

const options = (schedule: ScheduleOptions["schedule"], rest: Partial<ScheduleOptions> = {}): ScheduleOptions => ({
  schedule,
  learningRate: 1,
  minLearningRate: 0,
  warmupSteps: 0,
  decaySteps: null,
  ...rest,
});
const rates = (steps: number, schedule: ScheduleOptions) =>
  Array.from({ length: steps }, (_, s) => learningRateAt(s, steps, schedule));

t.test("each kind", async (t) => {
  t.same(rates(4, options("constant")), [1, 1, 1, 1]);
  t.same(rates(4, options("linear")), [1, 0.75, 0.5, 0.25]);
  t.same(rates(6, options("linear", { warmupSteps: 2 })), [0.5, 1, 1, 0.75, 0.5, 0.25]);
  t.same(rates(4, options("linear", { minLearningRate: 0.2 })), [1, 0.8, 0.6000000000000001, 0.4]);
  const cosine = rates(4, options("cosine"));
  for (const [s, value] of [1, 0.5 + Math.SQRT1_2 / 2, 0.5, 0.5 - Math.SQRT1_2 / 2].entries())
    t.ok(Math.abs((cosine[s] as number) - value) < 1e-15);
  t.same(rates(10, options("wsd")), [1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5], "a fifth by default: 1 at its start");
  t.same(rates(6, options("wsd", { decaySteps: 4, warmupSteps: 1 })), [1, 1, 1, 0.75, 0.5, 0.25]);
  t.same(rates(3, options("wsd")), [1, 1, 1], "at least one step");
});

t.test("at the end it is at the minimum", async (t) => {
  for (const kind of ["linear", "cosine", "wsd"] as const)
    t.ok(Math.abs(learningRateAt(8, 8, options(kind, { minLearningRate: 0.25 })) - 0.25) < 1e-15, kind);
});

t.test("warm-up longer than the run", async (t) => {
  t.same(rates(2, options("cosine", { warmupSteps: 4 })), [0.25, 0.5]);
});

t.test("tiles are equal", async (t) => {
  t.equal(evenRows(8192, 2048), 2048);
  t.equal(evenRows(8193, 2048), 1639);
  t.equal(evenRows(10, 2048), 10);
  t.equal(evenRows(5, 0), 1);
  t.ok(5 * evenRows(8193, 2048) >= 8193, "and cover all rows");
});
