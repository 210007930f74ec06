"""PyTorch's side of bench:gpu: one area on the GPU, times by CUDA events, one JSON line a row.

    python bench/pytorch/gpu.py gemm | attention T | streams | mfu T [--small]

Medians over runs on random data after warm-up; before each run 512 MB are written, so that nothing is left in the L2.
Attention is the best of the backends of scaled_dot_product_attention that take the case. Rows are named as bench/gpu/area.ts
names them. With --small the program itself can be tried where there is no GPU: on the CPU, times by the clock.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

small = "--small" in sys.argv
gpu = torch.cuda.is_available()
device = "cuda" if gpu else "cpu"


def timed(run):
    """Seconds of one run."""
    if not gpu:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def seconds(run, reps=10, warm=3):
    times = []
    for i in range(warm + reps):
        flush.zero_()
        times.append(timed(run))
    return statistics.median(times[warm:])


def row(name, time, **more):
    print(json.dumps({"row": name, "seconds": time, **more}), flush=True)


def measured(name, make, **more):
    """A row of what make() returns to be run; a failure is said, and the rows after it still come."""
    try:
        row(name, seconds(make()), **more)
    except Exception as error:
        print(f"{name}: {(str(error).splitlines() or [repr(error)])[0][:300]}", file=sys.stderr)


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
    heads, kv_heads = (4, 1) if small else (32, 8)
    reps, warm = (5, 1) if tokens > 65536 else (10, 2)
    q = normal(1, tokens, heads, 128).transpose(1, 2).requires_grad_()
    k, v = (normal(1, tokens, kv_heads, 128).transpose(1, 2).requires_grad_() for _ in range(2))
    dout = normal(1, tokens, heads, 128).transpose(1, 2)
    best = {}
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    for backend in backends if gpu else [SDPBackend.MATH]:
        # One that takes no groups of query heads is given every head's keys and values, made beforehand.
        for grouped in (True, False):
            try:
                keys, values = (
                    (k, v)
                    if grouped
                    else (x.detach().repeat_interleave(heads // kv_heads, 1).requires_grad_() for x in (k, v))
                )
                with sdpa_kernel(backend):
                    forward = lambda: F.scaled_dot_product_attention(
                        q, keys, values, is_causal=True, enable_gqa=grouped
                    )
                    with torch.no_grad():
                        times = {"forward": seconds(forward, reps, warm)}
                    o = forward()
                    times["backward"] = seconds(
                        lambda: torch.autograd.grad(o, (q, keys, values), dout, retain_graph=True), reps, warm
                    )
            except Exception as error:
                print(f"{backend.name}, groups {grouped}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
                continue
            finally:
                o = keys = values = None
            name_of = backend.name.removesuffix("_ATTENTION").lower() + ("" if grouped else ", keys of every head")
            for name, took in times.items():
                print(f"{name_of} {name}: {1000 * took:.2f} ms", file=sys.stderr)
                if name not in best or took < best[name][0]:
                    best[name] = (took, name_of)
            break
    for name, (took, backend) in best.items():
        row(f"{name}, T {tokens}", took, note=f"PyTorch: {backend}")


def rope_of(q, size, tokens):
    angle = torch.outer(
        torch.arange(tokens, device=device, dtype=torch.float32),
        500000.0 ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size),
    )
    cos, sin = (f(torch.cat((angle, angle), -1)).to(torch.bfloat16) for f in (torch.cos, torch.sin))

    def rope():
        half = torch.cat((-q[..., size // 2 :], q[..., : size // 2]), -1)
        return q * cos + half * sin

    return rope


def streams():
    tokens = 128 if small else 32768
    hidden, feed, vocabulary, rows = (64, 96, 500, 16) if small else (4096, 14336, 128256, 2048)
    a = torch.randn((1 << 16) if small else (1 << 30), device=device)
    b = torch.empty_like(a)
    row("copy", seconds(lambda: b.copy_(a)), bytes=8 * a.numel())
    del a, b
    x, dy = normal(tokens, hidden).requires_grad_(), normal(tokens, hidden)
    w = torch.randn(hidden, device=device).to(torch.bfloat16).requires_grad_()
    measured("rms_norm", lambda: lambda: F.rms_norm(x.detach(), (hidden,), w.detach(), 1e-5))
    y = F.rms_norm(x, (hidden,), w, 1e-5)
    measured("rms_norm_backward", lambda: lambda: torch.autograd.grad(y, (x, w), dy, retain_graph=True))
    del y, dy
    heads, size = (2, 16) if small else (32, 128)
    rope = rope_of(normal(1, heads, tokens, size), size, tokens)
    measured("rope", lambda: rope, note="transformers' formula, eager")
    gate, up, dy = normal(tokens, feed).requires_grad_(), normal(tokens, feed).requires_grad_(), normal(tokens, feed)
    swiglu = lambda g, u: F.silu(g) * u
    measured("swiglu", lambda: lambda: swiglu(gate.detach(), up.detach()), note="eager")
    y = swiglu(gate, up)
    measured("swiglu_backward", lambda: lambda: torch.autograd.grad(y, (gate, up), dy, retain_graph=True), note="eager")
    del y, dy
    logits = normal(rows, vocabulary, dtype=torch.float32).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), device=device)
    measured(
        "cross_entropy",
        lambda: lambda: torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits),
        note="forward and backward",
    )
    del logits
    p = torch.randn(1 << (10 if small else 27), device=device).requires_grad_()
    p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW([p], lr=1e-3, fused=True)
    measured(
        "adamw",
        lambda: optimizer.step,
        bytes=28 * p.numel(),
        note="fused, float32 without a bfloat16 copy",
    )
    del p, optimizer
    # Compiling takes tens of seconds, so it comes last.
    if not gpu:
        return
    measured("rope compiled", lambda: torch.compile(rope), note="torch.compile")
    compiled = torch.compile(swiglu)
    measured("swiglu compiled", lambda: lambda: compiled(gate.detach(), up.detach()), note="torch.compile")
    norm = torch.compile(lambda: F.rms_norm(x.detach(), (hidden,), w.detach(), 1e-5))
    measured("rms_norm compiled", lambda: norm, note="torch.compile")


def mfu(tokens):
    """Whole steps of four layers of Llama-8B by transformers: bfloat16, gradient checkpointing, fused AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = tokens // 256 if small else tokens
    config = LlamaConfig(
        vocab_size=500 if small else 128256,
        hidden_size=128 if small else 4096,
        intermediate_size=256 if small else 14336,
        num_hidden_layers=4,
        num_attention_heads=4 if small else 32,
        num_key_value_heads=2 if small else 8,
        max_position_embeddings=1 << 22,
        use_cache=False,
    )
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=gpu)
    ids = torch.randint(0, config.vocab_size, (1, tokens), device=device)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - began)
        print(f"step: {times[-1]:.2f} s, loss {loss.item()}", file=sys.stderr, flush=True)
    peak = torch.cuda.max_memory_reserved() if gpu else 0
    note = "transformers, sdpa, gradient checkpointing, bfloat16 states without float32 weights"
    row(f"4 layers, T {tokens}", statistics.median(times[1:]), peak=peak, note=note)


if __name__ == "__main__":
    if not gpu and not small:
        sys.exit("gpu.py: PyTorch sees no GPU")
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "gpu": torch.cuda.get_device_name() if gpu else None,
            }
        ),
        flush=True,
    )
    torch.manual_seed(0)
    flush = torch.empty(1 if small else 1 << 27, device=device)
    area = sys.argv[1]
    if area in ("attention", "mfu"):
        {"attention": attention, "mfu": mfu}[area](int(sys.argv[2]))
    else:
        {"gemm": gemm, "streams": streams}[area]()
