// Safetensors files and Hugging Face model folders: opening (strictly checked), reading into tensors, and export.

import * as fs from "node:fs/promises";
import * as path from "node:path";
import type { NativeReader, NativeWriter } from "../binding.js";
import { ArgumentError, FormatError, IoError, ModelError } from "../errors.js";
import {
  abandonSafetensors,
  closeSafetensors,
  createSafetensors,
  type FileDigest,
  finishSafetensors,
  type OpenedSafetensors,
  openSafetensors,
  readSafetensors,
  readSafetensorsBytes,
  type TensorBytes,
  writeSafetensors,
} from "./native_files.js";

/** Bits of one value of each dtype that the format knows. */
export const SAFE_DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

export type SafeDtype = keyof typeof SAFE_DTYPE_BITS;

/** What a file says about one tensor. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: SafeDtype;
  readonly shape: readonly number[];
  readonly elements: number;
  readonly bytes: number;
}

/** A tensor that is about to be written. */
export interface TensorDeclaration {
  name: string;
  dtype: SafeDtype;
  shape: readonly number[];
}

/** One open safetensors file. The header was checked in full; bytes are read when asked for. */
export class SafetensorsFile implements Disposable {
  readonly path: string;
  /** By name, in the order of their bytes in the file. */
  readonly entries: ReadonlyMap<string, TensorEntry>;
  readonly metadata: Readonly<Record<string, string>>;
  #native: NativeReader | undefined;

  private constructor(file: string, opened: OpenedSafetensors) {
    this.path = file;
    this.#native = opened.handle;
    const entries = new Map<string, TensorEntry>();
    for (const entry of opened.entries) entries.set(entry.name, entry as TensorEntry);
    this.entries = entries;
    this.metadata = opened.metadata;
  }

  /** Throws FormatError (file, tensor, what, value) for a file with any defect, IoError if it cannot be read. */
  static async open(file: string): Promise<SafetensorsFile> {
    return new SafetensorsFile(file, await openSafetensors(file));
  }

