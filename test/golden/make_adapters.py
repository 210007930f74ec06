"""Writes adapters/<case>/: an adapter as PEFT saves it, for a checkpoint of models/, and what PEFT makes of it.

    python test/golden/make_adapters.py [case ...]

Each case has adapter_config.json and adapter_model.safetensors (B random, so that every gradient is there), rows.jsonl,
golden.json (the model, the loss and gradient norm of one batch, the train section and one record a step) and
golden.safetensors (the batch, its logits, every gradient by the name in the adapter's file). Wants `peft` too. Computed in
float64; the script checks that PEFT's own merged model has the same logits.
"""

import json
import os
import shutil
import sys

import peft
import torch
from reference import dump, error, gradient_norm, load64, load_balancing, load_file, router_logits, save_file, token_losses
from reference import router64, train

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "models")

TRAIN = dict(
    steps=3, batch_size=2, micro_batch_size=1, learning_rate=2e-3, schedule="linear", warmup_steps=1,
    min_learning_rate=0.0, weight_decay=0.1, betas=[0.9, 0.95], eps=1e-6, clip_grad_norm=1.0,
)

# name -> (model of models/, arguments of LoraConfig)
CASES = {
    "llama_all": ("llama3", dict(r=4, lora_alpha=8, target_modules="all-linear")),
    "llama_head": ("llama2", dict(r=1, lora_alpha=3, target_modules=["q_proj", "v_proj", "lm_head"], use_rslora=True)),
    "llama_pattern": ("llama_yarn_mscale", dict(r=64, lora_alpha=16, target_modules=r".*\.0\..*(k_proj|down_proj)")),
    "qwen2_tied": ("qwen2", dict(r=8, lora_alpha=8, target_modules=["o_proj"], modules_to_save=["embed_tokens"])),
    "qwen2_tied_head": ("qwen2", dict(r=2, lora_alpha=4, target_modules=["up_proj", "lm_head"])),
    "phi3": ("phi3", dict(r=3, lora_alpha=6, target_modules=["qkv_proj", "gate_up_proj"])),
    "gpt2": ("gpt2", dict(r=3, lora_alpha=6, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)),
    "gpt_neox": ("gpt_neox", dict(r=5, lora_alpha=5, target_modules="all-linear", use_rslora=True)),
    "olmo2": ("olmo2", dict(r=3, lora_alpha=6, target_modules="all-linear")),
    "gemma2": ("gemma2", dict(r=3, lora_alpha=2, target_modules="all-linear")),
    "mixtral_balanced": ("mixtral_balanced", dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj"])),
    "qwen2_moe": ("qwen2_moe", dict(r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=["lm_head"])),
    # Modules are called as transformers does, not as Mixtral's checkpoints do.
    "mixtral_gate": ("mixtral", dict(r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["mlp.gate"])),
}


class Trained:
    """What `train` takes for a model: PEFT's, of which only what is trained is seen."""

    def __init__(self, wrapped, config):
        self.wrapped, self.config = wrapped, config

    def parameters(self):
        return [p for p in self.wrapped.parameters() if p.requires_grad]

    def modules(self):
        return self.wrapped.modules()

    def zero_grad(self, **arguments):
        self.wrapped.zero_grad(**arguments)

    def __call__(self, **arguments):
        return self.wrapped(**arguments)


def own_routers(model):
    """PEFT's copies of routers compute with the weights that they were copied from until they get a forward of their own."""
    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.forward = router64(module)
    return model


def file_name(name):
    """A parameter of PEFT's model as its file calls it."""
    return name.replace(".default", "").replace(".modules_to_save", "")


def main():
    torch.set_num_threads(1)
    for seed, (case, (name, arguments)) in enumerate(CASES.items()):
        if len(sys.argv) > 1 and case not in sys.argv[1:]:
            continue
        base, folder = os.path.join(MODELS, name, "model"), os.path.join(HERE, "adapters", case)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        config = peft.LoraConfig(task_type="CAUSAL_LM", **arguments)
        start = peft.get_peft_model(load64(base), config, autocast_adapter_dtype=False)
        g = torch.Generator().manual_seed(seed)
        for parameter, p in sorted(start.named_parameters()):
            if "lora_" in parameter:
                p.data = 0.12 * torch.randn(p.shape, generator=g, dtype=torch.float64)
        start.save_pretrained(folder)
        weights = {key: value.float() for key, value in load_file(os.path.join(folder, "adapter_model.safetensors")).items()}
        # PEFT adds the base's own head or embedding where these have an adapter.
        kept = {key: value for key, value in weights.items() if "base_layer" not in key}
        if not arguments.get("modules_to_save"):
            kept = {key: value for key, value in kept.items() if "lora_" in key}
        save_file(kept, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
        os.remove(os.path.join(folder, "README.md"))
        path = os.path.join(folder, "adapter_config.json")
        with open(path) as f:
            fields = json.load(f)
        fields.pop("peft_version", None)
        dump(path, {**fields, "base_model_name_or_path": os.path.relpath(base, os.path.join(HERE, "..", ".."))})

        model = load64(base)
        wrapped = peft.PeftModel.from_pretrained(model, folder, is_trainable=True, autocast_adapter_dtype=False).double()
        own_routers(wrapped).eval()
        vocabulary = model.config.vocab_size
        ids = [int(i) for i in torch.randint(0, vocabulary, (31,), generator=g)]
        wrapped.zero_grad(set_to_none=True)
        logits = wrapped(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0]
        total, valid = token_losses(logits, torch.tensor(ids))
        loss = total / valid + load_balancing(model, [router_logits(wrapped)])
        loss.backward()
        golden = {"input_ids": torch.tensor(ids, dtype=torch.int32), "logits": logits.detach().float()}
        trained = Trained(wrapped, model.config)
        for parameter, p in wrapped.named_parameters():
            if p.requires_grad:
                golden[f"grad.{file_name(parameter)}"] = p.grad.float()
        norm = gradient_norm(trained)

        merged = peft.PeftModel.from_pretrained(load64(base), folder, autocast_adapter_dtype=False).double().merge_and_unload()
        with torch.no_grad():
            off = error(own_routers(merged).eval()(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0], logits.detach())
        # PEFT merges an adapter of a tied head into the embedding too.
        assert off < 1e-10 or case == "qwen2_tied_head", (case, off)

        rows = [
            {"input_ids": [int(i) for i in torch.randint(0, vocabulary, (length,), generator=g)]}
            for length in (40, 23, 40, 31)
        ]
        with open(os.path.join(folder, "rows.jsonl"), "w") as f:
            for row in rows:
                f.write(json.dumps(row) + "\n")
        save_file(golden, os.path.join(folder, "golden.safetensors"))
        records = train(trained, rows, TRAIN)
        summary = dict(model=name, loss=float(loss.detach()), grad_norm=norm, train=TRAIN, steps=records)
        dump(os.path.join(folder, "golden.json"), summary)
        print(case, summary["loss"], norm, flush=True)


if __name__ == "__main__":
    main()
