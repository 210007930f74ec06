// Inverse frequencies of rotary position embeddings, float32 as transformers computes them, for each kind of scaling.
//
// RoPE: arXiv 2104.09864. linear: positions divided by a factor. YaRN: arXiv 2309.00071. llama3: Llama 3.1's model card.
// LongRoPE: arXiv 2402.13753. dynamic: the base grows with the length (NTK-aware scaling, as YaRN's paper tells it).
// Every step is rounded to float32 where transformers rounds it: an inverse frequency that is one unit in the last place
// off turns token 1,000,000 by 0.06 radians. Powers are rounded correctly; torch's own are in all but a few entries, and
// one unit off there.

import { ArgumentError } from "../errors.js";

/** The kinds that are implemented. */
export const ropeTypes = ["default", "linear", "dynamic", "yarn", "longrope", "llama3"] as const;
export type RopeType = (typeof ropeTypes)[number];

/** What a model's config.json says about positions, with every default filled in. */
export type RopeParameters =
  | { readonly type: "default"; readonly theta: number }
  | { readonly type: "linear"; readonly theta: number; readonly factor: number }
  | {
      readonly type: "dynamic";
      readonly theta: number;
      readonly factor: number;
      /** Tokens up to which nothing is scaled. */
      readonly maxPositions: number;
    }
  | {
      readonly type: "longrope";
      readonly theta: number;
      /** [D/2] each: of sequences up to originalPositions, and of longer ones. */
      readonly shortFactor: readonly number[];
      readonly longFactor: readonly number[];
      /** How much longer the context is than the original one. */
      readonly factor: number;
      readonly originalPositions: number;
      /** Of cos and sin; null: made from factor. */
      readonly attentionFactor: number | null;
    }
  | {
      readonly type: "llama3";
      readonly theta: number;
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      /** Tokens of the pretraining context. */
      readonly originalPositions: number;
    }
  | {
      readonly type: "yarn";
      readonly theta: number;
      readonly factor: number;
      readonly originalPositions: number;
      /** Of cos and sin; null: made from factor, mscale and mscaleAllDim. */
      readonly attentionFactor: number | null;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly mscale: number | null;
      readonly mscaleAllDim: number | null;
      /** Whether the ends of the ramp are rounded to whole dims. */
      readonly truncate: boolean;
    };

/** What the rope op takes. */
export interface RotaryEmbedding {
  /** [D/2] float32: token at position p turns pair i by p * inverseFrequencies[i] radians. */
  readonly inverseFrequencies: Float32Array;
  /** cos and sin, so queries and keys, are multiplied by it. */
  readonly attentionFactor: number;
}

const f32 = Math.fround;

/** theta^(2i/D) for i < D/2, each a float32. */
function basePowers(theta: number, headSize: number): Float32Array {
  return Float32Array.from({ length: headSize / 2 }, (_, i) => f32(theta) ** f32((2 * i) / headSize));
}

/** Whether the inverse frequencies depend on the length of what is computed. */
export const ropeDependsOnLength = (rope: RopeParameters): boolean =>
  rope.type === "dynamic" || rope.type === "longrope";

/**
 * The inverse frequencies and the attention factor for heads of even size `headSize` (D). length: the largest position
 * of the batch plus one, for the kinds that depend on it; by itself, without the batches before it. (In transformers
 * dynamic frequencies also stay as the longest batch left them until one comes that is shorter than the maximum.)
 */
export function rotaryEmbedding(rope: RopeParameters, headSize: number, length = 0): RotaryEmbedding {
  if (!Number.isSafeInteger(headSize) || headSize < 2 || headSize % 2 !== 0)
    throw new ArgumentError(`rotaryEmbedding: head size is ${headSize}, expected an even number of at least 2`);
  const powers = basePowers(rope.theta, headSize);
  switch (rope.type) {
    case "default":
      return { inverseFrequencies: powers.map((power) => 1 / power), attentionFactor: 1 };
    case "linear": {
      const factor = f32(rope.factor);
      return { inverseFrequencies: powers.map((power) => f32(1 / power) / factor), attentionFactor: 1 };
    }
    case "dynamic":
      return { inverseFrequencies: dynamic(rope, headSize, length), attentionFactor: 1 };
    case "longrope": {
      const factors = length > rope.originalPositions ? rope.longFactor : rope.shortFactor;
      const inverseFrequencies = powers.map((power, i) => 1 / f32(f32(factors[i] as number) * power));
      return { inverseFrequencies, attentionFactor: longropeAttentionFactor(rope) };
    }
    case "llama3":
      return { inverseFrequencies: powers.map((power) => llama3(rope, f32(1 / power))), attentionFactor: 1 };
    case "yarn":
      return { inverseFrequencies: yarn(rope, powers), attentionFactor: yarnAttentionFactor(rope) };
  }
}