  /**
   * Fills `target`, a contiguous tensor, with as many values of tensor `name` from element `begin` (row-major) on as it
   * holds. F64, F32, F16 and BF16 are converted to float32 and bfloat16; other dtypes must be equal. In order with the
   * device's queues: work enqueued later sees the values.
   */
  async read(name: string, target: TensorBytes, options: { begin?: number } = {}): Promise<void> {
    this.#entry(name);
    await readSafetensors(this.#open(), name, options.begin ?? 0, target);
  }

  /** The bytes of `count` values from `begin` on (default: all), in the file's dtype or as F32 or BF16. */
  async readBytes(
    name: string,
    options: { begin?: number; count?: number; dtype?: SafeDtype } = {},
  ): Promise<ArrayBuffer> {
    const entry = this.#entry(name);
    const begin = options.begin ?? 0;
    const count = options.count ?? entry.elements - begin;
    return readSafetensorsBytes(this.#open(), name, begin, count, options.dtype ?? entry.dtype);
  }

  /** Closes the file once the reads that are under way have ended. */
  close(): void {
    if (this.#native !== undefined) closeSafetensors(this.#native);
    this.#native = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #open(): NativeReader {
    if (this.#native === undefined) throw new ArgumentError(`${this.path} is closed`);
    return this.#native;
  }

  #entry(name: string): TensorEntry {
    const entry = this.entries.get(name);
    if (entry === undefined) {
      throw new ModelError(`${this.path} has no tensor ${JSON.stringify(name)}`, { path: this.path, tensor: name });
    }
    return entry;
  }
}

/** Writes one safetensors file, tensor by tensor in the order of their declaration; it appears when it is complete. */
export class SafetensorsWriter {
  readonly path: string;
  /** Size of the finished file. */
  readonly bytes: number;
  readonly #native: NativeWriter;

  private constructor(file: string, created: { handle: NativeWriter; bytes: number }) {
    this.path = file;
    this.bytes = created.bytes;
    this.#native = created.handle;
  }

  /** Throws ArgumentError for a wrong declaration, IoError where the file cannot be made or the disk is too small. */
  static async create(
    file: string,
    tensors: readonly TensorDeclaration[],
    metadata: Readonly<Record<string, string>> = { format: "pt" },
  ): Promise<SafetensorsWriter> {
    for (const tensor of tensors) {
      if (!Object.hasOwn(SAFE_DTYPE_BITS, tensor.dtype)) {
        throw new ArgumentError(
          `${file}: tensor ${JSON.stringify(tensor.name)}: unknown dtype ${String(tensor.dtype)}`,
        );
      }
    }
    return new SafetensorsWriter(file, await createSafetensors(file, tensors, metadata));
  }

  /**
   * Appends the values of `source` to tensor `name` (all of them, or the next piece). float32 and bfloat16 are
   * converted where the declared dtype is the other one, float32 also to F16 and F64. Values are those at this point of the device's queue. Await
   * each call before the next. After a failure the temporary file is gone and the writer is of no more use.
   */
  async write(name: string, source: TensorBytes | ArrayBufferView): Promise<void> {
    await writeSafetensors(this.#native, name, source);
  }

  /** Brings the file to the disk under its name. */
  async finish(): Promise<FileDigest> {
    return finishSafetensors(this.#native);
  }

  /** Removes what was written. Harmless after `finish`. */
  async abandon(): Promise<void> {
    await abandonSafetensors(this.#native);
  }
}

// ---- model folders ----

const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const LFS_POINTER = "version https://git-lfs";
/** A real index has some hundred bytes a tensor. */
const MAX_INDEX_BYTES = 100_000_000;

/** The safetensors of a Hugging Face model folder, one file or many, as one set of tensors. */
export class ModelFolder implements Disposable {
  readonly path: string;
  /** By name: what it is and which file of the folder holds it. */
  readonly entries: ReadonlyMap<string, TensorEntry & { readonly file: string }>;
  readonly #files: ReadonlyMap<string, SafetensorsFile>;

  /** Use `openModelFolder`. */
  constructor(folder: string, files: ReadonlyMap<string, SafetensorsFile>) {
    this.path = folder;
    this.#files = files;
    const entries = new Map<string, TensorEntry & { file: string }>();
    for (const [name, file] of files) {
      for (const entry of file.entries.values()) entries.set(entry.name, { ...entry, file: name });
    }
    this.entries = entries;
  }

  /** As SafetensorsFile.read, from whichever file holds the tensor. */
  async read(name: string, target: TensorBytes, options: { begin?: number } = {}): Promise<void> {
    await this.#file(name).read(name, target, options);
  }

  /** As SafetensorsFile.readBytes. */
  async readBytes(
    name: string,
    options: { begin?: number; count?: number; dtype?: SafeDtype } = {},
  ): Promise<ArrayBuffer> {
    return this.#file(name).readBytes(name, options);
  }

  close(): void {
    for (const file of this.#files.values()) file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #file(name: string): SafetensorsFile {
    const entry = this.entries.get(name);
    const file = entry === undefined ? undefined : this.#files.get(entry.file);
    if (file === undefined) {
      throw new ModelError(`${this.path} has no tensor ${JSON.stringify(name)}`, { path: this.path, tensor: name });
    }
    return file;
  }
}

/**
 * Opens `model.safetensors`, or all files that `model.safetensors.index.json` names, of a Hugging Face folder, and
 * checks that index and files agree. Throws ModelError (no weights, missing shard), FormatError (broken or unsafe file
 * or index) or IoError.
 */
export async function openModelFolder(folder: string): Promise<ModelFolder> {
  let names: string[];
  try {
    names = await fs.readdir(folder);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT") throw new ModelError(`the model folder ${folder} does not exist`, { path: folder });
    if (code === "ENOTDIR")
      throw new ModelError(`${folder} is not a folder; give the folder of the model`, { path: folder });
    throw new IoError(`cannot look into ${folder}: ${(error as Error).message}`, { path: folder }, { cause: error });
  }
  if (names.includes(SINGLE)) {
    return new ModelFolder(folder, new Map([[SINGLE, await SafetensorsFile.open(path.join(folder, SINGLE))]]));
  }
  if (!names.includes(INDEX)) {
    const others = names.filter((name) => /\.(bin|pt|pth|ckpt|h5|msgpack|gguf)$/.test(name));
    const shard = names.find((name) => /^model-\d+-of-\d+\.safetensors$/.test(name));
    if (shard !== undefined) {
      throw new ModelError(`${folder} holds ${shard}, but not ${INDEX}, which says what belongs to the model`, {
        path: folder,
      });
    }
    throw new ModelError(
      others.length > 0
        ? `${folder} has no ${SINGLE}, only ${others.slice(0, 3).join(", ")}: save the model in safetensors form (transformers: model.save_pretrained(folder, safe_serialization=True))`
        : `${folder} has neither ${SINGLE} nor ${INDEX}`,
      { path: folder },
    );
  }
  const weightMap = await readIndex(path.join(folder, INDEX));
  const files = new Map<string, SafetensorsFile>();
  try {
    for (const file of new Set(weightMap.values())) {
      if (!names.includes(file)) {
        throw new ModelError(
          `${path.join(folder, INDEX)} names ${file}, which is not in the folder: the download is not complete`,
          {
            path: folder,
            file,
          },
        );
      }
      files.set(file, await SafetensorsFile.open(path.join(folder, file)));
    }
    for (const [tensor, file] of weightMap) {
      if (!files.get(file)?.entries.has(tensor)) {
        throw new FormatError(
          `${path.join(folder, INDEX)} says that tensor ${JSON.stringify(tensor)} is in ${file}, but it is not`,
          {
            path: folder,
            tensor,
            file,
          },
        );
      }
    }
    for (const [name, file] of files) {
      for (const tensor of file.entries.keys()) {
        if (weightMap.get(tensor) !== name) {
          const where = weightMap.get(tensor);
          throw new FormatError(
            `${path.join(folder, name)} holds tensor ${JSON.stringify(tensor)}, which ${INDEX} ${where === undefined ? "does not list" : `places in ${where}`}`,
            { path: folder, tensor, file: name },
          );
        }
      }
    }
    return new ModelFolder(folder, files);
  } catch (error) {
    for (const file of files.values()) file.close();
    throw error;
  }
}

/** tensor name -> file name, every file name a plain name of the folder. */
async function readIndex(file: string): Promise<Map<string, string>> {
  let text: string;
  try {
    const { size } = await fs.stat(file);
    if (size > MAX_INDEX_BYTES) {
      throw new FormatError(`${file} has ${size} bytes, more than the ${MAX_INDEX_BYTES} an index may have`, {
        path: file,
      });
    }
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(await fs.readFile(file));
  } catch (error) {
    if (error instanceof FormatError) throw error;
    if (error instanceof TypeError)
      throw new FormatError(`${file} is not valid UTF-8`, { path: file }, { cause: error });
    throw new IoError(`cannot read ${file}: ${(error as Error).message}`, { path: file }, { cause: error });
  }
  if (text.startsWith(LFS_POINTER)) {
    throw new FormatError(
      `${file} is a Git LFS pointer, not the file itself; run \`git lfs pull\` in its folder, or download it`,
      { path: file },
    );
  }
  let index: unknown;
  try {
    index = JSON.parse(text);
  } catch (error) {
    throw new FormatError(`${file} is not valid JSON: ${(error as Error).message}`, { path: file }, { cause: error });
  }
  const map = (index as { weight_map?: unknown } | null)?.weight_map;
  if (typeof map !== "object" || map === null || Array.isArray(map)) {
    throw new FormatError(`${file} has no object "weight_map"`, { path: file });
  }
  const weightMap = new Map<string, string>();
  for (const [tensor, name] of Object.entries(map)) {
    // A plain name only: an index must not reach files elsewhere. The file itself may be a symbolic link, as all files
    // of the Hugging Face cache are.
    if (typeof name !== "string" || !/^[^/\\\0]+\.safetensors$/.test(name)) {
      throw new FormatError(
        `${file} places tensor ${JSON.stringify(tensor)} in ${JSON.stringify(name)}, which is not the plain name of a .safetensors file in the folder`,
        { path: file, tensor },
      );
    }
    weightMap.set(tensor, name);
  }
  if (weightMap.size === 0) throw new FormatError(`${file} lists no tensor`, { path: file });
  return weightMap;
}

type Bytes = TensorBytes | ArrayBufferView;

/** A tensor of an export; its bytes are asked for when its turn comes, so the whole model is never needed at once. */
export interface ExportTensor extends TensorDeclaration {
  /** All of it, or pieces in their order. */
  load(): Bytes | Promise<Bytes> | AsyncIterable<Bytes>;
  /** Called when the bytes are written and what `load` gave is no longer needed. */
  done?(): void;
}

export interface WriteModelOptions {
  /** Largest size of one file's tensors in bytes (default 5 GB); a larger single tensor gets a file of its own. */
  maxShardBytes?: number;
  metadata?: Readonly<Record<string, string>>;
  signal?: AbortSignal;
}

/**
 * Writes the tensors into the existing folder `dir` as Hugging Face stores them: `model.safetensors`, or
 * `model-00001-of-0000N.safetensors` and an index with `total_size`. Each file is on the disk when the call ends; put
 * the folder itself in place with `writeFolder`. Returns size and hash of each file by name. Throws IoError,
 * ArgumentError, or whatever `load` throws; unfinished files are removed.
 */
export async function writeModel(
  dir: string,
  tensors: Iterable<ExportTensor>,
  options: WriteModelOptions = {},
): Promise<Map<string, FileDigest>> {
  const most = options.maxShardBytes ?? 5_000_000_000;
  if (!(most > 0)) throw new ArgumentError(`maxShardBytes must be positive, not ${most}`);
  const shards: ExportTensor[][] = [];
  let shardBytes = 0;
  let totalBytes = 0;
  const seen = new Set<string>();
  for (const tensor of tensors) {
    if (seen.has(tensor.name))
      throw new ArgumentError(`tensor ${JSON.stringify(tensor.name)} occurs twice in the export`);
    seen.add(tensor.name);
    const bytes = tensorBytes(tensor);
    const shard = shards.at(-1);
    if (shard === undefined || (shardBytes > 0 && shardBytes + bytes > most)) {
      shards.push([tensor]);
      shardBytes = bytes;
    } else {
      shard.push(tensor);
      shardBytes += bytes;
    }
    totalBytes += bytes;
  }
  if (shards.length === 0) throw new ArgumentError(`there is no tensor to write to ${dir}`);

  const written = new Map<string, FileDigest>();
  const weightMap: Record<string, string> = Object.create(null);
  for (const [i, shard] of shards.entries()) {
    const name = shards.length === 1 ? SINGLE : `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`;
    // Widest values first keeps every tensor aligned to its own values.
    shard.sort((a, b) => SAFE_DTYPE_BITS[b.dtype] - SAFE_DTYPE_BITS[a.dtype]);
    const writer = await SafetensorsWriter.create(path.join(dir, name), shard, options.metadata);
    try {
      for (const tensor of shard) {
        options.signal?.throwIfAborted();
        try {
          const loaded = tensor.load();
          if (Symbol.asyncIterator in loaded) for await (const piece of loaded) await writer.write(tensor.name, piece);
          else await writer.write(tensor.name, await loaded);
        } finally {
          tensor.done?.();
        }
        weightMap[tensor.name] = name;
      }
      written.set(name, await writer.finish());
    } catch (error) {
      await writer.abandon();
      throw error;
    }
  }
  if (shards.length > 1) {
    const sorted = Object.fromEntries(Object.entries(weightMap).sort(([a], [b]) => (a < b ? -1 : 1)));
    const text = `${JSON.stringify({ metadata: { total_size: totalBytes }, weight_map: sorted }, null, 2)}\n`;
    const file = path.join(dir, INDEX);
    try {
      await fs.writeFile(file, text, { flush: true });
    } catch (error) {
      throw new IoError(`cannot write ${file}: ${(error as Error).message}`, { path: file }, { cause: error });
    }
  }
  return written;
}

function digits(n: number): string {
  return String(n).padStart(5, "0");
}

function tensorBytes(tensor: TensorDeclaration): number {
  const bits: number | undefined = SAFE_DTYPE_BITS[tensor.dtype];
  if (bits === undefined) {
    throw new ArgumentError(`tensor ${JSON.stringify(tensor.name)}: unknown dtype ${String(tensor.dtype)}`);
  }
  let total = bits / 8;
  for (const size of tensor.shape) {
    if (!Number.isSafeInteger(size) || size < 0) {
      throw new ArgumentError(
        `tensor ${JSON.stringify(tensor.name)}: shape [${tensor.shape.join(", ")}] is not made of sizes`,
      );
    }
    total *= size;
  }
  return total;
}
