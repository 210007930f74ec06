// Which layer of a model the program is at work for: parameters and graph nodes know it, and a device that keeps a log of
// its allocations is told (lib/train/walk).

let current = -1;
let listener: ((layer: number) => void) | null = null;

/** The layer; -1: none. */
export const layerAtWork = (): number => current;

/** Another layer from now on, or none (-1). Returns the one before. */
export function enterLayer(layer: number): number {
  const before = current;
  current = layer;
  if (layer !== before) listener?.(layer);
  return before;
}

/** Runs `fn` for a layer. */
export function inLayer<T>(layer: number, fn: () => T): T {
  const before = enterLayer(layer);
  try {
    return fn();
  } finally {
    enterLayer(before);
  }
}

/** What is done with each of these is done for the layer that `layerOf` names. */
export function* byLayer<T>(items: Iterable<T>, layerOf: (item: T) => number): Generator<T, void, undefined> {
  const before = current;
  try {
    for (const item of items) {
      enterLayer(layerOf(item));
      yield item;
    }
  } finally {
    enterLayer(before);
  }
}

/** Runs `fn`, whose changes of the layer are told to `heard`. */
export function whileListening<T>(heard: (layer: number) => void, fn: () => T): T {
  const before = listener;
  listener = heard;
  try {
    return fn();
  } finally {
    listener = before;
  }
}
