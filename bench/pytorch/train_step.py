"""AdamW steps of a Hugging Face checkpoint with transformers and PyTorch on the CPU, as a user would write them.

    python bench/pytorch/train_step.py MODEL ROWS OUT [--steps 1] [--threads N] [--gradient-checkpointing]
        [--attention sdpa|eager] [--learning-rate 1e-3] [--adapter RANK]

One row of ROWS (JSON lines with input_ids) is one step. The model is saved to OUT at the end, so that the peak resident
memory covers load, step and save. Prints one JSON line: seconds (of each step), loss, grad_norm (before clipping),
rss_peak_bytes (VmHWM), load_seconds, save_seconds. --adapter: PEFT's LoRA on all linear modules, which wants `peft`.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers


def high_water_mark():
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--adapter", type=int, default=0)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)

    started = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation=args.attention
    )
    model.train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if args.adapter:
        import peft

        config = peft.LoraConfig(r=args.adapter, lora_alpha=args.adapter, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
        if args.gradient_checkpointing:
            model.enable_input_require_grads()
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
    load_seconds = time.perf_counter() - started

    seconds, losses, norms = [], [], []
    for step in range(args.steps):
        input_ids = torch.tensor(rows[step % len(rows)])[None]
        started = time.perf_counter()
        loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        norms.append(float(norm))
        seconds.append(time.perf_counter() - started)
        del loss

    started = time.perf_counter()
    model.save_pretrained(args.out)
    save_seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "tokens": len(rows[0]),
                "threads": torch.get_num_threads(),
                "seconds": seconds,
                "loss": losses,
                "grad_norm": norms,
                "rss_peak_bytes": high_water_mark(),
                "load_seconds": load_seconds,
                "save_seconds": save_seconds,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
