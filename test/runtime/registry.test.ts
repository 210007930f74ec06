// Backends from shared libraries: opened, used, and refused with a reason.
import { existsSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { binding, packageRoot } from "../../lib/binding.js";
import { Device } from "../../lib/tensor/device.js";
import { Tensor } from "../../lib/tensor/tensor.js";

const library = join(packageRoot, "build", "test", "toy_backend.so");

t.test("a library that cannot be used says why", async (t) => {
  t.ok(existsSync(library), `${library} is built by the set-up`);
  t.throws(() => binding.openBackend("/nowhere/backend.so"), {
    code: "UNSUPPORTED",
    message: /\/nowhere\/backend\.so/,
  });
  t.throws(() => binding.openBackend("libm.so.6"), { code: "UNSUPPORTED", message: /does not export ls_backend_open/ });
  t.throws(() => binding.openBackend(5 as unknown as string), { code: "INVALID_ARGUMENT" });
  t.throws(() => new Device("toy"), { code: "UNSUPPORTED", message: /'toy' is not available.*cpu, meta/ });
});

t.test("a backend of a shared library works like a built-in one", async (t) => {
  t.equal(binding.openBackend(library), "toy");
  t.ok(binding.backends().includes("toy"));
  t.throws(() => new Device("toy:7"), { code: "UNSUPPORTED", message: /there are 2 toys, index 7/ });
  const toy = new Device("toy:1");
  t.equal(toy.info.name, "toy 1");
  const x = Tensor.full([1000], 2.5, { device: toy });
  t.same(new Set((await x.data()) as Float32Array), new Set([2.5]));
  t.equal(toy.memory().live, 4096);
  x.dispose();
  t.equal(toy.memory().live, 0);
});

t.test("an op that a backend lacks, and one that fails, reject the next read with op and shapes", async (t) => {
  const lacking = new Device("toy");
  const x = Tensor.full([3, 4], 1, { device: lacking });
  binding.ops.copy(x.native(), Tensor.empty([3, 4], { device: lacking }).native());
  await t.rejects(x.data(), { code: "UNSUPPORTED", message: /copy.*float32\[3, 4\].*the toy backend lacks this op/ });
  const failing = new Device("toy");
  const y = Tensor.full([7], -1, { device: failing });
  await t.rejects(y.data(), {
    code: "DEVICE_FAILURE",
    message: /fill failed on rank 0 with y float32\[7\]: toys are not negative/,
  });
  await t.rejects(failing.synchronize(), { code: "DEVICE_FAILURE" }, "the failure is sticky");
});

for (const [mode, message] of [
  ["old", new RegExp(`api version ${binding.apiVersion - 1}, this build needs ${binding.apiVersion}`)],
  ["refuse", /no toy is plugged in/],
] as const)
  t.test(`a library that answers '${mode}' is refused`, async (t) => {
    // The library reads the C environment, which Node's process.env writes.
    process.env.LONGSEQ_TOY = mode;
    t.throws(() => binding.openBackend(library), { code: "UNSUPPORTED", message });
    delete process.env.LONGSEQ_TOY;
  });
