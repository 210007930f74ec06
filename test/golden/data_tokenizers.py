"""Writes test/golden/data: small tokenizers of the families in use, and the ids, masks and texts that Python gives.

Run: python test/golden/data_tokenizers.py   (needs tokenizers, transformers, jinja2)
"""

import json
import pathlib
import random
import shutil

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
OUT = HERE / "data"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?",
    "def attention(q, k, v):\n    scores = q @ k.T / math.sqrt(d)\n    return softmax(scores) @ v\n",
    "Schöne Grüße aus München! Ça va très bien, naïve café. Être ou ne pas être.",
    "机器学习模型在长序列上的训练。日本語のテキスト。한국어 텍스트.",
    "Numbers: 3.14159, 2,718,281 and 1e-9; hashes 0xDEADBEEF.",
    "for (let i = 0; i < 10; i++) {\n\tconsole.log(`${i}`);\n}\n\n\n",
    "I'll we've they're you'd I'm he's DON'T WE'LL",
] * 4

STRINGS = [
    "",
    " ",
    "a",
    "hello world",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "line\nbreak\r\nand\n\n\nmore\n",
    "\n\n  indented\n\ttab",
    "It's we'll THEY'RE I'M don't 'quoted' ''",
    "12345678 1 12 123 1234 3.14 ١٢٣ ²³ Ⅷ",
    "Schöne Grüße, naïve café, Ça va",
    "e\u0301 versus \u00e9, \ufb01 ligature, \u212b angstrom",
    "机器学习 日本語 한국어",
    "emoji \U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "zero\u200bwidth \ufeffbom nbsp\u00a0here \u3000ideographic \u2028sep",
    "control \u0000 \u0001 \u007f \u0085 chars",
    "punct!!! ... ??? --- === <<>> @#$%^&*()_+[]{}|;:,./",
    "mixed中文English混合123abc",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "<|begin_of_text|>special inside<|eot_id|> text",
    "<s>special</s> <unk> [INST] x [/INST]",
    "\u0130stanbul ISTANBUL \u0131 \u017f \u1e9e stra\u00dfe",
    "combining a\u0323\u0307 a\u0307\u0323 order",
    "\U00010400\U00010428 deseret, \U0001d400 math bold",
    "a" * 300,
    "ab" * 200,
    "    def f(x):\n        return x  # comment\n",
    "▁metaspace ▁ literal",
    "<0x41> literal byte token",
]

