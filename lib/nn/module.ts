// Module: a part of a model; its parameters are found by walking its properties, under Hugging Face's names.

import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { Parameter, type ParameterTier, type Tensor } from "../tensor/tensor.js";
import { clearGradients } from "../tensor/tiers.js";

/** Where a module's parameters live. */
export interface ModuleOptions {
  readonly device?: Device | string;
  readonly dtype?: DType;
  /** host: in host memory, lent to the ops that use them (lib/sequence/states). Default: device. */
  readonly tier?: ParameterTier;
  /** Its parameters get no bytes of their own: ranks hold shares of them (lib/parallel/zero). */
  readonly spread?: boolean;
}

/** selfAttn -> self_attn */
const toSnake = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/**
 * Subclasses hold parameters, modules and arrays of modules as plain properties, in the order in which they are to be
 * listed. Property names are Hugging Face's in camelCase. What is not a property (a `#field`) is not listed.
 */
export abstract class Module {
  abstract forward(...args: never[]): Tensor;

  /** Names and parameters, a shared one once for each of its names. */
  *namedParameters(prefix = ""): Generator<[name: string, parameter: Parameter]> {
    for (const [key, value] of Object.entries(this)) {
      const name = prefix + toSnake(key);
      if (value instanceof Parameter) yield [name, value];
      else if (value instanceof Module) yield* value.namedParameters(`${name}.`);
      else if (Array.isArray(value)) {
        for (const [i, item] of value.entries()) {
          if (item instanceof Parameter) yield [`${name}.${i}`, item];
          else if (item instanceof Module) yield* item.namedParameters(`${name}.${i}.`);
        }
      }
    }
  }

  /** Names and modules within this one, each before what is in it. */
  *namedModules(prefix = ""): Generator<[name: string, module: Module]> {
    for (const [key, value] of Object.entries(this)) {
      const name = prefix + toSnake(key);
      const items: [string, unknown][] = Array.isArray(value)
        ? value.map((item, i) => [`${name}.${i}`, item])
        : [[name, value]];
      for (const [own, item] of items) {
        if (!(item instanceof Module)) continue;
        yield [own, item];
        yield* item.namedModules(`${own}.`);
      }
    }
  }

  /** Each parameter once. */
  parameters(): Parameter[] {
    return [...new Set([...this.namedParameters()].map(([, parameter]) => parameter))];
  }

  /** Drops the gradients; their memory is free. */
  zeroGrad(): void {
    clearGradients(this.parameters());
  }

  /** Gives back the memory of parameters and gradients; the module is of no more use. */
  dispose(): void {
    this.zeroGrad();
    for (const parameter of this.parameters()) parameter.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
