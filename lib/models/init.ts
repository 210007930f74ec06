// Models with random weights, as transformers initialises them; the numbers depend on seed and name alone.

import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { untracked } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { flatPart } from "../tensor/tiers.js";
import { isAdapterParameter } from "./adapter.js";
import type { ModelConfig } from "./config.js";
import { CausalLM } from "./decoder.js";
import { type ModelOptions, modelDtype, parameterTier } from "./load.js";
import { packedPieces } from "./packed.js";
import { initAdapters } from "./peft.js";
import { randomKey } from "./random_key.js";
import { EMBEDDING, HEAD, parseModelConfig, storedIn, withAdapter } from "./registry.js";

export interface InitOptions extends ModelOptions {
  /** A whole number from 0. Default 0. */
  seed?: number | undefined;
  /** What messages call the fields. Default "the model's fields". */
  file?: string | undefined;
}

/**
 * A model of the given config.json fields with transformers' initial weights: matrices normal with standard deviation
 * `initializer_range` (0.02), norms 1 (0 where 1 is added to them), biases 0, the row of the padding token 0.
 */
export function initModel(fields: unknown, options: InitOptions = {}): CausalLM {
  const { seed = 0 } = options;
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new ArgumentError(`initModel: seed is ${seed}, expected a whole number of at least 0`);
  const { adapter = null } = options;
  const config = withAdapter(parseModelConfig(fields, { file: options.file ?? "the model's fields" }), adapter);
  const dtype = modelDtype(config, options);
  const { device = "cpu", zero = null } = options;
  const model = untracked(() => new CausalLM(config, { device, dtype, tier: parameterTier(options), zero }));
  try {
    if (options.memory !== undefined) model.configureMemory(options.memory);
    for (const { leaf, segments } of model.owned)
      for (const { name, begin, count, offset } of segments) {
        const { parameter, shape } = model.place(name);
        if (isAdapterParameter(parameter)) continue;
        using part = untracked(() => flatPart(leaf, offset, count));
        const format = adapter?.baseFormat;
        const pieces =
          format && leaf.dtype === "uint8" ? packedPieces(shape, format, part, begin) : [{ values: part, begin }];
        for (const piece of pieces) initialise(piece, { name, parameter, shape }, config, seed);
      }
    initAdapters(model, seed);
    model.states.finishUpdate();
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Values of a parameter from number `begin` on get the numbers that they have in the whole. */
function initialise(
  { values, begin }: { values: Tensor; begin: number },
  { name, parameter, shape }: { name: string; parameter: string; shape: readonly number[] },
  config: ModelConfig,
  seed: number,
): void {
  const { initializerRange, padTokenId, hiddenSize, norm } = config;
  const isHead = parameter === HEAD && config.headOfEmbedding === true;
  const key = randomKey(isHead ? storedIn(config, EMBEDDING).name : name, seed);
  if (shape.length === 1) values.fill(parameter.endsWith(".bias") || norm.plusOne ? 0 : 1);
  else binding.ops.random(values.native(), 0, initializerRange, key, begin, true);
  if ((parameter !== EMBEDDING && !isHead) || padTokenId === null) return;
  const [from, to] = [padTokenId * hiddenSize, (padTokenId + 1) * hiddenSize].map((at) =>
    Math.min(Math.max(at - begin, 0), values.size),
  ) as [number, number];
  if (from === to) return;
  using row = untracked(() => flatPart(values, from, to - from));
  row.fill(0);
}
