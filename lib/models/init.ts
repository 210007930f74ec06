// Models with random weights, as transformers initialises them; the numbers depend on seed and name alone.

import { createHash } from "node:crypto";
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { untracked } from "../tensor/scope.js";
import { CausalLM } from "./decoder.js";
import { type ModelOptions, modelDtype, parameterTier } from "./load.js";
import { parseModelConfig } from "./registry.js";

export interface InitOptions extends ModelOptions {
  /** A whole number from 0. Default 0. */
  seed?: number | undefined;
  /** What messages call the fields. Default "the model's fields". */
  file?: string | undefined;
}

/** Philox key of a parameter: equal whatever else the model has, so a change elsewhere changes no other weight. */
function seedOf(name: string, seed: number): number {
  return createHash("sha256").update(`${seed} ${name}`).digest().readUIntBE(0, 6);
}

/**
 * A model of the given config.json fields with transformers' initial weights: matrices normal with standard deviation
 * `initializer_range` (0.02), norms 1, biases 0, the row of the padding token 0.
 */
export function initModel(fields: unknown, options: InitOptions = {}): CausalLM {
  const { seed = 0 } = options;
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new ArgumentError(`initModel: seed is ${seed}, expected a whole number of at least 0`);
  const config = parseModelConfig(fields, { file: options.file ?? "the model's fields" });
  const dtype = modelDtype(config, options);
  const model = untracked(
    () => new CausalLM(config, { device: options.device ?? "cpu", dtype, tier: parameterTier(options) }),
  );
  try {
    if (options.memory !== undefined) model.configureMemory(options.memory);
    for (const [name, parameter] of model.namedParameters()) {
      if (parameter.ndim === 1) parameter.fill(name.endsWith(".bias") ? 0 : 1);
      else binding.ops.random(parameter.native(), 0, config.initializerRange, seedOf(name, seed), 0, true);
      if (name === "model.embed_tokens.weight" && config.padTokenId !== null) {
        const row = parameter.viewOf([config.hiddenSize], [1], config.padTokenId * config.hiddenSize);
        row.fill(0);
        row.dispose();
      }
    }
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}
