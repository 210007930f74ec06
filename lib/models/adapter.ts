// Training by low-rank adapters (LoRA): which modules of a model get one, under the names that PEFT knows, and what
// stays frozen.

import { createHash } from "node:crypto";
import { editDistance } from "../config/values.js";
import { ConfigError, ModelError } from "../errors.js";
import { Adapter } from "../nn/adapter.js";
import { Linear } from "../nn/linear.js";
import type { Module, ModuleOptions } from "../nn/module.js";
import { type BlockFormat, packedShape } from "../ops/quantize.js";
import { byLayer, inLayer } from "../tensor/layer.js";
import { Parameter } from "../tensor/tensor.js";
import type { Stored } from "./stored.js";

/** What is asked for, in PEFT's terms. */
export interface AdapterConfig {
  /** r */
  readonly rank: number;
  readonly alpha: number;
  /** Ends of module names, a regular expression for whole names, or "all-linear". */
  readonly targetModules: string | readonly string[];
  /** Ends of the names of modules that are trained as they are. */
  readonly modulesToSave: readonly string[];
  readonly dropout: number;
  /** Whether the scale is alpha / sqrt(r) instead of alpha / r (arXiv 2312.03732). */
  readonly rslora: boolean;
  /** How A begins: uniform as in PEFT, or normal with standard deviation 1 / r; B begins as 0. */
  readonly init: true | "gaussian";
  /** What A and B are stored as: float32, which is the default, or, in a bfloat16 model, that. */
  readonly dtype?: "float32" | "bfloat16";
  /** How the frozen matrices of layers and head are stored: in blocks of 8 bits; absent or null: as they are. */
  readonly baseFormat?: BlockFormat | null;
  /** A folder of PEFT's files that training goes on from; null: it begins afresh. */
  readonly path: string | null;
  /** What messages call this. */
  readonly file: string;
}

export const scaleOf = ({ rank, alpha, rslora }: AdapterConfig): number => alpha / (rslora ? Math.sqrt(rank) : rank);

/** The head's own name: transformers calls it that in every family, whatever checkpoints do. */
const HEAD = "lm_head";

/** The module and matrix of an adapter's parameter, by the properties of modules; null for another parameter. */
function adapterPart(parameter: string): { module: string; matrix: "A" | "B" } | null {
  const [, module, matrix] = /^(.*?)\.?(?:head_)?adapter\.lora_([ab])$/.exec(parameter) ?? [];
  if (matrix === undefined) return null;
  return { module: module === "" ? HEAD : (module as string), matrix: matrix === "a" ? "A" : "B" };
}

export const isAdapterParameter = (parameter: string): boolean => adapterPart(parameter) !== null;

type NameOf = (parameter: string) => Stored;

/** What PEFT calls the module that a parameter belongs to. */
function moduleName(parameter: string, storedAs: NameOf): string {
  if (parameter.startsWith(`${HEAD}.`)) return HEAD;
  const { name, module } = storedAs(parameter);
  return module ?? name.replace(/\.(weight|bias)$/, "");
}

/** Where an adapter's parameter lies in PEFT's file, without that file's prefix; null for another parameter. */
export function storedAdapter(parameter: string, storedAs: NameOf): Stored | null {
  const found = adapterPart(parameter);
  if (found === null) return null;
  const weight = `${found.module}.weight`;
  const name = `${moduleName(weight, storedAs)}.lora_${found.matrix}.weight`;
  if (found.matrix === "A" || found.module === HEAD) return { name };
  // Of modules that are one in a checkpoint each has its rows of B.
  const { rows, part } = storedAs(weight);
  return { name, ...(rows && { rows }), ...(part !== undefined && { part }) };
}

/** A module that can have an adapter: of one in a checkpoint that is several here, all of these. */
interface Candidate {
  readonly name: string;
  readonly linears: Linear[];
}

