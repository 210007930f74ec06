// The device that a configuration asks for: its name, how it is opened, and what a plan has to know of it.

import type { Config } from "../config/index.js";
import { ArgumentError, ConfigError, DeviceError, UnsupportedError } from "../errors.js";
import type { ModelConfig } from "../models/index.js";
import { modelDtype } from "../models/load.js";
import { formatBytes } from "../report/format.js";
import { assumedCuda, type CudaProfile, Device, type DeviceOptions } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { cudaUsable } from "../tensor/trial.js";
import { availableMemory, Limits } from "./limits.js";
import type { Subject } from "./measure.js";

/** What GPUs' libraries and kernels, loaded when first used, may take of the memory that was free before. */
export const LIBRARY_BYTES = 512 * 2 ** 20;

/** NCCL's channels and buffers are given one such part of a GPU: 1.25 GiB of 80. A guess that no GPU has confirmed. */
const NCCL_PART = 64;

/** The device's name, `auto` resolved. Throws ConfigError where the rest of the configuration cannot be had on it. */
export function deviceName(config: Config, onWarning: (message: string) => void = () => {}): string {
  let name = config.device;
  if (name === "auto") {
    const { usable, trouble } = cudaUsable();
    if (trouble !== undefined)
      onWarning(`device: auto is the cpu: there is a GPU's driver, but it cannot be used: ${trouble}`);
    name = usable ? "cuda" : "cpu";
    if (!usable && config.attention === "cudnn")
      throw new ConfigError(
        "attention: cudnn, but device: auto found no GPU; leave attention out, or set device: cuda",
      );
  }
  return name;
}

/** How a run's device is opened. */
export const deviceOptions = ({ threads, attention, train }: Config): DeviceOptions => ({
  ...(threads !== "auto" && { threads }),
  attention,
  deterministic: train.deterministic === true,
});

/** What `meta` is to stand for in the plan of a run. */
export const standIn = (config: Config, profile: CudaProfile | undefined): Subject["on"] =>
  profile && { profile, attention: config.attention, deterministic: config.train.deterministic === true };

/** What a run may use of a GPU's free bytes: libraries and NCCL take the rest. */
export const usableBytes = (free: number, world: number): number =>
  Math.max(1, free - LIBRARY_BYTES - (world > 1 ? Math.floor(free / NCCL_PART) : 0));

/** The limits of a run on this device: `local` of the job's `world` ranks share the memory of the machine. */
export function limitsOn(config: Config, device: Device, { local = 1, world = 1 } = {}): Limits {
  const free = device.info.memoryFreeBytes;
  return new Limits(
    config.memory,
    Math.floor(availableMemory() / local),
    device.isGpu ? usableBytes(free, world) : undefined,
  );
}

/** model.dtype, `auto` resolved: the checkpoint's on a GPU, float32 on the CPU. */
export const runDtype = (config: Config, model: ModelConfig, device: string): DType =>
  modelDtype(model, { device, dtype: config.model.dtype === "auto" ? undefined : config.model.dtype });

/** The device of a plan, which may be on a machine without it. */
export interface PlanTarget {
  name: string;
  profile: CudaProfile | undefined;
  limits: Limits;
  /** What was assumed of a GPU that is not here; null: nothing. */
  assumed: string | null;
}

/**
 * What a plan has to know. A GPU that is not at hand is taken for one of Hopper's. Throws ConfigError where its memory
 * is then not given.
 */
export function planTarget(config: Config, ranks: number, onWarning: (message: string) => void): PlanTarget {
  // To plan for meta is to plan for the CPU.
  const name = deviceName(config, onWarning).replace(/^meta$/, "cpu");
  // Ranks on CPUs share one machine, as those of --nproc do.
  const shared = Math.floor(availableMemory() / ranks);
  if (name === "cpu") return { name, profile: undefined, limits: new Limits(config.memory, shared), assumed: null };
  try {
    const device = new Device(name, deviceOptions(config));
    return { name, profile: device.profile, limits: limitsOn(config, device, { world: ranks }), assumed: null };
  } catch (error) {
    if (![UnsupportedError, DeviceError, ArgumentError].some((known) => error instanceof known)) throw error;
    if (config.memory.deviceLimit === "auto")
      throw new ConfigError(
        `memory.device_limit: auto is the GPU's free memory, but ${name} cannot be opened here (${(error as Error).message}); ` +
          "to plan for a GPU elsewhere give its memory, such as --device-memory 139GiB for an H200",
        {},
        { cause: error },
      );
    const { capability, pageBytes } = assumedCuda;
    return {
      name,
      profile: assumedCuda,
      limits: new Limits(config.memory, availableMemory(), config.memory.deviceLimit),
      assumed:
        `${name} cannot be opened here: a GPU of compute capability ${(capability / 10).toFixed(1)} with pages of ` +
        `${formatBytes(pageBytes)} is assumed, whose memory is memory.device_limit, beside a host with ` +
        `${config.memory.hostLimit === "auto" ? "80% of this machine's memory" : "memory.host_limit"}`,
    };
  }
}
