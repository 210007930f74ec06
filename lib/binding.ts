// The only loader of the native addon, and the only typed view of its surface.

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  ArgumentError,
  CancelledError,
  DeviceError,
  FormatError,
  IoError,
  LongseqError,
  OutOfMemoryError,
  UnsupportedError,
} from "./errors.js";

/** A device inside the addon. Opaque. */
export type NativeDevice = { readonly __device: unique symbol };
/** A tensor inside the addon: an external that other addons can read (see `longseq/include`). Opaque. */
export type NativeTensor = { readonly __tensor: unique symbol };

/** A file of the disk tier. Opaque. */
export type NativeDisk = { readonly __disk: unique symbol };

type Optional = NativeTensor | null;
type Flag = boolean | number;

/** One function an op, its arguments in the order of the op's struct in native/include/longseq/backend.h. The last
 * argument of each, left out here, may name the queue. */
export interface NativeOps {
  matmul(a: NativeTensor, b: NativeTensor, c: NativeTensor, bias: Optional, alpha: number, accumulate: Flag): void;
  rmsNorm(x: NativeTensor, weight: NativeTensor, y: NativeTensor, eps: number): void;
  rmsNormBackward(
    x: NativeTensor,
    weight: NativeTensor,
    dy: NativeTensor,
    dx: NativeTensor,
    dweight: Optional,
    eps: number,
    accumulateDx: Flag,
  ): void;
  layerNorm(x: NativeTensor, weight: NativeTensor, y: NativeTensor, bias: Optional, eps: number): void;
  layerNormBackward(
    x: NativeTensor,
    weight: NativeTensor,
    dy: NativeTensor,
    dx: NativeTensor,
    dweight: Optional,
    dbias: Optional,
    eps: number,
    accumulateDx: Flag,
  ): void;
  rope(
    x: NativeTensor,
    positions: NativeTensor,
    invFreq: NativeTensor,
    y: NativeTensor,
    scaling: number,
    inverse: Flag,
  ): void;
  swiglu(gate: NativeTensor, up: NativeTensor, y: NativeTensor, kind: number): void;
  swigluBackward(
    gate: NativeTensor,
    up: NativeTensor,
    dy: NativeTensor,
    dgate: NativeTensor,
    dup: NativeTensor,
    kind: number,
  ): void;
  unary(x: NativeTensor, y: NativeTensor, kind: number): void;
  unaryBackward(x: NativeTensor, dy: NativeTensor, dx: NativeTensor, kind: number): void;
  binary(a: NativeTensor, b: NativeTensor, y: NativeTensor, kind: number): void;
  axpby(x: NativeTensor, y: NativeTensor, factor: Optional, alpha: number, beta: number, queue?: number): void;
  embedding(ids: NativeTensor, table: NativeTensor, y: NativeTensor): void;
  embeddingBackward(ids: NativeTensor, dy: NativeTensor, dtable: NativeTensor): void;
  route(
    logits: NativeTensor,
    probs: NativeTensor,
    experts: NativeTensor,
    slots: NativeTensor,
    tokens: NativeTensor,
    weights: NativeTensor,
    offsets: NativeTensor,
    load: NativeTensor | null,
    normalize: Flag,
    counted: number,
  ): void;
  routeBackward(
    probs: NativeTensor,
    experts: NativeTensor,
    slots: NativeTensor,
    dweights: NativeTensor,
    share: NativeTensor | null,
    factor: NativeTensor | null,
    dlogits: NativeTensor,
    normalize: Flag,
    counted: number,
  ): void;
  groupedMatmul(a: NativeTensor, b: NativeTensor, c: NativeTensor, offsets: NativeTensor, accumulate: Flag): void;
  combine(x: NativeTensor, slots: NativeTensor, weights: NativeTensor | null, y: NativeTensor, accumulate: Flag): void;
  dropout(
    x: NativeTensor,
    rows: NativeTensor,
    y: NativeTensor,
    rate: number,
    seed: number,
    stream: number,
    first: number,
    accumulate: Flag,
  ): void;
  rowDot(a: NativeTensor, b: NativeTensor, y: NativeTensor): void;
  attention(
    q: NativeTensor,
    k: NativeTensor,
    v: NativeTensor,
    o: NativeTensor,
    lse: NativeTensor,
    cuSeqlens: Optional,
    scale: number,
    causal: Flag,
    window: number,
    qOffset: number,
    kOffset: number,
    softcap?: number,
  ): void;
  attentionMerge(o: NativeTensor, lse: NativeTensor, part: NativeTensor, partLse: NativeTensor): void;
  attentionBackward(
    q: NativeTensor,
    k: NativeTensor,
    v: NativeTensor,
    o: NativeTensor,
    lse: NativeTensor,
    dout: NativeTensor,
    delta: Optional,
    dq: NativeTensor,
    dk: NativeTensor,
    dv: NativeTensor,
    cuSeqlens: Optional,
    scale: number,
    causal: Flag,
    window: number,
    qOffset: number,
    kOffset: number,
    accumulateDq: Flag,
    accumulateDkv: Flag,
    deterministic: Flag,
    softcap?: number,
  ): void;
  crossEntropy(
    logits: NativeTensor,
    labels: NativeTensor,
    loss: NativeTensor,
    dlogits: Optional,
    lse: Optional,
    losses: Optional,
    scale: number,
  ): void;
  copy(src: NativeTensor, dst: NativeTensor, queue?: number): void;
  fill(y: NativeTensor, value: number): void;
  sum(x: NativeTensor, y: NativeTensor, alpha: number, accumulate: Flag): void;
  normSquared(x: NativeTensor, y: NativeTensor): void;
  argmax(x: NativeTensor, index: NativeTensor): void;
  clipFactor(
    total: NativeTensor,
    norm: NativeTensor,
    factor: NativeTensor,
    finite: NativeTensor,
    loss: Optional,
    maxNorm: number,
  ): void;
  adamwAdvance(step: NativeTensor, finite: Optional): void;
  adamw(
    param: NativeTensor,
    grad: NativeTensor,
    m: NativeTensor,
    v: NativeTensor,
    step: NativeTensor,
    master: Optional,
    factor: Optional,
    finite: Optional,
    learningRate: number,
    beta1: number,
    beta2: number,
    eps: number,
    weightDecay: number,
  ): void;
  quantize(x: NativeTensor, packed: NativeTensor, format: number): void;
  dequantize(packed: NativeTensor, y: NativeTensor, format: number): void;
  allToAll(x: NativeTensor, y: NativeTensor, comm: number, queue?: number): void;
  allGather(x: NativeTensor, y: NativeTensor, comm: number, queue?: number): void;
  reduceScatter(x: NativeTensor, y: NativeTensor, comm: number, kind: number, queue?: number): void;
  allReduce(x: NativeTensor, comm: number, kind: number, queue?: number): void;
  broadcast(x: NativeTensor, comm: number, root: number, queue?: number): void;
  sendReceive(x: NativeTensor, y: NativeTensor, comm: number, to: number, from: number, queue?: number): void;
  random(y: NativeTensor, a: number, b: number, seed: number, offset: number, normal: Flag): void;
}

