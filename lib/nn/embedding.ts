// Embedding: a row of the table for each token.

import { embedding } from "../ops/index.js";
import { Parameter, type Tensor } from "../tensor/tensor.js";
import { Module, type ModuleOptions } from "./module.js";

/** Values are undefined until they are loaded or initialised. */
export class Embedding extends Module {
  /** [V, H] */
  readonly weight: Parameter;

  constructor(rows: number, size: number, options: ModuleOptions = {}) {
    super();
    this.weight = Parameter.empty([rows, size], options);
  }

  /** ids [T] int32, each from 0 to V - 1 (checked by the caller, on the host) -> [T, H] */
  forward(ids: Tensor): Tensor {
    return embedding(ids, this.weight);
  }
}
