// Layers with and without a sliding window, as `layer_types` names them or as a family's pattern has them.

import { type FieldReader, show } from "./fields.js";

export interface LayerKind {
  readonly sliding: boolean;
  /** In tokens; 0: none. */
  readonly window: number;
}

/** Which layers have the window of `sliding_window`. sliding: those that have it where `layer_types` is absent. */
export function readLayerKinds(
  reader: FieldReader,
  numLayers: number,
  sliding: (layer: number) => boolean,
): LayerKind[] {
  const window = reader.count("sliding_window", { default: 0, nullable: true });
  const types = reader.get("layer_types");
  if (types === undefined || types === null)
    return Array.from({ length: numLayers }, (_, layer) => kindOf(sliding(layer), window));
  return readTypes(reader, types, numLayers).map((isSliding) => kindOf(isSliding, window));
}

/** Which of the layers that `layer_types` names slide. */
function readTypes(reader: FieldReader, types: unknown, numLayers: number): boolean[] {
  if (!Array.isArray(types) || types.length !== numLayers)
    reader.fail("layer_types", `expected a list of num_hidden_layers names, ${numLayers}`);
  return types.map((type: unknown) => {
    if (type !== "full_attention" && type !== "sliding_attention")
      reader.fail("layer_types", `${show(type)} is not implemented; there are full_attention, sliding_attention`);
    return type === "sliding_attention";
  });
}

const kindOf = (sliding: boolean, window: number): LayerKind => ({ sliding, window: sliding ? window : 0 });

/**
 * The windows of layers where `use_sliding_window` decides (Qwen2, Qwen3): those from `max_window_layers` on, unless
 * `layer_types` says otherwise.
 */
export function readLayerWindows(reader: FieldReader, numLayers: number): number[] {
  const use = reader.flag("use_sliding_window", false);
  const window = use && reader.get("sliding_window") !== null ? reader.count("sliding_window", { default: 4096 }) : 0;
  const types = reader.get("layer_types");
  if (types === undefined || types === null) {
    const first = reader.count("max_window_layers", { least: 0, default: 28 });
    return Array.from({ length: numLayers }, (_, layer) => (layer >= first ? window : 0));
  }
  return readTypes(reader, types, numLayers).map((sliding) => {
    if (sliding && window === 0)
      reader.fail(
        "layer_types",
        "it names sliding_attention, but use_sliding_window and sliding_window give no window",
      );
    return sliding ? window : 0;
  });
}
