"""Writes rotary_golden.json: inverse frequencies (float32 bits) and attention factors as transformers makes them.

    python test/models/rotary_golden.py
"""

import json
import os

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

CASES = [
    {"head_dim": 128, "rope_theta": 10000.0},
    {"head_dim": 128, "rope_theta": 500000.0},
    {"head_dim": 64, "rope_theta": 1000000.0},
    {"head_dim": 80, "rope_theta": 10000},
    {"head_dim": 96, "rope_theta": 5000000.0},
    {"head_dim": 2, "rope_theta": 10000.0},
    {"head_dim": 256, "rope_theta": 12345.678},
    {"head_dim": 128, "rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"head_dim": 96, "rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 3.7}},
    {
        "head_dim": 128,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    {
        "head_dim": 64,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    {
        "head_dim": 100,
        "rope_theta": 70000.0,
        "max_position_embeddings": 30000,
        "rope_scaling": {"rope_type": "llama3", "factor": 7.3, "low_freq_factor": 1.5, "high_freq_factor": 3.1},
    },
    {
        "head_dim": 128,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    {
        "head_dim": 96,
        "rope_theta": 10000.0,
        "max_position_embeddings": 100000,
        "rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4096},
    },
    {
        "head_dim": 64,
        "rope_theta": 150000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 24,
            "beta_slow": 2.5,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    {
        "head_dim": 48,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 1.1},
    },
    {
        "head_dim": 32,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "yarn", "factor": 0.5, "attention_factor": 1.25},
    },
    {
        "head_dim": 16,
        "rope_theta": 3.0,
        "max_position_embeddings": 8,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.2},
    },
    {"head_dim": 128, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "length": 0},
    {"head_dim": 128, "rope_theta": 500000.0, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "length": 2048},
    {"head_dim": 128, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "length": 2049},
    {"head_dim": 64, "rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 3.7}, "length": 12345},
    {"head_dim": 4, "rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 1.0}, "length": 999999},
]
for length in [0, 4096, 4097]:
    CASES.append(
        {
            "head_dim": 48,
            "rope_theta": 10000.0,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": [1.0 + 0.02 * i for i in range(24)],
                "long_factor": [1.1 + 0.37 * i * i for i in range(24)],
                "original_max_position_embeddings": 4096,
                **({"factor": 8.5, "attention_factor": 1.3} if length == 4096 else {}),
            },
            "length": length,
        }
    )

out = []
for case in CASES:
    length = case.get("length", 0)
    case = {key: value for key, value in case.items() if key != "length"}
    fields = {"num_attention_heads": 2, "hidden_size": 2 * case["head_dim"], "max_position_embeddings": 2048, **case}
    config = transformers.LlamaConfig(**json.loads(json.dumps(fields)))
    rotary = LlamaRotaryEmbedding(config)
    if length > 0:
        # A fresh model that sees one batch.
        rotary(torch.zeros(1), torch.arange(length)[None])
    bits = rotary.inv_freq.to(torch.float32).view(torch.int32).tolist()
    out.append({"fields": fields, "bits": bits, "attention_factor": float(rotary.attention_scaling)})
    if length > 0:
        out[-1]["length"] = length

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "rotary_golden.json"), "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(entry) for entry in out) + "\n]\n")
