// Where checkpoints wait for their backward: the newest on the device, the others in host memory or on the disk, as
// they are or in 8 bits, moved beside the layers' own work.
import { tmpdir } from "node:os";
import { binding, type NativeDisk } from "../binding.js";
import type { BlockFormat } from "../ops/quantize.js";
import type { Device } from "../tensor/device.js";
import { untracked } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { Away, type Destination } from "./away.js";
import { Staging } from "./staging.js";

export interface OffloadOptions {
  /** Where checkpoints go that the device has no room for; none: they stay, packed if `format` says so. */
  tier: "none" | "host" | "disk";
  /** Bytes of checkpoints that may stay on the device as they are. */
  deviceBytes: number;
  /** How those are kept that exceed deviceBytes; int8 and float8 change results. */
  format: "native" | BlockFormat;
  /** Folder of the disk tier; null: the system's for temporary files. */
  directory: string | null;
  /** Whether the input of the next checkpoint is fetched beside the backward of this one. */
  prefetch: boolean;
}

/** The checkpoints of a model's forward passes, oldest first. One belongs to each model. */
export class CheckpointStore {
  #options: OffloadOptions = { tier: "none", deviceBytes: 0, format: "native", directory: null, prefetch: true };
  readonly #entries: Entry[] = [];
  #onDevice = 0;
  #mostOnDevice = 0;
  /** Bytes that the largest checkpoint sent out; staging holds two such. */
  #largest = 0;
  readonly #leaving: Tensor[] = [];
  readonly #staging = new Staging();
  #disk: { device: Device; directory: string; file: NativeDisk } | null = null;

  get options(): OffloadOptions {
    return this.#options;
  }

  /** Most bytes so far that stayed on the device as they are. */
  get mostOnDevice(): number {
    return this.#mostOnDevice;
  }

  /** For checkpoints from now on. */
  configure(options: Partial<OffloadOptions>): void {
    this.#options = { ...this.#options, ...options };
  }

  /** Takes tensors, in handles of its own; the first is the checkpoint's input. Errors: OutOfMemoryError, IoError. */
  put(tensors: readonly Tensor[]): Entry {
    this.#letGo();
    const entry = new Entry(this);
    this.#entries.push(entry);
    try {
      entry.add(untracked(() => tensors.map((tensor) => tensor.alias())));
    } catch (error) {
      entry.dispose();
      throw error;
    }
    return entry;
  }

  /** More bytes lie on the device: the oldest go out when its share is full. */
  grown(bytes: number): void {
    this.#onDevice += bytes;
    const { tier, deviceBytes, format } = this.#options;
    if (tier !== "none" || format !== "native")
      for (const oldest of this.#entries) {
        if (this.#onDevice <= deviceBytes) break;
        this.#onDevice -= oldest.out(this.#destination(), format === "native" ? null : format);
        this.#largest = Math.max(this.#largest, oldest.bytesOut);
      }
    this.#mostOnDevice = Math.max(this.#mostOnDevice, this.#onDevice);
  }

  #destination(): Destination {
    return {
      tier: this.#options.tier,
      leaving: this.#leaving,
      staging: this.#staging,
      stagingBytes: () => 2 * this.#largest,
      disk: (device) => this.#open(device),
    };
  }

  #open(device: Device): NativeDisk {
    const directory = this.#options.directory ?? tmpdir();
    if (this.#disk?.device !== device || this.#disk.directory !== directory)
      this.#disk = { device, directory, file: binding.openDisk(device.native, directory) };
    return this.#disk.file;
  }

  /** An entry is needed now: what was on its way before is let go of, here, whether or not it has ended. */
  begin(): void {
    this.#letGo();
  }

  /** It is on its way: the one before it is fetched beside the work that follows. */
  fetched(entry: Entry): void {
    if (this.#options.prefetch) this.#entries[this.#entries.indexOf(entry) - 1]?.prefetch();
  }

  remove(entry: Entry): void {
    const at = this.#entries.indexOf(entry);
    if (at < 0) return;
    this.#entries.splice(at, 1);
    this.#onDevice -= entry.resident;
    if (this.#entries.length > 0) return;
    this.#letGo();
    this.#staging.clear();
    this.#largest = 0;
  }

  #letGo(): void {
    for (const tensor of this.#leaving.splice(0)) tensor.dispose();
  }
}

/** What one checkpoint holds: tensors on the device, and such as went out. */
export class Entry {
  readonly #store: CheckpointStore;
  #items: { held: Tensor | Away; exact: boolean }[] = [];
  #disposed = false;
  /** Bytes that stayed on the device. */
  resident = 0;
  /** Bytes that went out, as they travel. */
  bytesOut = 0;

  constructor(store: CheckpointStore) {
    this.#store = store;
  }

  /** Takes over handles. exact: those that keep every bit in any format. Errors: OutOfMemoryError, IoError. */
  add(tensors: readonly Tensor[], exact: readonly boolean[] = []): void {
    if (tensors.length === 0) return;
    if (this.#disposed) {
      for (const tensor of tensors) tensor.dispose();
      return;
    }
    this.#items.push(...tensors.map((held, i) => ({ held, exact: exact[i] ?? false })));
    const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
    this.resident += bytes;
    this.#store.grown(bytes);
    // Of those that stayed. Before, they were a layer's activations.
    for (const { held } of this.#items) if (!(held instanceof Away)) held.countAs("checkpoints");
  }

  /** Sends out what is on the device; its bytes go back when the copies are over. Returns the bytes. */
  out(to: Destination, format: BlockFormat | null): number {
    let bytes = 0;
    for (const item of this.#items) {
      if (item.held instanceof Away) continue;
      const size = item.held.bytes;
      const floating = item.held.dtype === "float32" || item.held.dtype === "bfloat16";
      item.held = new Away(item.held, item.exact || !floating ? null : format, to);
      bytes += size;
      this.bytesOut += item.held.bytes;
    }
    this.resident -= bytes;
    return bytes;
  }

  /** Starts the input's way back, and what is on the disk to host memory. */
  prefetch(): void {
    this.#items.forEach(({ held }, i) => {
      if (!(held instanceof Away)) return;
      if (i === 0) held.arrive();
      else held.read();
    });
  }

  /**
   * The tensors, which stay this entry's until it is disposed; nobody else holds their bytes. Each is on its way, and
   * compute waits where it first uses it: attention's results come beside the recomputation of what needs no attention.
   * Errors: OutOfMemoryError.
   */
  fetch(): readonly Tensor[] {
    this.#store.begin();
    for (const item of this.#items) if (item.held instanceof Away) item.held.arrive();
    const tensors = this.#items.map((item) => {
      if (item.held instanceof Away) item.held = item.held.take();
      return item.held;
    });
    this.#store.fetched(this);
    return tensors;
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const { held } of this.#items) held.dispose();
    this.#items = [];
    this.#store.remove(this);
  }
}
