// Devices: where tensors live, what ran there, and how much memory it took.
import { availableParallelism, totalmem } from "node:os";
import {
  binding,
  type MemoryStats,
  type NativeDevice,
  type NativeDeviceInfo,
  type OpCount,
  openCuda,
} from "../binding.js";
import { ArgumentError } from "../errors.js";

export type Tier = "device" | "host" | "disk";
const tiers: readonly Tier[] = ["device", "host", "disk"];

/** What an allocation is for, in the order of ls_category. */
export type Category =
  | "params"
  | "grads"
  | "optimizer"
  | "checkpoints"
  | "activations"
  | "logits"
  | "comm"
  | "workspace";
const categories: readonly Category[] = [
  "params",
  "grads",
  "optimizer",
  "checkpoints",
  "activations",
  "logits",
  "comm",
  "workspace",
];

export const tierCode = (tier: Tier): number => {
  const code = tiers.indexOf(tier);
  if (code < 0) throw new ArgumentError(`tier is ${String(tier)}, expected one of ${tiers.join(", ")}`);
  return code;
};
export const categoryCode = (category: Category): number => {
  const code = categories.indexOf(category);
  if (code < 0) throw new ArgumentError(`category is ${String(category)}, expected one of ${categories.join(", ")}`);
  return code;
};

/** What the bytes of a CUDA device depend on. */
export interface CudaProfile {
  /** Compute capability: 90 for sm_90. */
  capability: number;
  /** Grain of device and pinned host memory. */
  pageBytes: number;
  /** Whether ops on host memory take their workspace there, as the CPU does. */
  separateMemory: boolean;
}

/** A GPU that is not at hand: Hopper, with the pages of NVIDIA's drivers. */
export const assumedCuda: CudaProfile = { capability: 90, pageBytes: 2 * 2 ** 20, separateMemory: true };

export interface DeviceOptions {
  /** Threads of the CPU backend; the machine's by default. Results do not depend on it. */
  threads?: number;
  /** Attention kernels of a CUDA device: cuDNN's where they take a call, or one kind alone. */
  attention?: "auto" | "cudnn" | "native";
  /** Kernels whose bits do not depend on timing. On the CPU they all are; on CUDA false by default. */
  deterministic?: boolean;
  /** Of meta: the CUDA device that it accounts for; absent: the CPU. */
  profile?: CudaProfile | undefined;
}

/** A device with its own queues and allocator. `device(name)` gives the shared one of a name. */
export class Device {
  readonly native: NativeDevice;
  readonly name: string;
  readonly type: string;
  /** Whether the backward's bits are not to depend on timing. */
  readonly deterministic: boolean;
  /** A GPU, or meta in its place: products of bfloat16 run on tensor cores. */
  readonly isGpu: boolean;

  /**
   * name: "cpu", "meta", "cuda" or "cuda:1". Errors: UnsupportedError where the backend, or cuDNN if it is forced, is not
   * at hand; ArgumentError for a device that does not exist.
   */
  constructor(name: string, options: DeviceOptions = {}) {
    const match = /^([a-z][a-z_]*)(?::(\d+))?$/.exec(name);
    if (!match) throw new ArgumentError(`device is '${name}', expected cpu, meta, cuda or cuda:N`);
    this.type = match[1] as string;
    this.name = name;
    const threads = options.threads ?? availableParallelism();
    if (this.type === "cuda") openCuda();
    const { attention, profile } = options;
    this.native = binding.openDevice(name, this.type, Number(match[2] ?? 0), threads, {
      ...(attention !== undefined && { attention }),
      ...profile,
    });
    this.isGpu = this.info.capability > 0;
    this.deterministic = !this.isGpu || options.deterministic === true;
    for (const tier of ["device", "host"] as const) this.setLimit(0, tier);
  }

  get info(): NativeDeviceInfo {
    return binding.deviceInfo(this.native);
  }

  /** Of a GPU: what `meta` needs to account for it. */
  get profile(): CudaProfile | undefined {
    const { capability, pageBytes, separateMemory } = this.info;
    return this.isGpu ? { capability, pageBytes, separateMemory } : undefined;
  }

  get isMeta(): boolean {
    return this.type === "meta";
  }

  #step = "";

  /** The part of a program, such as "step 3", that messages of what is enqueued from now on name. */
  set step(name: string) {
    this.#step = name;
    binding.setPlace(this.native, name, "");
  }

  /** Runs `fn`; messages of what it enqueues name `layer`, such as "forward of layer 2", behind the step. */
  within<T>(layer: string, fn: () => T): T {
    binding.setPlace(this.native, this.#step, layer);
    try {
      return fn();
    } finally {
      binding.setPlace(this.native, this.#step, "");
    }
  }

  /** Bytes of one tier: live, reserved, peaks, by category. */
  memory(tier: Tier = "device"): MemoryStats {
    return binding.memoryStats(this.native, tierCode(tier));
  }

  /**
   * Reserved bytes that may not be exceeded; 0 lifts the limit, of host memory up to the machine's: the kernel hands out
   * more addresses than it has pages, and ends the process when they are touched.
   */
  setLimit(bytes: number, tier: Tier = "device"): void {
    const ofHost = this.type === "cpu" ? tier !== "disk" : tier === "host" && !this.isMeta;
    const most = ofHost ? totalmem() : 0;
    binding.setLimit(this.native, tierCode(tier), bytes === 0 ? most : bytes);
  }

  /** Peaks start again from what is in use now. */
  resetPeaks(): void {
    for (const tier of tiers) binding.resetPeaks(this.native, tierCode(tier));
  }

  /** Gives cached pages back to the system. */
  trim(): void {
    for (const tier of tiers) binding.trim(this.native, tierCode(tier));
  }

  /** What was enqueued since the start or the last reset, by op. */
  opCounts(): Record<string, OpCount> {
    return binding.opCounts(this.native);
  }

  /** FLOPs of all matrix products enqueued. */
  totalFlops(): number {
    return binding.totalFlops(this.native);
  }

  resetOpCounts(): void {
    binding.resetOpCounts(this.native);
  }

  /** Resolves when everything enqueued so far is done; rejects with the device's failure. */
  synchronize(): Promise<void> {
    return binding.synchronize(this.native);
  }

  /** Drops what has not begun; an optimizer update that has begun is finished. Reads reject with CancelledError. */
  cancel(): void {
    binding.cancel(this.native);
  }

  /** After cancel(), or after the disk tier failed: waits for the queues to be empty and lets work in again. */
  resume(): Promise<void> {
    return binding.resume(this.native);
  }

  /** Notes every op and allocation until stopTrace(). */
  startTrace(): void {
    binding.startTrace(this.native);
  }

  /** Chrome trace JSON of what ran since startTrace(). Synchronize first. */
  stopTrace(): string {
    return binding.stopTrace(this.native);
  }

  /** For other addons: an external with the backend's table and a ready ls_exec. */
  backendTable(): object {
    return binding.backendTable(this.native);
  }

  toString(): string {
    return this.name;
  }
}

const shared = new Map<string, Device>();

/** The shared device of a name. Options count only when it is opened, by the first call. */
export function device(name: string | Device = "cpu", options: DeviceOptions = {}): Device {
  if (name instanceof Device) return name;
  if (typeof name !== "string") throw new ArgumentError(`device is ${typeof name}, expected a name or a Device`);
  let found = shared.get(name);
  if (!found) {
    found = new Device(name, options);
    shared.set(name, found);
  }
  return found;
}
