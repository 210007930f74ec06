// What is known of settings without a step on `meta`, so that most of those that cannot fit are never tried.

import type { ModelConfig } from "../models/config.js";
import { type DType, dtypeBytes } from "../tensor/dtype.js";
import type { Peaks } from "./limits.js";
import type { MemoryPlan, Setting } from "./memory_plan.js";

/** Bytes of what goes into a layer. */
const inputBytes = ({ hiddenSize }: ModelConfig, dtype: DType, tokens: number): number =>
  tokens * hiddenSize * dtypeBytes(dtype);

/** Bytes that a step of so many tokens (of a rank) takes at least: its checkpoints alone. */
export function atLeast(
  model: ModelConfig,
  dtype: DType,
  tokens: number,
  plan: Setting & Pick<MemoryPlan, "format">,
): Peaks {
  const { numLayers, numHeads, headDim } = model;
  const { checkpointEvery: every, keepAttention, offload, deviceBytes, format } = plan;
  if (every === 0) return { device: 0, host: 0 };
  const input = inputBytes(model, dtype, tokens);
  const attention = keepAttention && every === 1 ? tokens * numHeads * headDim * dtypeBytes(dtype) : 0;
  // As they are, all behind the last layer.
  const all = format === "native" ? Math.ceil(numLayers / every) * (input + attention) : 0;
  // A segment that is run again keeps the input of each of its layers.
  const again = Math.min(every, numLayers) * input;
  return {
    device: Math.max(again, offload === "none" ? all : 0),
    host: offload === "host" && deviceBytes === 0 ? all : 0,
  };
}

/**
 * Bytes that `longer` takes of the device beyond `shorter` at least, which differ by the layers in a checkpoint alone: the
 * inputs of the others, while a segment is run again. undefined: they differ otherwise, or not at all.
 */
export function moreOnDevice(
  model: ModelConfig,
  dtype: DType,
  tokens: number,
  shorter: Setting,
  longer: Setting,
): number | undefined {
  const alike =
    shorter.checkpointEvery === 1 &&
    longer.checkpointEvery > 1 &&
    shorter.headChunks === longer.headChunks &&
    shorter.offload === longer.offload &&
    shorter.prefetch === longer.prefetch &&
    shorter.deviceBytes === longer.deviceBytes &&
    !shorter.keepAttention &&
    !longer.keepAttention;
  return alike ? (longer.checkpointEvery - 1) * inputBytes(model, dtype, tokens) : undefined;
}

const TIERS = ["none", "host", "disk"];

/** Checkpoints that pass through the host at a time on their way to the disk. */
const STAGED = 2;

/** Whether `one` never needs more than `other` does, of either tier: it gives up more, and nothing less. */
export function spares(one: Setting, other: Setting, layers: number): boolean {
  const [every, others] = [one.checkpointEvery, other.checkpointEvery];
  // Longer segments hold more while they are run again, and have fewer checkpoints: which the disk takes, whatever many.
  const segments =
    every === others ||
    (one.offload === "disk" &&
      every > 0 &&
      every < others &&
      (other.offload === "disk" || Math.ceil(layers / others) > STAGED)) ||
    (others === 0 && every === 1);
  return (
    segments &&
    one.deviceBytes === other.deviceBytes &&
    one.headChunks >= other.headChunks &&
    (!one.prefetch || other.prefetch || others === 0) &&
    (!one.keepAttention || other.keepAttention) &&
    TIERS.indexOf(one.offload) >= TIERS.indexOf(other.offload)
  );
}

/** Whether two settings leave the same on the host: head chunks and what is fetched ahead are the device's alone. */
export const sameOnHost = (one: Setting, other: Setting): boolean =>
  one.offload === "host" &&
  other.offload === "host" &&
  one.checkpointEvery === other.checkpointEvery &&
  one.keepAttention === other.keepAttention &&
  one.deviceBytes === other.deviceBytes;
