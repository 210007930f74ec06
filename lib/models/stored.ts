// Where parameters lie in a checkpoint: under which name, and as which rows of a tensor that holds several of them.

import { copyInto } from "../ops/copy.js";
import { scope, untracked } from "../tensor/scope.js";
import { type Parameter, type ParameterTier, Tensor } from "../tensor/tensor.js";
import { flatPart } from "../tensor/tiers.js";

/** Rows of a stored tensor that are a parameter's: in each period the `count` rows from `first` on. */
export interface Rows {
  readonly first: number;
  readonly count: number;
  /** Rows after which the next ones follow. */
  readonly period: number;
  readonly periods: number;
}

/** A parameter in a checkpoint. */
export interface Stored {
  /** The tensor's name. */
  readonly name: string;
  /** Which of its rows; absent: all of it is this parameter. */
  readonly rows?: Rows;
  /** What transformers calls the module that has it, where that is not the tensor's name without its last part. */
  readonly module?: string;
  /** What the parameter is called beside the others of the tensor: "q". */
  readonly part?: string;
  /** The file has [I, O] where the parameter has [O, I]. */
  readonly transposed?: boolean;
  /** Tensors that follow each other along the parameter's first dim, as many as it has: their names by number. */
  readonly each?: (index: number) => string;
}

/** The name of a parameter in lists and messages: the tensor's, and which part of it. */
export const displayName = ({ name, part }: Stored): string => (part === undefined ? name : `${name}:${part}`);

/** For a family whose checkpoints call some parts of the names otherwise; of several that fit, the first one each. */
export const renamed =
  (names: Readonly<Record<string, string>>) =>
  (parameter: string): Stored => {
    const pattern = new RegExp(
      `(?<=^|\\.)(${Object.keys(names)
        .map((name) => name.replaceAll(".", "\\."))
        .join("|")})(?=\\.)`,
      "g",
    );
    return { name: parameter.replace(pattern, (name) => names[name] as string) };
  };

/**
 * For a family whose checkpoints have each expert's matrices apart: as `<layer>.<half>.experts.<number>.<part>.weight`;
 * all matrices of a kind are one parameter. parts: what the files call gate_proj, up_proj and down_proj.
 */
export const stacked =
  (half: string, parts: Readonly<Record<string, string>> = {}) =>
  (parameter: string): Stored => {
    const [, layer, part = ""] = /^(.*)\.mlp\.experts\.(\w+)$/.exec(parameter) ?? [];
    if (layer === undefined) {
      const router = /^.*\.mlp\.gate(?=\.weight$)/.exec(parameter)?.[0];
      return router === undefined
        ? { name: parameter }
        : { name: parameter.replace(/\.mlp\.gate\./, `.${half}.gate.`), module: router };
    }
    const each = (index: number | string): string => `${layer}.${half}.experts.${index}.${parts[part] ?? part}.weight`;
    return { name: each("*"), each, module: `${layer}.mlp.experts` };
  };

/** Parts of a tensor whose rows follow each other. */
export function consecutive(counts: Readonly<Record<string, number>>): Record<string, Rows> {
  const period = Object.values(counts).reduce((sum, count) => sum + count, 0);
  let first = 0;
  return Object.fromEntries(
    Object.entries(counts).map(([part, count]) => {
      const rows = { first, count, period, periods: 1 };
      first += count;
      return [part, rows];
    }),
  );
}

/** The tensors that hold a parameter, with their shape. */
export function tensorsOf(stored: Stored, shape: readonly number[]): { name: string; shape: number[] }[] {
  const { each } = stored;
  if (each === undefined) return [{ name: stored.name, shape: storedShape(stored, shape) }];
  const [count, ...own] = shape as [number, ...number[]];
  return Array.from({ length: count }, (_, index) => ({ name: each(index), shape: own }));
}

/** The shape of the tensor that holds a parameter. */
function storedShape({ rows, transposed }: Stored, shape: readonly number[]): number[] {
  const [own, ...columns] = shape as [number, ...number[]];
  const whole = [rows ? rows.period * rows.periods : own, ...columns];
  return transposed ? whole.reverse() : whole;
}

/** Whether a tensor of a checkpoint is a parameter as it stands. */
const isPlain = ({ rows, transposed }: Stored): boolean => rows === undefined && !transposed;

/** Of the whole stored tensor, what is the parameter: [periods, count, columns], a view. */
function viewIn(whole: Tensor, { rows, transposed }: Stored, shape: readonly number[]): Tensor {
  const columns = shape[1] ?? 1;
  const total = transposed ? (whole.shape[1] as number) : (whole.shape[0] as number);
  const { first, count, period, periods } = rows ?? { first: 0, count: total, period: total, periods: 1 };
  const [row, column] = transposed ? [1, total] : [columns, 1];
  return whole.viewOf([periods, count, columns], [period * row, row, column], first * row);
}

