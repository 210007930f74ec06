// One optimizer step as it is enqueued: what the Trainer runs and what a plan measures on `meta` are the same calls.

import { noGrad } from "../autograd/function.js";
import { binding } from "../binding.js";
import type { Config } from "../config/index.js";
import type { Batch } from "../data/index.js";
import type { CausalLM } from "../models/index.js";
import { type GradNorm, gradNorm } from "../nn/clip_grad.js";
import type { Routing } from "../nn/routing.js";
import { allReduceInto } from "../ops/all_reduce.js";
import { axpbyInto } from "../ops/axpby.js";
import { AdamW, type DecayRange } from "../optim/adamw.js";
import type { Mesh, SequenceGroup } from "../parallel/mesh.js";
import { decayRanges, type Owned } from "../parallel/zero.js";
import { shardBatch } from "../sequence/shard.js";
import { scope } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { MemoryPlan } from "./memory_plan.js";

/** The optimizer of a run, its states not made yet. */
export function makeOptimizer(
  owned: readonly Owned[],
  train: Pick<Config["train"], "learningRate" | "betas" | "eps" | "weightDecay">,
  plan: Pick<MemoryPlan, "states">,
): AdamW {
  const rangesOf = new Map<Tensor, DecayRange[]>(owned.map((one) => [one.leaf, decayRanges(one)]));
  return new AdamW(
    owned.map(({ leaf }) => leaf),
    {
      learningRate: train.learningRate,
      betas: train.betas,
      eps: train.eps,
      weightDecay: train.weightDecay,
      decayRanges: (leaf) => rangesOf.get(leaf),
      offload: plan.states.optimizer,
    },
  );
}

export interface StepParts {
  model: CausalLM;
  optimizer: AdamW;
  owned: readonly Owned[];
  mesh: Mesh;
  /** Whole sequences, one batch after the other; their gradients add up. */
  micro: Iterable<Batch>;
  /** Of all micro-batches together. */
  validTokens: number;
  /** 0: no clipping. */
  clipGradNorm: number;
  learningRate: number;
  /** Of what adapters drop. Default 0. */
  dropoutSeed?: number;
  /** Called before a micro-batch, layer, node of the backward, the update, and behind it all. */
  mark?: (phase: "forward" | "backward" | "update" | "done") => void;
}

/** What a step leaves on the device. The scalars belong to the caller. */
export interface StepScalars {
  /** Mean of the token losses, with what a model of experts adds for their balance. */
  readonly loss: Tensor;
  readonly norm: Tensor;
  readonly finite: Tensor;
  /** Of a model with experts: the model's own, which its next step clears. */
  readonly routing: Routing | null;
}

/** Enqueues forward, backward, norm and update; nothing is read. */
export function enqueueStep(parts: StepParts): StepScalars {
  const { model, optimizer, mesh, validTokens } = parts;
  const mark = parts.mark ?? (() => {});
  const { states, device } = model;
  model.onLayer = () => mark("forward");
  const routing = model.stepRouting();
  const balanced = routing !== null && routing.sizes.coefficient > 0;
  // A step without a single label has a loss of 0, and gradients of 0.
  const { dropoutSeed = 0 } = parts;
  const options = { denominator: Math.max(1, validTokens), routing, dropoutSeed };
  const back = (loss: Tensor): Tensor => {
    loss.backward(null, { onNode: () => mark("backward") });
    states.finishBackward();
    return loss.detach();
  };
  const run = (): StepScalars => {
    let total: Tensor | undefined;
    const sum = (part: Tensor): void => {
      total = total === undefined ? part : noGrad(() => (total as Tensor).add(part));
    };
    // How the experts are loaded is known when all micro-batches have been forward: all but the last go twice.
    const early: Batch[] = [];
    let next: Batch | undefined;
    for (const batch of parts.micro) {
      if (next !== undefined && balanced) {
        mark("forward");
        model.count(shardBatch(next, mesh.sequence), routing, { dropoutSeed });
        early.push(next);
      } else if (next !== undefined) {
        mark("forward");
        sum(back(model.loss(shardBatch(next, mesh.sequence), { ...options, record: true })));
      }
      next = batch;
    }
    mark("forward");
    const last = model.loss(shardBatch(next as Batch, mesh.sequence), { ...options, record: true });
    if (balanced) routing.complete(mesh.world);
    if (balanced) routing.setGradient(null);
    sum(back(last));
    for (const batch of early) {
      mark("forward");
      sum(back(model.loss(shardBatch(batch, mesh.sequence), options)));
    }
    if (routing !== null && !balanced) routing.complete(mesh.world);
    const loss = total as Tensor;
    mark("update");
    states.finishGradients();
    // From the norm on, for which every rank waits for all: when a run is stopped, all ranks update or none does.
    binding.beginUpdate(device.native);
    const { norm, finite } = update(parts, loss, balanced ? routing : null, () => binding.endUpdate(device.native));
    optimizer.zeroGrad();
    mark("done");
    return { loss, norm, finite, routing };
  };
  return scope(run);
}

/** Loss and norm of all ranks, and what they make of the weights. end: called behind it, whatever comes. */
function update(
  { model, optimizer, owned, mesh, clipGradNorm, learningRate }: StepParts,
  loss: Tensor,
  routing: Routing | null,
  end: () => void,
): GradNorm {
  try {
    if (mesh.world !== null) allReduceInto(loss, mesh.world);
    // Of all ranks already.
    if (routing !== null) axpbyInto(routing.value(), loss, { beta: 1 });
    const result = gradNorm(
      owned.map(({ leaf }) => leaf),
      clipGradNorm,
      { loss, group: model.isSpread ? mesh.world : null },
    );
    optimizer.learningRate = learningRate;
    optimizer.step(result);
    model.states.finishUpdate();
    return result;
  } finally {
    end();
  }
}

/** The sum of a batch's token losses with the parameters as they are. */
export function evaluationLoss(model: CausalLM, batch: Batch, group: SequenceGroup | null): Tensor {
  return noGrad(() =>
    scope(() => {
      const loss = model.loss(shardBatch(batch, group), { denominator: 1, routing: null, dropoutSeed: null });
      if (group !== null) allReduceInto(loss, group.all);
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