/** The linear modules by PEFT's names. Routers are none there. */
function candidatesOf(root: Module, storedAs: NameOf): Map<string, Candidate> {
  const found = new Map<string, Candidate>();
  for (const [path, module] of root.namedModules()) {
    if (!(module instanceof Linear) || path.endsWith(".mlp.gate")) continue;
    const name = moduleName(`${path}.weight`, storedAs);
    const candidate = found.get(name) ?? { name, linears: [] };
    candidate.linears.push(module);
    found.set(name, candidate);
  }
  return found;
}

const endsWith = (name: string, end: string): boolean => name === end || name.endsWith(`.${end}`);

/** Whether PEFT would train a module as it is: its name, or that of one around it, ends so. */
export function isSaved(name: string, modulesToSave: readonly string[]): boolean {
  const parts = name.split(".");
  return parts.some((_, i) =>
    modulesToSave.some((end) =>
      parts
        .slice(0, i + 1)
        .join(".")
        .endsWith(end),
    ),
  );
}

/** The last parts of names, for messages: each once. */
const shortNames = (names: Iterable<string>): string[] => [
  ...new Set([...names].map((name) => name.slice(name.lastIndexOf(".") + 1))),
];

/** "did you mean": the nearest of some names. */
function nearest(name: string, known: readonly string[]): string {
  const [first] = [...known].sort((a, b) => editDistance(name, a) - editDistance(name, b));
  return `the nearest is ${first}; there are ${known.join(", ")}`;
}

const otherBase = ({ file, targetModules }: AdapterConfig, known: readonly string[]): ModelError =>
  new ModelError(
    `${file}: it is an adapter for another base: its target_modules ${JSON.stringify(targetModules)} name none of this ` +
      `model's modules, which are ${known.join(", ")}`,
    { path: file, key: "target_modules" },
  );

/** The names that are asked for. Throws ConfigError for one that is no module's. */
function targetsOf(config: AdapterConfig, names: readonly string[]): string[] {
  const { targetModules, modulesToSave, file } = config;
  const free = names.filter((name) => !isSaved(name, modulesToSave));
  if (targetModules === "all-linear") return free.filter((name) => name !== HEAD);
  const known = shortNames(names);
  if (typeof targetModules === "string") {
    let pattern: RegExp;
    try {
      pattern = new RegExp(`^(?:${targetModules})$`);
    } catch (error) {
      throw new ConfigError(
        `${file}.target_modules: ${JSON.stringify(targetModules)} is no regular expression: ${(error as Error).message}`,
        { key: "target_modules" },
        { cause: error },
      );
    }
    const matched = free.filter((name) => pattern.test(name));
    if (matched.length === 0 && config.path !== null) throw otherBase(config, known);
    if (matched.length === 0)
      throw new ConfigError(
        `${file}.target_modules: the expression ${JSON.stringify(targetModules)} matches no module that can have an ` +
          `adapter; a whole name is such as ${names[0]}. A list of names is written [${known.slice(0, 2).join(", ")}]`,
        { key: "target_modules" },
      );
    return matched;
  }
  // PEFT passes over names that match nothing where others do, so that its files may have some.
  for (const target of config.path === null ? targetModules : [])
    if (!names.some((name) => endsWith(name, target)))
      throw new ConfigError(
        `${file}.target_modules: ${JSON.stringify(target)} matches no module that can have an adapter; ` +
          nearest(target, known),
        { key: "target_modules", target },
      );
  const matched = free.filter((name) => targetModules.some((target) => endsWith(name, target)));
  if (matched.length === 0 && config.path !== null) throw otherBase(config, known);
  if (matched.length === 0)
    throw new ConfigError(
      `${file}.target_modules: ${JSON.stringify(targetModules)} names no module that can have an adapter and is not in ` +
        `modules_to_save; there are ${known.join(", ")}`,
      { key: "target_modules" },
    );
  return matched;
}

interface Attachment {
  /** By the properties of modules. */
  readonly parameters: readonly (readonly [name: string, parameter: Parameter])[];
  readonly storedAs: NameOf;
  /** The head's sizes where it is the embedding. */
  readonly tied: { readonly inFeatures: number; readonly outFeatures: number } | null;
  readonly options: ModuleOptions;
}

