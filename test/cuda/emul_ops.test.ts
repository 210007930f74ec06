// The tests of single ops once more, on the kernels of native/cuda compiled for the CPU (test/native/cuda_emul); those of
// attention and matmul are in files of their own.
import t from "tap";
import { emulatedOpTests, emulatorEnvironment, runOps } from "./emul.js";

await emulatedOpTests([
  "adamw",
  "argmax",
  "attention_merge",
  "axpby",
  "binary",
  "clip_factor",
  "combine",
  "copy",
  "cross_entropy",
  "dropout",
  "embedding",
  "fill",
  "grouped_matmul",
  "large",
  "layer_norm",
  "norm_squared",
  "quantize",
  "random",
  "rms_norm",
  "rope",
  "route",
  "row_dot",
  "sum",
  "swiglu",
  "unary",
]);

/** No sums, no functions of the C library, no NaN that is rounded. */
const exact = ["dropout", "fill", "random"];

t.test("what has defined bits has the CPU's", { timeout: 0 }, async (t) => {
  const environment = await emulatorEnvironment();
  const children = await Promise.all(
    [environment, {}].map((env) => runOps("isa_ops_child.ts", exact, { LONGSEQ_TEST_CASES_ONLY: "1", ...env })),
  );
  const [emulated, cpu] = children.map(({ code, text }) => {
    if (code !== 0) t.fail(text);
    return (JSON.parse(text) as { hashes: Record<string, string> }).hashes;
  });
  t.same(Object.keys(cpu ?? {}), exact);
  for (const op of exact) t.equal(emulated?.[op], cpu?.[op], op);
});
