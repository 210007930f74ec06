// What a config.json says about rotary positions, in both of Hugging Face's spellings, and how a run may replace it.

import type { RopeParameters } from "../nn/rotary_embedding.js";
import { ropeTypes } from "../nn/rotary_embedding.js";
import type { ConfigFields, FieldReader } from "./fields.js";

/** What `model.override` of a run may replace; it is written to the export too. */
export interface ConfigOverride {
  readonly rope_theta?: number;
  readonly rope_scaling?: ConfigFields | null;
  readonly max_position_embeddings?: number;
  /** Of a model with experts: whether its load-balancing loss is part of the loss, and by which factor. */
  readonly output_router_logits?: boolean;
  readonly router_aux_loss_coef?: number;
  readonly tie_word_embeddings?: boolean;
}

export interface RopeFieldsOptions {
  readonly maxPositionEmbeddings: number;
  /** Dims of each head that turn. */
  readonly rotaryDim: number;
  /** Where rope_theta is absent. Default 10000. */
  readonly theta?: number;
  /** The rope fields, where they are not in their usual place; undefined: there are none. */
  readonly inner?: FieldReader | undefined;
}

/** `rope_scaling`, or `rope_parameters`: transformers takes the first where both are given. */
export const ropeFields = (top: FieldReader): FieldReader | undefined =>
  top.object("rope_scaling") ?? top.object("rope_parameters");

/** The rope fields, and the `rope_theta` at the top. */
export function readRope(top: FieldReader, options: RopeFieldsOptions): RopeParameters {
  const { maxPositionEmbeddings, rotaryDim } = options;
  const inner = "inner" in options ? options.inner : ropeFields(top);
  const nested = inner && Object.entries(inner.fields).find(([, value]) => typeof value === "object" && value !== null);
  if (inner && nested && !Array.isArray(nested[1]))
    inner.fail(nested[0], "rope parameters that differ by kind of layer are not what this family has");
  const reader = inner ?? top;
  const theta =
    inner !== undefined && inner.get("rope_theta") !== undefined && inner.get("rope_theta") !== null
      ? inner.number("rope_theta", { above: 0 })
      : top.number("rope_theta", { above: 0, default: options.theta ?? 10000, nullable: true });
  const key = inner?.get("rope_type") !== undefined ? "rope_type" : "type";
  const type = inner?.get(key) ?? "default";
  if (!ropeTypes.includes(type as (typeof ropeTypes)[number]))
    reader.fail(key, `this kind of rope is not implemented; there are ${ropeTypes.join(", ")}`);

  // The file's top wins over the rope fields.
  const originalPositions = (): number =>
    top.get("original_max_position_embeddings") !== undefined
      ? top.count("original_max_position_embeddings")
      : reader.count("original_max_position_embeddings", { default: maxPositionEmbeddings });
  switch (type as (typeof ropeTypes)[number]) {
    case "default":
      return { type: "default", theta };
    case "linear":
      return { type: "linear", theta, factor: reader.number("factor", { above: 0 }) };
    case "dynamic":
      if (rotaryDim === 2) reader.fail(key, "dynamic needs more than 2 dims that turn");
      return {
        type: "dynamic",
        theta,
        // Below 1 the base of a longer sequence would be negative.
        factor: reader.number("factor", { from: 1 }),
        maxPositions: maxPositionEmbeddings,
      };
    case "longrope": {
      const original = originalPositions();
      const factor = reader.numberOrNull("factor", { above: 0 }) ?? maxPositionEmbeddings / original;
      const attentionFactor = reader.numberOrNull("attention_factor", { above: 0 });
      if (attentionFactor === null && factor > 1 && original === 1)
        reader.fail("original_max_position_embeddings", "longrope cannot make an attention factor from 1");
      return {
        type: "longrope",
        theta,
        shortFactor: reader.numbers("short_factor", rotaryDim / 2),
        longFactor: reader.numbers("long_factor", rotaryDim / 2),
        factor,
        originalPositions: original,
        attentionFactor,
      };
    }
    case "llama3": {
      const lowFrequencyFactor = reader.number("low_freq_factor", { above: 0 });
      const highFrequencyFactor = reader.number("high_freq_factor", { above: 0 });
      if (highFrequencyFactor <= lowFrequencyFactor)
        reader.fail("high_freq_factor", `expected more than low_freq_factor, ${lowFrequencyFactor}`);
      return {
        type: "llama3",
        theta,
        factor: reader.number("factor", { above: 0 }),
        lowFrequencyFactor,
        highFrequencyFactor,
        originalPositions: originalPositions(),
      };
    }
    case "yarn": {
      if (theta === 1) (inner?.get("rope_theta") === undefined ? top : reader).fail("rope_theta", "yarn cannot use 1");
      const original = originalPositions();
      const orDefault = (name: string, value: number) => reader.numberOrNull(name, { from: 0 }) || value;
      return {
        type: "yarn",
        theta,
        // null: how much longer the context is than the original one.
        factor:
          reader.get("factor") === null ? maxPositionEmbeddings / original : reader.number("factor", { above: 0 }),
        originalPositions: original,
        attentionFactor: reader.numberOrNull("attention_factor", { above: 0 }),
        betaFast: orDefault("beta_fast", 32),
        betaSlow: orDefault("beta_slow", 1),
        mscale: reader.numberOrNull("mscale", { from: 0 }),
        mscaleAllDim: reader.numberOrNull("mscale_all_dim", { from: 0 }),
        truncate: reader.flag("truncate", true),
      };
    }
  }
}
/** Whether rope parameters of this type need the length that the weights were trained with. */
const stretchesFromOriginal = (type: unknown): boolean => type === "yarn" || type === "llama3" || type === "longrope";