# Pieces that tokenizers are known to disagree on: white space of every kind, digits, marks, contractions, specials.
POOL = [
    "a", "B", "é", "e\u0301", "1", "12", "'s", "'LL", " ", "  ", "\n", "\r\n", "\t", "。", "机", "한", "ß", "\u0130",
    "\u017f", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u0085", "\u2028", "\U0001f600", "\U0001f44d\U0001f3fd", "-", "...",
    "_", "<|eot_id|>", "<s>", "</s>", "▁", "<0x41>", "\u0301", "²", "Ⅷ", "١", "\x00", "\x1f", "ﬁ", "Å",
]

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML_GENERATION = (
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {{- '<|im_start|>assistant\\n' }}\n"
    "        {%- generation %}\n"
    "        {{- message.content + '<|im_end|>' }}\n"
    "        {%- endgeneration %}\n"
    "        {{- '\\n' }}\n"
    "    {%- else %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
CHATML = (
    "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2_CHAT = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' '  + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

CHATS = [
    [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello! How can I help?"}],
    [
        {"role": "user", "content": "What is 12345?"},
        {"role": "assistant", "content": "A number.\n\nIndeed."},
        {"role": "user", "content": "Grüße 机器学习 \U0001f600"},
        {"role": "assistant", "content": " e\u0301 caf\u00e9 "},
    ],
]


def bpe_trainer(vocab, tokens=(), **kw):
    return trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(tokens), show_progress=False, **kw)


def byte_level(regex, normalizer, specials, ignore_merges):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(regex), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(CORPUS, bpe_trainer(420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return tok


def save(name, tok, config, template=None, generation=None):
    folder = OUT / name
    folder.mkdir(parents=True)
    text = tok.to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")


def main():
    if OUT.exists():
        shutil.rmtree(OUT)
    OUT.mkdir()

    tok = byte_level(LLAMA3, None, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], True)
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B", special_tokens=[("<|begin_of_text|>", bos)]),
        ]
    )
    save(
        "llama3",
        tok,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True},
        LLAMA3_CHAT,
        {"eos_token_id": [tok.token_to_id("<|end_of_text|>"), tok.token_to_id("<|eot_id|>")]},
    )

    tok = byte_level(QWEN2, normalizers.NFC(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], False)
    save("qwen2", tok, {"bos_token": None, "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"}, "pad_token": "<|endoftext|>", "add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}, CHATML)
    save("qwen2_marked", tok, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}, CHATML_GENERATION)

    # GPT-2's own pattern, inside the ByteLevel pre-tokenizer.
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(CORPUS, bpe_trainer(420, ["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    save("gpt2", tok, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"})

    # Llama 2: spaces become U+2581 in the normaliser, unknown characters fall back to bytes.
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    for name, metaspace in [("llama2", False), ("metaspace", True)]:
        trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        if not metaspace:
            trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
        else:
            trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
        ascii_corpus = [s for s in CORPUS if s.isascii()]
        trained.train_from_iterator(ascii_corpus, bpe_trainer(500, ["<unk>", "<s>", "</s>", *byte_tokens]))
        data = json.loads(trained.to_str())
        # Byte tokens are plain vocabulary, as in Llama 2.
        data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
        if not metaspace:
            data["pre_tokenizer"] = None
        else:
            data["pre_tokenizer"]["split"] = False
        tok = Tokenizer.from_str(json.dumps(data))
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
        tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        save(name, tok, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}, LLAMA2_CHAT)

    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.NFKC()
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tok.decoder = decoders.Metaspace()
    tok.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False)
    )
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    save("unigram", tok, {"eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"})

    names = ["llama3", "qwen2", "gpt2", "llama2", "metaspace", "unigram"]
    rng = random.Random(5)
    for _ in range(60):
        STRINGS.append("".join(rng.choice(POOL) for _ in range(rng.randint(1, 25))))
    golden = {"strings": STRINGS, "ids": {}, "whole": {}, "chats": {}}
    for name in names:
        tok = Tokenizer.from_file(str(OUT / name / "tokenizer.json"))
        golden["ids"][name] = [tok.encode(s, add_special_tokens=False).ids for s in STRINGS]
        auto = AutoTokenizer.from_pretrained(OUT / name)
        golden["whole"][name] = [auto(s)["input_ids"] for s in STRINGS]
    for name in ["llama3", "qwen2", "qwen2_marked", "llama2"]:
        auto = AutoTokenizer.from_pretrained(OUT / name)
        rows = []
        for chat in CHATS:
            text = auto.apply_chat_template(chat, tokenize=False)
            row = {"messages": chat, "text": text, "ids": auto(text, add_special_tokens=False)["input_ids"]}
            if name == "qwen2_marked":
                out = auto.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
                assert out["input_ids"] == row["ids"]
                row["mask"] = out["assistant_masks"]
            rows.append(row)
        golden["chats"][name] = rows
    tools = [{"type": "function", "function": {"name": "f", "description": "naïve \"q\" <a>", "parameters": {"type": "object", "n": [1, 2.5, None, True]}}}]
    auto = AutoTokenizer.from_pretrained(OUT / "qwen2")
    golden["tools"] = {"tools": tools, "messages": CHATS[0], "text": auto.apply_chat_template(CHATS[0], tools=tools, tokenize=False)}
    # Each pre-tokenizer alone, over a vocabulary of whole pieces: ids differ wherever pieces do.
    cases = {
        "whitespace": pre_tokenizers.Whitespace(),
        "whitespace_split": pre_tokenizers.WhitespaceSplit(),
        "digits": pre_tokenizers.Digits(False),
        "digits_individual": pre_tokenizers.Digits(True),
        "byte_level_prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
        "split_previous": pre_tokenizers.Split(" ", "merged_with_previous"),
        "split_next": pre_tokenizers.Split("-", "merged_with_next"),
        "split_contiguous": pre_tokenizers.Split(Regex("[ -]"), "contiguous"),
        "split_inverted": pre_tokenizers.Split(Regex("\\w+"), "isolated", invert=True),
        "split_removed": pre_tokenizers.Split(" ", "removed"),
        "split_removed_inverted": pre_tokenizers.Split(Regex("\\w+"), "removed", invert=True),
        **{f"punctuation_{b}": pre_tokenizers.Punctuation(b) for b in ["isolated", "contiguous", "merged_with_previous", "merged_with_next", "removed"]},
    }
    golden["pre_tokenizers"] = {}
    for name, pre in cases.items():
        pieces = sorted({piece for s in STRINGS for piece, _ in pre.pre_tokenize_str(s)})
        tok = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(["<unk>", *pieces])}, unk_token="<unk>"))
        tok.pre_tokenizer = pre
        golden["pre_tokenizers"][name] = {"tokenizer": json.loads(tok.to_str()), "ids": [tok.encode(s).ids for s in STRINGS]}
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()