export interface NativeDeviceInfo {
  name: string;
  backend: string;
  threads: number;
  memoryBytes: number;
  memoryFreeBytes: number;
  pageBytes: number;
  /** Of a GPU, as the system writes it; "" of others. */
  pciAddress: string;
  peakBf16Flops: number;
  /** Of a CUDA device, or of one that meta accounts for: 90 for sm_90; 0 of others. */
  capability: number;
  /** Whether ops on host memory run on the CPU's table, beside the device. */
  separateMemory: boolean;
}

/** Bytes by category name. */
export type ByCategory = Record<string, number>;

/** Of one tier of a device, in bytes. `peak` and `limit` count reserved bytes; `live` is what tensors hold. */
export interface MemoryStats {
  live: number;
  reserved: number;
  peakLive: number;
  peak: number;
  limit: number;
  allocations: number;
  categoryLive: ByCategory;
  categoryPeak: ByCategory;
  categoryAtPeak: ByCategory;
}

/** What was enqueued of one op: calls, FLOPs of its matrix products, bytes read and written. */
export interface OpCount {
  calls: number;
  flops: number;
  bytes: number;
  /** On the compute queue, where a log with durations is kept; else 0. */
  seconds: number;
}

/** A safetensors file open for reading, and one being written. Opaque. */
export type NativeReader = { readonly __reader: unique symbol };
export type NativeWriter = { readonly __writer: unique symbol };

