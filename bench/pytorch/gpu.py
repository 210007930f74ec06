"""PyTorch's side of bench:gpu: one area on the GPU, times by CUDA events, one JSON line a row.

    python bench/pytorch/gpu.py gemm | attention T | streams [--small]

Medians over runs on random data after warm-up; before each run 512 MB are written, so that nothing is left in the L2.
Attention is the best of the backends of scaled_dot_product_attention that take the case. Rows are named as bench/gpu/area.ts
names them.
"""

import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

small = "--small" in sys.argv
device = "cuda" if torch.cuda.is_available() else "cpu"
flush = torch.empty(1 if small else 1 << 27, device=device)


def seconds(run, reps=10, warm=3, prepare=None):
    times = []
    for i in range(warm + reps):
        if prepare:
            prepare()
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if i >= warm:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def row(name, time, **more):
    print(json.dumps({"row": name, "seconds": time, **more}), flush=True)


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device=device, dtype=dtype)


def gemm():
    rows = 512 if small else 32768
    for n, k in [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]:
        if small:
            n, k = n // 64, k // 64
        x, w, dy = normal(rows, k), normal(n, k), normal(rows, n)
        y, dx, dw = normal(rows, n), normal(rows, k), normal(n, k)
        row(f"{rows} x {n} x {k} forward", seconds(lambda: torch.mm(x, w.t(), out=y)))
        row(f"{rows} x {n} x {k} dx", seconds(lambda: torch.mm(dy, w, out=dx)))
        row(f"{rows} x {n} x {k} dW", seconds(lambda: torch.mm(dy.t(), x, out=dw)), note="dW bfloat16, not added")


def attention(tokens):
    tokens = tokens // 256 if small else tokens
    q = normal(1, tokens, 32, 128).transpose(1, 2).requires_grad_()
    k, v = (normal(1, tokens, 8, 128).transpose(1, 2).requires_grad_() for _ in range(2))
    dout = normal(1, tokens, 32, 128).transpose(1, 2)
    best = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                with torch.no_grad():
                    times = {"forward": seconds(forward, 5, 2)}
                o = forward()
                times["backward"] = seconds(
                    lambda: torch.autograd.grad(o, (q, k, v), dout, retain_graph=True), 5, 2
                )
        except Exception as error:
            print(f"{backend.name}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
            continue
        for name, time in times.items():
            print(f"{backend.name} {name}: {1000 * time:.2f} ms", file=sys.stderr)
            if name not in best or time < best[name][0]:
                best[name] = (time, backend.name)
        o = None
    for name, (time, backend) in best.items():
        row(f"{name}, T {tokens}", time, note=backend)


def streams():
    tokens = 128 if small else 32768
    hidden, feed, vocabulary, rows = (64, 96, 500, 16) if small else (4096, 14336, 128256, 2048)
    a = torch.randn((1 << 16) if small else (1 << 30), device=device)
    b = torch.empty_like(a)
    row("copy", seconds(lambda: b.copy_(a)), bytes=8 * a.numel())
    del a, b
    x, dy = normal(tokens, hidden).requires_grad_(), normal(tokens, hidden)
    w = torch.randn(hidden, device=device).to(torch.bfloat16).requires_grad_()
    row("rms_norm", seconds(lambda: F.rms_norm(x.detach(), (hidden,), w.detach(), 1e-5)))
    y = F.rms_norm(x, (hidden,), w, 1e-5)
    row("rms_norm_backward", seconds(lambda: torch.autograd.grad(y, (x, w), dy, retain_graph=True)))
    del x, y, dy
    heads, size = (2, 16) if small else (32, 128)
    q = normal(1, heads, tokens, size)
    angle = torch.outer(
        torch.arange(tokens, device=device, dtype=torch.float32),
        500000.0 ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size),
    )
    cos, sin = (f(torch.cat((angle, angle), -1)).to(torch.bfloat16) for f in (torch.cos, torch.sin))

    def rope():
        half = torch.cat((-q[..., size // 2 :], q[..., : size // 2]), -1)
        return q * cos + half * sin

    row("rope", seconds(rope), note="transformers' formula, eager")
    row("rope compiled", seconds(torch.compile(rope)), note="torch.compile")
    del q
    gate, up, dy = normal(tokens, feed).requires_grad_(), normal(tokens, feed).requires_grad_(), normal(tokens, feed)
    swiglu = lambda g, u: F.silu(g) * u
    row("swiglu", seconds(lambda: swiglu(gate.detach(), up.detach())), note="eager")
    y = swiglu(gate, up)
    row("swiglu_backward", seconds(lambda: torch.autograd.grad(y, (gate, up), dy, retain_graph=True)), note="eager")
    compiled = torch.compile(swiglu)
    row("swiglu compiled", seconds(lambda: compiled(gate.detach(), up.detach())), note="torch.compile")
    del gate, up, y, dy
    logits = normal(rows, vocabulary, dtype=torch.float32).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), device=device)
    row(
        "cross_entropy",
        seconds(lambda: torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)),
        note="forward and backward",
    )
    del logits
    p = torch.randn(1 << (10 if small else 27), device=device).requires_grad_()
    p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW([p], lr=1e-3, fused=True)
    row("adamw", seconds(optimizer.step), bytes=28 * p.numel(), note="fused, float32 without a bfloat16 copy")


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("gpu.py: PyTorch sees no GPU")
    print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
                      "gpu": torch.cuda.get_device_name()}))
    torch.manual_seed(0)
    area = sys.argv[1]
    if area == "attention":
        attention(int(sys.argv[2]))
    else:
        {"gemm": gemm, "streams": streams}[area]()
