"""Writes the random checkpoint and the pretokenised rows that both sides of bench/train_step.ts and length.ts use.

    python bench/pytorch/make_checkpoint.py FOLDER [tokens] [rows]

FOLDER/model (Llama: H 512, 8 layers, 8/4 heads, F 1408, V 32000, untied; 56M parameters, float32) is made once;
FOLDER/rows-<tokens>.jsonl holds `rows` rows of `tokens` random ids.
"""

import json
import os
import sys


def make_model(folder):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    model = transformers.LlamaForCausalLM(config).float()
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def make_rows(path, tokens, rows):
    import random

    generator = random.Random(1)
    with open(path, "w") as f:
        for _ in range(rows):
            f.write(json.dumps({"input_ids": [generator.randrange(32000) for _ in range(tokens)]}) + "\n")


def main():
    folder = sys.argv[1]
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 8192
    rows = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    os.makedirs(folder, exist_ok=True)
    model = os.path.join(folder, "model")
    if not os.path.exists(os.path.join(model, "model.safetensors")):
        make_model(model)
    path = os.path.join(folder, f"rows-{tokens}.jsonl")
    make_rows(path, tokens, rows)
    print(json.dumps({"model": model, "rows": path}))


if __name__ == "__main__":
    main()
