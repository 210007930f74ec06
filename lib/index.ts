// The public surface of longseq.

export { Context, enableGrad, Function, type Grad, isGradEnabled, noGrad } from "./autograd/function.js";
export { gradcheck } from "./autograd/gradcheck.js";
export { type Config, type ConfigInput, loadConfig, parseConfigObject } from "./config/index.js";
export * from "./data/index.js";
export * from "./errors.js";
export * from "./models/index.js";
export * as native from "./native.js";
export * as nn from "./nn/index.js";
export * as ops from "./ops/index.js";
export * as optim from "./optim/index.js";
export * as parallel from "./parallel/index.js";
export { KeyValueCache } from "./sequence/key_value_cache.js";
export { linearCrossEntropy } from "./sequence/loss.js";
export { tiled } from "./sequence/tiled.js";
export * from "./tensor/create.js";
export { type Category, Device, type DeviceOptions, device, type Tier } from "./tensor/device.js";
export type { DataArray, DType } from "./tensor/dtype.js";
export { scope, scopeAsync, untracked } from "./tensor/scope.js";
export { type Nested, Parameter, Tensor, type TensorOptions } from "./tensor/tensor.js";
export { Trainer } from "./train/trainer.js";
