// Between the tiers of a device: the queues that copy, and what a copy on its way still needs.
import { binding } from "../binding.js";
import type { Device } from "./device.js";
import { byLayer } from "./layer.js";
import { untracked } from "./scope.js";
import { Parameter, type ParameterTier, Tensor } from "./tensor.js";

/** In the order of ls_queue_kind. */
export const queues = { compute: 0, copyOut: 1, copyIn: 2, comm: 3, diskOut: 4, diskIn: 5 } as const;

/** Elements of a tensor that cross at a time where they pass through a window: 16 MiB of float32. */
export const windowElements = 4 * 2 ** 20;

/** Elements `begin` .. `begin + count - 1` of a contiguous tensor, as a flat view. */
export const flatPart = (tensor: Tensor, begin: number, count: number): Tensor => tensor.viewOf([count], [1], begin);

/** At most so many tensors wait for copies that read them, where nobody says earlier that these are over. */
const mostHeld = 16;

/**
 * Gradients on their way to host memory, of one device. What a copy still reads is given back later: giving it back at
 * once would make compute wait for the copy.
 */
class Outbox {
  readonly #device: Device;
  readonly #held: Tensor[] = [];
  #window: Tensor | null = null;

  constructor(device: Device) {
    this.#device = device;
  }

  /** Moves a leaf's gradient to `hostGrad`, or adds it to what is there. Errors: OutOfMemoryError of the host tier. */
  send(leaf: Tensor): void {
    const { grad } = leaf;
    if (grad === null) return;
    if (leaf.hostGrad === null) {
      const host = untracked(() =>
        Tensor.empty(leaf.shape, { device: leaf.device, dtype: "float32", tier: "host", category: "grads" }),
      );
      binding.ops.copy(grad.native(), host.native(), queues.copyOut);
      leaf.hostGrad = host;
    } else {
      this.#add(grad, leaf.hostGrad);
    }
    leaf.grad = null;
    this.#held.push(grad);
    while (this.#held.length > mostHeld) this.#held.shift()?.dispose();
  }

  /** Through a window on the host: kernels there read host memory alone. The queue's own order keeps it whole. */
  #add(grad: Tensor, sum: Tensor): void {
    const size = Math.min(windowElements, grad.size);
    if (this.#window !== null && this.#window.size < size) this.#letGo();
    this.#window ??= untracked(() =>
      Tensor.empty([size], { device: this.#device, dtype: "float32", tier: "host", category: "workspace" }),
    );
    for (let begin = 0; begin < grad.size; begin += size) {
      const count = Math.min(size, grad.size - begin);
      const [from, into] = [flatPart(grad, begin, count), flatPart(sum, begin, count)];
      const window = flatPart(this.#window, 0, count);
      binding.ops.copy(from.native(), window.native(), queues.copyOut);
      binding.ops.axpby(window.native(), into.native(), null, 1, 1, queues.copyOut);
      for (const view of [from, into, window]) view.dispose();
    }
  }

  /** What was sent before is given back: compute waits for its copies, here. */
  flush(): void {
    for (const tensor of this.#held.splice(0)) tensor.dispose();
  }

  #letGo(): void {
    this.#window?.dispose();
    this.#window = null;
  }

  /** Nothing more is sent for now. */
  settle(): void {
    this.flush();
    this.#letGo();
  }
}

const outboxes = new WeakMap<Device, Outbox>();

/** The one of a device. */
export function outboxOf(device: Device): Outbox {
  let found = outboxes.get(device);
  if (found === undefined) {
    found = new Outbox(device);
    outboxes.set(device, found);
  }
  return found;
}

/** A leaf's gradient and where it lies. */
export interface PlacedGradient {
  leaf: Tensor;
  grad: Tensor;
  tier: ParameterTier;
}

/** The layer of a model that a leaf belongs to; -1: none. */
export const layerOf = (leaf: Tensor): number => (leaf instanceof Parameter ? leaf.layer : -1);
export const layerOfGradient = ({ leaf }: PlacedGradient): number => layerOf(leaf);

/** The gradients that there are, in the order of the leaves. */
export function gradientsOf(leaves: Iterable<Tensor>): PlacedGradient[] {
  const asked = new Set<Outbox>();
  const found: PlacedGradient[] = [];
  for (const leaf of byLayer(new Set(leaves), layerOf)) {
    if (leaf.hostGrad !== null) {
      const outbox = outboxOf(leaf.device);
      // A backward without hooks left a share behind.
      outbox.send(leaf);
      asked.add(outbox);
      found.push({ leaf, grad: leaf.hostGrad, tier: "host" });
    } else if (leaf.grad !== null) {
      found.push({ leaf, grad: leaf.grad, tier: "device" });
    }
  }
  for (const outbox of asked) outbox.settle();
  return found;
}

/** Frees the gradients, wherever they are. */
export function clearGradients(leaves: Iterable<Tensor>): void {
  const devices = new Set<Device>();
  for (const leaf of byLayer(leaves, layerOf)) {
    devices.add(leaf.device);
    leaf.grad?.dispose();
    leaf.hostGrad?.dispose();
    leaf.grad = null;
    leaf.hostGrad = null;
  }
  for (const device of devices) outboxes.get(device)?.settle();
}

/** A scalar in the tier's memory: itself, or a copy that is the caller's. */
export function scalarIn(tier: ParameterTier, scalar: Tensor): Tensor {
  if (tier === "device") return scalar;
  const copy = Tensor.empty([], { device: scalar.device, dtype: scalar.dtype, tier });
  binding.ops.copy(scalar.native(), copy.native());
  return copy;
}
