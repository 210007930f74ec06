// Adds 0.5 * x to y in place with the addon of this folder, on tensors of longseq.
import { createRequire } from "node:module";
import { device, native, tensor } from "longseq";

const { scaleAdd } = createRequire(import.meta.url)("./build/Release/scale_add.node");

const cpu = device("cpu");
const x = tensor([1, 2, 3, 4]);
const y = tensor([10, 20, 30, 40]);
// The addon works on this thread, so everything that was enqueued on the tensors must be done.
await cpu.synchronize();
scaleAdd(native.backendTable(cpu), y.native(), x.native(), 0.5);
console.log(`y + 0.5 x = ${[...(await y.data())].join(", ")}`);
