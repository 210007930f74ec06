"""Writes models/<case>/: a tiny random checkpoint and transformers' logits, loss and gradients for it.

    python test/golden/make_models.py [case ...]

Each case has model/ (config.json and safetensors as a user would have them), golden.json (loss, norms, what it is for)
and golden.safetensors (input_ids, labels, cu_seqlens, logits [T, V], grad.<parameter>; float64 results rounded to
float32). Nothing here is needed when the tests run.
"""

import os
import sys

import torch
from reference import IGNORE, dump, error, evaluate, gradient_norm, load, load64, make_checkpoint, save_file, stored
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

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")


def hub(rope_scaling=None, drop=(), **extra):
    """config.json as checkpoints on the hub have it: rope_theta and rope_scaling at the top, torch_dtype, no
    layer_types, fields that later versions dropped."""

    def edit(fields):
        rope = fields.pop("rope_parameters")
        fields["rope_theta"] = rope["rope_theta"]
        fields["rope_scaling"] = rope_scaling
        fields["torch_dtype"] = fields.pop("dtype")
        fields["transformers_version"] = "4.44.0"
        fields["attention_dropout"] = 0.0
        fields.pop("layer_types", None)
        for key in drop:
            fields.pop(key, None)
        fields.update(extra)
        return fields

    return edit


LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)

