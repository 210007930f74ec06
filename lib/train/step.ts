// One optimizer step as it is enqueued: what the Trainer runs and what a plan measures on `meta` are the same calls.

import { noGrad } from "../autograd/function.js";
import type { Config } from "../config/index.js";
import type { Batch } from "../data/index.js";
import type { CausalLM } from "../models/index.js";
import { gradNorm } from "../nn/clip_grad.js";
import { AdamW } from "../optim/adamw.js";
import { scope } from "../tensor/scope.js";
import type { Parameter, Tensor } from "../tensor/tensor.js";
import type { MemoryPlan } from "./memory_plan.js";

/** Every parameter once, by its first name: a tied weight has two. */
export function trainedParameters(model: CausalLM): [string, Parameter][] {
  const seen = new Set<Parameter>();
  return [...model.namedParameters()].filter(([, parameter]) => {
    const first = !seen.has(parameter);
    seen.add(parameter);
    return first;
  });
}

/** The optimizer of a run, its states not made yet. */
export function makeOptimizer(
  parameters: readonly (readonly [string, Parameter])[],
  train: Config["train"],
  plan: Pick<MemoryPlan, "states">,
): AdamW {
  return new AdamW(
    parameters.map(([, parameter]) => parameter),
    {
      learningRate: train.learningRate,
      betas: train.betas,
      eps: train.eps,
      weightDecay: train.weightDecay,
      decayOnlyMatrices: true,
      offload: plan.states.optimizer,
    },
  );
}

export interface StepParts {
  model: CausalLM;
  optimizer: AdamW;
  parameters: readonly (readonly [string, Parameter])[];
  /** One after the other; their gradients add up. */
  micro: Iterable<Batch>;
  /** Of all micro-batches together. */
  validTokens: number;
  /** 0: no clipping. */
  clipGradNorm: number;
  learningRate: number;
  /** Called before a micro-batch, layer, node of the backward, the update, and behind it all. */
  mark?: (phase: "forward" | "backward" | "update" | "done") => void;
}

/** Enqueues forward, backward, norm and update; nothing is read. The scalars belong to the caller. */
export function enqueueStep(parts: StepParts): { loss: Tensor; norm: Tensor; finite: Tensor } {
  const { model, optimizer, parameters, micro, validTokens, clipGradNorm, learningRate } = parts;
  const mark = parts.mark ?? (() => {});
  model.onLayer = () => mark("forward");
  return scope(() => {
    let total: Tensor | undefined;
    for (const batch of micro) {
      mark("forward");
      // A step without a single label has a loss of 0, and gradients of 0.
      const loss = model.loss(batch, { denominator: Math.max(1, validTokens) });
      loss.backward(null, { onNode: () => mark("backward") });
      const part = loss.detach();
      total = total === undefined ? part : noGrad(() => (total as Tensor).add(part));
    }
    const loss = total as Tensor;
    mark("update");
    const { norm, factor, finite } = gradNorm(
      parameters.map(([, parameter]) => parameter),
      clipGradNorm,
      { loss },
    );
    optimizer.learningRate = learningRate;
    optimizer.step({ factor, finite });
    optimizer.zeroGrad();
    mark("done");
    return { loss, norm, finite };
  });
}

/** The sum of a batch's token losses with the parameters as they are. */
export function evaluationLoss(model: CausalLM, batch: Batch): Tensor {
  return noGrad(() => scope(() => model.loss(batch, { denominator: 1 })));
}

/** Frees parameters, gradients and optimizer states. */
export function disposeRun(model: CausalLM | undefined, optimizer: AdamW | undefined): void {
  optimizer?.zeroGrad();
  optimizer?.dispose();
  model?.dispose();
}
