"""Compares `longseq train` with PyTorch, on a given checkpoint or on random ones. Not part of the tests.

    python test/golden/check_train.py CONFIG             a configuration (JSON or YAML) with rows of input_ids
    python test/golden/check_train.py --sweep N [--seed S] [--only K] [--keep FOLDER]

For each case: AdamW steps in PyTorch (float64 from the weights in the file), the command line on the same files, then
losses and gradient norms (1e-4 relative), learning rates and counts (exact), every parameter of the exported model, and
the exported model's logits in transformers beside those of the model that PyTorch trained. The memory that the steps
took is held against `longseq plan` and the limits. A sweep draws memory settings too, limits that let the ladder climb
among them; it prints one line a case and the recipe of what failed; --only K runs case K of the seed alone.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

from reference import dump, error, load64, make_checkpoint, torch, train, transformers  # isort: skip, quiets the rest
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("LONGSEQ_BIN", os.path.join(ROOT, "bin", "longseq.mjs"))

DEFAULTS = dict(
    batch_size=1, micro_batch_size=1, learning_rate=1e-5, schedule="constant", warmup_steps=0, min_learning_rate=0.0,
    decay_steps=None, weight_decay=0.0, betas=[0.9, 0.95], eps=1e-8, clip_grad_norm=1.0,
)


def longseq(*arguments, ok=(0,)):
    done = subprocess.run(["node", BIN, *arguments], capture_output=True, text=True, timeout=900)
    if done.returncode not in ok:
        raise RuntimeError(f"exit {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return done


def plan_longseq(config, folder):
    """What `longseq plan --data --json` says, by event."""
    path = os.path.join(folder, "config.json.yaml")
    dump(path, config)
    lines = longseq("plan", path, "--data", "--json").stdout.splitlines()
    return {line["event"]: line for line in map(json.loads, lines)}


def least_device_bytes(config, folder):
    """The smallest device limit that `longseq plan` says would do."""
    path = os.path.join(folder, "config.json.yaml")
    dump(path, config)
    done = longseq("plan", path, "--data", "memory.device_limit=1", ok=(2,))
    found = re.search(r"needs at least (?:[\d.]+ \w+ \()?(\d+)(?: B)?\)? of device memory", done.stderr)
    if found is None:
        raise RuntimeError(f"no smallest limit in: {done.stderr}")
    return int(found[1])


def run_longseq(config, folder):
    path = os.path.join(folder, "config.json.yaml")
    dump(path, config)
    longseq("train", path)
    with open(os.path.join(config["output"]["dir"], "metrics.jsonl")) as f:
        lines = [json.loads(line) for line in f]
    return [line for line in lines if "event" not in line]


def read_rows(config):
    rows = []
    for path in config["data"]["train"]:
        with open(path) as f:
            rows += [json.loads(line) for line in f if line.strip()]
    return rows


def squeeze(config, folder):
    """Replaces a device limit that is a part (0 to 1) of the way from the least that does to what `auto` would take."""
    memory = config.get("memory", {})
    part = memory.pop("squeeze", None)
    if part is None:
        return
    least = least_device_bytes(config, folder)
    free = plan_longseq(config, folder)["plan"]["device_peak_bytes"]
    memory["device_limit"] = least + int(part * max(0, free - least))


def memory_complaints(config, rows, planned, got):
    """What the metrics say of memory that is not what the plan and the limits say."""
    complaints = []
    # The plan takes every micro-batch to be the largest one: micro-batches of other sizes may need less.
    alike = len({len(row["input_ids"]) for row in rows}) == 1
    for key in ("device_peak_bytes", "host_peak_bytes"):
        peak = max(line[key] for line in got)
        if peak > planned[key] or (alike and peak != planned[key]):
            complaints.append(f"{key}: {peak} instead of the plan's {planned[key]}")
    limit = config.get("memory", {}).get("device_limit")
    if limit is not None and max(line["device_peak_bytes"] for line in got) > limit:
        complaints.append(f"device_peak_bytes above the limit {limit}")
    live = {line["device_live_bytes"] for line in got}
    if len(live) != 1:
        complaints.append(f"device_live_bytes are {sorted(live)}")
    return complaints


def compare(config, folder, packed=False):
    """Returns (list of complaints, dict of figures)."""
    section = {**DEFAULTS, **config["train"]}
    rows = read_rows(config)
    low = config["model"].get("dtype") == "bfloat16"
    source = config["model"]["path"]
    reference = load64(source)
    initial = reference.config.to_dict()
    section_rows = rows
    if packed:
        # Every step takes all rows, so that how they were packed cannot matter.
        section = {**section, "batch_size": len(rows)}
    wanted = train(reference, section_rows, section)
    squeeze(config, folder)
    planned = plan_longseq(config, folder)["plan"]
    got = run_longseq(config, folder)
    complaints = memory_complaints(config, rows, planned, got)
    figures = {"loss": 0.0, "norm": 0.0}
    if len(got) != len(wanted):
        return [f"{len(got)} steps instead of {len(wanted)}"], figures
    tolerance = 3e-2 if low else 1e-4
    for ours, theirs in zip(got, wanted):
        for key, name in (("loss", "loss"), ("grad_norm", "norm")):
            relative = abs(ours[key] - theirs[key]) / abs(theirs[key]) if ours[key] is not None else math.inf
            figures[name] = max(figures[name], relative)
            if relative > tolerance:
                complaints.append(f"step {theirs['step']}: {key} {ours[key]} instead of {theirs[key]}")
        if abs(ours["learning_rate"] - theirs["learning_rate"]) > 1e-12 + 1e-9 * theirs["learning_rate"]:
            complaints.append(f"step {theirs['step']}: rate {ours['learning_rate']} not {theirs['learning_rate']}")
        for key in ("step", "tokens", "valid_tokens"):
            if ours[key] != theirs[key]:
                complaints.append(f"step {theirs['step']}: {key} {ours[key]} instead of {theirs[key]}")

    exported_folder = os.path.join(config["output"]["dir"], "model")
    exported, information = transformers.AutoModelForCausalLM.from_pretrained(
        exported_folder, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32,
        output_loading_info=True,
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if information.get(key):
            complaints.append(f"export: {key} {sorted(information[key])[:4]}")
    exported.eval()
    kept = exported.config.to_dict()
    for key in initial:
        if key in ("_name_or_path", "dtype", "torch_dtype", "transformers_version"):
            continue
        if initial[key] != kept.get(key):
            complaints.append(f"export: config {key} is {kept.get(key)}, was {initial[key]}")
    figures["params"] = 0.0
    for (name, p), (_, q) in zip(reference.named_parameters(), exported.named_parameters()):
        drift = float((p.detach() - q.detach().double()).norm() / p.detach().norm())
        figures["params"] = max(figures["params"], drift)
        # The key bias has gradients that are zero but for rounding (softmax ignores what every key shares), and AdamW
        # makes whole steps of them.
        of_keys = name.endswith(("k_proj.bias", "c_attn.bias", "query_key_value.bias"))
        allowed = 2e-2 if low else 1e-3 if of_keys else 1e-4
        if drift > allowed:
            complaints.append(f"{name} differs by {drift:.1e}")
    ids = torch.tensor(rows[0]["input_ids"])[None]
    with torch.no_grad():
        theirs = reference(input_ids=ids, use_cache=False).logits
        figures["logits"] = error(exported(input_ids=ids, use_cache=False).logits, theirs)
    if figures["logits"] > (0.3 if low else 1e-3):
        complaints.append(f"logits of the export differ by {figures['logits']:.1e}")

    # What we compute from the export against what transformers computes from it: one step that changes nothing.
    again = json.loads(json.dumps(config))
    again["model"]["path"] = exported_folder
    again["output"]["dir"] = config["output"]["dir"] + "-again"
    again["train"].update(steps=1, learning_rate=1e-30, min_learning_rate=0.0, warmup_steps=0, weight_decay=0.0)
    again["train"].pop("decay_steps", None)
    once = dict(section, steps=1, learning_rate=1e-30, warmup_steps=0, weight_decay=0.0, min_learning_rate=0.0)
    once["decay_steps"] = None
    expected = train(load64(exported_folder), section_rows, once)[0]
    ours = run_longseq(again, folder)[0]
    figures["export"] = abs(ours["loss"] - expected["loss"]) / expected["loss"]
    if figures["export"] > (3e-2 if low else 1e-5):
        complaints.append(f"loss of the export: {ours['loss']} instead of {expected['loss']}")
    return complaints, figures


def random_rope(r):
    theta = r.choice([1000.0, 10000.0, 500000.0, 1000000.0])
    kind = r.choice(["default", "default", "linear", "llama3", "yarn", "yarn"])
    if kind == "default":
        return dict(rope_type="default", rope_theta=theta)
    if kind == "linear":
        return dict(rope_type="linear", factor=r.choice([2.0, 3.5, 8.0]), rope_theta=theta)
    if kind == "llama3":
        return dict(
            rope_type="llama3", factor=r.choice([8.0, 32.0]), low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=r.choice([32, 64, 128]), rope_theta=theta,
        )
    rope = dict(
        rope_type="yarn", factor=r.choice([2.0, 4.0, 16.0]), original_max_position_embeddings=r.choice([32, 64, 128]),
        rope_theta=theta,
    )
    if r.random() < 0.3:
        rope.update(beta_fast=r.choice([8.0, 32.0]), beta_slow=r.choice([1.0, 2.0]))
    if r.random() < 0.3:
        rope.update(mscale=r.choice([0.7, 1.0, 1.4]), mscale_all_dim=r.choice([0.5, 1.0]))
    elif r.random() < 0.3:
        rope.update(attention_factor=1.25)
    if r.random() < 0.2:
        rope.update(truncate=False)
    return rope


EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe"]
FAMILIES = [
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gpt2", "gpt_neox", "phi3", "olmo2", "gemma2", "gemma3", *EXPERTS,
]


def random_experts(r, family, common, window, layers, own_head):
    """A configuration of a family whose layers, or some of them, have experts."""
    experts = r.choice([1, 2, 3, 4, 8, 17])
    balance = dict(
        num_experts_per_tok=r.randint(1, min(experts, 5)), output_router_logits=r.random() < 0.6,
        router_aux_loss_coef=r.choice([0.001, 0.1, 1.0]),
    )
    if family == "mixtral":
        return MixtralConfig(
            **common, **balance, num_local_experts=experts, sliding_window=r.choice([None, 1, 7, 33]),
            head_dim=own_head if r.random() < 0.3 else common["hidden_size"] // common["num_attention_heads"],
        )
    some = dict(
        moe_intermediate_size=r.randint(5, 70), decoder_sparse_step=r.choice([1, 1, 2]),
        mlp_only_layers=r.choice([[], [], [layers - 1]]), norm_topk_prob=r.random() < 0.5,
    )
    if layers == 1:
        some.update(decoder_sparse_step=1, mlp_only_layers=[])
    if family == "qwen2_moe":
        return Qwen2MoeConfig(
            **common, **balance, **some, **window, num_experts=experts,
            shared_expert_intermediate_size=r.randint(5, 90), qkv_bias=r.random() < 0.7,
        )
    return Qwen3MoeConfig(
        **common, **balance, **some, num_experts=experts, head_dim=own_head, attention_bias=r.random() < 0.3,
        use_sliding_window=window["use_sliding_window"], sliding_window=window["sliding_window"],
    )


def random_config(r, family, common, layers, own_head):
    """A configuration of one of the families that do not share Llama's fields."""
    heads, hidden = common["num_attention_heads"], common["hidden_size"]
    rope = common.pop("rope_parameters")
    pad = r.choice([None, 0, common["vocab_size"] - 1])
    windows = ["sliding_attention" if r.random() < 0.5 else "full_attention" for _ in range(layers)]
    gemma = dict(
        pad_token_id=pad, head_dim=own_head, sliding_window=r.choice([1, 4, 30]), query_pre_attn_scalar=r.randint(2, 40),
        attention_bias=r.random() < 0.2, final_logit_softcapping=r.choice([None, 2.0, 30.0]),
        layer_types=r.choice([None, windows]),
    )
    if family == "gpt2":
        return GPT2Config(
            vocab_size=common["vocab_size"], n_positions=1024, n_embd=hidden, n_layer=layers, n_head=heads,
            n_inner=r.choice([None, common["intermediate_size"]]), tie_word_embeddings=common["tie_word_embeddings"],
            activation_function=r.choice(["gelu_new", "gelu", "relu"]), layer_norm_epsilon=common["rms_norm_eps"],
            resid_pdrop=r.choice([0.0, 0.1]),
        )
    if family == "gpt_neox":
        del common["num_key_value_heads"]
        turning = 2 * r.randint(1, hidden // heads // 2)
        return GPTNeoXConfig(
            **common, layer_norm_eps=common.pop("rms_norm_eps"), use_parallel_residual=r.random() < 0.6,
            attention_bias=r.random() < 0.7, hidden_act=r.choice(["gelu", "gelu_new"]),
            rope_parameters=dict(
                rope_type="default", rope_theta=rope["rope_theta"], partial_rotary_factor=turning / (hidden // heads)
            ),
        )
    if family == "phi3":
        return Phi3Config(**common, pad_token_id=pad, sliding_window=r.choice([None, 2, 25]))
    if family == "olmo2":
        return Olmo2Config(**common, pad_token_id=pad, rope_parameters=rope, attention_bias=r.random() < 0.2)
    if family == "gemma2":
        return Gemma2Config(**common, **gemma, attn_logit_softcapping=r.choice([None, 1.0, 50.0]))
    kinds = dict(sliding_attention=dict(rope_type="default", rope_theta=100.0), full_attention=rope)
    return Gemma3TextConfig(**common, **gemma, rope_parameters=kinds)


def to_hub(r):
    def edit(fields):
        if fields["model_type"] not in ("llama", "mistral", "ministral", "qwen2", "qwen3", "olmo2", *EXPERTS):
            return fields
        rope = dict(fields.pop("rope_parameters"))
        fields["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        fields["rope_scaling"] = None if kind == "default" else {r.choice(["type", "rope_type"]): kind, **rope}
        fields["torch_dtype"] = fields.pop("dtype")
        if fields["model_type"] != "ministral":
            fields.pop("layer_types", None)
        if fields["model_type"] in ("llama", "mistral", "ministral"):
            usual = fields.get("head_dim") == fields["hidden_size"] // fields["num_attention_heads"]
            if usual and fields["model_type"] != "ministral" and r.random() < 0.7:
                fields.pop("head_dim")
            if fields["model_type"] == "llama" and fields["num_key_value_heads"] == fields["num_attention_heads"]:
                fields.pop("num_key_value_heads")
        return fields

    return edit


def random_memory(r, heads, length, batch):
    """Settings of `memory` that go together; `squeeze` stands for a limit that is found later."""
    tile = ["auto", "off", 1 if length < 60 else 7, r.randint(2, length), length * batch + 1, 100_000]
    memory = dict(tile_mlp=r.choice(tile), tile_loss=r.choice(tile))
    if r.random() < 0.6:
        memory["head_chunks"] = r.choice(["auto", 1, 2, heads, heads + 1, r.randint(1, 2 * heads), 1000])
    if r.random() < 0.8:
        every = r.choice(["auto", "auto", 0, 1, 1, 2, 3, 4])
        checkpoint = memory["checkpoint"] = dict(every=every)
        if every != 0:
            checkpoint["keep_attention"] = r.choice(["auto", True, False])
            checkpoint["offload"] = r.choice(["auto", "none", "host", "host", "disk"])
            checkpoint["device_bytes"] = r.choice(["auto", 0, 0, r.randint(1, 200_000), "1MB"])
    if r.random() < 0.5:
        states = memory["offload"] = {key: r.choice(["none", "host"]) for key in ("optimizer", "params", "gradients")}
        if memory.get("checkpoint", {}).get("every") == 0:
            states["params"] = "none"
    if r.random() < 0.5:
        memory["squeeze"] = r.choice([0.0, 0.0, 0.2, 0.5, 0.8])
    return memory


def random_case(seed, folder, family=None):
    """A checkpoint, rows and a configuration; all from the seed."""
    r = random.Random(seed)
    family = family or r.choice(FAMILIES)
    heads = r.choice([1, 2, 3, 4, 6, 8])
    kv = r.choice([k for k in range(1, heads + 1) if heads % k == 0])
    even = 2 * r.randint(2, 12)
    hidden = heads * even
    layers = r.randint(1, 3)
    common = dict(
        vocab_size=r.choice([r.randint(17, 300), r.randint(1000, 3000)]), hidden_size=hidden,
        intermediate_size=r.randint(9, 150), num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, max_position_embeddings=r.choice([64, 256, 4096]),
        rms_norm_eps=r.choice([1e-6, 1e-5, 1e-3]), tie_word_embeddings=r.random() < 0.4,
    )
    common["rope_parameters"] = random_rope(r)
    window = dict(
        use_sliding_window=r.random() < 0.5, sliding_window=r.choice([1, 2, 5, 16, 40]),
        max_window_layers=r.randint(0, layers),
    )
    own_head = 2 * r.randint(2, 18)
    if family == "llama":
        config = LlamaConfig(
            **common, attention_bias=r.random() < 0.3, mlp_bias=r.random() < 0.3,
            head_dim=own_head if r.random() < 0.4 else None,
        )
    elif family == "mistral":
        if r.random() < 0.3:
            common["hidden_size"] = hidden + r.randint(1, 5)
            config = MistralConfig(**common, head_dim=own_head, sliding_window=r.choice([None, 1, 7, 33]))
        else:
            config = MistralConfig(
                **common, head_dim=own_head if r.random() < 0.4 else None, sliding_window=r.choice([None, 3, 7, 33])
            )
    elif family == "ministral":
        config = MinistralConfig(
            # transformers computes no head_dim of its own for this family.
            **common, head_dim=own_head if r.random() < 0.4 else hidden // heads, sliding_window=r.choice([1, 3, 7, 33]),
            layer_types=[r.choice(["sliding_attention", "full_attention"]) for _ in range(layers)],
        )
    elif family == "qwen2":
        config = Qwen2Config(**common, **window)
    elif family in EXPERTS:
        config = random_experts(r, family, common, window, layers, own_head)
    elif family != "qwen3":
        config = random_config(r, family, common, layers, own_head)
    else:
        config = Qwen3Config(**common, **window, head_dim=own_head, attention_bias=r.random() < 0.3)

    length = r.choice([r.randint(6, 60), r.randint(60, 300), r.randint(300, 900)])
    # Rounding to bfloat16 sends tokens to other experts, which no tolerance covers.
    low = r.random() < 0.1 and family not in EXPERTS
    packed = r.random() < 0.15
    file_dtype = r.choice([torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16])
    model = os.path.join(folder, "model")
    make_checkpoint(
        model, config, seed, file_dtype, shard=r.choice([None, None, "30KB"]), hub=to_hub(r) if r.random() < 0.5 else None
    )

    vocabulary = config.vocab_size
    batch = r.choice([1, 1, 2, 3, 4])
    rows = []
    masked = r.choice([None, 0.1, 0.5, 0.95])
    pieces = r.choice([2, 3]) if packed else 1
    length = max(length - length % pieces, 4 * pieces)
    for _ in range(batch * pieces if packed else r.randint(batch, 4 * batch)):
        n = length // pieces if packed else r.choice([length, r.randint(2, length)])
        ids = [r.randrange(vocabulary) for _ in range(n)]
        row = {"input_ids": ids}
        if masked is not None and r.random() < 0.8:
            labels = [-100 if r.random() < masked else i for i in ids]
            labels[r.randrange(1, n)] = r.randrange(vocabulary)
            row["labels"] = labels
        rows.append(row)
    # One row at least has the full length, as sequence_length says.
    path = os.path.join(folder, "rows.jsonl")
    with open(path, "w") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")

    steps = r.randint(3, 5)
    schedule = r.choice(["constant", "linear", "cosine", "wsd"])
    section = dict(
        steps=steps, batch_size=batch, micro_batch_size=r.choice([m for m in range(1, batch + 1) if batch % m == 0]),
        learning_rate=r.choice([1e-4, 1e-3, 3e-3]), schedule=schedule, warmup_steps=r.choice([0, 0, 1, 2]),
        min_learning_rate=r.choice([0.0, 5e-5]), weight_decay=r.choice([0.0, 0.01, 0.3]),
        betas=r.choice([[0.9, 0.95], [0.9, 0.999], [0.8, 0.9]]), eps=r.choice([1e-8, 1e-6]),
        clip_grad_norm=r.choice([1.0, 0.1, 100.0]),
    )
    if schedule == "wsd" and r.random() < 0.5:
        section["decay_steps"] = r.randint(1, steps - section["warmup_steps"])
    configuration = dict(
        model=dict(path=model, dtype="bfloat16" if low else "float32"),
        data=dict(train=[path], sequence_length=length, packing=packed, shuffle=False),
        train=section,
        device="cpu",
        threads=r.choice([1, 2, 3]),
        output=dict(dir=os.path.join(folder, "run")),
    )
    if r.random() < 0.85:
        configuration["memory"] = random_memory(r, heads, length, batch)
    text = (
        f"{family} H{config.hidden_size} N{heads}/{kv} D{getattr(config, 'head_dim', None)} "
        f"F{getattr(config, 'intermediate_size', None)} "
        f"V{vocabulary} L{layers} {(getattr(config, 'rope_parameters', None) or {}).get('rope_type')} {'tied ' if config.tie_word_embeddings else ''}"
        f"T{length} B{batch} {schedule}{' bf16' if low else ''}{' packed' if packed else ''} {str(file_dtype)[6:]} "
        f"{json.dumps(configuration.get('memory', {}))}"
    )
    return configuration, packed, text


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config", nargs="?")
    parser.add_argument("--sweep", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep")
    parser.add_argument("--family", choices=FAMILIES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.config:
        import yaml

        with open(args.config) as f:
            config = yaml.safe_load(f)
        with tempfile.TemporaryDirectory() as folder:
            complaints, figures = compare(config, folder)
        print(figures)
        print("\n".join(complaints) or "equal")
        sys.exit(1 if complaints else 0)
    failed = []
    for index in range(args.sweep) if args.only is None else [args.only]:
        folder = tempfile.mkdtemp(prefix="longseq-check-") if not args.keep else os.path.join(args.keep, str(index))
        os.makedirs(folder, exist_ok=True)
        text = "?"
        try:
            config, packed, text = random_case(args.seed * 100003 + index, folder, args.family)
            complaints, figures = compare(config, folder, packed)
        except Exception as problem:  # a crash of one case must not end the sweep
            complaints, figures = [f"{type(problem).__name__}: {problem}"], {}
        line = " ".join(f"{k} {v:.0e}" for k, v in figures.items())
        print(f"{'FAIL' if complaints else 'ok  '} {index:4d} {text}  {line}", flush=True)
        for complaint in complaints[:8]:
            print("       " + complaint.replace("\n", "\n       "), flush=True)
        if complaints:
            failed.append(index)
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(failed)} failed: {failed}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
