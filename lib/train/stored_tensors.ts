// The tensors of a checkpoint: written whole by one rank, or as the shares that each of several holds; read by any
// number of ranks, each what it holds. A stored tensor is known by what it is of its parameter (`param`, `m`, `v`,
// `master`) and the parameter's name.

import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { FolderDraft } from "../checkpoint/atomic.js";
import type { FileDigest } from "../checkpoint/native_files.js";
import {
  openModelFolder,
  type SafeDtype,
  SafetensorsFile,
  SafetensorsWriter,
  type TensorEntry,
  writeModel,
} from "../checkpoint/safetensors.js";
import { FormatError } from "../errors.js";
import type { AdamW } from "../optim/adamw.js";
import type { Owned, Segment } from "../parallel/zero.js";
import type { DType } from "../tensor/dtype.js";
import { untracked } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { flatPart } from "../tensor/tiers.js";

const OPTIMIZER_FILE = "optimizer.safetensors";
const SHARE_FILE = /^share-(\d+)-of-(\d+)\.safetensors$/;
const shareFile = (rank: number, ranks: number): string => {
  const digits = (n: number) => String(n).padStart(5, "0");
  return `share-${digits(rank + 1)}-of-${digits(ranks)}.safetensors`;
};
/** Of a share's file: where each stretch lies in the whole tensor. */
const STRETCHES = "stretches";
const STEP = "step";
const PARAMETER = "param";

const SAFE: Partial<Record<DType, SafeDtype>> = {
  float32: "F32",
  bfloat16: "BF16",
  float64: "F64",
  int32: "I32",
  int64: "I64",
  uint8: "U8",
};

/** What a run stores. */
export interface RunTensors {
  readonly owned: readonly Owned[];
  readonly optimizer: AdamW;
}

/** Tensors that are laid out as a leaf is, by what they are of it. */
const kindsOf = ({ optimizer }: RunTensors, { leaf }: Owned): [kind: string, tensor: Tensor][] => [
  [PARAMETER, leaf],
  ...Object.entries(optimizer.stateOf(leaf)),
];

const keyOf = (kind: string, name: string): string => `${kind}.${name}`;

/** Writes the tensors of a run that this rank holds whole. */
export async function writeWhole(draft: FolderDraft, run: RunTensors): Promise<void> {
  const all = run.owned.flatMap((one) => {
    const { name, shape } = one.segments[0] as Segment;
    return kindsOf(run, one).map(([kind, tensor]) => ({
      kind,
      name: kind === PARAMETER ? name : keyOf(kind, name),
      shape,
      dtype: SAFE[tensor.dtype] as SafeDtype,
      load: () => tensor,
    }));
  });
  const parameters = all.filter(({ kind }) => kind === PARAMETER);
  for (const [name, digest] of await writeModel(draft.path, parameters)) draft.note(name, digest);
  const step = run.optimizer.stepCount;
  const moments = [
    { name: STEP, shape: step.shape, dtype: SAFE[step.dtype] as SafeDtype, load: () => step },
    ...all.filter(({ kind }) => kind !== PARAMETER),
  ];
  draft.note(OPTIMIZER_FILE, await writeTensors(await draft.file(OPTIMIZER_FILE), moments, {}));
}

/** Writes what this rank holds beside what the others write; returns the file's name, size and hash. */
export async function writeShare(
  folder: string,
  run: RunTensors,
  { rank, world }: { rank: number; world: number },
): Promise<[name: string, digest: FileDigest]> {
  const step = run.optimizer.stepCount;
  const tensors = [{ name: STEP, shape: step.shape, dtype: SAFE[step.dtype] as SafeDtype, load: () => step }];
  const stretches: Record<string, Pick<Segment, "begin" | "shape">> = {};
  for (const one of run.owned)
    for (const { name, begin, count, offset, shape } of one.segments)
      for (const [kind, tensor] of kindsOf(run, one)) {
        const key = keyOf(kind, name);
        stretches[key] = { begin, shape };
        tensors.push({
          name: key,
          shape: [count],
          dtype: SAFE[tensor.dtype] as SafeDtype,
          load: () => untracked(() => flatPart(tensor, offset, count)),
        });
      }
  const name = shareFile(rank, world);
  return [name, await writeTensors(join(folder, name), tensors, { [STRETCHES]: JSON.stringify(stretches) })];
}

