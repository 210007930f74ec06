// Ends in the middle of queued work, in the way that its argument names (child of queue.test.ts).
import { binding } from "../../lib/binding.js";

const device = binding.openDevice("cpu", "cpu", 0, 2);
const [a, b] = [binding.empty(device, [1024, 1024], 0, 4, 0), binding.empty(device, [1024, 1024], 0, 4, 0)];
binding.ops.fill(a, 1);
// Minutes of work.
for (let i = 0; i < 20_000; i++) binding.ops.matmul(a, a, b, null, 1, i % 2);
const reads = [binding.read(b), binding.synchronize(device)];
const settled = (what: string) => console.log(what);
for (const read of reads) read.then(() => settled("resolved")).catch(() => settled("rejected"));
console.log("enqueued");
switch (process.argv[2]) {
  case "exit":
    process.exit(7);
    break;
  case "exit later":
    setTimeout(() => process.exit(7), 50);
    break;
  case "throw":
    throw new Error("thrown on purpose");
  case "copies":
    for (let i = 0; i < 50; i++) binding.ops.copy(a, b, i % 2 ? 1 : 2);
    process.exit(7);
    break;
  case "cancel":
    binding.cancel(device);
    break;
}
