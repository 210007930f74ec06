// Every admissible combination of memory settings against the plain run, in as many processes as there are cores:
//
//   npm run test:full [-- --jobs N] [--every K]
//
// Packing, room on the device, prefetch and the family alternate from row to row. --every K runs each K-th row only. Ends with
// `N passed, N failed`.
import { fork } from "node:child_process";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { product } from "./covering.js";
import { admissible, describe, factors, type Setting, Settings, tiny } from "./settings.js";

const { values } = parseArgs({
  options: {
    jobs: { type: "string", default: String(availableParallelism()) },
    every: { type: "string", default: "1" },
    job: { type: "string" },
  },
});
const jobs = Number(values.jobs);
const stride = Number(values.every);

const { deviceBytes, packed, prefetch, family, ...named } = factors;
/** The families in turn, those passed over that the row is not for. */
function familyOf(row: Partial<Setting>, i: number): Setting["family"] {
  const inTurn = family.map((_, k) => family[(i + k) % family.length] as Setting["family"]);
  return inTurn.find((one) => admissible({ ...row, family: one })) as Setting["family"];
}

const rows = [...product(named, (row) => admissible(row))]
  .map((row, i): Setting => {
    const setting: Setting = {
      ...row,
      packed: packed[i % 2] as boolean,
      family: familyOf(row, i),
      prefetch: prefetch[(i >> 2) % 2] as boolean,
      deviceBytes: deviceBytes[(i >> 1) % 2] as "some",
    };
    return admissible(setting) ? setting : { ...setting, deviceBytes: "none", prefetch: true };
  })
  .filter((_, i) => i % stride === 0);

type Message = { passed: number } | { wrong: string };

/** The rows that are this process's. */
async function work(job: number): Promise<void> {
  const tell = (message: Message) => process.send?.(message);
  const settings = new Settings(tiny, 1);
  let passed = 0;
  for (let i = job; i < rows.length; i += jobs) {
    const row = rows[i] as Setting;
    const wrong = await settings.check(row).catch((error) => [String(error)]);
    for (const line of wrong) tell({ wrong: `${describe(row)}: ${line}` });
    if (wrong.length === 0) passed++;
    if (wrong.length > 0 || passed % 20 === 0) {
      tell({ passed });
      passed = 0;
    }
  }
  tell({ passed });
  settings.dispose();
  process.disconnect();
}

/** Starts the processes and tells how far they are. */
async function lead(): Promise<void> {
  const began = performance.now();
  let passed = 0;
  let shown = 0;
  const broken = new Set<string>();
  console.log(`${rows.length} rows in ${jobs} processes`);
  const ends = Array.from({ length: jobs }, (_, job) => {
    const child = fork(fileURLToPath(import.meta.url), [...process.argv.slice(2), "--job", String(job)], {
      execArgv: ["--import=tsx"],
    });
    child.on("message", (message: Message) => {
      if ("wrong" in message) {
        const row = message.wrong.split(":")[0] as string;
        // Of a fault that most rows have, the first are enough.
        if (broken.size < 20) console.log(`not right: ${message.wrong}`);
        broken.add(row);
        return;
      }
      passed += message.passed;
      const done = passed + broken.size;
      if (performance.now() - shown < 10_000) return;
      shown = performance.now();
      const left = ((shown - began) / Math.max(1, done)) * (rows.length - done);
      console.log(`${done} of ${rows.length}, ${broken.size} not right, ${Math.ceil(left / 60_000)} minutes left`);
    });
    return new Promise<void>((resolve) => child.on("exit", () => resolve()));
  });
  await Promise.all(ends);
  const failed = rows.length - passed;
  console.log(`${((performance.now() - began) / 60_000).toFixed(1)} minutes`);
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed > 0 ? 1 : 0;
}

await (values.job === undefined ? lead() : work(Number(values.job)));
