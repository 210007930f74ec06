"""Writes the random checkpoint and the pretokenised rows that both sides of a benchmark use.

    python bench/pytorch/make_checkpoint.py FOLDER [tokens] [rows] [llama | mixtral]

FOLDER/model (Llama: H 512, 8 layers, 8/4 heads, F 1408, V 32000, untied; 56M parameters, float32) or FOLDER/mixtral (H 512,
4 layers, 8/4 heads, 8 experts of F 1792, 2 of them a token, V 32000, untied; 124M parameters) is made once; FOLDER/rows-<tokens>.jsonl holds `rows` rows of `tokens` random ids.
"""

import json
import os
import sys


def make_model(folder, family):
    import torch
    import transformers

    torch.manual_seed(0)
    common = dict(
        vocab_size=32000,
        hidden_size=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    if family == "mixtral":
        experts = dict(num_local_experts=8, num_experts_per_tok=2, sliding_window=None)
        config = transformers.MixtralConfig(**common, **experts, intermediate_size=1792, num_hidden_layers=4)
        model = transformers.MixtralForCausalLM(config).float()
    else:
        config = transformers.LlamaConfig(**common, intermediate_size=1408, num_hidden_layers=8)
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
    family = sys.argv[4] if len(sys.argv) > 4 else "llama"
    os.makedirs(folder, exist_ok=True)
    model = os.path.join(folder, "model" if family == "llama" else family)
    if not os.path.exists(os.path.join(model, "model.safetensors")):
        make_model(model, family)
    path = os.path.join(folder, f"rows-{tokens}.jsonl")
    make_rows(path, tokens, rows)
    print(json.dumps({"model": model, "rows": path}))


if __name__ == "__main__":
    main()