/** Safetensors and durable file IO (native/binding/safetensors.cc); all off the event loop. */
export interface SafetensorsNative {
  openSafetensors(path: string): Promise<{
    handle: NativeReader;
    entries: { name: string; dtype: string; shape: number[]; elements: number; bytes: number }[];
    metadata: [key: string, value: string][];
    bytes: number;
  }>;
  closeSafetensors(reader: NativeReader): void;
  readSafetensors(reader: NativeReader, name: string, begin: number, target: NativeTensor): Promise<void>;
  readSafetensorsBytes(
    reader: NativeReader,
    name: string,
    begin: number,
    count: number,
    dtype: string,
  ): Promise<ArrayBuffer>;
  createSafetensors(
    path: string,
    tensors: readonly { name: string; dtype: string; shape: readonly number[] }[],
    metadata: readonly (readonly [key: string, value: string])[],
  ): Promise<{ handle: NativeWriter; bytes: number }>;
  writeSafetensors(writer: NativeWriter, name: string, source: NativeTensor | ArrayBufferView): Promise<void>;
  finishSafetensors(writer: NativeWriter): Promise<{ bytes: number; hash: string }>;
  abandonSafetensors(writer: NativeWriter): Promise<void>;
  hashFile(path: string): Promise<{ bytes: number; hash: string }>;
  syncPath(path: string): Promise<void>;
  exchangeNames(a: string, b: string): Promise<boolean>;
  /** Until the descriptor is closed; false where another one has the file or folder. Returns at once. */
  takeLock(descriptor: number): boolean;
}

/** Everything the addon exports. */
export interface Native extends SafetensorsNative {
  /** Opens this rank's end of a communicator; the address is what the other ranks need. */
  commOpen(
    transport: string,
    rank: number,
    size: number,
    timeoutMs: number,
    host: string,
    name: string,
  ): { comm: number; address: Buffer };
  /** addresses: of all ranks, one behind the other. */
  commConnect(comm: number, addresses: Buffer): Promise<void>;
  /**
   * Opens its end for the memory of a device with streams. whole: a larger communicator with such an end, 0 if there is
   * none; color: the same number for all ranks of this one, another for those that the others of the larger one open.
   */
  commOpenDevice(comm: number, device: NativeDevice, whole: number, color: number): Buffer;
  /** What would carry a device's memory between ranks: its name, with the version. Throws where it is missing. */
  commLibrary(device: NativeDevice): string;
  commConnectDevice(comm: number, addresses: Buffer): Promise<void>;
  /** How long an exchange may wait, those under way too. */
  commSetTimeout(comm: number, milliseconds: number): void;
  commAbort(comm: number): void;
  commClose(comm: number): void;
  commCompare(device: NativeDevice, comm: number, on: boolean): void;
  /** What this process last exchanged, or was about to, the newest last. */
  lastCollectives(): string[];
  /** This process's rank, for messages. */
  setRank(rank: number): void;
  readonly apiVersion: number;
  readonly ops: NativeOps;
  setErrorFactory(factory: (code: string, message: string, details: Record<string, unknown>) => Error): void;
  liveHandles(): { live: number; leaked: number; leakedBytes: number };
  openDevice(
    name: string,
    type: string,
    index: number,
    threads: number,
    options?: { attention?: string; capability?: number; pageBytes?: number; separateMemory?: boolean },
  ): NativeDevice;
  deviceInfo(device: NativeDevice): NativeDeviceInfo;
  memoryStats(device: NativeDevice, tier: number): MemoryStats;
  setLimit(device: NativeDevice, tier: number, bytes: number): void;
  trim(device: NativeDevice, tier: number): void;
  resetPeaks(device: NativeDevice, tier: number): void;
  opCounts(device: NativeDevice): Record<string, OpCount>;
  totalFlops(device: NativeDevice): number;
  resetOpCounts(device: NativeDevice): void;
  arrangement(device: NativeDevice): number;
  /** A mark of what is counted so far; dropOps ends it, and those made after it. */
  markOps(device: NativeDevice): number;
  /** What was counted since the mark is counted `times` times more. */
  repeatOps(device: NativeDevice, mark: number, times: number): void;
  dropOps(device: NativeDevice, mark: number): void;
  /**
   * Notes what is asked of the device's allocators and queues, layer by layer, until stopLog. durations: what a call
   * takes, as work, seconds, work, seconds, ... by op or queue; overlap: how much of other queues' work compute hides.
   */
  startLog(device: NativeDevice, durations: Record<string, number[]>, overlap: number): void;
  /** What follows is done for that layer; -1: for none. */
  logLayer(device: NativeDevice, layer: number): void;
  logPosition(device: NativeDevice): number;
  /** Ops since a position, and their time, are counted `times` times more. */
  logRepeat(device: NativeDevice, position: number, times: number): void;
  /** The counts of logAccounts are those from the last resetOpCounts until here. */
  logCounted(device: NativeDevice): void;
  /**
   * What the logged program would come to with `copies` times `period` layers more, like those before layer `at`. null:
   * these are not like those behind it, so that nothing is known.
   */
  logAccounts(
    device: NativeDevice,
    at: number,
    period: number,
    copies: number,
  ): {
    memory: MemoryStats[];
    ops: Record<string, OpCount>;
    elapsed: { seconds: number; busy: number[]; exposed: number[] };
  } | null;
  stopLog(device: NativeDevice): void;
  /** Where in the program what is enqueued from now on belongs, for messages; "" where it is nowhere. */
  setPlace(device: NativeDevice, step: string, layer: string): void;
  marker(device: NativeDevice, value: number): void;
  lastMarker(device: NativeDevice): number;
  synchronize(device: NativeDevice): Promise<void>;
  waitQueue(device: NativeDevice, queue: number, other: number): void;
  beginUpdate(device: NativeDevice): void;
  endUpdate(device: NativeDevice): void;
  stepsFinished(device: NativeDevice): number;
  limitSteps(device: NativeDevice, most: number): void;
  cancel(device: NativeDevice): void;
  resume(device: NativeDevice): Promise<void>;
  failure(device: NativeDevice): string | null;
  startTrace(device: NativeDevice): void;
  stopTrace(device: NativeDevice): string;
  openBackend(path: string): string;
  backends(): string[];
  cpuIsa(): string;
  backendTable(device: NativeDevice): object;
  openDisk(device: NativeDevice, folder: string): NativeDisk;
  diskWrite(disk: NativeDisk, from: NativeTensor, to: NativeTensor): void;
  diskRead(disk: NativeDisk, from: NativeTensor, to: NativeTensor): void;
  empty(device: NativeDevice, shape: readonly number[], dtype: number, category: number, tier: number): NativeTensor;
  countAs(tensor: NativeTensor, category: number): void;
  view(tensor: NativeTensor, shape: readonly number[], strides: readonly number[], offset: number): NativeTensor;
  release(tensor: NativeTensor): void;
  version(tensor: NativeTensor): number;
  sameStorage(tensor: NativeTensor, other: NativeTensor): boolean;
  references(tensor: NativeTensor): number;
  write(tensor: NativeTensor, data: ArrayBufferView, keepHostValues: boolean): void;
  read(tensor: NativeTensor): Promise<ArrayBuffer>;
  installSignals(callback: (signal: number) => void): void;
  /** All threads of the process run on these cores from now on, those that it may use; how many. 0: nothing changed. */
  pinThreads(cores: readonly number[]): number;
}

