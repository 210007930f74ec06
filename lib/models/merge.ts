// A base model and its adapter made one: W + scale * B A for each module that has one, streamed piece by piece.

import * as fs from "node:fs/promises";
import * as path from "node:path";
import { writeFolder } from "../checkpoint/atomic.js";
import {
  type ExportTensor,
  type ModelFolder,
  openModelFolder,
  SAFE_DTYPE_BITS,
  type SafeDtype,
  type SafetensorsFile,
  writeModel,
} from "../checkpoint/safetensors.js";
import { IoError, ModelError } from "../errors.js";
import { matmulInto } from "../ops/matmul.js";
import { untracked } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";
import { isAdapterParameter, scaleOf } from "./adapter.js";
import { CausalLM } from "./decoder.js";
import { copyCompanions, copyTokenizer, fieldsText } from "./export.js";
import { checkTensors, namesIn, resolveModelConfig } from "./load.js";
import { checkAdapter, openWeights, peftName, readAdapterConfig } from "./peft.js";
import { EMBEDDING, HEAD, storedIn, withAdapter } from "./registry.js";
import { tensorsOf } from "./stored.js";

export interface MergeOptions {
  /** The folder of the model that the adapter is for. Default: what the adapter names. */
  base?: string | undefined;
  /** Largest size of one weights file in bytes (default 5 GB). */
  maxShardBytes?: number | undefined;
  signal?: AbortSignal | undefined;
  /** Called with the bytes that were written, and those of all. */
  onProgress?: ((bytes: number, total: number) => void) | undefined;
}

export interface Merged {
  readonly path: string;
  readonly base: string;
  /** Tensors that an adapter changed, and those that took the place of the base's. */
  readonly merged: number;
  readonly replaced: number;
  readonly tensors: number;
}

/** Bytes of float32 that are worked on at a time. */
const PIECE = 32 * 2 ** 20;

/** Where a tensor of the result comes from. */
interface Plan {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: SafeDtype;
  /** Its name in the base's files, or, of a module that was trained as it is, in the adapter's. */
  readonly source: string;
  readonly replaced: boolean;
  /** The adapter's matrices by their names in its file; transposed: the base's tensor is [I, O]. */
  readonly adapter: { readonly a: string; readonly b: string; readonly transposed: boolean } | null;
}

/**
 * Writes base and adapter as one Hugging Face folder `target`, which appears complete or not at all; each tensor keeps the
 * base's dtype. Throws ModelError for an adapter of another base, IoError.
 */
export async function mergeAdapter(folder: string, target: string, options: MergeOptions = {}): Promise<Merged> {
  const { config: adapter, base: named, override } = await readAdapterConfig(folder);
  const base = options.base ?? named;
  if (base === null)
    throw new ModelError(`${adapter.file} names no base (base_model_name_or_path); say which model it is for: --base`, {
      path: adapter.file,
    });
  await refuseFull(target);
  const read = await resolveModelConfig(base, override).catch((error: unknown) => {
    if (options.base !== undefined || !(error instanceof ModelError)) throw error;
    throw new ModelError(
      `${error.message}; ${adapter.file} names it as its base: say where that is, by --base`,
      {},
      { cause: error },
    );
  });
  using weights = await openModelFolder(base);
  checkTensors(weights, read, base);
  using adapters = await openWeights(folder);
  const model = untracked(() => new CausalLM(withAdapter(read, adapter), { device: "meta", sourceFolder: base }));
  try {
    await checkAdapter(model, adapter, adapters);
    const plans = planOf(model, weights);
    const apart = plans.some(({ name }) => read.tieWordEmbeddings && name === storedIn(read, HEAD).name);
    const fields = apart ? { ...read.fields, tie_word_embeddings: false } : read.fields;
    const total = plans.reduce((sum, plan) => sum + bytesOf(plan), 0);
    let written = 0;
    const tensors = plans.map(
      (plan): ExportTensor => ({
        name: plan.name,
        dtype: plan.dtype,
        shape: plan.shape,
        load: () => piecesOf(plan, { weights, adapters, scale: scaleOf(adapter) }),
        done: () => {
          written += bytesOf(plan);
          options.onProgress?.(written, total);
        },
      }),
    );
    const result = await writeFolder(
      target,
      async (draft) => {
        await fs.writeFile(path.join(draft.path, "config.json"), fieldsText(fields, read.source));
        await copyCompanions(read, base, draft.path);
        await copyTokenizer(base, draft.path);
        // A tokenizer that was saved with the adapter is the one that it was trained with.
        await copyTokenizer(folder, draft.path);
        const { maxShardBytes, signal } = options;
        const how = { ...(maxShardBytes && { maxShardBytes }), ...(signal && { signal }) };
        for (const [name, digest] of await writeModel(draft.path, tensors, how)) draft.note(name, digest);
      },
      { manifest: false, ...(options.signal && { signal: options.signal }) },
    );
    return {
      path: result.path,
      base,
      tensors: plans.length,
      merged: plans.filter(({ adapter }) => adapter !== null).length,
      replaced: plans.filter(({ replaced }) => replaced).length,
    };
  } finally {
    model.dispose();
  }
}

const bytesOf = ({ dtype, shape }: Plan): number =>
  (shape.reduce((product, size) => product * size, 1) * SAFE_DTYPE_BITS[dtype]) / 8;

