"""Writes training/<case>/: pretokenised rows, a train section, and what AdamW in PyTorch makes of them.

    python test/golden/make_training.py [case ...]

The checkpoints are those of models/. Each case has rows.jsonl ({input_ids, labels?}), golden.json (the model folder, the
train section, one record a step) and final.safetensors (every parameter after the last step). Computed in float64; the
script checks that plain float32 PyTorch agrees.
"""

import json
import os
import sys

import torch
from reference import IGNORE, dump, exported, load, load64, save_file, train

HERE = os.path.dirname(os.path.abspath(__file__))

BASE = dict(
    steps=3, batch_size=1, micro_batch_size=1, learning_rate=1e-3, schedule="constant", warmup_steps=0,
    min_learning_rate=0.0, weight_decay=0.0, betas=[0.9, 0.95], eps=1e-8, clip_grad_norm=1.0,
)

# name -> (model of models/, lengths of the rows, chance of a masked label (None: no labels), train section)
CASES = {
    "llama_plain": ("llama3", [48, 48, 48], None, dict(BASE)),
    "llama_accumulate": (
        "llama2", [48, 31, 5, 40, 48, 17, 2, 33, 44, 29, 48, 12], 0.4,
        dict(BASE, steps=5, batch_size=4, learning_rate=2e-3, schedule="cosine", warmup_steps=2,
             min_learning_rate=2e-4, weight_decay=0.1),
    ),
    "mistral": (
        "mistral_window", [48, 40, 33, 48], 0.3,
        dict(BASE, steps=4, batch_size=2, learning_rate=5e-3, schedule="linear", warmup_steps=1, weight_decay=0.01),
    ),
    "qwen2": (
        "qwen2_window", [48, 48, 30, 48, 21], 0.5,
        dict(BASE, steps=5, learning_rate=1e-3, schedule="wsd", decay_steps=2, min_learning_rate=1e-4,
             clip_grad_norm=0.3, betas=[0.9, 0.999]),
    ),
    "qwen2_tied": (
        "qwen2", [40, 40, 40], None,
        dict(BASE, steps=3, learning_rate=1e-3, weight_decay=0.1, eps=1e-4, clip_grad_norm=1000.0),
    ),
    "qwen3": (
        "qwen3", [48, 25, 48, 48, 36, 9], 0.2,
        dict(BASE, steps=4, batch_size=3, learning_rate=1e-3, schedule="cosine", warmup_steps=1, weight_decay=0.05),
    ),
    "qwen3_tied": (
        "qwen3_hub", [36, 36, 36], 0.9,
        dict(BASE, steps=3, batch_size=2, schedule="linear", learning_rate=3e-3, weight_decay=0.1),
    ),
    # Biases of keys have no gradient but rounding, which a larger eps keeps small.
    "gpt2": ("gpt2", [48, 31, 48, 20], 0.2, dict(BASE, steps=4, batch_size=2, weight_decay=0.1, eps=1e-4)),
    "gpt_neox": ("gpt_neox", [48, 40, 9, 48], 0.3, dict(BASE, steps=4, weight_decay=0.05, eps=1e-4)),
    "phi3": ("phi3", [48, 33, 48], 0.2, dict(BASE, steps=3, learning_rate=2e-3, weight_decay=0.1)),
    "olmo2": ("olmo2", [48, 48, 15], None, dict(BASE, steps=3, schedule="cosine", warmup_steps=1)),
    "gemma2": ("gemma2", [48, 26, 48], 0.3, dict(BASE, steps=3, weight_decay=0.1, clip_grad_norm=0.5)),
    "gemma3": ("gemma3", [48, 26, 48, 37], 0.2, dict(BASE, steps=4, batch_size=2, weight_decay=0.1)),
    "mixtral": ("mixtral", [48, 33, 48], 0.2, dict(BASE, steps=3, learning_rate=2e-3, weight_decay=0.1)),
    # The balance is that of three micro-batches.
    "mixtral_balanced": (
        "mixtral_balanced", [40, 23, 40, 31, 40, 40], 0.3,
        dict(BASE, steps=4, batch_size=3, learning_rate=2e-3, weight_decay=0.1, eps=1e-5),
    ),
    "qwen2_moe": ("qwen2_moe", [48, 21, 48], 0.2, dict(BASE, steps=3, batch_size=2, weight_decay=0.1, eps=1e-5)),
}


def make_rows(vocabulary, lengths, masked, seed):
    g = torch.Generator().manual_seed(seed)
    rows = []
    for index, length in enumerate(lengths):
        ids = torch.randint(0, vocabulary, (length,), generator=g)
        row = {"input_ids": ids.tolist()}
        # One row in four carries no labels even in the masked cases: its labels are its input ids.
        if masked is not None and index % 4 != 1:
            hide = torch.rand(length, generator=g) < masked
            hide[1] = False
            row["labels"] = torch.where(hide, torch.full_like(ids, IGNORE), ids).tolist()
        rows.append(row)
    return rows


def main(names):
    for index, (case, (model_case, lengths, masked, section)) in enumerate(CASES.items()):
        if names and case not in names:
            continue
        folder = os.path.join(HERE, "training", case)
        os.makedirs(folder, exist_ok=True)
        model_folder = os.path.join(HERE, "models", model_case, "model")
        model = load64(model_folder)
        rows = make_rows(model.config.vocab_size, lengths, masked, 500 + index)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        steps = train(model, rows, section)
        plain = load(model_folder)
        for a, b in zip(steps, train(plain, rows, section)):
            for key in ("loss", "grad_norm"):
                assert abs(a[key] - b[key]) < 1e-5 * abs(a[key]), (case, key, a, b)
        drift = 0.0
        for (name, p), (_, q) in zip(model.named_parameters(), plain.named_parameters()):
            drift = max(drift, float((p - q.double()).detach().norm() / p.detach().norm()))
            assert not torch.equal(p, before[name]), (case, name)
        with open(os.path.join(folder, "rows.jsonl"), "w") as f:
            for row in rows:
                f.write(json.dumps(row, separators=(",", ":")) + "\n")
        dump(
            os.path.join(folder, "golden.json"),
            {
                "model": f"../../models/{model_case}/model",
                "sequence_length": max(lengths),
                "train": section,
                "steps": steps,
            },
        )
        save_file(
            {
                own: value.float().contiguous()
                for n, p in model.named_parameters()
                for own, value in exported(model, n, p.detach())
            },
            os.path.join(folder, "final.safetensors"),
        )
        line = " ".join(f"{s['loss']:.5f}/{s['grad_norm']:.4f}" for s in steps)
        print(f"{case:18s} {line}  float32 drift {drift:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
