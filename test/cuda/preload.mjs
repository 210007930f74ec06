// Opens the backend that LONGSEQ_TEST_BACKEND names in every process of the command line, as `cuda`: with
// NODE_OPTIONS=--import=THIS.
import { binding } from "../../dist/lib/binding.js";

if (process.env.LONGSEQ_TEST_BACKEND !== undefined) binding.openBackend(process.env.LONGSEQ_TEST_BACKEND);
