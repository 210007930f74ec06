"""Rate of PyTorch's float32 (or bfloat16) matrix product.

    python bench/pytorch/gemm.py M N K [reps=10] [threads=0: all] [layout=nt] [dtype=float32]

C [M, N] = A [M, K] . B [K, N]; layout: nn, nt (B stored [N, K], as a linear layer's weight) or tn (A stored [K, M], as in
a weight gradient). Prints one JSON line: seconds (each), median, minimum, gflops (at the median), gflops_best.
"""

import json
import statistics
import sys
import time

import torch


def main():
    m, n, k = (int(a) for a in sys.argv[1:4])
    reps = int(sys.argv[4]) if len(sys.argv) > 4 else 10
    threads = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    layout = sys.argv[6] if len(sys.argv) > 6 else "nt"
    dtype = getattr(torch, sys.argv[7] if len(sys.argv) > 7 else "float32")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    a = torch.randn(k, m).to(dtype).t() if layout == "tn" else torch.randn(m, k).to(dtype)
    b = torch.randn(n, k).to(dtype).t() if layout == "nt" else torch.randn(k, n).to(dtype)
    c = torch.empty(m, n, dtype=dtype)
    for _ in range(2):
        torch.matmul(a, b, out=c)
    seconds = []
    for _ in range(reps):
        started = time.perf_counter()
        torch.matmul(a, b, out=c)
        seconds.append(time.perf_counter() - started)
    flops = 2.0 * m * n * k
    print(
        json.dumps(
            {
                "op": "gemm", "m": m, "n": n, "k": k, "layout": layout, "dtype": str(dtype).replace("torch.", ""),
                "threads": torch.get_num_threads(), "seconds": seconds, "median": statistics.median(seconds),
                "minimum": min(seconds), "gflops": flops / statistics.median(seconds) / 1e9,
                "gflops_best": flops / min(seconds) / 1e9,
            }
        )
    )


if __name__ == "__main__":
    main()