# name -> (what it is for, config, options of the case)
CASES = {
    "llama2": (
        "Llama 2 style: every head has its own keys, untied; saved in three shards",
        LlamaConfig(
            vocab_size=67, hidden_size=24, intermediate_size=53, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=3, max_position_embeddings=128, rms_norm_eps=1e-5,
        ),
        dict(tokens=32, shard="25KB"),
    ),
    "llama3": (
        "Llama 3.1 style as transformers 5 writes it: llama3 scaling with all three bands, GQA, theta 500000",
        LlamaConfig(
            vocab_size=71, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5,
            rope_parameters=dict(LLAMA3, rope_theta=50000.0),
        ),
        dict(tokens=40),
    ),
    "llama3_hub": (
        "Llama 3.2 style in the hub's spelling: rope_scaling with rope_type, no head_dim, tied, bfloat16 file",
        LlamaConfig(
            vocab_size=69, hidden_size=32, intermediate_size=50, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters=dict(LLAMA3, rope_theta=10000.0),
        ),
        dict(tokens=36, dtype=torch.bfloat16, hub=hub(rope_scaling=LLAMA3, drop=["head_dim"], pretraining_tp=1)),
    ),
    "llama_linear_hub": (
        "linear scaling spelled `type` as in older checkpoints, MQA, no rope_theta; a large eps",
        LlamaConfig(
            vocab_size=66, hidden_size=30, intermediate_size=37, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1, max_position_embeddings=256, rms_norm_eps=1e-2,
            rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0),
        ),
        dict(tokens=29, hub=hub(rope_scaling={"type": "linear", "factor": 4.0}, drop=["head_dim", "rope_theta"])),
    ),
    "llama_yarn": (
        "YaRN with its defaults: attention factor 0.1 ln(factor) + 1, ramp truncated to whole dims",
        LlamaConfig(
            vocab_size=65, hidden_size=32, intermediate_size=41, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, head_dim=12, max_position_embeddings=512, rms_norm_eps=1e-5,
            rope_parameters=dict(
                rope_type="yarn", factor=8.0, original_max_position_embeddings=64, rope_theta=10000.0
            ),
        ),
        dict(tokens=33),
    ),
    "llama_yarn_mscale": (
        "YaRN with mscale and mscale_all_dim, own betas, ramp not truncated; biases everywhere",
        LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=35, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5,
            attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="yarn", factor=4.0, original_max_position_embeddings=128, rope_theta=1000.0,
                beta_fast=16.0, beta_slow=2.0, mscale=1.3, mscale_all_dim=0.6, truncate=False,
            ),
        ),
        dict(tokens=31),
    ),
    "llama_packed": (
        "four documents (one of a single token) packed into one sequence; the reference runs them apart",
        LlamaConfig(
            vocab_size=67, hidden_size=24, intermediate_size=39, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=128, rms_norm_eps=1e-5,
        ),
        dict(documents=[11, 1, 17, 8]),
    ),
    "mistral_window": (
        "Mistral with a sliding window of 7 in every layer and head_dim apart from H / N",
        MistralConfig(
            vocab_size=67, hidden_size=28, intermediate_size=45, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=10, max_position_embeddings=128, rms_norm_eps=1e-5, sliding_window=7,
        ),
        dict(tokens=40),
    ),
    "mistral_hub": (
        "Mistral in the hub's spelling, sliding_window null, no head_dim, theta 1e6",
        MistralConfig(
            vocab_size=65, hidden_size=32, intermediate_size=47, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, sliding_window=None,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
        dict(tokens=27, dtype=torch.bfloat16, hub=hub(drop=["head_dim"])),
    ),
    "mistral_packed": (
        "a sliding window of 5 within packed documents, shorter and longer than the window",
        MistralConfig(
            vocab_size=65, hidden_size=24, intermediate_size=33, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=128, rms_norm_eps=1e-5, sliding_window=5,
        ),
        dict(documents=[3, 14, 9, 12]),
    ),
    "qwen2": (
        "Qwen2: biases on q, k, v; tied; sliding_window present but not used",
        Qwen2Config(
            vocab_size=73, hidden_size=28, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True, use_sliding_window=False,
            sliding_window=6, rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
        dict(tokens=35),
    ),
    "qwen2_window": (
        "Qwen2 with layer_types: full attention in layer 0, window 6 in layers 1 and 2",
        Qwen2Config(
            vocab_size=67, hidden_size=24, intermediate_size=35, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, use_sliding_window=True, sliding_window=6,
            max_window_layers=1,
        ),
        dict(tokens=34),
    ),
    "qwen2_window_hub": (
        "Qwen2 in the hub's spelling: windows from max_window_layers alone, YaRN spelled `type`",
        Qwen2Config(
            vocab_size=67, hidden_size=24, intermediate_size=34, num_hidden_layers=3, num_attention_heads=3,
            num_key_value_heads=3, max_position_embeddings=256, use_sliding_window=True, sliding_window=9,
            max_window_layers=2,
            rope_parameters=dict(
                rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=10000.0
            ),
        ),
        dict(
            tokens=38,
            hub=hub(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ),
    ),
    "qwen3": (
        "Qwen3: q and k norms, head_dim 20 apart from H / N = 14, untied",
        Qwen3Config(
            vocab_size=67, hidden_size=28, intermediate_size=43, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=20, max_position_embeddings=128, rms_norm_eps=1e-3,
            rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
        ),
        dict(tokens=33),
    ),
    "qwen3_hub": (
        "Qwen3 in the hub's spelling: tied, attention_bias, a window from layer 1 on",
        Qwen3Config(
            vocab_size=66, hidden_size=24, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=128, tie_word_embeddings=True,
            attention_bias=True, use_sliding_window=True, sliding_window=8, max_window_layers=1,
        ),
        dict(tokens=30, hub=hub()),
    ),
    "llama_dynamic": (
        "dynamic scaling beyond max_position_embeddings: the base grows with the length",
        LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=31, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=12, max_position_embeddings=16, rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="dynamic", factor=3.0, rope_theta=1000.0),
        ),
        dict(tokens=41),
    ),
    "qwen2_longrope_hub": (
        "longrope beyond the original length in the hub's spelling: long factors, an attention factor from the lengths",
        Qwen2Config(
            vocab_size=64, hidden_size=24, intermediate_size=31, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=96, tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="longrope", rope_theta=1000.0, original_max_position_embeddings=24,
                short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5], long_factor=[1.0, 1.4, 2.1, 3.3, 4.6, 6.0],
            ),
        ),
        dict(
            tokens=37,
            hub=hub(
                rope_scaling=dict(
                    type="longrope", short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
                    long_factor=[1.0, 1.4, 2.1, 3.3, 4.6, 6.0],
                ),
                original_max_position_embeddings=24,
            ),
        ),
    ),
    "gpt2": (
        "GPT-2: learned positions, weights stored [in, out], q, k, v in one, tied; dropout named as on the hub",
        GPT2Config(vocab_size=67, n_positions=48, n_embd=24, n_layer=2, n_head=3),
        dict(tokens=40),
    ),
    "gpt2_packed": (
        "GPT-2 with documents packed: learned positions restart; an inner size of its own, a head of its own",
        GPT2Config(
            vocab_size=61, n_positions=20, n_embd=24, n_layer=2, n_head=2, n_inner=50, tie_word_embeddings=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="relu",
        ),
        dict(documents=[11, 1, 17, 8]),
    ),
    "gpt_neox": (
        "GPT-NeoX: a quarter of each head turns, attention and MLP beside each other, q, k, v interleaved by head",
        GPTNeoXConfig(
            vocab_size=67, hidden_size=32, intermediate_size=53, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128,
        ),
        dict(tokens=37),
    ),
    "gpt_neox_hub": (
        "Pythia in the hub's spelling: rotary_pct and rotary_emb_base at the top; attention and MLP in sequence",
        GPTNeoXConfig(
            vocab_size=65, hidden_size=24, intermediate_size=41, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=128, use_parallel_residual=False, hidden_act="gelu_new", layer_norm_eps=1e-3,
            rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.5),
        ),
        dict(
            tokens=33,
            hub=hub(drop=["rope_theta", "rope_scaling", "attention_bias"], rotary_pct=0.5, rotary_emb_base=1000),
        ),
    ),
    "phi3": (
        "Phi-3: q, k, v in one tensor, gate and up in another, a window, grouped heads",
        Phi3Config(
            vocab_size=67, hidden_size=32, intermediate_size=45, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, sliding_window=9, pad_token_id=0,
        ),
        dict(tokens=36),
    ),
    "phi3_longrope_hub": (
        "Phi-4-mini style in the hub's spelling: longrope over a part of each head, beyond the original length, tied",
        Phi3Config(
            vocab_size=64, hidden_size=48, intermediate_size=31, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1, max_position_embeddings=96, original_max_position_embeddings=24, pad_token_id=3,
            tie_word_embeddings=True,
            rope_parameters=dict(
                rope_type="longrope", rope_theta=1000.0, partial_rotary_factor=0.75,
                short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5], long_factor=[1.0, 1.4, 2.1, 3.3, 4.6, 6.0],
            ),
        ),
        dict(
            tokens=37,
            hub=hub(
                rope_scaling=dict(
                    type="longrope", short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
                    long_factor=[1.0, 1.4, 2.1, 3.3, 4.6, 6.0],
                ),
                partial_rotary_factor=0.75,
            ),
        ),
    ),
    "olmo2": (
        "OLMo 2: norms behind each half and over all heads of q and of k",
        Olmo2Config(
            vocab_size=67, hidden_size=24, intermediate_size=43, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, rope_parameters=dict(rope_theta=500000.0),
        ),
        dict(tokens=34),
    ),
    "gemma2_uncapped": (
        "Gemma 2 without capped scores: norms on both sides with 1 + weight, capped logits, every second layer a window",
        Gemma2Config(
            vocab_size=67, hidden_size=24, intermediate_size=43, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=128, sliding_window=7,
            query_pre_attn_scalar=20, final_logit_softcapping=3.0, attn_logit_softcapping=None,
        ),
        dict(tokens=35),
    ),
    "gemma3": (
        "Gemma 3: q and k norms, frequencies by kind of layer, two of three layers with a window",
        Gemma3TextConfig(
            vocab_size=67, hidden_size=24, intermediate_size=43, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=128, sliding_window=9,
            query_pre_attn_scalar=12, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
                full_attention=dict(rope_type="linear", factor=4.0, rope_theta=100000.0),
            ),
        ),
        dict(tokens=38),
    ),
    "gemma3_hub": (
        "Gemma 3 in the hub's spelling: rope_local_base_freq, sliding_window_pattern, bfloat16 file, packed",
        Gemma3TextConfig(
            vocab_size=65, hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=12, max_position_embeddings=128, sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                full_attention=dict(rope_type="default", rope_theta=1000000.0),
            ),
        ),
        dict(
            documents=[9, 1, 20],
            dtype=torch.bfloat16,
            hub=lambda fields: gemma3_hub(fields),
        ),
    ),
    "gemma2": (
        "Gemma 2: capped scores and logits, of which many reach the cap",
        Gemma2Config(
            vocab_size=67, hidden_size=28, intermediate_size=43, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=10, max_position_embeddings=128, sliding_window=11,
            query_pre_attn_scalar=10, final_logit_softcapping=2.0, attn_logit_softcapping=1.5,
        ),
        dict(tokens=41),
    ),
    "mixtral": (
        "Mixtral: four experts in every layer, two of them a token, their weights adding up to 1",
        MixtralConfig(
            vocab_size=66, hidden_size=24, intermediate_size=19, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, num_local_experts=4, num_experts_per_tok=2,
            sliding_window=None,
        ),
        dict(tokens=35),
    ),
    "mixtral_balanced": (
        "one expert a token, a window, the load-balancing loss over documents of 21, 1 and 14 tokens",
        MixtralConfig(
            vocab_size=63, hidden_size=16, intermediate_size=23, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, num_local_experts=3, num_experts_per_tok=1,
            sliding_window=8, output_router_logits=True, router_aux_loss_coef=0.7, tie_word_embeddings=True,
        ),
        dict(documents=[21, 1, 14], hub=hub(drop=["rope_parameters"], rope_theta=50000.0)),
    ),
    "qwen2_moe": (
        "Qwen2-MoE: every other layer with experts beside a shared one, weights that do not add up to 1, balance",
        Qwen2MoeConfig(
            vocab_size=70, hidden_size=24, intermediate_size=41, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=96, num_experts=5, num_experts_per_tok=3,
            moe_intermediate_size=17, shared_expert_intermediate_size=29, decoder_sparse_step=2,
            use_sliding_window=True, sliding_window=7, max_window_layers=3, output_router_logits=True,
            router_aux_loss_coef=0.2,
        ),
        dict(tokens=33),
    ),
    "qwen3_moe": (
        "Qwen3-MoE: sixteen experts of which some get no token, a first layer without, heads of their own size",
        Qwen3MoeConfig(
            vocab_size=64, hidden_size=20, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, max_position_embeddings=64, num_experts=16, num_experts_per_tok=2,
            moe_intermediate_size=11, norm_topk_prob=True, mlp_only_layers=[0], pad_token_id=0,
        ),
        dict(tokens=12),
    ),
    "ministral": (
        "Ministral: a window of 6 in every second layer, head_dim apart from H / N",
        MinistralConfig(
            vocab_size=69, hidden_size=28, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=10, max_position_embeddings=128, rms_norm_eps=1e-5, sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(rope_type="default", rope_theta=100000.0),
        ),
        dict(tokens=33),
    ),
}


