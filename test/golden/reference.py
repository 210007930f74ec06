"""The transformers side of the golden files: random checkpoints, float64 evaluation, shifted losses, AdamW steps.

References are computed in float64 from the float32 (or bfloat16) weights that are in the checkpoint, so that what a
test measures is longseq's error and not the sum of two.
"""

import json
import math
import os
import shutil

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file

IGNORE = -100


transformers.utils.logging.disable_progress_bar()


def randomise(model, seed):
    """Weights large enough that attention, biases and norms matter: fan-in scaling, norms around 1, biases around 0."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(dict(model.named_parameters()).items()):
            noise = torch.randn(p.shape, generator=g, dtype=torch.float32)
            if is_norm(name):
                # Where 1 is added to what is stored (Gemma), 0 stands for 1.
                p.copy_((0.0 if model.config.model_type.startswith("gemma") else 1.0) + 0.25 * noise)
            elif p.ndim == 1:
                p.copy_(0.3 * noise)
            elif any(part in name for part in ("embed_tokens", "embed_in", ".wte.", ".wpe.")):
                # Gemma multiplies embeddings by the root of their width.
                scaled = math.sqrt(p.shape[1]) if model.config.model_type.startswith("gemma") else 1.0
                p.copy_(0.7 * noise / scaled)
            else:
                # GPT-2 stores [in, out].
                conv1d = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
                p.copy_(noise * (1.2 / math.sqrt(p.shape[0 if conv1d else -1])))
    return model


def stored(model, name, tensor):
    """A parameter (or its gradient) by what checkpoints call it, where transformers renames it when it loads one: the
    matrices of all experts are one, with a star for their number."""
    kind = model.config.model_type
    if kind == "gpt_neox" and name == "lm_head.weight":
        return {"embed_out.weight": tensor}
    if kind == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
        return {name: tensor}
    before = name[: name.rindex(".")]
    gate, up, down = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    if name.endswith("down_proj"):
        return {f"{before}.*.{down}.weight": tensor}
    halves = tensor.chunk(2, dim=1)
    return {f"{before}.*.{part}.weight": half for part, half in zip((gate, up), halves)}


def exported(model, name, tensor):
    """As `stored`, with each expert's matrices apart."""
    for own, value in stored(model, name, tensor).items():
        for index, part in enumerate(value) if "*" in own else [(0, value)]:
            yield own.replace("*", str(index)), part


def is_norm(name):
    """Whether a parameter is the weight of a norm, as the families call them."""
    return name.endswith("norm.weight") or name.endswith((".ln_1.weight", ".ln_2.weight", ".ln_f.weight"))


def make_checkpoint(folder, config, seed, dtype=torch.float32, shard=None, hub=None):
    """Saves a random model of `config` as transformers does. `hub` edits config.json afterwards (older spelling)."""
    shutil.rmtree(folder, ignore_errors=True)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        fields = json.load(f)
    # The file must not change with the library that wrote it more than it has to.
    fields.pop("transformers_version", None)
    if hub is not None:
        fields = hub(fields)
    with open(path, "w") as f:
        json.dump(fields, f, indent=2)
        f.write("\n")
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)


def load(folder, attention="eager", dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, experts_implementation="eager", dtype=dtype
    )
    model.eval()
    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(lambda module, _, outputs: setattr(module, "logits", outputs[0]))
    return model


def load64(folder, length=1):
    """The checkpoint in float64 throughout: transformers casts norms, angles and softmax to float32, so these are
    replaced by the same formulas in float64. Inverse frequencies stay the float32 numbers that transformers makes, for a
    batch of `length` tokens where they depend on it."""
    # Only the plain attention caps scores; its softmax is float32, which capped ones are replaced for.
    capped = json.load(open(os.path.join(folder, "config.json"))).get("attn_logit_softcapping") is not None
    model = load(folder, attention="eager" if capped else "sdpa").double()
    loaded = load(folder, attention="sdpa")
    if capped:
        transformers.models.gemma2.modeling_gemma2.eager_attention_forward = capped64
    for (_, module), (_, original) in zip(model.named_modules(), loaded.named_modules()):
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = norm64(module)
        elif kind.endswith("RotaryEmbedding"):
            module.forward = rotary64(original, length)
        elif kind.endswith("ScaledWordEmbedding"):
            # float32 as transformers has it; .double() would keep what float32 left of it anyway.
            module.embed_scale = original.embed_scale.double()
        elif kind.endswith("TopKRouter"):
            module.forward = router64(module)
    return model


def capped64(module, query, key, value, attention_mask, dropout=0.0, scaling=None, softcap=None, **kwargs):
    """Gemma 2's plain attention without its casts; query [B, N, T, D]."""
    groups = module.num_key_value_groups
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ keys.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    return (weights @ values).transpose(1, 2).contiguous(), weights


def norm64(module):
    eps = getattr(module, "variance_epsilon", None)
    eps = module.eps if eps is None else eps
    one = 1.0 if type(module).__name__.startswith("Gemma") else 0.0

    def forward(x):
        return (one + module.weight) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    return forward


def router64(module):
    normalise = getattr(module, "norm_topk_prob", True)

    def forward(x):
        logits = torch.nn.functional.linear(x.reshape(-1, module.hidden_dim), module.weight)
        values, indices = torch.topk(torch.softmax(logits, dim=-1), module.top_k, dim=-1)
        return logits, values / values.sum(dim=-1, keepdim=True) if normalise else values, indices

    return forward


