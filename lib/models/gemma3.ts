// Gemma 3 (text): as Gemma 2, with norms of q and k in place of capped scores, and frequencies of their own for the layers
// with a window, five of six.

import { type Family, rmsNormOf } from "./config.js";
import type { FieldReader } from "./fields.js";
import { gemma, gemmaDefaults, readGemma } from "./gemma2.js";
import { readLayerKinds } from "./layer_kinds.js";
import { readRope } from "./rope_fields.js";

export const gemma3: Family = {
  ...gemma,
  modelType: "gemma3_text",
  architecture: "Gemma3ForCausalLM",
  defaults: { ...gemmaDefaults, max_position_embeddings: 131072 },
  read(fields, sizes) {
    const { headDim: rotaryDim, maxPositionEmbeddings, numLayers } = sizes;
    const pattern = fields.count("sliding_window_pattern", { default: 6 });
    const kinds = readLayerKinds(fields, numLayers, (layer) => (layer + 1) % pattern !== 0);
    const byKind = fields.object("rope_parameters");
    const rope = (inner: FieldReader | undefined, theta: number) =>
      readRope(fields, { maxPositionEmbeddings, rotaryDim, inner, theta });
    const scaling = fields.object("rope_scaling");
    const local = fields.number("rope_local_base_freq", { above: 0, default: 10_000, nullable: true });
    const [full, sliding] = [byKind?.object("full_attention"), byKind?.object("sliding_attention")];
    return {
      ...readGemma(fields, sizes),
      queryKeyNorm: { ...rmsNormOf(fields, true), acrossHeads: false },
      windows: kinds.map((kind) => kind.window),
      ropes: [
        // transformers looks for `truncate` in another place for layers of kinds, so that it is always true.
        rope((scaling ?? full)?.with({ truncate: true }), 1_000_000),
        // The rope_theta at the top is not theirs.
        sliding?.has("rope_type") && sliding.get("rope_type") !== "default"
          ? rope(sliding, local)
          : { type: "default", theta: sliding?.number("rope_theta", { above: 0, default: local }) ?? local },
      ],
      layerRopes: kinds.map((kind) => (kind.sliding ? 1 : 0)),
    };
  },
};
