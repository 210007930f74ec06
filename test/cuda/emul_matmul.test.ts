// The tests of matrix products once more, on the kernels of native/cuda around an emulated cuBLASLt.
import { emulatedOpTests } from "./emul.js";

await emulatedOpTests(["matmul"]);
