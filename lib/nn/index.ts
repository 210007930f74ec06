// The modules that models are made of, and clipping.

export { Attention, type AttentionSizes, type TokenLayout } from "./attention.js";
export { clipGradNorm, type GradNorm, gradNorm } from "./clip_grad.js";
export { DecoderLayer, type DecoderLayerOptions, type DecoderLayerSizes } from "./decoder_layer.js";
export { Embedding } from "./embedding.js";
export { GatedMlp, type MlpSizes } from "./gated_mlp.js";
export { Linear } from "./linear.js";
export { Module, type ModuleOptions } from "./module.js";
export { RmsNorm } from "./rms_norm.js";
export { type RopeParameters, type RopeType, type RotaryEmbedding, rotaryEmbedding } from "./rotary_embedding.js";
