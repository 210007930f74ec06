// gradcheck: gradients of a function against central differences, for tests of ops and of users' own functions.
import { ArgumentError } from "../errors.js";
import { tensor } from "../tensor/create.js";
import { scopeAsync } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

export interface GradcheckOptions {
  /** Step of the differences; float32 wants about the cube root of its rounding. */
  step?: number;
  /** Allowed max |difference| / (rms of the numeric gradient + absolute). */
  tolerance?: number;
  absolute?: number;
  seed?: number;
}

/** A small fixed stream of numbers in (-1, 1), so that every output counts with another weight. */
function* weights(seed: number): Generator<number> {
  let state = (seed * 2654435761 + 1) >>> 0;
  for (;;) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    yield state / 2 ** 31 - 1;
  }
}

/**
 * Checks d(sum(w * fn(inputs))) / d(input) for every input that requires a gradient. Resolves when all agree; errors:
 * ArgumentError naming the input, its element, and both numbers.
 */
export async function gradcheck(
  fn: (...inputs: Tensor[]) => Tensor,
  inputs: Tensor[],
  options: GradcheckOptions = {},
): Promise<void> {
  const step = options.step ?? 1e-2;
  const tolerance = options.tolerance ?? 1e-2;
  await scopeAsync(async () => {
    const probe = fn(...inputs);
    const stream = weights(options.seed ?? 1);
    const w = Float64Array.from({ length: probe.size }, () => stream.next().value as number);
    const shape = probe.shape;
    for (const input of inputs) {
      input.grad?.dispose();
      input.grad = null;
    }
    probe.backward(tensor(w, { shape, dtype: probe.dtype, device: probe.device }));
    const value = async (): Promise<number> => {
      const y = fn(...inputs.map((input) => input.detach()));
      const data = await y.data();
      y.dispose();
      return w.reduce((sum, weight, i) => sum + weight * Number(data[i]), 0);
    };
    for (const [index, input] of inputs.entries()) {
      if (!input.requiresGrad) continue;
      if (!input.grad) throw new ArgumentError(`gradcheck: input ${index} got no gradient`);
      const analytic = Float64Array.from((await input.grad.data()) as Float32Array);
      const original = (await input.data()).slice() as Float32Array;
      const numeric = new Float64Array(analytic.length);
      for (let i = 0; i < original.length; i++) {
        const changed = original.slice();
        const base = original[i] as number;
        changed[i] = base + step;
        const high = changed[i] as number;
        input.copyFrom(changed);
        const up = await value();
        changed[i] = base - step;
        const low = changed[i] as number;
        input.copyFrom(changed);
        const down = await value();
        numeric[i] = (up - down) / (high - low);
      }
      input.copyFrom(original);
      const rms = Math.sqrt(numeric.reduce((sum, g) => sum + g * g, 0) / Math.max(numeric.length, 1));
      for (let i = 0; i < numeric.length; i++) {
        const error = Math.abs((numeric[i] as number) - (analytic[i] as number)) / (rms + (options.absolute ?? 1e-3));
        if (!(error <= tolerance))
          throw new ArgumentError(
            `gradcheck: input ${index}, element ${i}: backward gives ${analytic[i]}, differences ${numeric[i]} (error ${error.toPrecision(3)} of rms)`,
          );
      }
    }
  });
}
