// Signals to the command line: SIGTERM and SIGINT in the middle of steps and saves, SIGKILL at any moment; nothing is lost.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import t from "tap";
import { canonicalJson, parseConfigObject } from "../../lib/config/index.js";
import { bits, ended, figures, startCli, type TinyOptions, tiny, writeRows } from "./helpers.js";

process.env.LONGSEQ_CACHE_DIR = mkdtempSync(path.join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true }));

const folder = t.testdir({});
const rows = writeRows(path.join(folder, "rows.jsonl"), 300);

/** A run whose steps take some tens of milliseconds, as a configuration file. */
function configFile(name: string, options: TinyOptions = {}): { file: string; dir: string } {
  const dir = path.join(folder, name);
  const config = tiny(rows, dir, {
    hidden: 64,
    layers: 4,
    ...options,
    data: { sequenceLength: 600, ...options.data },
    train: { steps: 12, batchSize: 4, ...options.train },
  });
  const file = path.join(folder, `${name}.json`);
  writeFileSync(file, canonicalJson(parseConfigObject(config)));
  return { file, dir };
}

/** Starts the command line and sends `signal` a while after the step's line came; how it ended. */
async function interrupted(file: string, step: number, delay: number, signal: NodeJS.Signals) {
  const child = startCli(["train", file, "--json"]);
  let sent = false;
  let line = "";
  child.stdout?.on("data", (chunk: Buffer) => {
    line += chunk.toString();
    if (sent || !line.includes(`{"step":${step},`)) return;
    sent = true;
    setTimeout(() => child.kill(signal), delay);
  });
  return ended(child);
}

const whole = configFile("whole");
const reference = async () => {
  const { code, err } = await ended(startCli(["train", whole.file]));
  t.equal(code, 0, err.slice(-500));
};

t.test("stopped in a step, and going on", async (t) => {
  await reference();
  let stops = 0;
  for (const [i, signal] of (["SIGTERM", "SIGINT", "SIGTERM"] as const).entries()) {
    const { file, dir } = configFile(`stopped-${i}`);
    let { code, err, out } = await interrupted(file, 2 + i, 7 * i, signal);
    t.ok(code === (signal === "SIGINT" ? 130 : 143), `exit code ${code}: ${err.slice(-300)}`);
    t.match(err, /the state is saved in/);
    const reported = out
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line))
      .filter(({ event }) => event === undefined);
    const [saved] = readdirSync(path.join(dir, "checkpoints"));
    t.equal(saved, `step-${reported.at(-1).step}`, "the state of the last step that was reported");
    stops++;
    ({ code, err } = await ended(startCli(["train", file])));
    t.equal(code, 0, err.slice(-500));
    t.same(figures(dir), figures(whole.dir), "the same figures");
    t.same(bits(path.join(dir, "model")), bits(path.join(whole.dir, "model")), "the same model");
    t.same(bits(path.join(dir, "checkpoints/step-12")), bits(path.join(whole.dir, "checkpoints/step-12")));
  }
  t.equal(stops, 3);
});

t.test("while a checkpoint is being saved after each step", async (t) => {
  const { file, dir } = configFile("saving", { output: { saveEvery: 1 } });
  const codes = [];
  for (let round = 0; round < 3; round++) {
    const { code, err } = await interrupted(file, 3 * round + 2, 3 + 4 * round, round === 1 ? "SIGKILL" : "SIGTERM");
    codes.push(code);
    t.notMatch(err, /error/i);
  }
  t.same(codes, [143, "SIGKILL", 143]);
  const { code, err } = await ended(startCli(["train", file]));
  t.equal(code, 0, err.slice(-500));
  t.same(figures(dir), figures(whole.dir));
  t.same(bits(path.join(dir, "model")), bits(path.join(whole.dir, "model")));
  t.same(
    readdirSync(path.join(dir, "checkpoints")).sort(),
    ["step-11", "step-12"],
    "two are kept and nothing else is left",
  );
});

t.test("killed again and again", async (t) => {
  const { file, dir } = configFile("killed", { output: { saveEvery: 2 } });
  for (const [i, step] of [1, 4, 8].entries()) {
    const { code } = await interrupted(file, step, 11 * i, "SIGKILL");
    t.equal(code, "SIGKILL");
  }
  const { code, err } = await ended(startCli(["train", file]));
  t.equal(code, 0, err.slice(-500));
  t.same(figures(dir), figures(whole.dir));
  t.same(bits(path.join(dir, "model")), bits(path.join(whole.dir, "model")));
});

t.test("a full disk during a save: one clear error, the checkpoint before it stays", async (t) => {
  const { file, dir } = configFile("full", { output: { saveEvery: 4 } });
  const first = await interrupted(file, 5, 0, "SIGTERM");
  t.equal(first.code, 143);
  const checkpoints = path.join(dir, "checkpoints");
  const before = readdirSync(checkpoints);
  const kept = bits(path.join(checkpoints, before.at(-1) as string));
  // Every file is cut at 64 KiB.
  const full = await ended(startCli(["train", file], 64));
  t.equal(full.code, 1);
  t.match(full.err, /error: cannot save .*earlier checkpoints are untouched/);
  t.equal(full.err.match(/^error:/gm)?.length, 1, "one error");
  t.same(readdirSync(checkpoints), before, "no leftovers");
  t.same(bits(path.join(checkpoints, before.at(-1) as string)), kept);
  const { code } = await ended(startCli(["train", file]));
  t.equal(code, 0);
  t.same(figures(dir), figures(whole.dir));
  t.same(bits(path.join(dir, "model")), bits(path.join(whole.dir, "model")));
  t.match(readFileSync(path.join(dir, "metrics.jsonl"), "utf8"), /"event":"done"/);
});
