// Progress: the time left, one line a step without a terminal, and a bar with one.

import t from "tap";
import type { StepMetrics } from "../../lib/report/events.js";
import { ProgressDisplay, stepLine, TimeLeft } from "../../lib/report/progress.js";

const metrics = (step: number, more: Partial<StepMetrics> = {}): StepMetrics => ({
  step,
  epoch: 0.5,
  loss: 2.25,
  gradNorm: 1.5,
  learningRate: 1e-3,
  tokens: 8192,
  validTokens: 8191,
  seconds: 2,
  tokensPerSecond: 4096,
  modelTflops: 0.1,
  hardwareTflops: 0.2,
  mfu: null,
  devicePeakBytes: 3 * 2 ** 30,
  deviceLiveBytes: 3,
  hostPeakBytes: 2,
  rssPeakBytes: 1,
  skipped: false,
  ...more,
});

/** A clock that stands until it is moved, and a stream that keeps what it gets. */
function bench(columns?: number) {
  const state = { time: 100, text: "" };
  const stream = {
    isTTY: columns !== undefined,
    columns: columns ?? 0,
    cursorTo: () => true,
    moveCursor: () => true,
    clearLine: () => true,
    write: (text: string) => {
      state.text += text;
      return true;
    },
  };
  return { state, stream, now: () => state.time };
}

/** What a terminal would show of a line. */
const withoutEscapes = (line: string) =>
  line
    .split("\u001b")
    .map((part, index) => (index === 0 ? part : part.replace(/^\[[0-9;?]*[a-zA-Z]/, "")))
    .join("");

t.test("time left before the first step has ended", async (t) => {
  const { state, now } = bench();
  const left = new TimeLeft(0, now);
  t.ok(Number.isNaN(left.seconds), "nothing is known");
  left.plan(10, 0);
  t.ok(Number.isNaN(left.seconds), "no work was seen");
  left.progress(1, 0);
  state.time += 5;
  left.progress(1, 0.25);
  t.equal(left.seconds, 20 * 10 - 5, "a quarter took 5 s, so a step takes 20");
  t.equal(left.done, 0.25);
  left.progress(1, 0.1);
  t.equal(left.done, 0.25, "never backwards");
});

t.test("time left from finished steps", async (t) => {
  const { state, now } = bench();
  const left = new TimeLeft(0, now);
  left.plan(10, 4);
  left.finish(5, 8);
  t.equal(left.seconds, 8 * 5);
  left.finish(6, 2);
  t.equal(left.seconds, 2 * 4, "the first step counts only while it is the only one");
  left.finish(7, 4);
  t.equal(left.seconds, 3 * 3);
  state.time += 1;
  t.equal(left.seconds, 3 * 3 - 1, "the running step's time passes");
  state.time += 100;
  t.equal(left.seconds, 3 * 2, "a slow step takes no time from the others");
  left.progress(7, 0.9);
  t.equal(left.done, 7, "late news of a finished step");
  for (const step of [8, 9, 10]) left.finish(step, 1);
  t.equal(left.seconds, 0);
});

t.test("one line a step without a terminal", async (t) => {
  const { state, stream, now } = bench();
  const display = new ProgressDisplay({ stream, now });
  display.show({
    event: "plan",
    steps: 3,
    parameters: 56_000_000,
    weightsBytes: 2 ** 30,
    device: "cpu",
    nothing: null,
  });
  display.show({ event: "progress", step: 1, fraction: 0.5, phase: "forward" });
  display.show(metrics(1));
  display.show({ event: "eval", step: 1, loss: 3 });
  display.show({ event: "save", step: 1, path: "runs/a/checkpoints/step-1" });
  display.show({ event: "warning", message: "odd" });
  display.show(metrics(2, { loss: null, gradNorm: null, skipped: true }));
  display.show({ event: "done", step: 2 });
  display.stop();
  t.same(state.text.split("\n"), [
    "3 steps, parameters 56.0M, weights 1.00 GiB, device cpu",
    "step 1/3  loss 2.2500  grad 1.5000  lr 1.00e-3  2.0s  4.10K tok/s  3.00 GiB  4.0s left",
    "eval after step 1: loss 3.0000",
    "saved runs/a/checkpoints/step-1",
    "warning: odd",
    "step 2/3  loss nan  grad nan  lr 1.00e-3  2.0s  4.10K tok/s  3.00 GiB  2.0s left  skipped: not finite",
    "",
  ]);
  t.notMatch(stepLine(metrics(1), 0, Number.NaN), /left|step 1\//, "nothing is made up where steps are unknown");
});

t.test("a plan may bring its own words", async (t) => {
  const { state, stream, now } = bench();
  const display = new ProgressDisplay({ stream, now });
  display.show({ event: "plan", steps: 9, startStep: 3, message: "all of it" });
  display.show({ event: "plan", steps: 9, startStep: 3 });
  t.equal(state.text, "all of it\ngoing on after step 3 of 9\n");
});

t.test("a bar on a terminal", async (t) => {
  const { state, stream, now } = bench(120);
  const display = new ProgressDisplay({ stream, now });
  t.teardown(() => display.stop());
  display.show({ event: "plan", steps: 4 });
  display.show({ event: "progress", step: 1, fraction: 0 });
  state.time += 10;
  display.show({ event: "progress", step: 1, fraction: 0.5, phase: "backward" });
  display.log("a line");
  t.match(state.text, /step 1\/4 {2}backward 50% {2}1m 10s left/, "within the step, before it has ended");
  t.match(state.text, / 12% /);
  t.match(state.text, /a line\n/);
  display.show(metrics(1));
  display.log("another");
  t.match(state.text, /step 1\/4 {2}loss 2\.2500 {2}4\.10K tok\/s {2}3\.00 GiB {2}6\.0s left/);
  const listeners = process.listenerCount("SIGINT");
  display.show({ event: "done", step: 1 });
  t.equal(process.listenerCount("SIGINT"), listeners, "signals are left alone");
});

t.test("a narrow terminal gets no line longer than itself", async (t) => {
  const { state, stream, now } = bench(30);
  const display = new ProgressDisplay({ stream, now });
  display.show({ event: "plan", steps: 4 });
  display.show(metrics(1));
  display.stop();
  const drawn = state.text.split("\n").filter((line) => line.includes("loss"));
  t.ok(drawn.length > 0);
  for (const line of drawn) t.ok(withoutEscapes(line).length <= 30, line);
});
