// Runs of a small model whose plans are compared with what they took.

import { writeFileSync } from "node:fs";
import * as path from "node:path";
import type { ConfigInput } from "../../lib/config/index.js";

export const MiB = 2 ** 20;
export const T = 1100;

export interface Case {
  model?: Record<string, unknown>;
  dtype?: "float32" | "bfloat16";
  memory?: ConfigInput["memory"];
  data?: Partial<ConfigInput["data"]>;
  train?: Partial<ConfigInput["train"]>;
}

/** Rows of `lengths` ids. */
export function rowsFile(folder: string, name: string, lengths: readonly number[]): string {
  const file = path.join(folder, name);
  const row = (length: number) => `${JSON.stringify({ input_ids: Array.from({ length }, (_, i) => (i * 7) % 61) })}\n`;
  writeFileSync(file, lengths.map(row).join(""));
  return file;
}

/** A small model whose tensors of T rows are larger than the allocator's shared chunks hold. */
export function config(folder: string, dir: string, rows: string, options: Case = {}): ConfigInput {
  return {
    model: {
      init: {
        model_type: "llama",
        vocab_size: 96,
        hidden_size: 64,
        intermediate_size: 160,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 4096,
        ...options.model,
      },
      dtype: options.dtype ?? "float32",
    },
    data: { train: [rows], sequenceLength: T, packing: false, shuffle: false, ...options.data },
    train: { steps: 3, learningRate: 1e-3, ...options.train },
    threads: 2,
    memory: { hostLimit: 64 * MiB, deviceLimit: 64 * MiB, ...options.memory },
    output: { dir: path.join(folder, dir) },
  };
}

export const tiles = { tileMlp: 200, tileLoss: 150 };
export const out = { offload: "host", deviceBytes: 0 } as const;