/** The base grows with what exceeds the maximum; transformers has the length as a float32 tensor there. */
function dynamic(rope: Extract<RopeParameters, { type: "dynamic" }>, headSize: number, length: number): Float32Array {
  const { theta, factor, maxPositions } = rope;
  if (length <= maxPositions) return basePowers(theta, headSize).map((power) => 1 / power);
  const grown = f32(f32(f32(f32(factor) * length) / maxPositions) - f32(factor - 1));
  const base = f32(f32(theta) * f32(grown ** (headSize / (headSize - 2))));
  return basePowers(base, headSize).map((power) => 1 / power);
}

function longropeAttentionFactor(rope: Extract<RopeParameters, { type: "longrope" }>): number {
  if (rope.attentionFactor !== null) return rope.attentionFactor;
  return rope.factor <= 1 ? 1 : Math.sqrt(1 + Math.log(rope.factor) / Math.log(rope.originalPositions));
}

/** Long wavelengths are stretched by the factor, short ones stay, those between are interpolated. */
function llama3(rope: Extract<RopeParameters, { type: "llama3" }>, frequency: number): number {
  const { lowFrequencyFactor: low, highFrequencyFactor: high, originalPositions: positions } = rope;
  const factor = f32(rope.factor);
  // torch divides a number by a tensor as reciprocal times number.
  const wavelength = f32(f32(1 / frequency) * f32(2 * Math.PI));
  const stretched = wavelength > f32(positions / low) ? f32(frequency / factor) : frequency;
  if (wavelength < f32(positions / high) || wavelength > f32(positions / low)) return stretched;
  const turns = f32(f32(1 / wavelength) * f32(positions));
  const smooth = f32(f32(turns - f32(low)) / f32(high - low));
  return f32(f32(f32(f32(1 - smooth) * stretched) / factor) + f32(smooth * stretched));
}

/** A ramp over the dims between those that turn betaFast and betaSlow times within the original context. */
function yarn(rope: Extract<RopeParameters, { type: "yarn" }>, powers: Float32Array): Float32Array {
  const headSize = 2 * powers.length;
  const dimOfTurns = (turns: number) =>
    (headSize * Math.log(rope.originalPositions / (turns * 2 * Math.PI))) / (2 * Math.log(rope.theta));
  let low = dimOfTurns(rope.betaFast);
  let high = dimOfTurns(rope.betaSlow);
  if (rope.truncate) {
    low = Math.floor(low);
    high = Math.ceil(high);
  }
  low = Math.max(low, 0);
  high = Math.min(high, headSize - 1);
  if (low === high) high += 0.001;
  const factor = f32(rope.factor);
  return powers.map((power, i) => {
    const ramp = Math.min(1, Math.max(0, f32(f32(i - f32(low)) / f32(high - low))));
    const kept = f32(1 - ramp);
    const interpolated = f32(1 / f32(factor * power));
    return f32(f32(interpolated * f32(1 - kept)) + f32(f32(1 / power) * kept));
  });
}

function yarnAttentionFactor(rope: Extract<RopeParameters, { type: "yarn" }>): number {
  if (rope.attentionFactor !== null) return rope.attentionFactor;
  const scale = (m: number) => (rope.factor <= 1 ? 1 : 0.1 * m * Math.log(rope.factor) + 1);
  // Zero counts as absent in transformers.
  return rope.mscale && rope.mscaleAllDim ? scale(rope.mscale) / scale(rope.mscaleAllDim) : scale(1);
}