/** The fields with `override` put where transformers will find it; those given are left as they are. */
export function overrideFields(fields: ConfigFields, override: ConfigOverride = {}): ConfigFields {
  const result: Record<string, unknown> = structuredClone(fields);
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null && !Array.isArray(value);
  for (const key of ["output_router_logits", "router_aux_loss_coef", "tie_word_embeddings"] as const)
    if (override[key] !== undefined) result[key] = override[key];
  const byKind = result.rope_parameters;
  if (isObject(byKind) && isObject(byKind.full_attention)) {
    // Layers with a window keep their own.
    const full = overrideFields({ ...result, rope_parameters: byKind.full_attention }, override);
    return { ...full, rope_parameters: { ...byKind, full_attention: full.rope_parameters } };
  }
  const inner = [result.rope_scaling, result.rope_parameters].find(
    (value) => isObject(value) && Object.keys(value).length > 0,
  ) as Record<string, unknown> | undefined;

  const positionsBefore = result.max_position_embeddings;
  if (override.max_position_embeddings !== undefined) {
    result.max_position_embeddings = override.max_position_embeddings;
    const type = inner?.rope_type ?? inner?.type;
    // Where the original length is left out it is the old limit, and the new one must not take its place.
    if (
      inner !== undefined &&
      stretchesFromOriginal(type) &&
      positionsBefore !== undefined &&
      inner.original_max_position_embeddings === undefined &&
      result.original_max_position_embeddings === undefined
    )
      inner.original_max_position_embeddings = positionsBefore;
  }

  if (override.rope_scaling !== undefined) {
    const theta = override.rope_scaling?.rope_theta ?? inner?.rope_theta ?? result.rope_theta;
    const scaling: Record<string, unknown> = structuredClone(override.rope_scaling ?? {});
    const type = scaling.rope_type ?? scaling.type ?? "default";
    const original = result.original_max_position_embeddings ?? inner?.original_max_position_embeddings;
    // At the top it would win over the new one.
    delete result.original_max_position_embeddings;
    if (
      (type === "yarn" || type === "llama3" || type === "longrope") &&
      scaling.original_max_position_embeddings === undefined
    ) {
      // The length the weights were trained with, not the one they are stretched to.
      const positions = original ?? positionsBefore;
      if (positions !== undefined) scaling.original_max_position_embeddings = positions;
    }
    if (isObject(result.rope_parameters)) {
      delete result.rope_scaling;
      delete scaling.type;
      result.rope_parameters = { ...scaling, rope_type: type, ...(theta === undefined ? {} : { rope_theta: theta }) };
    } else {
      result.rope_scaling = override.rope_scaling === null ? null : scaling;
      if (theta !== undefined) result.rope_theta = theta;
    }
  }
  if (override.rope_theta !== undefined) {
    let placed = false;
    for (const value of [result.rope_scaling, result.rope_parameters]) {
      // Inside it wins over the one at the top.
      if (isObject(value) && (value === result.rope_parameters || value.rope_theta !== undefined)) {
        value.rope_theta = override.rope_theta;
        placed = true;
      }
    }
    if (!placed || result.rope_theta !== undefined) result.rope_theta = override.rope_theta;
  }
  return result;
}
