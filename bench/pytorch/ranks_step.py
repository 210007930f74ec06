"""AdamW steps of a Hugging Face checkpoint on several CPU ranks over Gloo, as a user of PyTorch would write them.

    python -m torch.distributed.run --standalone --nproc-per-node 2 bench/pytorch/ranks_step.py MODEL ROWS
        --split ulysses|halves [--steps 1] [--gradient-checkpointing] [--learning-rate 1e-3]

ulysses: each rank has a part of the sequence outside attention and a part of the heads inside it (an all-to-all before
and behind, as DeepSpeed-Ulysses and ArcticTraining do it around transformers' attention); the numbers are those of one
rank. halves: each rank takes a part of the row as a sequence of its own, which attention does not cross: less work, and
other numbers. Both sum gradients by DistributedDataParallel. One thread a rank. Rank 0 prints one JSON line: seconds (of
each step), loss, grad_norm (before clipping).
"""

import argparse
import json
import os
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.distributed as dist
import transformers
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel


class Exchange(torch.autograd.Function):
    """[P, ...]: part i goes to rank i, which has it as its part of this rank. It is its own inverse."""

    @staticmethod
    def forward(ctx, parts):
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts)
        return received

    @staticmethod
    def backward(ctx, gradient):
        return Exchange.apply(gradient)


def heads_to_sequence(x):
    """[1, heads, T / P, D] to [1, heads / P, T, D]."""
    _, heads, tokens, width = x.shape
    ranks = dist.get_world_size()
    parts = Exchange.apply(x.reshape(ranks, heads // ranks, tokens, width))
    return parts.transpose(0, 1).reshape(1, heads // ranks, ranks * tokens, width)


def ulysses_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    query, key, value = (heads_to_sequence(x) for x in (query, key, value))
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    _, heads, tokens, width = out.shape
    ranks = dist.get_world_size()
    # [1, heads / P, T, D] to [1, T / P, heads, D]
    parts = Exchange.apply(out.reshape(heads, ranks, tokens // ranks, width).transpose(0, 1))
    return parts.reshape(1, heads * ranks, tokens // ranks, width).transpose(1, 2), None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--split", choices=["ulysses", "halves"], required=True)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    transformers.AttentionInterface.register("ulysses", ulysses_attention)

    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="ulysses" if args.split == "ulysses" else "sdpa"
    )
    model.train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shared = DistributedDataParallel(model)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.0}, {"params": plain, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    with open(args.rows) as f:
        rows = [json.loads(line)["input_ids"] for line in f]

    seconds, losses, norms = [], [], []
    for step in range(args.steps):
        row = torch.tensor(rows[step % len(rows)])
        whole = args.split == "ulysses"
        # The target of a token is the next one of its sequence; the last has none.
        own = slice(rank * len(row) // ranks, (rank + 1) * len(row) // ranks)
        targets = torch.cat([row[1:], torch.tensor([-100])])[own].clone()
        if not whole:
            targets[-1] = -100
        first = own.start if whole else 0
        positions = torch.arange(first, first + own.stop - own.start)[None]
        valid = len(row) - (1 if whole else ranks)
        started = time.perf_counter()
        logits = shared(input_ids=row[own][None], position_ids=positions, use_cache=False).logits
        total = cross_entropy(logits[0].float(), targets, ignore_index=-100, reduction="sum")
        # DistributedDataParallel gives the mean of the ranks' gradients.
        (total * ranks / valid).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = total.detach() / valid
        dist.all_reduce(loss)
        losses.append(float(loss))
        norms.append(float(norm))
        seconds.append(time.perf_counter() - started)
        del logits, total, loss
    if rank == 0:
        print(json.dumps({"seconds": seconds, "loss": losses, "grad_norm": norms, "torch": torch.__version__}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