/**
 * Gives the modules that `config` names their adapters, and freezes all else but modules_to_save. Returns the adapter of
 * the head, which is nobody's property yet. Throws ConfigError.
 */
export function attachAdapters(
  root: Module,
  config: AdapterConfig,
  { parameters, storedAs, tied, options }: Attachment,
): Adapter | null {
  const candidates = candidatesOf(root, storedAs);
  const { rank, dropout, modulesToSave, file } = config;
  const scale = scaleOf(config);
  const names = [...candidates.keys(), ...(tied === null ? [] : [HEAD])];
  if (config.dtype === "bfloat16" && options.dtype !== "bfloat16")
    throw new ConfigError(
      `${file}.dtype: got bfloat16, but the model is ${options.dtype ?? "float32"}, which adapters are never narrower than; ` +
        "leave it out, or set model.dtype to bfloat16",
      { key: "dtype" },
    );
  const where = { ...options, dtype: config.dtype ?? "float32" };
  let head: Adapter | null = null;
  const modules = parameters.map(([parameter]) => moduleName(parameter, storedAs));
  for (const end of modulesToSave)
    if (!modules.some((name) => isSaved(name, [end])))
      throw new ConfigError(
        `${file}.modules_to_save: ${JSON.stringify(end)} matches no module; ${nearest(end, shortNames(modules))}`,
        { key: "modules_to_save", target: end },
      );
  for (const [parameter] of parameters)
    if (storedAs(parameter).each !== undefined && isSaved(moduleName(parameter, storedAs), modulesToSave))
      throw new ConfigError(
        `${file}.modules_to_save: ${JSON.stringify(modulesToSave)} takes in ${moduleName(parameter, storedAs)}; the ` +
          "matrices of experts are not trained beside adapters; name modules without them, such as [mlp.gate]",
        { key: "modules_to_save" },
      );
  const targets = targetsOf(config, names);
  for (const [parameter, tensor] of parameters)
    tensor.requiresGrad = isSaved(moduleName(parameter, storedAs), modulesToSave);
  for (const name of targets) {
    const stream = createHash("sha256").update(name).digest().readUInt32BE(0);
    const sizes = { rank, scale, dropout, stream };
    const { linears = [] } = candidates.get(name) ?? {};
    let shared: Parameter | null = null;
    for (const linear of linears) {
      const [outFeatures, inFeatures] = linear.weight.shape as [number, number];
      const make = () => new Adapter({ ...sizes, inFeatures, outFeatures }, where, shared);
      const adapter: Adapter = inLayer(linear.weight.layer, make);
      shared = adapter.loraA;
      if (name === HEAD) head = adapter;
      else linear.adapter = adapter;
    }
    if (name === HEAD && tied !== null) head = new Adapter({ ...sizes, ...tied }, where);
  }
  return head;
}

/** Parameters that stay as they are: looked up by rows, or too small and too sensitive to gain. */
const NEVER_PACKED = /(^|\.)(embed_tokens|embed_positions)\.weight$|\.mlp\.(gate|shared_expert_gate)\.weight$/;

/**
 * Gives the outlines of a model's parameters their bytes: of frozen matrices packed ones. spread: ranks hold shares of them.
 */
export function storeBase(
  parameters: readonly (readonly [name: string, parameter: Parameter])[],
  format: BlockFormat,
  spread: boolean,
): void {
  const seen = new Set<Parameter>();
  for (const [name, parameter] of byLayer(parameters, ([, { layer }]) => layer)) {
    if (seen.has(parameter)) continue;
    seen.add(parameter);
    const { shape, device, tier, requiresGrad } = parameter;
    if (!requiresGrad && shape.length >= 2 && !NEVER_PACKED.test(name)) {
      const how = { device, tier, spread, dtype: "uint8", requiresGrad: false } as const;
      parameter.pack({ values: Parameter.empty(packedShape(shape), how), format });
    } else if (!spread) parameter.allocate();
  }
}
