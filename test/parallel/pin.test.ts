// Ranks on the cores near their GPU.
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { binding, packageRoot } from "../../lib/binding.js";
import { coresNear, coresOf } from "../../lib/parallel/pin.js";

t.test("lists of cores", async (t) => {
  t.same(coresOf("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
  t.same(coresOf("5"), [5]);
  t.same(coresOf("\n"), []);
});

t.test("the cores near a device", async (t) => {
  const devices = t.testdir({});
  mkdirSync(join(devices, "0000:17:00.0"));
  writeFileSync(join(devices, "0000:17:00.0", "local_cpulist"), "2,4-5\n");
  t.same(coresNear("0000:17:00.0", devices), [2, 4, 5]);
  t.same(coresNear("0000:18:00.0", devices), [], "a device that the system does not know");
  t.same(coresNear("", devices), [], "a device without an address");
});

t.test("all threads of a process, and those to come", async (t) => {
  // In a process of its own: it stays there.
  const program = `
    import { readdirSync, readFileSync } from "node:fs";
    import { Worker } from "node:worker_threads";
    import { binding } from ${JSON.stringify(join(packageRoot, "dist/lib/binding.js"))};
    const own = () => readdirSync("/proc/self/task").map((task) =>
      /Cpus_allowed_list:\\s*(\\S+)/.exec(readFileSync("/proc/self/task/" + task + "/status", "utf8"))[1]);
    const first = Number(/^\\d+/.exec(own()[0])[0]);
    const none = binding.pinThreads([1000]);
    const before = new Set(own());
    const count = binding.pinThreads([first, 1000]);
    const worker = new Worker("setTimeout(() => {}, 1e6)", { eval: true });
    await new Promise((resolve) => worker.once("online", resolve));
    const places = [...new Set(own())];
    await worker.terminate();
    console.log(JSON.stringify({ first, none, changed: before.size > 1, count, places }));`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "--eval", program], {
    encoding: "utf8",
  });
  t.equal(status, 0, stderr);
  const { first, none, changed, count, places } = JSON.parse(stdout);
  t.same({ none, changed, count, places }, { none: 0, changed: false, count: 1, places: [String(first)] });
});

t.test("wrong arguments", async (t) => {
  for (const wrong of [undefined, 3, ["0"], [-1], [0.5]])
    t.throws(() => binding.pinThreads(wrong as number[]), { code: "INVALID_ARGUMENT" });
});
