"""Writes lib/data/tokenizers/unicode_tables.ts: which characters the Rust tokenizers library takes for what.

Its parts each carry their own version of Unicode, older than JavaScript's; what they know is asked of them, character
by character.

Run: python test/data/tokenizers/unicode_tables.py   (needs tokenizers; a minute)
"""

import pathlib

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [code for code in range(1, 0x110000) if not 0xD800 <= code <= 0xDFFF]
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base36(n):
    return DIGITS[n] if n < 36 else base36(n // 36) + DIGITS[n % 36]


def table(codes):
    ranges = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    out, at = [], 0
    for first, last in ranges:
        out.append(base36(first - at) + (f"+{base36(last - first)}" if last > first else ""))
        at = last
    return " ".join(out)


def cut(pre_tokenizer):
    return [code for code in CODES if len(pre_tokenizer.pre_tokenize_str(f"a{chr(code)}a")) == 3]


def changed(normalizer, to=None):
    pairs = ((code, normalizer.normalize_str(chr(code))) for code in CODES)
    return [code for code, text in pairs if text != chr(code) and to in (None, text)]


bert = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
# Mn alone is not seen where the mark has a decomposition; those are old enough to be in every version.
plain = set(changed(normalizers.NFD()))
tables = {
    "UNASSIGNED": ("What has no meaning to regular expressions.", [
        code for code in CODES
        if len(pre_tokenizers.Split(Regex(r"\p{Cn}"), "removed").pre_tokenize_str(f"a{chr(code)}a")) == 2
    ]),
    "PUNCTUATION": ("Punctuation and BertPreTokenizer.", cut(pre_tokenizers.Punctuation())),
    "MARKS": ("What StripAccents removes.", changed(normalizers.StripAccents(), "")),
    "BERT_MARKS": ("What BertNormalizer's strip_accents removes.", [
        code for code in changed(normalizers.BertNormalizer(**{**bert, "strip_accents": True}), "") if code not in plain
    ]),
    "BERT_CONTROLS": ("What BertNormalizer's clean_text removes.",
                      changed(normalizers.BertNormalizer(**{**bert, "clean_text": True}), "")),
    "DECOMPOSED": ("What NFKD changes.", changed(normalizers.NFKD())),
}
lines = [
    "// Which characters the Rust tokenizers library takes for what; written by test/data/tokenizers/unicode_tables.py.",
    "",
    "// Ranges of code points in base 36: the distance from the end of the range before, and +N where N more follow.",
    "",
    f"/** The version of tokenizers that was asked. */\nexport const TOKENIZERS_VERSION = \"{tokenizers.__version__}\";",
]
for name, (what, codes) in tables.items():
    lines += ["", f"/** {what} */", f"export const {name} =", f'  "{table(codes)}";']
out = pathlib.Path(__file__).parents[3] / "lib/data/tokenizers/unicode_tables.ts"
out.write_text("\n".join(lines) + "\n")
print({name: len(codes) for name, (_, codes) in tables.items()})
