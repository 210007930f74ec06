// The host side of the CUDA backend, memory, streams, events, copies and failures, over stand-ins for the driver and the
// runtime that hold it to CUDA's rules: memory is not there before it is mapped nor after, streams run behind, a copy
// stays within one registration, nothing goes while a kernel or a copy works on it.
import { spawn } from "node:child_process";
import { symlinkSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { binding, packageRoot } from "../../lib/binding.js";
import { assumedCuda, Device } from "../../lib/tensor/device.js";
import { Tensor } from "../../lib/tensor/tensor.js";
import { fakeCudnn } from "./plans_tool.js";
import { environmentOf, headers, libraries, touchingBackend } from "./stand_ins.js";

t.setTimeout(0);

const MiB = 2 ** 20;
t.test("meta in place of a GPU touches no host memory either", async (t) => {
  const device = new Device("meta", { profile: assumedCuda });
  const x = Tensor.empty([1000], { device, tier: "host" });
  binding.ops.fill(x.native(), 1);
  await device.synchronize();
  t.equal(device.memory("host").live, 4096, "it is accounted for");
});

if (headers === null) {
  t.comment("CUDA's headers are not installed: nothing was built, nothing is judged");
  t.pass("no headers");
} else {
  const environment = environmentOf(await touchingBackend(), await libraries(t));

  /** What a program of host_programs.ts prints; it must end well. */
  const program = async (name: string, more: NodeJS.ProcessEnv = {}): Promise<Record<string, unknown>> => {
    const path = fileURLToPath(new URL("host_programs.ts", import.meta.url));
    const child = spawn(process.execPath, [...process.execArgv, "--import=tsx", path, name], {
      cwd: packageRoot,
      env: { PATH: process.env.PATH, HOME: process.env.HOME, ...environment, ...more },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let [out, errors] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => {
      out += chunk;
    });
    child.stderr.on("data", (chunk: Buffer) => {
      errors += chunk;
    });
    const [code, signal] = await new Promise<[number | null, string | null]>((resolve) =>
      child.on("close", (...ended) => resolve(ended as [number | null, string | null])),
    );
    if (code !== 0) throw new Error(`${name} ended with ${code ?? signal}: ${errors}`);
    return JSON.parse(out);
  };

  for (const [what, memory] of [
    ["plenty of memory", 1024 * MiB],
    ["hardly enough: commits wait for what is on its way back", 100 * MiB],
  ] as const)
    t.test(`blocks that come and go under slow kernels: ${what}`, async (t) => {
      const found = await program("churn", { LONGSEQ_FAKE_DELAY: "300", LONGSEQ_FAKE_MEMORY: String(memory) });
      t.match(found, { wrong: [], live: 0, reserved: 0 });
    });

  t.test("out of device memory: the breakdown, what to change, and life after it", async (t) => {
    const found = await program("outOfMemory", {
      LONGSEQ_FAKE_MEMORY: String(128 * MiB),
      LONGSEQ_FAKE_DELAY: "2000",
    });
    t.match(found.refused, {
      code: "OUT_OF_MEMORY",
      message:
        /out of device memory on cuda: 200\.0+ MiB more .*\(params 40\.0+ MiB\).*CUDA_ERROR_OUT_OF_MEMORY.*memory\.tile_mlp/,
    });
    t.same(found.read, [3, 4, 5]);
  });

  t.test("pinned memory that is refused", async (t) => {
    const found = await program("pinned", { LONGSEQ_FAKE_PINNED: String(128 * MiB) });
    t.equal(found.pci, "0000:17:00.0", "the GPU's address, as the system's folders are called");
    t.match(found.refused, {
      code: "OUT_OF_MEMORY",
      message:
        /out of host memory on cuda: .*\(checkpoints 60\.0+ MiB\).*pinning 64 MiB .* was refused: cudaErrorMemoryAllocation.*memory\.host_limit/,
    });
  });

  t.test("copies over the borders of pinned chunks, which go back behind them", async (t) => {
    t.same(await program("chunks", { LONGSEQ_FAKE_DELAY: "5000" }), { same: true });
  });

  t.test("host memory is saved as the copies before leave it", async (t) => {
    t.same(await program("saving", { LONGSEQ_FAKE_DELAY: "50000" }), { saved: [2] });
  });

  t.test(
    "a recording of more than a second: every op, one behind the other, none shorter than its kernel",
    async (t) => {
      const found = await program("recording", { LONGSEQ_FAKE_DELAY: "25000" });
      t.match(found, { fills: 60, overlapping: 0 });
      t.ok((found.shortest as number) > 20_000, `${found.shortest} us`);
    },
  );

  t.test("a device that another process has to itself", async (t) => {
    const { refused } = await program("opening", { LONGSEQ_FAKE_TAKEN: "1" });
    t.match(refused, {
      code: "DEVICE_FAILURE",
      message: /device cuda cannot be opened: Stand-in: cudaErrorDevicesUnavailable .*; nvidia-smi shows the processes/,
    });
  });

  t.test("attention: cudnn without cuDNN, and with one that is too old", async (t) => {
    const nowhere = join(t.testdir({ cudnn: {} }), "cudnn");
    symlinkSync(join(packageRoot, "build/test/fake_cublaslt.so"), join(nowhere, "libcublasLt.so.13"));
    const missing = await program("forcedCudnn", { LONGSEQ_CUDA_LIBS: nowhere });
    t.match(missing.refused, {
      code: "UNSUPPORTED",
      message:
        /attention: cudnn cannot be had: libcudnn\.so\.9 is not found in LONGSEQ_CUDA_LIBS .*pip install nvidia-cudnn-cu13/,
    });
    symlinkSync(fakeCudnn(), join(nowhere, "libcudnn.so.9"));
    const old = await program("forcedCudnn", { LONGSEQ_CUDA_LIBS: nowhere, LONGSEQ_FAKE_CUDNN: "90100" });
    t.match(old.refused, { code: "UNSUPPORTED", message: /its version is 9\.1\.0, at least 9\.21\.0 is needed/ });
  });

  t.test("a kernel that fails: op, shapes and rank are named, the device is lost, the process ends well", async (t) => {
    const found = await program("kernel");
    const failed = {
      code: "DEVICE_FAILURE",
      message: /failed on rank 0.*cudaErrorIllegalAddress .*the device is lost/,
    };
    t.match(found.first, failed);
    t.match(found.second, failed);
    t.match(found.opening, { code: "DEVICE_FAILURE", message: /lost to this process by an earlier failure/ });
  });

  const host = { optimizer: "host", params: "host", gradients: "host" };
  const tiles = { tileMlp: 20, tileLoss: 17 };
  const checkpoint = { every: 1, keepAttention: true };
  const settings: [what: string, memory: object][] = [
    ["nothing", {}],
    ["all on the host", { ...tiles, headChunks: 2, checkpoint: { ...checkpoint, offload: "host" }, offload: host }],
    ["checkpoints on the disk", { checkpoint: { ...checkpoint, offload: "disk" } }],
    ["packed checkpoints", { ...tiles, checkpoint: { ...checkpoint, offload: "host", format: "int8" } }],
    ["segments, optimizer on the host", { checkpoint: { every: 2, offload: "host" }, offload: { optimizer: "host" } }],
    ["parameters on the host", { ...tiles, offload: { params: "host" } }],
  ];
  const training = (memory: object, more: NodeJS.ProcessEnv = {}) =>
    program("training", { LONGSEQ_FAKE_DELAY: "200", LONGSEQ_TEST_MEMORY: JSON.stringify(memory), ...more });
  for (const [what, memory] of settings)
    t.test(`a run breaks none of CUDA's rules: ${what}`, async (t) => {
      t.match(await training(memory), { steps: 3, live: 0 });
    });

  t.test("the stand-in notices streams that do not wait for each other", async (t) => {
    const [, memory] = settings[1] as (typeof settings)[0];
    await t.rejects(training(memory, { LONGSEQ_FAKE_DEAF: "1" }), {
      message: /ended with 99: .*two streams work on the same memory and nothing orders them/s,
    });
  });
}