async function writeTensors(
  file: string,
  tensors: readonly { name: string; shape: readonly number[]; dtype: SafeDtype; load: () => Tensor }[],
  metadata: Record<string, string>,
): Promise<FileDigest> {
  const writer = await SafetensorsWriter.create(file, tensors, metadata);
  try {
    for (const { name, load } of tensors) await writer.write(name, load());
    return await writer.finish();
  } catch (error) {
    await writer.abandon();
    throw error;
  }
}

type Source = Pick<SafetensorsFile, "path" | "read"> & { entries: ReadonlyMap<string, TensorEntry> };

/** A stretch as it lies in a file. */
interface Stored {
  source: Source & Disposable;
  name: string;
  dtype: SafeDtype;
  shape: readonly number[];
  begin: number;
  count: number;
}

/** Fills what this rank holds from a verified checkpoint. Throws FormatError for tensors that are not the run's. */
export async function readTensors(folder: string, run: RunTensors, parameters: Iterable<string>): Promise<void> {
  const stored = await openStored(folder);
  try {
    let kinds = new Set<string>();
    for (const one of run.owned) {
      const tensors = kindsOf(run, one);
      kinds = new Set(tensors.map(([kind]) => kind));
      for (const segment of one.segments)
        for (const [kind, tensor] of tensors) await readStretch(folder, stored, kind, tensor, segment);
    }
    const step = run.optimizer.stepCount;
    await readStretch(folder, stored, STEP, step, { name: "", shape: step.shape, begin: 0, count: 1, offset: 0 });
    const expected = [...kinds].length * new Set(parameters).size + 1;
    if (stored.size !== expected)
      throw new FormatError(`${folder}: it holds ${stored.size} tensors; the run has ${expected}`, { path: folder });
  } finally {
    for (const source of new Set([...stored.values()].flat().map((one) => one.source))) source[Symbol.dispose]();
  }
}

/** Every stored stretch by its key, those of one tensor in their order. */
async function openStored(folder: string): Promise<Map<string, Stored[]>> {
  const stored = new Map<string, Stored[]>();
  const add = (key: string, one: Stored) => stored.set(key, [...(stored.get(key) ?? []), one]);
  const whole = (source: Stored["source"], prefix: string) => {
    for (const [name, { dtype, shape, elements }] of source.entries)
      add(prefix + name, { source, name, dtype, shape, begin: 0, count: elements });
  };
  const shares = readdirSync(folder).filter((name) => SHARE_FILE.test(name));
  if (shares.length === 0) {
    whole(await openModelFolder(folder), `${PARAMETER}.`);
    whole(await SafetensorsFile.open(join(folder, OPTIMIZER_FILE)), "");
    return stored;
  }
  for (const name of shares.sort()) {
    const source = await SafetensorsFile.open(join(folder, name));
    const stretches = JSON.parse(source.metadata[STRETCHES] ?? "{}") as Record<
      string,
      Pick<Segment, "begin" | "shape">
    >;
    for (const [key, { dtype, elements, shape }] of source.entries) {
      const { begin = 0, shape: of = shape } = stretches[key] ?? {};
      if (key !== STEP || !stored.has(STEP)) add(key, { source, name: key, dtype, shape: of, begin, count: elements });
    }
  }
  for (const pieces of stored.values()) pieces.sort((a, b) => a.begin - b.begin);
  return stored;
}

async function readStretch(
  folder: string,
  stored: Map<string, Stored[]>,
  kind: string,
  tensor: Tensor,
  { name, shape, begin, count, offset }: Segment,
): Promise<void> {
  const key = name === "" ? kind : keyOf(kind, name);
  const pieces = stored.get(key) ?? [];
  const wanted = `${SAFE[tensor.dtype]} [${shape.join(", ")}]`;
  const [first] = pieces;
  const found = first && `${first.dtype} [${first.shape.join(", ")}]`;
  const path = first?.source.path ?? folder;
  if (found !== wanted)
    throw new FormatError(
      `${path}: tensor ${JSON.stringify(kind === PARAMETER ? name : key)} is ${found ?? "missing"}; the run needs ${wanted}`,
      { path, tensor: key },
    );
  let at = begin;
  for (const piece of pieces) {
    const end = Math.min(begin + count, piece.begin + piece.count);
    if (piece.begin > at || end <= at) continue;
    using part = untracked(() => flatPart(tensor, offset + at - begin, end - at));
    await piece.source.read(piece.name, part, { begin: at - piece.begin });
    at = end;
  }
  if (at < begin + count)
    throw new FormatError(`${folder}: tensor ${JSON.stringify(key)} lacks its elements from ${at} on`, {
      path: folder,
      tensor: key,
    });
}
