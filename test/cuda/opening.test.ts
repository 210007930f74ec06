// What is said where the CUDA backend cannot be used: no driver, one that is too old, no device, libraries that are missing
// or of another version, devices that do not exist. A stand-in for the driver plays the parts.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import t, { type Test } from "tap";
import { cudaLibrary, packageRoot } from "../../lib/binding.js";

const stand = (name: string) => join(packageRoot, "build", "test", `${name}.so`);
const device = pathToFileURL(join(packageRoot, "lib/tensor/device.ts")).href;
const built = existsSync(cudaLibrary);

/** A folder with stand-ins under the names of NVIDIA's libraries. */
function libraries(t: Test, which: Record<string, string>): string {
  const folder = join(t.testdir({ libraries: {} }), "libraries");
  mkdirSync(folder, { recursive: true });
  for (const [name, library] of Object.entries(which)) symlinkSync(stand(library), join(folder, name));
  return folder;
}

/** Opens a device in a process with this environment; gives the error's code and message. */
function open(name: string, environment: NodeJS.ProcessEnv): { code: string; message: string } {
  const script = `const { Device } = await import(${JSON.stringify(device)});
    try {
      new Device(${JSON.stringify(name)});
      console.log(JSON.stringify({ code: "OPEN", message: "" }));
    } catch ({ code, message }) {
      console.log(JSON.stringify({ code, message }));
    }`;
  const child = spawnSync(process.execPath, [...process.execArgv, "--input-type=module", "-e", script], {
    encoding: "utf8",
    cwd: packageRoot,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...environment },
  });
  if (child.status !== 0) throw new Error(`exit ${child.status ?? child.signal}: ${child.stderr}`);
  return JSON.parse(child.stdout);
}

const driver = { "libcuda.so.1": "fake_cuda_driver" };
const both = { ...driver, "libcublasLt.so.13": "fake_cublaslt" };

t.test("a build without nvcc says what is missing and how it is made", async (t) => {
  if (built) return t.pass("this one has the backend");
  t.match(open("cuda", {}), { code: "UNSUPPORTED", message: /liblongseq_cuda\.so is missing.*setup\.mjs --cuda/ });
});

t.test("no driver, or a file that is none", async (t) => {
  if (!built) return t.notOk(built, "no backend was built: nothing to open");
  // The first libcuda.so.1 that the loader meets decides: on a machine with a GPU too.
  const vendor = libraries(t, both);
  const folder = join(vendor, "none");
  mkdirSync(folder);
  writeFileSync(join(folder, "libcuda.so.1"), "no library");
  t.match(open("cuda", { LD_LIBRARY_PATH: folder, LONGSEQ_CUDA_LIBS: vendor }), {
    code: "UNSUPPORTED",
    message: /there is no NVIDIA driver: libcuda\.so\.1 .*cannot be opened \(.*\); install driver 580 or newer, or use/,
  });
});

for (const [mode, message] of [
  ["old", /driver is too old: it supports CUDA 12\.4, longseq needs 13\.0; install driver 580 or newer/],
  ["none", /finds no device; .*--gpus all/],
  ["mismatch", /kernel module and its libcuda\.so\.1 are of different versions: restart/],
] as const)
  t.test(`a driver that is ${mode}`, async (t) => {
    if (!built) return t.notOk(built, "no backend was built: nothing to open");
    const folder = libraries(t, both);
    const found = open("cuda", { LD_LIBRARY_PATH: folder, LONGSEQ_CUDA_LIBS: folder, LONGSEQ_FAKE_CUDA: mode });
    t.match(found, { code: "UNSUPPORTED", message });
  });

t.test("a driver without devices names the variable that may hide them", async (t) => {
  if (!built) return t.notOk(built, "no backend was built: nothing to open");
  const folder = libraries(t, both);
  const hidden = { LD_LIBRARY_PATH: folder, LONGSEQ_FAKE_CUDA: "none", CUDA_VISIBLE_DEVICES: "7" };
  t.match(open("cuda", hidden).message, /CUDA_VISIBLE_DEVICES is '7'/);
});

t.test("cuBLASLt that is missing, or of another version", async (t) => {
  if (!built) return t.notOk(built, "no backend was built: nothing to open");
  const folder = libraries(t, driver);
  t.match(open("cuda", { LD_LIBRARY_PATH: folder, LONGSEQ_CUDA_LIBS: folder }), {
    code: "UNSUPPORTED",
    message: /libcublasLt\.so\.13 is not found in LONGSEQ_CUDA_LIBS \(.*libraries\); .*pip install nvidia-cublas/,
  });
  symlinkSync(stand("fake_cublaslt"), join(folder, "libcublasLt.so.13"));
  const wrong = { LD_LIBRARY_PATH: folder, LONGSEQ_CUDA_LIBS: folder, LONGSEQ_FAKE_CUBLASLT: "120304" };
  t.match(open("cuda", wrong), {
    code: "UNSUPPORTED",
    message: /fake_cublaslt\.so cannot be used: it is version 12\.3, longseq needs 13; .*LONGSEQ_CUDA_LIBS/,
  });
});

t.test("devices that do not exist or are too old", async (t) => {
  if (!built) return t.notOk(built, "no backend was built: nothing to open");
  const folder = libraries(t, both);
  const environment = { LD_LIBRARY_PATH: folder, LONGSEQ_CUDA_LIBS: folder };
  t.match(open("cuda:5", environment), {
    code: "INVALID_ARGUMENT",
    message: /there are 2 CUDA devices, cuda:0 to cuda:1; cuda:5 does not exist/,
  });
  t.match(open("cuda:1", { ...environment, LONGSEQ_FAKE_CUDA: "turing" }), {
    code: "UNSUPPORTED",
    message: /Tesla T4 has compute capability 7\.5; longseq needs 8\.0/,
  });
  // The stand-in is no driver: what CUDA itself says of it ends in one clear line, not in a crash.
  const refused = open("cuda", environment);
  t.not(refused.code, "OPEN");
  t.match(refused.message, /NVIDIA H200: cudaError/);
});
