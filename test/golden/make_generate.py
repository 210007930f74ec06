"""Writes generate.json: what transformers generates with the models of models/, and the texts that tokenizers decode.

    python test/golden/make_generate.py

Greedy, in float32, with end tokens off: ids behind two prompts, also with a repetition penalty, and the logits of the
first and the last step. Of the tokenizers of data/ the texts of random ids, with and without special tokens.
"""

import json
import os
import random

import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
NEW = 24


def generate(folder):
    # Gemma 2's capped scores are in the eager attention alone.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    model.eval()
    vocab = model.config.vocab_size
    # Where frequencies depend on the length, a cache has keys that were turned by those of another one.
    kept = not any(kind in json.dumps(model.config.to_dict()) for kind in ["longrope", "dynamic"])
    cases = []
    for seed, (length, penalty) in enumerate([(7, 1.0), (3, 1.0), (5, 1.3)]):
        prompt = [int(i) for i in torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed))]
        learned = model.config.model_type == "gpt2"
        new = min(NEW, model.config.max_position_embeddings - length) if learned else NEW
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, length, dtype=torch.long), do_sample=False, max_new_tokens=new,
            repetition_penalty=penalty, eos_token_id=None, use_cache=kept, pad_token_id=0, temperature=None, top_p=None, top_k=None,
            return_dict_in_generate=True, output_logits=True,
        )
        ids = out.sequences[0, length:].tolist()
        last = out.logits[-1][0]
        # A tie to rounding decides nothing that can be compared.
        gaps = [float((top := step[0].topk(2).values)[0] - top[1]) for step in out.logits] if penalty == 1 else [1.0]
        assert min(gaps) > 1e-5, (folder, gaps)
        cases.append(dict(prompt=prompt, penalty=penalty, ids=ids, last=[round(float(x), 6) for x in last[:8]]))
    return cases


def decoded(folder):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    rng = random.Random(0)
    cases = []
    for count in [1, 2, 5, 17, 60]:
        for _ in range(6):
            ids = [rng.randrange(len(tokenizer)) for _ in range(count)]
            cases.append(dict(ids=ids, all=tokenizer.decode(ids), plain=tokenizer.decode(ids, skip_special_tokens=True)))
    for text in ["Hello, world. It's 3 o'clock !", "  two  spaces\n\n", "机器学习 naïve café \U0001f468\u200d\U0001f469", "a . b ? c 's"]:
        ids = tokenizer(text)["input_ids"]
        cases.append(dict(ids=ids, all=tokenizer.decode(ids), plain=tokenizer.decode(ids, skip_special_tokens=True)))
    return cases


def main():
    torch.manual_seed(0)
    models, data = os.path.join(HERE, "models"), os.path.join(HERE, "data")
    result = dict(models={}, texts={})
    for name in sorted(os.listdir(models)):
        result["models"][name] = generate(os.path.join(models, name, "model"))
    for name in sorted(os.listdir(data)):
        if os.path.isdir(os.path.join(data, name)):
            result["texts"][name] = decoded(os.path.join(data, name))
    with open(os.path.join(HERE, "generate.json"), "w") as file:
        json.dump(result, file, ensure_ascii=True)
        file.write("\n")
    print(f"{len(result['models'])} models, {len(result['texts'])} tokenizers; transformers {transformers.__version__}")


main()
