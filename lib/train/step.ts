// One optimizer step as it is enqueued: what the Trainer runs and what a plan measures on `meta` are the same calls.

import { noGrad } from "../autograd/function.js";
import type { Config } from "../config/index.js";
import type { Batch } from "../data/index.js";
import type { CausalLM } from "../models/index.js";
import { gradNorm } from "../nn/clip_grad.js";
import { allReduceInto } from "../ops/all_reduce.js";
import { AdamW } from "../optim/adamw.js";
import type { Communicator } from "../parallel/communicator.js";
import { shardBatch } from "../sequence/shard.js";
import { scope } from "../tensor/scope.js";
import type { Parameter, Tensor } from "../tensor/tensor.js";
import { gradientsOf } from "../tensor/tiers.js";
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
  /** The ranks that share the sequences; null: this one is alone. */
  group?: Communicator | null;
  /** Whole sequences, one batch after the other; their gradients add up. */
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
  const group = parts.group ?? null;
  model.onLayer = () => mark("forward");
  return scope(() => {
    let total: Tensor | undefined;
    for (const batch of micro) {
      mark("forward");
      // A step without a single label has a loss of 0, and gradients of 0.
      const loss = model.loss(shardBatch(batch, group), { denominator: Math.max(1, validTokens) });
      loss.backward(null, { onNode: () => mark("backward") });
      const part = loss.detach();
      total = total === undefined ? part : noGrad(() => (total as Tensor).add(part));
    }
    const loss = total as Tensor;
    mark("update");
    if (group !== null) sumOverRanks(parameters, loss, group);
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

/** Every rank has the loss and the gradients of its own tokens: afterwards all have those of all. */
function sumOverRanks(parameters: StepParts["parameters"], loss: Tensor, group: Communicator): void {
  for (const { grad } of gradientsOf(parameters.map(([, parameter]) => parameter))) allReduceInto(grad, group);
  allReduceInto(loss, group);
}

/** The sum of a batch's token losses with the parameters as they are. */
export function evaluationLoss(model: CausalLM, batch: Batch, group: Communicator | null): Tensor {
  return noGrad(() =>
    scope(() => {
      const loss = model.loss(shardBatch(batch, group), { denominator: 1 });
      if (group !== null) allReduceInto(loss, group);
      return loss;
    }),
  );
}

/** Frees parameters, gradients and optimizer states. */
export function disposeRun(model: CausalLM | undefined, optimizer: AdamW | undefined): void {
  optimizer?.zeroGrad();
  optimizer?.dispose();
  model?.dispose();
}
