// How many floating-point operations a model's training step needs, by formula.
//
// Matrix products only, a multiplication and an addition counting two: the convention of PaLM's appendix B
// (arXiv 2204.02311) with attention counted by the pairs really attended. The embedding look-up is no product; lm_head
// counts once, tied or not. Backward is twice forward; recomputation is not counted.

import { ArgumentError } from "../errors.js";

/** The sizes of a decoder. */
export interface ModelShape {
  /** H */
  hiddenSize: number;
  layers: number;
  /** N */
  heads: number;
  /** K */
  keyValueHeads: number;
  /** D, which may differ from H/N. */
  headSize: number;
  /** F */
  feedForward: number;
  /** Whether the feed-forward layers have a gate, a third product. Default true. */
  gated?: boolean;
  /** Weights of all layers' feed-forward products that each token passes through; absent: as F and `gated` have it. */
  feedForwardWeights?: number;
  /** V */
  vocabulary: number;
  /** Of a model that is trained by adapters: their weights. Absent: it is trained itself. */
  adapterWeights?: number;
  /** Beside it, of the weights of products those that are trained; the others' gradients are never made. */
  trainedWeights?: number;
  /** The sliding window of each layer, null or 0 for none; absent: no layer has one. */
  windows?: readonly (number | null)[];
}

/** Query-key pairs that causal attention of one document of `length` tokens computes: i sees j iff 0 <= i-j < window. */
export function attendedPairs(length: number, window: number | null = null): number {
  if (!Number.isSafeInteger(length) || length < 0)
    throw new ArgumentError(`attendedPairs: got a document of ${length} tokens; expected a whole number, 0 or more`);
  if (window === null || window === 0 || window >= length) return (length * (length + 1)) / 2;
  // The first `window` tokens see all before them, the others `window` each.
  return (window * (window + 1)) / 2 + (length - window) * window;
}

/** Weights of the matrix products that each token passes through: all layers and lm_head. */
export function matmulWeights(shape: ModelShape): number {
  const { hiddenSize: H, heads: N, keyValueHeads: K, headSize: D, feedForward: F, vocabulary: V } = shape;
  const queryAndOutput = 2 * H * N * D;
  const keyAndValue = 2 * H * K * D;
  const adapters = shape.adapterWeights ?? 0;
  const feedForward = shape.feedForwardWeights ?? shape.layers * ((shape.gated ?? true) ? 3 : 2) * H * F;
  return shape.layers * (queryAndOutput + keyAndValue) + feedForward + H * V + adapters;
}

/**
 * Operations of one forward pass over documents of the given lengths (tokens; a packed sequence is the list of its
 * documents): 2 a weight and token, and 4 N D a pair and layer.
 */
export function forwardFlops(shape: ModelShape, documents: Iterable<number>): number {
  const windows = shape.windows ?? [];
  if (shape.windows !== undefined && windows.length !== shape.layers)
    throw new ArgumentError(
      `forwardFlops: got ${windows.length} windows; expected one for each of ${shape.layers} layers`,
    );
  // Layers that share a window share the count.
  const layersByWindow = new Map<number, number>();
  for (let layer = 0; layer < shape.layers; layer++) {
    const window = windows[layer] ?? 0;
    layersByWindow.set(window, (layersByWindow.get(window) ?? 0) + 1);
  }
  let tokens = 0;
  let pairs = 0;
  for (const length of documents) {
    tokens += length;
    for (const [window, layers] of layersByWindow) pairs += layers * attendedPairs(length, window);
  }
  return 2 * matmulWeights(shape) * tokens + 4 * shape.heads * shape.headSize * pairs;
}

/**
 * Operations of a training step over these documents: forward and, twice as much, backward; a frozen weight's product has
 * one backward, that of its input.
 */
export function modelFlops(shape: ModelShape, documents: Iterable<number>): number {
  const lengths = [...documents];
  const whole = 3 * forwardFlops(shape, lengths);
  if (shape.trainedWeights === undefined) return whole;
  const tokens = lengths.reduce((sum, length) => sum + length, 0);
  return whole - 2 * (matmulWeights(shape) - shape.trainedWeights) * tokens;
}
