// Opens the device under test, computes one number on it, tries attention on cuDNN, and prints what it found as JSON; else
// why there is no device, in one line.
try {
  // Opening the backend already may fail.
  const { openGpu, openWith, Pool, squares } = await import("./device.js");
  const { binding } = await import("../../lib/binding.js");
  const device = openGpu();
  const pool = new Pool(device);
  const total = await squares(device, pool.random([4096], "float32"));
  if (!(total > 3000 && total < 5300)) throw new Error(`the squares of 4096 normal values add up to ${total}`);
  let cudnn = "not there: this is no GPU";
  if (device.type === "cuda") {
    try {
      const near = new Pool(openWith("cudnn"));
      const [q, k, v, o] = [
        near.random([256, 1, 64]),
        near.random([256, 1, 64]),
        near.random([256, 1, 64]),
        near.poisoned([256, 1, 64]),
      ];
      const lse = near.poisoned([1, 256], "float32");
      binding.ops.attention(q, k, v, o, lse, null, 0.125, true, 0, 0, 0);
      cudnn = Number.isFinite(await squares(near.device, o)) ? "runs" : "ran, but left its output unwritten";
      near.free();
    } catch (error) {
      cudnn = (error as Error).message.replace(/\s*\n\s*/g, " ");
    }
  }
  pool.free();
  console.log(JSON.stringify({ ...device.info, cudnn }));
} catch (error) {
  console.log((error as Error).message.replace(/\s*\n\s*/g, " "));
  process.exitCode = 1;
}
