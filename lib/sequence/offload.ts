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

  /** Takes tensors, in handles of its own. */
  put(tensors: readonly Tensor[]): Entry {
    const entry = new Entry(this);
    this.#entries.push(entry);
    entry.add(untracked(() => tensors.map((tensor) => tensor.alias())));
    return entry;
  }

  /** More bytes lie on the device: the oldest go out when its share is full. */
  grown(bytes: number): void {
    this.#onDevice += bytes;
    if (this.options.tier === "none") return;
    for (const oldest of this.#entries) {
      if (this.#onDevice <= this.options.deviceBytes) break;
      this.#onDevice -= oldest.out();
    }
  }

  /** Called by an entry that is needed now: the one before it is fetched beside the work that follows. */
  fetched(entry: Entry): void {
    const before = this.#entries[this.#entries.indexOf(entry) - 1];
    before?.prefetch();
  }

  remove(entry: Entry): void {
    const at = this.#entries.indexOf(entry);
    if (at >= 0) this.#entries.splice(at, 1);
    this.#onDevice -= entry.resident;
  }
}

/** What one checkpoint holds: tensors on the device, or, after those, tensors that went out. */
export class Entry {
  readonly #store: CheckpointStore;
  #device: Tensor[] = [];
  #host: Tensor[] = [];
  #fetched = false;
  #disposed = false;
  /** Bytes that stayed on the device. */
  resident = 0;

  constructor(store: CheckpointStore) {
    this.#store = store;
  }

  /** Takes over handles. */
  add(tensors: readonly Tensor[]): void {
    if (tensors.length === 0) return;
    if (this.#disposed) {
      for (const tensor of tensors) tensor.dispose();
      return;
    }
    this.#device.push(...tensors);
    const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
    this.resident += bytes;
    this.#store.grown(bytes);
  }

  /** Copies to the host while compute goes on; the device's bytes go back when the copy is over. Returns the bytes. */
  out(): number {
    const bytes = this.resident;
    this.#host.push(
      ...untracked(() =>
        this.#device.map((tensor) => {
          const host = Tensor.empty(tensor.shape, {
            device: tensor.device,
            dtype: tensor.dtype,
            tier: "host",
            category: "checkpoints",
          });
          binding.ops.copy(tensor.native(), host.native(), queues.copyOut);
          return host;
        }),
      ),
    );
    for (const tensor of this.#device) tensor.dispose();
    this.#device = [];
    this.resident = 0;
    return bytes;
  }

  /** Starts the copy back. */
  prefetch(): void {
    const host = this.#host;
    const first = host[0];
    if (!first) return;
    const { native } = first.device;
    // The copy out may still be on its way.
    binding.waitQueue(native, queues.copyIn, queues.copyOut);
    const back = untracked(() =>
      host.map((tensor) => {
        const device = Tensor.empty(tensor.shape, {
          device: tensor.device,
          dtype: tensor.dtype,
          category: "checkpoints",
        });
        binding.ops.copy(tensor.native(), device.native(), queues.copyIn);
        return device;
      }),
    );
    // What went out came before what stayed.
    this.#device = [...back, ...this.#device];
    for (const tensor of host) tensor.dispose();
    this.#host = [];
    this.#fetched = true;
  }

  /** The tensors, for compute enqueued from now on. They stay this entry's. */
  fetch(): readonly Tensor[] {
    this.prefetch();
    if (this.#fetched) binding.waitQueue((this.#device[0] as Tensor).device.native, queues.compute, queues.copyIn);
    this.#store.fetched(this);
    return this.#device;
  }

  dispose(): void {
    this.#disposed = true;
    for (const tensor of [...this.#device, ...this.#host]) tensor.dispose();
    this.#store.remove(this);
    this.#device = [];
    this.#host = [];
  }
}
