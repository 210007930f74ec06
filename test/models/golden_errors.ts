// Prints, as rows of docs/families.md, how far each golden case is from transformers in float64:
//
//   node --import=tsx test/models/golden_errors.ts
import { noGrad } from "../../lib/autograd/function.js";
import { loadModel } from "../../lib/models/index.js";
import { gradNorm } from "../../lib/nn/clip_grad.js";
import { scopeAsync } from "../../lib/tensor/scope.js";
import { error, goldenCases, putStored, storedSize, withGolden } from "./helpers.js";

const show = (value: number) => value.toExponential(1);

for (const name of goldenCases)
  await withGolden(name, ({ model: folder, golden, inputIds, labels, cuSeqlens, float32 }) =>
    scopeAsync(async () => {
      using model = await loadModel(folder, { dtype: "float32" });
      const logits = noGrad(() => model.forward({ inputIds, cuSeqlens }));
      const logitsError = error((await logits.data()) as Float32Array, await float32("logits"));
      const loss = model.loss({ inputIds, labels, cuSeqlens });
      loss.backward();
      const value = await loss.item();
      const grads = new Map<string, Float32Array>();
      for (const [parameter, tensor] of model.namedParameters()) {
        const place = model.place(parameter);
        const whole = grads.get(place.stored.name) ?? new Float32Array(storedSize(place));
        putStored(place, (await tensor.grad?.data()) as Float32Array, whole);
        grads.set(place.stored.name, whole);
      }
      let worst = 0;
      for (const [tensor, grad] of grads) worst = Math.max(worst, error(grad, await float32(`grad.${tensor}`)));
      const norm = await gradNorm(model.parameters(), 0).norm.item();
      const off = [value / golden.loss - 1, norm / golden.grad_norm - 1].map((share) => show(Math.abs(share)));
      const figures = [show(logitsError), ...off, show(worst)].join(" | ");
      console.log(`| \`${name}\` | ${model.config.family} | ${golden.purpose} | ${figures} |`);
    }),
  );
