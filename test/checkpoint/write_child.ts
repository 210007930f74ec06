// Run by safetensors_write.test.ts under a limit of the file size: writes 8 MB and prints the error as JSON.

import { SafetensorsWriter } from "../../lib/checkpoint/safetensors.js";

const file = process.argv[2] as string;
try {
  const writer = await SafetensorsWriter.create(file, [{ name: "w", dtype: "F32", shape: [2_000_000] }]);
  await writer.write("w", new Float32Array(2_000_000));
  await writer.finish();
  console.log(JSON.stringify({ name: "nothing was thrown" }));
} catch (error) {
  const { name, message, details } = error as Error & { details?: { errno?: string } };
  console.log(JSON.stringify({ name, message, errno: details?.errno }));
}
