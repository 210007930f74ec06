// What a config.json says about experts: how many there are, how many serve a token, which layers have them.

import type { ExpertSizes } from "../nn/mixture_of_experts.js";
import { type FieldReader, show } from "./fields.js";

/** The experts of a model. */
export interface ModelExperts extends ExpertSizes {
  /** Which layers have experts; the others have an MLP. */
  readonly layers: readonly boolean[];
  /** Factor of the load-balancing loss that is part of the loss; 0: it is none. */
  readonly auxiliaryCoefficient: number;
}

export interface ExpertFields {
  readonly numLayers: number;
  /** The field of E. */
  readonly count: string;
  /** F of each. */
  readonly intermediateSize: number;
  /** Default: as `norm_topk_prob` says. */
  readonly normalize?: boolean;
  readonly sharedIntermediateSize?: number;
}

/** null: no layer has experts. */
export function readExperts(fields: FieldReader, options: ExpertFields): ModelExperts | null {
  const { numLayers, count: key, intermediateSize, sharedIntermediateSize = null } = options;
  const count = fields.count(key, { least: 0 });
  const names = ["num_local_experts", "num_experts"].filter((name) => (fields.fields[name] ?? null) !== null);
  const other = names.find((name) => fields.fields[name] !== count);
  if (other !== undefined)
    fields.fail(key, `but ${other} is ${show(fields.fields[other])}; they are two names of one number`);
  const active = fields.count("num_experts_per_tok");
  const layers = expertLayers(fields, numLayers, count);
  const auxiliaryCoefficient = fields.flag("output_router_logits", false)
    ? fields.number("router_aux_loss_coef", { from: 0, default: 0.001 })
    : 0;
  if (!layers.includes(true)) return null;
  if (active > count) fields.fail("num_experts_per_tok", `expected at most ${key}, ${count}`);
  const normalize = options.normalize ?? fields.flag("norm_topk_prob", false);
  return { count, active, intermediateSize, normalize, sharedIntermediateSize, layers, auxiliaryCoefficient };
}

/** Every layer, or one of `decoder_sparse_step`, but those of `mlp_only_layers`. */
function expertLayers(fields: FieldReader, numLayers: number, count: number): boolean[] {
  const step = fields.count("decoder_sparse_step", { default: 1 });
  const without = fields.get("mlp_only_layers") ?? [];
  if (!Array.isArray(without)) fields.fail("mlp_only_layers", "expected a list of layers");
  for (const layer of without as unknown[])
    if (!Number.isSafeInteger(layer) || (layer as number) < 0 || (layer as number) >= numLayers)
      fields.fail("mlp_only_layers", `${show(layer)} is no layer; there are 0 to ${numLayers - 1}`);
  return Array.from(
    { length: numLayers },
    (_, layer) => count > 0 && !(without as number[]).includes(layer) && (layer + 1) % step === 0,
  );
}
