// Models, gradients and whole training steps on the kernels of native/cuda compiled for the CPU.
import t from "tap";
import { binding } from "../../lib/binding.js";
import { emulatorEnvironment } from "./emul.js";
import { trainingTests } from "./train_tests.js";

// A machine may be busy with much else.
t.setTimeout(0);

const { LONGSEQ_TEST_BACKEND: library, LONGSEQ_TEST_DEVICE: name } = await emulatorEnvironment();
binding.openBackend(library);
trainingTests(name);
