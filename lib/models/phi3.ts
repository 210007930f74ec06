// Phi-3 and Phi-4: q, k and v in one tensor, gate and up in another; longrope, of which some models turn a part of each
// head; one window for all layers.

import { type Family, readRotaryDim } from "./config.js";
import { readRope, ropeFields } from "./rope_fields.js";
import { consecutive } from "./stored.js";

export const phi3: Family = {
  modelType: "phi3",
  architecture: "Phi3ForCausalLM",
  defaults: {
    max_position_embeddings: 4096,
    original_max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    pad_token_id: 32000,
  },
  read(fields, { numLayers, headDim, maxPositionEmbeddings }) {
    const window = fields.count("sliding_window", { default: 0, nullable: true });
    const rotaryDim = readRotaryDim(fields, headDim, { partial: true });
    const given = ropeFields(fields);
    // Older files call longrope by other names.
    const older = ["su", "yarn"].includes(String(given?.get("rope_type") ?? given?.get("type")));
    const inner = older ? given?.with({ rope_type: "longrope" }) : given;
    return {
      windows: new Array<number>(numLayers).fill(window),
      rotaryDim,
      ropes: [readRope(fields, { maxPositionEmbeddings, rotaryDim, inner })],
    };
  },
  stored(parameter, { numHeads, numKeyValueHeads, headDim, intermediateSize }) {
    const [, before, one, after] = /^(.*\.)([a-z]+)_proj(\..*)$/.exec(parameter) ?? [];
    const fused = {
      qkv: consecutive({ q: numHeads * headDim, k: numKeyValueHeads * headDim, v: numKeyValueHeads * headDim }),
      gate_up: consecutive({ gate: intermediateSize, up: intermediateSize }),
    };
    for (const [name, parts] of Object.entries(fused)) {
      const rows = one === undefined ? undefined : parts[one];
      if (rows) return { name: `${before}${name}_proj${after}`, rows, part: one as string };
    }
    return { name: parameter };
  },
};
