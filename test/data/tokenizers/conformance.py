"""Writes what the tokenizers library and transformers give for 500 difficult texts, for conformance.ts to compare.

Run: python test/data/tokenizers/conformance.py FOLDER OUT
FOLDER holds one folder a tokenizer, each with tokenizer.json and what lies beside it. Writes OUT/texts.json and, a
tokenizer, OUT/NAME.json: ids and offsets (in UTF-16 units) of every text from tokenizers alone, and ids with
special tokens from transformers' AutoTokenizer, null where it cannot open the folder or gives something random.
"""

import json
import os
import pathlib
import random
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

WRITTEN = [
    "", " ", "  ", "\n", "\t", "a", "hello world", " leading", "trailing ", "two  spaces   three    four     five",
    "line\nbreak\r\nand\n\n\nmore\r\r\n", "\n\n  indented\n\ttab\n\t\ttabs", "    def f(x):\n        return x  # why\n",
    "It's we'll THEY'RE I'M don't 'quoted' ''s 'S \u2019s 'ſ 'tis y'all'd've", "12345678 1 12 123 1234 12,345.678 ١٢٣ ²³ Ⅷ ½ 一二三 𝟏𝟐𝟑",
    "e\u0301 versus \u00e9, ﬁ ﬀ ligature, Å angstrom, ｆｕｌｌ ｗｉｄｔｈ, ㎏ ㋿ ㍿ ℃",
    "机器学习模型在长序列上的训练。日本語のテキスト、カタカナ。ｶﾞｷﾞ 한국어 텍스트 각 \u1100\u1161\u11a8",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea ❤\ufe0f #\ufe0f\u20e3 \U0001fae8",
    "zero\u200bwidth\u200cjoin\u200der\u2060 \ufeffbom\ufeff nbsp\u00a0x \u3000ideo \u2028sep\u2029par \u1680 \u180e \u0085next",
    "control \u0001 \u0007 \u007f \u0080 \u009f \u00ad soft \ufffd \ufffe \U000e0001",
    "!!! ... ??? --- === <<>> @#$%^&*()_+[]{}|;:,./~` «» „“ ‚‘ — – … ¿¡ ・〜 ٪ ៖ ‿ ⁀",
    "mixed中文English混合123abc русский текст ελληνικά ΣΊΣΥΦΟΣ עִבְרִית العَرَبِيَّة हिन्दी ภาษาไทย தமிழ் မြန်မာ ខ្មែរ",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case HTMLParser2000 x86_64 iOS",
    "İstanbul ISTANBUL ı ſ ẞ straße ǅ ΐ ᾳ ŉ ǰ", "a\u0323\u0307 a\u0307\u0323 q\u0307\u0323 o\u0338\u0304 \u0344 \u0958 \u2126 \U0001d15e",
    "<s>special</s> <unk> [INST] x [/INST] <pad> <bos>y<eos> <mask> [MASK] [CLS] [SEP] <|endoftext|>",
    "<|begin_of_text|>in<|eot_id|> <|im_start|>user\nhi<|im_end|>\n<|fim_prefix|> <think>\nhm</think> <tool_call>",
    "<start_of_turn>user\nhi<end_of_turn>\n <|start|>assistant<|channel|>final<|message|>ok<|return|>",
    "<s><s> </s></s>  <s>  x  </s>\n<s>", "▁meta ▁▁ space▁ ▁", "Ġbyte Ċ Â", "<0x41><0x0A> literal", "##wordpiece ##ing",
    "a" * 300, "ab" * 200, "0" * 100, " " * 100, "\n" * 50, "=" * 80, "é" * 60, "机" * 80, "\U0001f600" * 30, "\u0301" * 20,
    "x" + "\u0301\u0323" * 15, "https://example.org/a/b?c=d&e=f#g user@example.com", "{\"a\": [1, 2.5e-3, null], \"b\": \"\\u00e9\"}",
    "def g(a, b):\n\tif a != b:\n\t\treturn [x**2 for x in range(10)]\n\n\nclass A: pass\n", "SELECT * FROM t WHERE a >= 1;--c",
    "$x^2 + \\frac{a}{b}$ \\begin{align} ∑∫√∞≈≠ 𝒜 ℝ", "\u0000nul", "\U0001e900\U0001e922 \U00010400\U00010428 𐌰 𒀀 𓀀",
    "\u0897 \u1c89 \ua7cb\ua7da \U00010d4a \U00016d40 \U0001ccd6 \u2e52 \u1b4e \ua7f1 \U000105c9 \u1dfa \u0295",
    "\u17dd \u0d00 \u1dfb \u0afa \U00011f02 \u08d4 \u0c04", "ᎠᏣ Ꭰꭰ ⴀ Ⴀ ა Ა", "ⅰ Ⅰ ⓐ Ⓐ ª º ʰ ˚ ⁿ ₙ",
]
POOL = [
    "a", "B", "word", "The", " the", "é", "e\u0301", "ñ", "1", "12", "2024", "'s", "'LL", "'ſ", " ", "  ", "   ", "\n", "\n\n", "\r\n",
    "\r", "\t", "。", "，", "机", "器学", "日本", "か", "が", "カ\u3099", "한", "\u1112\u1161", "ß", "ẞ", "İ", "ſ", "Σ", "ς", "\u00a0", "\u3000", "\u200b",
    "\u200d", "\ufeff", "\u0085", "\u2028", "\u00ad", "\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f1e9", "-", "--", "...", "…", "_", "__", ".", ",", "!", "?", "(",
    ")", "[", "]", "{", "}", "<", ">", "/", "\\", "\"", "'", "’", "`", "#", "@", "$", "%", "&", "*", "+", "=", "|", "~", "^", ";", ":",
    "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "[MASK]", "[SEP]", "<|endoftext|>", "<|im_end|>", "<|eot_id|>",
    "<end_of_turn>", "▁", "▁the", "Ġ", "<0x41>", "\u0301", "\u0323", "\u0307", "\u064b", "\u05b0", "\u093c", "²", "½", "Ⅷ", "١", "一", "\x01", "\x1f", "\x7f",
    "ﬁ", "Å", "Å", "ａ", "ｶ", "ﾞ", "㎏", "ｱ", "م", "ع", "ש", "न", "ก", "\u0e33", "Я", "я", "ώ", "function", "return", "http://", ".com",
    "\ud7ff", "\ue000", "\ufffd", "\U0001d400", "\U00020000", "\U000e0100", "\U0010ffff",
]