def gemma3_hub(fields):
    for key in ("rope_parameters", "layer_types", "head_dim_"):
        fields.pop(key, None)
    return dict(fields, rope_theta=1000000, rope_local_base_freq=10000, rope_scaling=None, sliding_window_pattern=2)


def rows_of(case, vocabulary, options, seed):
    """Documents as (input_ids, labels): labels align with input_ids, some masked, one masked at each end."""
    g = torch.Generator().manual_seed(seed)
    documents = []
    for length in options.get("documents", [options.get("tokens")]):
        ids = torch.randint(0, vocabulary, (length,), generator=g)
        labels = torch.where(torch.rand(length, generator=g) < 0.25, torch.full_like(ids, IGNORE), ids)
        if length > 4:
            # A label that differs from its input id, so that the two are told apart.
            labels[2] = (int(ids[2]) + 1) % vocabulary
            labels[length - 1] = ids[length - 1]
        documents.append((ids, labels))
    return documents


def main(names):
    worst = 0.0
    for index, (case, (purpose, config, options)) in enumerate(CASES.items()):
        if names and case not in names:
            continue
        folder = os.path.join(HERE, case)
        os.makedirs(folder, exist_ok=True)
        model_folder = os.path.join(folder, "model")
        make_checkpoint(
            model_folder, config, 100 + index, options.get("dtype", torch.float32), options.get("shard"),
            options.get("hub"),
        )
        documents = rows_of(case, config.vocab_size, options, 1000 + index)

        model = load64(model_folder, max(len(ids) for ids, _ in documents))
        logits, loss, valid = evaluate(model, documents)
        norm = gradient_norm(model)
        # The library as it is, in float32 with its plain attention, must agree: it guards the float64 replacements.
        plain = load(model_folder)
        plain_logits, plain_loss, _ = evaluate(plain, documents)
        errors = {"logits": error(plain_logits, logits)}
        gradients = {}
        for (name, p), (_, q) in zip(model.named_parameters(), plain.named_parameters()):
            for own, grad in stored(model, name, p.grad).items():
                gradients["grad." + own] = grad.float().contiguous()
            errors[name] = error(q.grad, p.grad)
        assert abs(plain_loss - loss) < 2e-6 * loss, (case, plain_loss, loss)
        assert max(errors.values()) < 5e-5, (case, errors)
        worst = max(worst, max(errors.values()))

        lengths = [len(ids) for ids, _ in documents]
        cumulative = torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int64)
        tensors = {
            "input_ids": torch.cat([d[0] for d in documents]).to(torch.int32),
            "labels": torch.cat([d[1] for d in documents]).to(torch.int32),
            "cu_seqlens": cumulative,
            "logits": logits.float().contiguous(),
            **gradients,
        }
        save_file(tensors, os.path.join(folder, "golden.safetensors"))
        dump(
            os.path.join(folder, "golden.json"),
            {
                "purpose": purpose,
                "tokens": int(cumulative[-1]),
                "documents": lengths,
                "valid_tokens": valid,
                "loss": loss,
                "grad_norm": norm,
                "parameters": [own for n, p in model.named_parameters() for own in stored(model, n, p)],
            },
        )
        print(f"{case:20s} T {int(cumulative[-1]):3d} loss {loss:.6f} norm {norm:.6f} float32 error {max(errors.values()):.1e}")
    print(f"largest float32 error {worst:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
