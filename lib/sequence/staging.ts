// Host memory that bytes pass through on their way between the device and the disk: bounded, used in turn.
import { untracked } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";

interface Slot {
  tensor: Tensor;
  /** Something was read into it that has not been fetched yet. */
  held: boolean;
}

/** Slots of host memory. Whoever writes one that is still on its way waits for it, on the queue that writes. */
export class Staging {
  /** Least recently used first. */
  #slots: Slot[] = [];
  #bytes = 0;

  /**
   * A slot like `tensor`, in its shape. budget: bytes of all slots that are not exceeded while one can be used again.
   * Errors: OutOfMemoryError.
   */
  take(tensor: Pick<Tensor, "shape" | "dtype" | "device" | "bytes">, budget: number, held: boolean): Slot {
    const fits = (slot: Slot): boolean =>
      !slot.held && slot.tensor.dtype === tensor.dtype && slot.tensor.bytes === tensor.bytes;
    let slot = this.#bytes + tensor.bytes > budget ? this.#slots.find(fits) : undefined;
    if (slot) {
      this.#slots.splice(this.#slots.indexOf(slot), 1);
    } else {
      // Of another batch's sizes.
      for (const other of [...this.#slots]) {
        if (this.#bytes + tensor.bytes <= budget) break;
        if (!other.held) this.#drop(other);
      }
      const { shape, dtype, device } = tensor;
      slot = {
        tensor: untracked(() => Tensor.empty(shape, { device, dtype, tier: "host", category: "checkpoints" })),
        held,
      };
      this.#bytes += tensor.bytes;
    }
    slot.held = held;
    this.#slots.push(slot);
    return slot;
  }

  /** Gives all of it back. */
  clear(): void {
    for (const slot of [...this.#slots]) this.#drop(slot);
  }

  #drop(slot: Slot): void {
    this.#slots.splice(this.#slots.indexOf(slot), 1);
    this.#bytes -= slot.tensor.bytes;
    slot.tensor.dispose();
  }
}

export type { Slot };
