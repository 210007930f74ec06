// Where checkpoints wait for their backward: the newest on the device, the others in host memory, copied out and
// prefetched on the copy queues beside the layers' own work.
import { binding } from "../binding.js";
import { untracked } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";

/** In the order of ls_queue_kind. */
const queues = { compute: 0, copyOut: 1, copyIn: 2 } as const;

export interface OffloadOptions {
  /** Where checkpoints go that the device has no room for; none: all stay. */
  tier: "none" | "host";
  /** Bytes of checkpoints that may stay on the device. */
  deviceBytes: number;
}

/** The checkpoints of a model's forward passes, oldest first. One belongs to each model. */
export class CheckpointStore {
  options: OffloadOptions = { tier: "none", deviceBytes: 0 };
  readonly #entries: Entry[] = [];
  #onDevice = 0;

  /** Takes tensors (in handles of its own); the oldest go out when the device's share is full. */
  put(tensors: readonly Tensor[]): Entry {
    const entry = new Entry(this, tensors);
    this.#entries.push(entry);
    this.#onDevice += entry.bytes;
    if (this.options.tier !== "none")
      for (const oldest of this.#entries) {
        if (this.#onDevice <= this.options.deviceBytes) break;
        if (oldest.onDevice) {
          oldest.out();
          this.#onDevice -= oldest.bytes;
        }
      }
    return entry;
  }

  /** Called by an entry that is needed now: the one before it is fetched beside the work that follows. */
  fetched(entry: Entry): void {
    const before = this.#entries[this.#entries.indexOf(entry) - 1];
    before?.prefetch();
  }

  remove(entry: Entry): void {
    const at = this.#entries.indexOf(entry);
    if (at >= 0) this.#entries.splice(at, 1);
    if (entry.counted) this.#onDevice -= entry.bytes;
  }
}

/** What one checkpoint holds. */
export class Entry {
  readonly #store: CheckpointStore;
  #device: Tensor[] | undefined;
  #host: Tensor[] | undefined;
  readonly bytes: number;
  /** Whether its bytes count as those that stayed on the device. */
  counted = true;

  constructor(store: CheckpointStore, tensors: readonly Tensor[]) {
    this.#store = store;
    this.#device = untracked(() => tensors.map((tensor) => tensor.alias()));
    this.bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
  }

  get onDevice(): boolean {
    return this.counted;
  }

  /** Copies to the host while compute goes on; the device's bytes go back when the copy is over. */
  out(): void {
    this.counted = false;
    const device = this.#device as Tensor[];
    this.#host = untracked(() =>
      device.map((tensor) => {
        const host = Tensor.empty(tensor.shape, {
          device: tensor.device,
          dtype: tensor.dtype,
          tier: "host",
          category: "checkpoints",
        });
        binding.ops.copy(tensor.native(), host.native(), queues.copyOut);
        return host;
      }),
    );
    for (const tensor of device) tensor.dispose();
    this.#device = undefined;
  }

  /** Starts the copy back. */
  prefetch(): void {
    const host = this.#host;
    if (!host) return;
    const native = (host[0] as Tensor).device.native;
    // The copy out may still be on its way.
    binding.waitQueue(native, queues.copyIn, queues.copyOut);
    this.#device = untracked(() =>
      host.map((tensor) => {
        const device = Tensor.empty(tensor.shape, { device: tensor.device, dtype: tensor.dtype, category: "checkpoints" });
        binding.ops.copy(tensor.native(), device.native(), queues.copyIn);
        return device;
      }),
    );
    for (const tensor of host) tensor.dispose();
    this.#host = undefined;
  }

  /** The tensors, for compute enqueued from now on. They stay this entry's. */
  fetch(): readonly Tensor[] {
    const away = !this.counted;
    this.prefetch();
    const device = this.#device as Tensor[];
    if (away) binding.waitQueue((device[0] as Tensor).device.native, queues.compute, queues.copyIn);
    this.#store.fetched(this);
    return device;
  }

  dispose(): void {
    for (const tensor of [...(this.#device ?? []), ...(this.#host ?? [])]) tensor.dispose();
    this.#device = undefined;
    this.#host = undefined;
    this.#store.remove(this);
  }
}

