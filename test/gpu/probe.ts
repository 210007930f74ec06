// Opens the device under test, computes one number on it, and prints what it is as JSON; else why not, in one line.
import { totalmem } from "node:os";

try {
  // Opening the backend already may fail.
  const { openGpu, Pool, squares } = await import("./device.js");
  const device = openGpu();
  const pool = new Pool(device);
  const total = await squares(device, pool.random([4096], "float32"));
  if (!(total > 3000 && total < 5300)) throw new Error(`the squares of 4096 normal values add up to ${total}`);
  pool.free();
  console.log(JSON.stringify({ ...device.info, hostBytes: totalmem() }));
} catch (error) {
  console.log((error as Error).message.replace(/\s*\n\s*/g, " "));
  process.exitCode = 1;
}