def router_logits(model):
    """Of the last forward, a tensor a layer with experts."""
    routers = [m for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    # PEFT keeps the one that a trained copy stands in for.
    return [m.logits for m in routers if hasattr(m, "logits")]


def load_balancing(model, batches):
    """The auxiliary loss over all tokens of several forwards (lists of router logits), times its factor; 0 where the
    config does not ask for it. transformers' own function, on all of them as one batch, must agree."""
    config = model.config
    if not getattr(config, "output_router_logits", False):
        return 0.0
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    logits = [torch.cat(layer) for layer in zip(*batches)]
    probs = torch.cat([torch.softmax(layer, dim=-1) for layer in logits])
    chosen = torch.topk(probs, config.num_experts_per_tok, dim=-1)[1]
    counts = torch.bincount(chosen.reshape(-1), minlength=experts)
    loss = experts * (counts / len(probs) * probs.sum(dim=0) / len(probs)).sum()
    its = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func(
        tuple(logits), experts, config.num_experts_per_tok
    )
    ours, its = float(loss.detach()), float(its.detach())
    assert abs(its - ours) < 1e-5 * ours, (its, ours)
    return config.router_aux_loss_coef * loss


def rotary64(original, length):
    if hasattr(original, "inv_freq"):
        original(torch.zeros(1), torch.arange(length)[None])
        return turning(original.inv_freq.double(), float(original.attention_scaling))
    # Frequencies by kind of layer.
    kinds = {}
    for kind in original.layer_types:
        original(torch.zeros(1), torch.arange(length)[None], kind)
        frequencies = getattr(original, f"{kind}_inv_freq").double()
        kinds[kind] = turning(frequencies, float(getattr(original, f"{kind}_attention_scaling")))
    return lambda x, position_ids, layer_type: kinds[layer_type](x, position_ids)


def turning(inverse_frequencies, scaling):
    def forward(x, position_ids):
        angles = position_ids[:, :, None].double() * inverse_frequencies[None, None, :]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * scaling, angles.sin() * scaling

    return forward


def shifted(labels):
    """Target of position t is label t + 1; the last has none."""
    return torch.cat([labels[1:], labels.new_full((1,), IGNORE)])


def token_losses(logits, labels):
    """Sum of token losses of one sequence and the count of its valid targets, in the dtype of the logits."""
    targets = shifted(labels)
    total = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return total, int((targets != IGNORE).sum())


def evaluate(model, documents):
    """documents: list of (input_ids, labels), each run on its own. Returns logits of all, loss = sum / valid, and
    leaves the gradients of that loss in the parameters."""
    model.zero_grad(set_to_none=True)
    logits, routed, total, valid = [], [], 0.0, 0
    for input_ids, labels in documents:
        out = model(input_ids=input_ids[None], use_cache=False).logits[0]
        loss, count = token_losses(out, labels)
        logits.append(out)
        routed.append(router_logits(model))
        total = total + loss
        valid += count
    loss = total / valid + load_balancing(model, routed)
    loss.backward()
    return torch.cat(logits).detach(), float(loss.detach()), valid


def gradient_norm(model):
    return math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in model.parameters() if p.grad is not None))


def error(x, reference):
    """max|x - ref| / rms(ref), the measure of the tests."""
    reference = reference.double()
    rms = float(reference.pow(2).mean().sqrt())
    return float((x.double() - reference).abs().max()) / max(rms, 1e-300)


def learning_rate(step, steps, peak, schedule="constant", warmup=0, minimum=0.0, decay=None):
    """The rate of step `step` (from 0): warm-up peak * (step + 1) / warmup, then the schedule, which reaches the
    minimum at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return minimum + (peak - minimum) * (1 - progress)
    if schedule == "cosine":
        return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "wsd":
        decay = decay if decay is not None else max(1, steps // 5)
        return peak if step < steps - decay else minimum + (peak - minimum) * (steps - step) / decay
    raise ValueError(schedule)


def train(model, rows, train):
    """AdamW as torch has it, over rows in file order. Returns one record a step.
    train: the keys of the configuration's train section."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": train["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=train["learning_rate"], betas=tuple(train["betas"]), eps=train["eps"])
    records, cursor = [], 0
    for step in range(train["steps"]):
        taken = [rows[(cursor + i) % len(rows)] for i in range(train["batch_size"])]
        cursor += train["batch_size"]
        batch = [(torch.tensor(r["input_ids"]), torch.tensor(r.get("labels", r["input_ids"]))) for r in taken]
        valid = sum(int((shifted(labels) != IGNORE).sum()) for _, labels in batch)
        model.zero_grad(set_to_none=True)
        loss, routed = 0.0, []
        for input_ids, labels in batch:
            # A micro-batch is divided by the labels of the whole step.
            total, _ = token_losses(model(input_ids=input_ids[None], use_cache=False).logits[0], labels)
            routed.append(router_logits(model))
            loss = loss + total / valid
        # The experts' balance is that of the whole step.
        loss = loss + load_balancing(model, routed)
        loss.backward()
        rate = learning_rate(
            step,
            train["steps"],
            train["learning_rate"],
            train["schedule"],
            train["warmup_steps"],
            train["min_learning_rate"],
            train.get("decay_steps"),
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        norm = gradient_norm(model)
        if train["clip_grad_norm"]:
            factor = min(1.0, train["clip_grad_norm"] / (norm + 1e-6))
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.mul_(factor)
        optimizer.step()
        records.append(
            {
                "step": step + 1,
                "loss": float(loss.detach()),
                "grad_norm": norm,
                "learning_rate": rate,
                "tokens": sum(len(i) for i, _ in batch),
                "valid_tokens": valid,
            }
        )
    return records


def dump(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


__all__ = [n for n in dir() if not n.startswith("_")]
