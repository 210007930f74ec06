// Steps that were left out because they were not finite, and models that are no longer worth saving.

import { noGrad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { TrainingError } from "../errors.js";
import { Tensor } from "../tensor/tensor.js";
import { flatPart } from "../tensor/tiers.js";
import { learningRateAt } from "./schedule.js";
import type { Training } from "./session.js";

/** Steps in a row that may be left out because they were not finite. */
const MOST_SKIPPED = 5;

/** Steps in a row left out at the end of a run, from which on it is no success. */
const MOST_SKIPPED_AT_END = 3;

/** Ends a run in which too many steps in a row were left out. */
export async function checkFinite(training: Training): Promise<void> {
  const { config, steps } = training.session;
  const { skippedInARow, step } = training.state;
  if (skippedInARow < MOST_SKIPPED) return;
  const broken = await brokenParameter(training);
  const { train, model } = config;
  throw new TrainingError(
    `the loss or the gradient was not finite in ${MOST_SKIPPED} steps in a row, ${step - MOST_SKIPPED + 1} to ${step}; ` +
      "these steps changed nothing. " +
      (broken === undefined
        ? `All weights are finite: look at train.learning_rate (${train.learningRate}; the step used ${learningRateAt(step - 1, steps, train)}), ` +
          "train.warmup_steps and the rows of these steps (longseq data shows them)"
        : `Parameter ${broken} holds values that are not finite: look at the weights of ` +
          `${model.path ?? "the model"}${step > MOST_SKIPPED ? ", or start from an older checkpoint with a lower train.learning_rate" : ""}`),
    { step, parameter: broken ?? null },
  );
}

/** A model that is broken is neither saved over good checkpoints nor exported. */
export async function refuseBroken(training: Training): Promise<void> {
  const { skippedInARow, step } = training.state;
  const broken = skippedInARow > 0 ? await brokenParameter(training) : undefined;
  if (broken === undefined) return;
  const { train, model } = training.session.config;
  throw new TrainingError(
    `parameter ${broken} holds values that are not finite, so the last ${skippedInARow} of ${step} steps changed ` +
      `nothing and there is nothing to save: look at the weights of ${model.path ?? "the model"} or at ` +
      `train.learning_rate (${train.learningRate})`,
    { step, parameter: broken },
  );
}

/**
 * A run that ends with steps that were left out, some in a row or all there were, has not done what was asked. Its
 * state is saved: the weights are those of the last step that counted.
 */
export function refuseSkippedEnd({ session, state }: Training): void {
  const { step, skipped, skippedInARow: last } = state;
  if (last < MOST_SKIPPED_AT_END && !(step > 0 && skipped === step)) return;
  const { train } = session.config;
  const first = step - last + 1;
  const which = last === step ? `all ${step} steps` : `steps ${first} to ${step}, the last of the run`;
  const weights = first === 1 ? "the weights are those of the start" : `the weights are those of step ${first - 1}`;
  throw new TrainingError(
    `the loss or the gradient was not finite in ${which}: they changed nothing, and no model is exported; ${weights}, ` +
      `saved in ${session.checkpoints}. Look at the rows of these steps (longseq data shows them) and start afresh in ` +
      `another output.dir with a lower train.learning_rate (it is ${train.learningRate}), or raise the number of steps ` +
      "to go on",
    { step, first, skipped: last },
  );
}

/** The first parameter with a value that is not finite; enqueues the question, and answers at the next read. */
async function brokenParameter({ session, device, owned }: Training): Promise<string | undefined> {
  const sums = noGrad(() =>
    owned.flatMap(({ leaf, segments }) =>
      segments.map(({ name, offset, count }) => {
        const sum = Tensor.full([], 0, { device, dtype: "float64", tier: leaf.tier }).keep();
        using part = flatPart(leaf, offset, count);
        binding.ops.normSquared(part.native(), sum.native());
        return { name, sum };
      }),
    ),
  );
  const values = await Promise.all(sums.map(({ sum }) => sum.item())).finally(() => {
    for (const { sum } of sums) sum.dispose();
  });
  const broken = sums.find((_, i) => !Number.isFinite(values[i]))?.name;
  // All ranks end for the same reason.
  return (await session.job.swap(broken ?? null)).find((name) => name !== null) ?? undefined;
}