def texts(count=500):
    draw = random.Random(7)
    made = list(WRITTEN)
    while len(made) < count:
        made.append("".join(draw.choice(POOL) for _ in range(draw.randint(1, 24))))
    return made[:count]


def units(text):
    """Offset in UTF-16 units of every character of a text, and of its end."""
    at, out = 0, []
    for character in text:
        out.append(at)
        at += 2 if ord(character) > 0xFFFF else 1
    return [*out, at]


def alone(file, strings):
    spec = json.loads(file.read_text())
    # Without its post-processor no offset is trimmed and nothing is added.
    spec.update(post_processor=None, truncation=None, padding=None)
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    ids, offsets = [], []
    for text in strings:
        places = units(text)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids.append(encoding.ids)
        offsets.append([[places[min(a, len(text))], places[min(b, len(text))]] for a, b in encoding.offsets])
    return ids, offsets


def whole(folder, strings):
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return [tokenizer(text).input_ids for text in strings], type(tokenizer).__name__
    except Exception as error:  # a folder that transformers does not open is compared without it
        print(f"{folder.name}: transformers: {type(error).__name__}: {error}")
        return None, None


def main():
    folder, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    strings = texts()
    (out / "texts.json").write_text(json.dumps(strings))
    for file in sorted(folder.glob("*/tokenizer.json")):
        name = file.parent.name
        try:
            ids, offsets = alone(file, strings)
        except BaseException as error:  # a panic in Rust is no Exception
            print(f"{name}: tokenizers: {type(error).__name__}: {error}")
            continue
        with_specials, kind = whole(file.parent, strings)
        result = {"ids": ids, "offsets": offsets, "whole": with_specials, "class": kind}
        (out / f"{name}.json").write_text(json.dumps(result))
        print(name, sum(map(len, ids)), kind, flush=True)


if __name__ == "__main__":
    main()