/** A folder with something in it is never written over. */
async function refuseFull(target: string): Promise<void> {
  const names = await fs.readdir(target).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw new IoError(`cannot write to ${target}: ${error.message}`, { path: target }, { cause: error });
  });
  if (names.length > 0)
    throw new IoError(`${target} is not empty; give the path of a folder that does not exist yet`, { path: target });
}

/** The tensors of the result. */
function planOf(model: CausalLM, weights: ModelFolder): Plan[] {
  const { config } = model;
  const inFiles = namesIn(weights, config);
  const head = storedIn(config, HEAD).name;
  const embedding = storedIn(config, EMBEDDING).name;
  const adapted = new Set<string>();
  for (const [name] of model.namedParameters()) {
    const place = model.place(name);
    if (isAdapterParameter(place.parameter)) adapted.add(place.stored.name.replace(/\.lora_[AB]\.weight$/, ""));
  }
  const plans = new Map<string, Plan>();
  const add = (name: string, shape: readonly number[], trained: boolean, transposed: boolean): void => {
    if (plans.has(name)) return;
    const isHead = name === head;
    const module = isHead ? "lm_head" : name.replace(/\.weight$/, "");
    // The head of a model whose embedding was tied to it.
    const inBase = inFiles(isHead && !weights.entries.has(inFiles(head)) ? embedding : name);
    const dtype = (weights.entries.get(inBase) as { dtype: SafeDtype }).dtype;
    const matrix = (which: "A" | "B") => peftName(model, `${module}.lora_${which}.weight`);
    const hasAdapter = (isHead || name.endsWith(".weight")) && adapted.has(module);
    plans.set(name, {
      name,
      shape,
      dtype,
      source: trained ? peftName(model, name) : inBase,
      replaced: trained,
      adapter: hasAdapter ? { a: matrix("A"), b: matrix("B"), transposed } : null,
    });
  };
  for (const [name, parameter] of model.namedParameters()) {
    const { stored, shape, parameter: own } = model.place(name);
    if (isAdapterParameter(own)) continue;
    for (const one of tensorsOf(stored, shape))
      add(one.name, one.shape, parameter.requiresGrad, stored.transposed ?? false);
  }
  if (config.tieWordEmbeddings && adapted.has("lm_head"))
    add(head, [config.vocabSize, config.hiddenSize], false, false);
  return [...plans.values()];
}

/** The values of a tensor, in pieces of whole rows. */
async function* piecesOf(
  { shape, dtype, source, replaced, adapter }: Plan,
  { weights, adapters, scale }: { weights: ModelFolder; adapters: SafetensorsFile; scale: number },
): AsyncGenerator<Tensor | Uint8Array> {
  const elements = shape.reduce((product, size) => product * size, 1);
  if (adapter === null && !replaced) {
    const most = Math.max(1, Math.floor((8 * PIECE) / SAFE_DTYPE_BITS[dtype]));
    for (let begin = 0; begin < elements; begin += most)
      yield new Uint8Array(await weights.readBytes(source, { begin, count: Math.min(most, elements - begin) }));
    return;
  }
  const columns = shape.length > 1 ? (shape.at(-1) as number) : elements;
  const rows = columns === 0 ? 0 : elements / columns;
  const step = Math.max(1, Math.floor(PIECE / (4 * Math.max(1, columns))));
  const reader = replaced ? adapters : weights;
  const low = adapter && (await loadLow(adapters, adapter));
  try {
    for (let first = 0; first < rows; first += step) {
      const count = Math.min(step, rows - first);
      const piece = untracked(() => Tensor.empty([count, columns]));
      try {
        await reader.read(source, piece, { begin: first * columns });
        if (low !== null) addProduct(piece, first, low, adapter?.transposed ?? false, scale);
        yield piece;
      } finally {
        piece.dispose();
      }
    }
  } finally {
    low?.a.dispose();
    low?.b.dispose();
  }
}

async function loadLow(adapters: SafetensorsFile, names: { a: string; b: string }): Promise<{ a: Tensor; b: Tensor }> {
  const load = async (name: string): Promise<Tensor> => {
    const tensor = untracked(() => Tensor.empty(adapters.entries.get(name)?.shape ?? []));
    await adapters.read(name, tensor);
    return tensor;
  };
  return { a: await load(names.a), b: await load(names.b) };
}

/** piece = rows `first` .. of W [O, I], or of W [I, O], += scale * those of B A. */
function addProduct(
  piece: Tensor,
  first: number,
  { a, b }: { a: Tensor; b: Tensor },
  transposed: boolean,
  scale: number,
): void {
  const [count, columns] = piece.shape as [number, number];
  const rank = a.shape[0] as number;
  untracked(() => {
    // A is [r, I], B [O, r].
    const inputs = a.shape[1] as number;
    const left = transposed
      ? a.viewOf([count, rank], [1, inputs], first)
      : b.viewOf([count, rank], [rank, 1], first * rank);
    const right = transposed ? b.viewOf([rank, columns], [1, rank], 0) : a.viewOf([rank, columns], [inputs, 1], 0);
    matmulInto(left, right, piece, { alpha: scale, accumulate: true });
    left.dispose();
    right.dispose();
  });
}
