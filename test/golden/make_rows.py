"""Writes data/rows.json: pretokenised rows and the loss that transformers gives the same fields.

    python test/golden/make_rows.py

The models are those of models/; every case is one forward pass in float32 without a cache (with one, transformers takes
a packed row for one document). What the fields beside attention_mask and position_ids mean is applied here as TRL's
collator does: labels are -100 where a mask is 0, at padding and at each document's first token.
"""

import json
import os
import random

import torch
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
IGNORED = -100


def starts(lengths):
    return [i for n in lengths for i in range(n)]


def cases(rng, vocabulary):
    """Name, row, and what transformers is given: ids, labels, attention_mask, position_ids."""
    ids = [rng.randrange(vocabulary) for _ in range(24)]
    ones, lengths = [1] * 24, [9, 1, 3, 11]
    positions = starts(lengths)
    at_starts = [label if p else IGNORED for label, p in zip(ids, positions)]
    mask = [int(rng.random() < 0.6) for _ in ids]
    other = [int(rng.random() < 0.8) for _ in ids]
    masked = lambda labels, *masks: [l if all(m) else IGNORED for l, *m in zip(labels, *masks)]
    left, right = [0] * 4, [0] * 3

    yield "ids alone", {"input_ids": ids}, (ids, ids, None, None)
    row = {"input_ids": left + ids, "attention_mask": left + ones}
    padded = [IGNORED] * 5 + ids[1:]
    yield "padding on the left", row, (left + ids, padded, left + ones, None)
    counted = list(range(28))
    yield "padding on the left that positions count", {**row, "position_ids": counted}, (left + ids, padded, left + ones, counted)
    skipped = [1] * 4 + list(range(24))
    yield "padding on the left that positions leave out", {**row, "position_ids": skipped}, (left + ids, padded, left + ones, skipped)
    row = {"input_ids": ids + right, "attention_mask": ones + right}
    yield "padding on the right", row, (ids + right, ids + [IGNORED] * 3, ones + right, None)
    row = {"input_ids": left + ids + right, "attention_mask": left + ones + right}
    yield "padding at both ends", row, (left + ids + right, padded + [IGNORED] * 3, left + ones + right, None)
    packed = (ids, at_starts, None, positions)
    yield "documents by position_ids", {"input_ids": ids, "position_ids": positions}, packed
    yield "documents by seq_lengths", {"input_ids": ids, "seq_lengths": lengths}, packed
    row = {"input_ids": ids, "packed_sample_seqlens": lengths, "position_ids": positions}
    yield "documents by both", row, packed
    for name in ("completion_mask", "assistant_masks", "loss_mask"):
        yield name, {"input_ids": ids, name: mask}, (ids, masked(ids, mask), None, None)
    row = {"input_ids": ids, "labels": masked(ids, other), "completion_mask": mask, "seq_lengths": lengths}
    yield "labels, a mask and documents", row, (ids, masked(at_starts, mask, other), None, positions)


def main():
    found = []
    for name in ("llama2", "mistral_window"):
        model = AutoModelForCausalLM.from_pretrained(os.path.join(HERE, "models", name, "model"), dtype=torch.float32)
        model.eval()
        for case, row, (ids, labels, attention, positions) in cases(random.Random(1), model.config.vocab_size):
            given = {"input_ids": ids, "labels": labels, "attention_mask": attention, "position_ids": positions}
            tensors = {key: torch.tensor([value]) for key, value in given.items() if value is not None}
            with torch.no_grad():
                loss = model(**tensors, use_cache=False).loss.item()
            found.append({"model": name, "case": case, "row": row, "loss": loss})
    with open(os.path.join(HERE, "data", "rows.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in found) + "\n]\n")


if __name__ == "__main__":
    main()
