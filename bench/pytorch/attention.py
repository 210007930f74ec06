"""Rates of PyTorch's causal scaled_dot_product_attention, forward and backward.

    python bench/pytorch/attention.py T N D [K=N] [reps=5] [threads=0: all] [dtype=float32]

N query heads, K key/value heads of size D. FLOPs: forward 4 N D times the T (T + 1) / 2 pairs attended, backward twice
that. The backward's time is that of autograd.grad alone. Prints one JSON line.
"""

import json
import statistics
import sys
import time

import torch


def main():
    tokens, heads, size = (int(a) for a in sys.argv[1:4])
    kv_heads = int(sys.argv[4]) if len(sys.argv) > 4 else heads
    reps = int(sys.argv[5]) if len(sys.argv) > 5 else 5
    threads = int(sys.argv[6]) if len(sys.argv) > 6 else 0
    dtype = getattr(torch, sys.argv[7] if len(sys.argv) > 7 else "float32")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    q = torch.randn(1, tokens, heads, size).to(dtype).transpose(1, 2).requires_grad_()
    k = torch.randn(1, tokens, kv_heads, size).to(dtype).transpose(1, 2).requires_grad_()
    v = torch.randn(1, tokens, kv_heads, size).to(dtype).transpose(1, 2).requires_grad_()
    gradient = torch.randn(1, heads, tokens, size).to(dtype)
    options = {"is_causal": True}
    if kv_heads != heads:
        options["enable_gqa"] = True
    forward, backward = [], []
    for repetition in range(reps + 1):
        started = time.perf_counter()
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
        middle = time.perf_counter()
        torch.autograd.grad(o, (q, k, v), gradient)
        ended = time.perf_counter()
        if repetition:
            forward.append(middle - started)
            backward.append(ended - middle)
    flops = 4.0 * heads * size * tokens * (tokens + 1) / 2
    print(
        json.dumps(
            {
                "op": "attention", "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": size,
                "dtype": str(dtype).replace("torch.", ""), "threads": torch.get_num_threads(),
                "forward": {
                    "seconds": forward, "median": statistics.median(forward), "minimum": min(forward),
                    "gflops": flops / statistics.median(forward) / 1e9, "gflops_best": flops / min(forward) / 1e9,
                },
                "backward": {
                    "seconds": backward, "median": statistics.median(backward), "minimum": min(backward),
                    "gflops": 2 * flops / statistics.median(backward) / 1e9,
                    "gflops_best": 2 * flops / min(backward) / 1e9,
                },
            }
        )
    )


if __name__ == "__main__":
    main()
