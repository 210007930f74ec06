// Every golden case: logits, loss and each gradient of each family against transformers in float64.

import t from "tap";
import { noGrad } from "../../lib/autograd/function.js";
import { loadModel } from "../../lib/models/index.js";
import { gradNorm } from "../../lib/nn/clip_grad.js";
import { scopeAsync } from "../../lib/tensor/scope.js";
import { error, goldenCases, putStored, storedSize, withGolden } from "./helpers.js";

// The longest sums are those over the tokens and over the vocabulary, some hundreds of terms.
const LOGITS = 3e-5;
const GRADIENT = 1e-4;

t.ok(goldenCases.length >= 25, "all cases are there");

for (const name of goldenCases) {
  t.test(name, async (t) =>
    withGolden(name, async ({ model: folder, golden, inputIds, labels, cuSeqlens, float32 }) =>
      scopeAsync(async () => {
        using model = await loadModel(folder, { dtype: "float32" });
        t.strictSame(
          [...new Set([...model.namedParameters()].map(([parameter]) => model.place(parameter).stored.name))].sort(),
          [...golden.parameters].sort(),
          "Hugging Face's parameter names",
        );
        const logits = noGrad(() => model.forward({ inputIds, cuSeqlens }));
        t.strictSame(logits.shape, [golden.tokens, model.config.vocabSize]);
        const logitsError = error((await logits.data()) as Float32Array, await float32("logits"));
        t.ok(logitsError <= LOGITS, `logits: ${logitsError}`);

        for (const [tileMlp, tileLoss] of [
          [0, 0],
          [7, 5],
        ] as const) {
          model.configureMemory({ tileMlp, tileLoss });
          model.zeroGrad();
          const loss = model.loss({ inputIds, labels, cuSeqlens });
          loss.backward();
          const value = await loss.item();
          t.ok(Math.abs(value / golden.loss - 1) <= 1e-6, `loss ${value}, expected ${golden.loss}`);
          // By stored tensor: a part of one may have none to speak of, as the keys' bias in GPT-2.
          const grads = new Map<string, Float32Array>();
          for (const [parameter, tensor] of model.namedParameters()) {
            const grad = tensor.grad;
            if (grad === null) {
              t.fail(`${parameter} has no gradient`);
              continue;
            }
            const place = model.place(parameter);
            const whole = grads.get(place.stored.name) ?? new Float32Array(storedSize(place));
            putStored(place, (await grad.data()) as Float32Array, whole);
            grads.set(place.stored.name, whole);
          }
          for (const [name, grad] of grads) {
            const wrong = error(grad, await float32(`grad.${name}`));
            if (!(wrong <= GRADIENT)) t.fail(`gradient of ${name} with tiles of ${tileMlp}: ${wrong}`);
          }
          const norm = await gradNorm(model.parameters(), 0).norm.item();
          t.ok(Math.abs(norm / golden.grad_norm - 1) <= 1e-5, `gradient norm ${norm}, expected ${golden.grad_norm}`);
        }
      }),
    ),
  );
}
