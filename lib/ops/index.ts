// Every op that users call, and the methods of Tensor.
import { backward } from "../autograd/function.js";
import { setMethods } from "../tensor/tensor.js";
import { add, div, mul, sub } from "./binary.js";
import { cast, clone, contiguous, narrow, permute, reshape } from "./copy.js";
import { matmul } from "./matmul.js";
import { sum } from "./sum.js";

setMethods({ add, sub, mul, div, matmul, sum, reshape, permute, narrow, cast, contiguous, clone, backward });

export { allGather, allGatherInto } from "./all_gather.js";
export { allReduceInto } from "./all_reduce.js";
export { allToAll, allToAllInto } from "./all_to_all.js";
export { argmax } from "./argmax.js";
export { type AttentionOptions, attention } from "./attention.js";
export { type AxpbyOptions, axpbyInto, scale } from "./axpby.js";
export { add, div, mul, sub } from "./binary.js";
export { cast, clone, contiguous, copyInto, narrow, permute, reshape } from "./copy.js";
export { crossEntropy } from "./cross_entropy.js";
export { embedding } from "./embedding.js";
export { layerNorm } from "./layer_norm.js";
export { linear, matmul, matmulInto } from "./matmul.js";
export { reduceScatter, reduceScatterInto } from "./reduce_scatter.js";
export { rmsNorm } from "./rms_norm.js";
export { type RopeOptions, rope } from "./rope.js";
export { sendReceiveInto } from "./send_receive.js";
export { sum } from "./sum.js";
export { swiglu } from "./swiglu.js";
export { type Activation, exp, gelu, log, neg, relu, silu, type UnaryKind, unary } from "./unary.js";