const classes: Record<string, new (message: string, details: Record<string, unknown>) => LongseqError> = {
  INVALID_ARGUMENT: ArgumentError,
  OUT_OF_MEMORY: OutOfMemoryError,
  UNSUPPORTED: UnsupportedError,
  IO: IoError,
  FORMAT: FormatError,
  CANCELLED: CancelledError,
  DEVICE_FAILURE: DeviceError,
};

/** The package's folder: where package.json lies, from dist/ as from the sources. */
export const packageRoot: string = (() => {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    const file = join(folder, "package.json");
    if (existsSync(file) && JSON.parse(readFileSync(file, "utf8")).name === "longseq") return folder;
    const parent = dirname(folder);
    if (parent === folder)
      throw new LongseqError("INSTALLATION", "longseq: its package.json is missing; install it again");
    folder = parent;
  }
})();

/** The path of the addon that `binding` was loaded from. */
export const addonPath: string = (() => {
  try {
    return (createRequire(import.meta.url)("node-gyp-build") as { path(folder: string): string }).path(packageRoot);
  } catch (cause) {
    throw new UnsupportedError(
      `longseq has no addon for ${process.platform}-${process.arch} in ${packageRoot}: it is built for linux-x64 with ` +
        "glibc 2.34 or newer; in a clone run `node scripts/setup.mjs`",
      { platform: process.platform, arch: process.arch },
      { cause },
    );
  }
})();

export const binding: Native = (() => {
  const native = createRequire(import.meta.url)(addonPath) as Native;
  native.setErrorFactory((code, message, details) => {
    const Class = classes[code];
    return Class ? new Class(message, details) : new LongseqError(code, message, details);
  });
  return native;
})();

/** The CUDA backend, beside the addon: in a package as in a clone that was built where nvcc is. */
export const cudaLibrary: string = join(dirname(addonPath), "liblongseq_cuda.so");

/**
 * Opens the CUDA backend; nothing more if it is open. Errors: UnsupportedError that names what is missing or too old: the
 * backend, the driver, a device, one of NVIDIA's libraries.
 */
export function openCuda(): void {
  if (binding.backends().includes("cuda")) return;
  if (!existsSync(cudaLibrary))
    throw new UnsupportedError(
      `this longseq has no CUDA backend: ${cudaLibrary} is missing; in a clone, install the CUDA toolkit 13 and run ` +
        "`node scripts/setup.mjs --cuda`",
    );
  binding.openBackend(cudaLibrary);
}
