// The modules that models are made of, and clipping.

export { Attention, type AttentionSizes, type Frequencies, type TokenLayout } from "./attention.js";
export { clipGradNorm, type GradNorm, gradNorm } from "./clip_grad.js";
export { DecoderLayer, type DecoderLayerOptions, type DecoderLayerSizes } from "./decoder_layer.js";
export { Embedding } from "./embedding.js";
export { Linear } from "./linear.js";
export { Mlp, type MlpSizes } from "./mlp.js";
export { Module, type ModuleOptions } from "./module.js";
export { Norm, type NormSizes, RmsNorm } from "./norm.js";
export { type RopeParameters, type RopeType, type RotaryEmbedding, rotaryEmbedding } from "./rotary_embedding.js";
