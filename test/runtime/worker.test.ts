// Worker threads: each has devices of its own, the same numbers come out, and no tensor crosses.
import { Worker } from "node:worker_threads";
import t from "tap";
import { addonPath, binding } from "../../lib/binding.js";

/** A worker that answers each message by what ops.fill says of it, and knows how to compute. */
const source = `
  const { parentPort } = require("node:worker_threads");
  const native = require(${JSON.stringify(addonPath)});
  native.setErrorFactory((code, message) => Object.assign(new Error(message), { code }));
  const device = native.openDevice("cpu", "cpu", 0, 2);
  parentPort.on("message", async (message) => {
    try {
      if (message === "compute") {
        const [x, y] = [native.empty(device, [300, 200], 0, 4, 0), native.empty(device, [300, 300], 0, 4, 0)];
        const turned = native.view(x, [200, 300], [1, 200], 0);
        native.ops.random(x, 0, 1, 5, 0, 1);
        native.ops.matmul(x, turned, y, null, 1, 0);
        const result = await native.read(y);
        for (const tensor of [x, turned, y]) native.release(tensor);
        parentPort.postMessage({ result, live: native.memoryStats(device, 0).live });
      } else if (message === "handles") {
        parentPort.postMessage(native.liveHandles().live);
      } else if (message === "give") {
        parentPort.postMessage(native.empty(device, [2], 0, 4, 0));
      } else {
        native.ops.fill(message.tensor, 1);
        parentPort.postMessage("taken");
      }
    } catch (error) {
      parentPort.postMessage({ code: error.code, name: error.name, text: error.message });
    }
  });
`;

const start = () => new Worker(source, { eval: true });
const ask = (worker: Worker, message: unknown) =>
  new Promise<unknown>((resolve, reject) => {
    worker.once("message", resolve).once("error", reject);
    worker.postMessage(message);
  });

t.test("a tensor of another worker is refused, in both directions, and both threads go on", async (t) => {
  const device = binding.openDevice("cpu", "cpu", 0, 1);
  const tensor = binding.empty(device, [2], 0, 4, 0);
  const worker = start();
  t.throws(() => worker.postMessage({ tensor }), { name: "DataCloneError" });
  t.throws(() => worker.postMessage({ tensor: device }), { name: "DataCloneError" });
  t.throws(() => structuredClone(tensor), { name: "DataCloneError" });
  t.match(await ask(worker, "give"), { name: "DataCloneError" });
  // What does get through, such as an object around it, is no tensor there.
  const { Tensor } = await import("../../lib/tensor/tensor.js");
  const own = Tensor.full([2], 1);
  for (const posing of [{}, { __tensor: 1 }, 5, null, new Float32Array(2), "tensor"])
    t.match(await ask(worker, { tensor: posing }), {
      code: "INVALID_ARGUMENT",
      text: /fill: y is .*, expected a longseq tensor of this thread/,
    });
  let cloned: unknown;
  try {
    cloned = structuredClone(own);
  } catch (error) {
    t.equal((error as Error).name, "DataCloneError");
  }
  if (cloned !== undefined) t.match(await ask(worker, { tensor: cloned }), { code: "INVALID_ARGUMENT" });
  own.dispose();
  binding.ops.fill(tensor, 4);
  t.same([...new Float32Array(await binding.read(tensor))], [4, 4]);
  t.match(await ask(worker, "compute"), { live: 0 });
  binding.release(tensor);
  await worker.terminate();
});

t.test("threads side by side compute the same bits, each with its own books", async (t) => {
  const here = binding.openDevice("cpu", "cpu", 0, 2);
  const handles = binding.liveHandles().live;
  const workers = [start(), start(), start()];
  const answers = (await Promise.all(workers.map((worker) => ask(worker, "compute")))) as {
    result: ArrayBuffer;
    live: number;
  }[];
  const [x, y] = [binding.empty(here, [300, 200], 0, 4, 0), binding.empty(here, [300, 300], 0, 4, 0)];
  const turned = binding.view(x, [200, 300], [1, 200], 0);
  binding.ops.random(x, 0, 1, 5, 0, true);
  binding.ops.matmul(x, turned, y, null, 1, false);
  const expected = Buffer.from(await binding.read(y));
  for (const answer of answers) t.ok(expected.equals(Buffer.from(answer.result)));
  for (const tensor of [x, turned, y]) binding.release(tensor);
  t.equal(binding.liveHandles().live, handles, "handles are counted by thread");
  await Promise.all(workers.map((worker) => worker.terminate()));
});