/** A contiguous parameter as [periods, count, columns]. */
function byPeriod(parameter: Tensor, { rows }: Stored): Tensor {
  const periods = rows?.periods ?? 1;
  const count = (parameter.shape[0] as number) / periods;
  const columns = parameter.shape[1] ?? 1;
  return parameter.viewOf([periods, count, columns], [count * columns, columns, 1], 0);
}

/** A parameter of a model: what it is called there, and where its values are stored. */
export interface Place {
  /** The name by the properties of the modules, the same in every family. */
  readonly parameter: string;
  readonly stored: Stored;
  readonly shape: readonly number[];
}

/** What reads tensors of a checkpoint. */
interface Reader {
  read(name: string, target: Tensor, options: { begin?: number }): Promise<void>;
}

/**
 * Fills `target`, flat, with the values from `begin` on of a parameter of the given shape, from where they are stored.
 * Of a tensor that is transposed, all of it is in memory meanwhile.
 */
export async function readStored(
  reader: Reader,
  { stored, shape }: Place,
  target: Tensor,
  begin: number,
  tier: ParameterTier,
): Promise<void> {
  const { each } = stored;
  if (each !== undefined) {
    const columns = (shape as number[]).slice(1).reduce((product, size) => product * size, 1);
    for (let at = begin; at < begin + target.size; ) {
      const [index, within] = [Math.floor(at / columns), at % columns];
      const count = Math.min(columns - within, begin + target.size - at);
      using part = untracked(() => flatPart(target, at - begin, count));
      await reader.read(each(index), part, { begin: within });
      at += count;
    }
    return;
  }
  if (isPlain(stored)) {
    await reader.read(stored.name, target, { begin });
    return;
  }
  if (!stored.transposed && stored.rows) {
    for (const piece of stretches(stored.rows, shape[1] ?? 1, begin, target.size)) {
      using part = untracked(() => flatPart(target, piece.at - begin, piece.count));
      await reader.read(stored.name, part, { begin: piece.from });
    }
    return;
  }
  const like = { device: target.device, dtype: target.dtype, tier };
  const whole = untracked(() => Tensor.empty(storedShape(stored, shape), like));
  try {
    await reader.read(stored.name, whole, {});
    scope(() => {
      const parameter = Tensor.empty(shape, like);
      copyInto(viewIn(whole, stored, shape), byPeriod(parameter, stored));
      copyInto(flatPart(parameter, begin, target.size), flatPart(target, 0, target.size));
    });
  } finally {
    whole.dispose();
  }
}

/** Where the `count` values from number `begin` on of a parameter lie in the tensor that holds its rows, end to end. */
function* stretches(
  { first, count: rows, period }: Rows,
  columns: number,
  begin: number,
  count: number,
): Generator<{ at: number; from: number; count: number }> {
  const block = rows * columns;
  for (let at = begin; at < begin + count; ) {
    const [number, within] = [Math.floor(at / block), at % block];
    const length = Math.min(block - within, begin + count - at);
    yield { at, from: (number * period + first) * columns + within, count: length };
    at += length;
  }
}

/** A parameter among those that a tensor holds; index: of a parameter that lies in several, which of them. */
export interface StoredPart {
  readonly stored: Stored;
  readonly parameter: Parameter;
  readonly index: number;
}

/** A tensor as it is to be stored, made of the parameters that it holds; `gather` gives the whole of each in turn. */
export function assemble(
  parts: readonly StoredPart[],
  gather: (parameter: Parameter) => Parameter,
): { tensor: Tensor; dispose(): void } {
  const [{ stored: first, parameter: one, index }] = parts as [StoredPart];
  if (first.each !== undefined) {
    const [, ...own] = one.shape as [number, ...number[]];
    const [, ...strides] = one.strides as [number, ...number[]];
    const step = one.strides[0] as number;
    const part = untracked(() => gather(one).viewOf(own, strides, index * step));
    return { tensor: part, dispose: () => part.dispose() };
  }
  if (isPlain(first)) return { tensor: gather(one), dispose() {} };
  const { device, dtype, tier, shape } = one;
  const whole = untracked(() => Tensor.empty(storedShape(first, shape), { device, dtype, tier }));
  for (const { stored, parameter } of parts)
    scope(() => copyInto(byPeriod(gather(parameter), stored), viewIn(whole, stored, parameter.shape)));
  return { tensor: whole, dispose: () => whole.dispose() };
}
