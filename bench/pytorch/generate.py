"""Seconds that transformers takes to generate greedily behind a prompt of random ids.

    python generate.py MODEL PROMPT_TOKENS NEW_TOKENS THREADS
"""

import json
import sys
import time

import torch
import transformers

model_path, prompt, new, threads = sys.argv[1], *map(int, sys.argv[2:5])
torch.set_num_threads(threads)
model = transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
ids = torch.randint(0, model.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0))


def seconds(count):
    began = time.perf_counter()
    out = model.generate(ids, do_sample=False, max_new_tokens=count, min_new_tokens=count, eos_token_id=None, pad_token_id=0)
    return time.perf_counter() - began, out[0, prompt:].tolist()


seconds(2)
first, _ = seconds(1)
whole, made = seconds(new)
print(json.dumps(dict(prompt=ids[0].tolist(), ids=made, first=first, rate=(new - 1) / (whole - first))))
