// The tests of attention once more, on the kernels of native/cuda with emulated tensor cores.
import { emulatedOpTests } from "./emul.js";

await emulatedOpTests(["attention"]);
