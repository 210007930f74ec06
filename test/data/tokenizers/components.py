"""Writes components.json: what the tokenizers library makes of difficult texts, one component of tokenizer.json at a time.

Run: python test/data/tokenizers/components.py [FOLDER]   (needs tokenizers)
The model of most cases is a probe: every character or byte is a token and the first of a piece another than the rest,
so that ids show where pieces begin. A case holds a hash of the ids and one of the offsets. With FOLDER the cases are
also written there as tokenizer.json files for conformance.py.
"""

import base64
import hashlib
import json
import pathlib
import random
import re
import struct
import sys

from tokenizers import Tokenizer

from conformance import POOL, WRITTEN, units

HERE = pathlib.Path(__file__).parent
draw = random.Random(11)


def drawn(pool, count, longest):
    return ["".join(draw.choice(pool) for _ in range(draw.randint(1, longest))) for _ in range(count)]


ADDED_POOL = [
    "a", "b", "c", "ab", "abc", "bc", " b", "Foo", "foo", "FOO", "fo", "<x>", "<X>", "<x", ">", "é", "e\u0301", "É", "ＦＯＯ", "ﬁ",
    " ", "  ", "\n", "\t", "\u00a0", "▁", "the", "The", "1", "_", ".", "-", "机", "ß", "İ", "\u0301", "x", "<s>", "</s>",
]
TEXTS = {
    "texts": WRITTEN + drawn(POOL, 60, 20),
    "added": drawn(ADDED_POOL, 150, 14),
    "model": drawn(list("aabbccde é机\U0001f600▁") + ["ab", "abc", "dé"], 150, 30) + ["", "a", "\U0001f600" * 5, "z", "zz", "azza", "abcabcabc" * 9],
}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def double_array(mapping):
    """SentencePiece's character map of a few entries: every node of the trie gets a block of 256 units of its own."""
    trie, texts = {}, b""
    for key, value in mapping.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(texts)
        texts += value.encode() + b"\0"
    array = [0] * 256
    blocks = [256]

    def place(node, at, label):
        base = blocks[0]
        blocks[0] += 256
        array.extend([0] * 256)
        array[at] = label | ((base ^ at) << 10) | ((1 << 8) if 0 in node else 0)
        for byte, child in node.items():
            if byte == 0:
                array[base] = child | (1 << 31)
            else:
                place(child, base ^ byte, byte)

    place(trie, 0, 0)
    blob = b"".join(struct.pack("<I", unit) for unit in array)
    return base64.b64encode(struct.pack("<I", len(blob)) + blob + texts).decode()


CHARSMAP = double_array({"ﬁ": "fi", "é": "e", "e\u0301": "E", "\r\n": " ", "\u200b": ""})
probe = {f"<0x{byte:02X}>": byte for byte in range(256)}
for code in range(0x80):
    probe[chr(code)] = len(probe)
    probe["##" + chr(code)] = len(probe)
PROBE = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "##", "end_of_word_suffix": None,
         "fuse_unk": False, "byte_fallback": True, "ignore_merges": False, "vocab": probe, "merges": []}

cases = []


def case(name, normalizer=None, pre_tokenizer=None, added=(), model="probe", texts="texts"):
    cases.append({"name": name, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "added_tokens": list(added),
                  "model": model, "texts": texts})


# Normalizers.
for form in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"]:
    case(form, {"type": form})
for left, right in [(True, True), (True, False), (False, True)]:
    case(f"Strip {left} {right}", {"type": "Strip", "strip_left": left, "strip_right": right})
case("accents", sequence("normalizers", {"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}))
case("compatible accents", sequence("normalizers", {"type": "NFKD"}, {"type": "StripAccents"}))
for clean, chinese, accents, lower in [(True, True, None, True), (True, False, None, False), (False, True, True, False), (False, False, False, True)]:
    case(f"Bert {clean} {chinese} {accents} {lower}", {"type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese,
                                                      "strip_accents": accents, "lowercase": lower})
for pattern, content in [({"String": " "}, "▁"), ({"String": "  "}, "_"), ({"String": "the"}, "$1"), ({"Regex": r"\s+"}, " "),
                         ({"Regex": r" {2,}"}, "▁"), ({"Regex": r"(?i)the|\d+"}, ""), ({"Regex": r"[^\w\s]"}, "p"), ({"Regex": r"^\s|\s$"}, "#")]:
    case(f"Replace {json.dumps(pattern)}", {"type": "Replace", "pattern": pattern, "content": content})
case("Prepend", {"type": "Prepend", "prepend": "▁"})
case("stripped and prepended", sequence("normalizers", {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Prepend", "prepend": "_x"}))
case("Precompiled", {"type": "Precompiled", "precompiled_charsmap": CHARSMAP})

# Pre-tokenizers.
for prefix in (True, False):
    for regex in (True, False):
        case(f"ByteLevel {prefix} {regex}", None, {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex})
for kind in ["Whitespace", "WhitespaceSplit", "BertPreTokenizer"]:
    case(kind, None, {"type": kind})
BEHAVIORS = ["Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"]
for behavior in BEHAVIORS:
    case(f"Punctuation {behavior}", None, {"type": "Punctuation", "behavior": behavior})
    for pattern in [{"Regex": r"\s+"}, {"String": "a"}, {"Regex": r"\w"}]:
        for invert in (False, True):
            case(f"Split {json.dumps(pattern)} {behavior} {invert}", None, {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert})
for single in (True, False):
    case(f"Digits {single}", None, {"type": "Digits", "individual_digits": single})
case("CharDelimiterSplit", None, {"type": "CharDelimiterSplit", "delimiter": "_"})
case("FixedLength", None, {"type": "FixedLength", "length": 3})
for scheme in ["always", "first", "never"]:
    for split in (True, False):
        case(f"Metaspace {scheme} {split}", None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split},
             [{"id": len(probe), "content": "<s>", "special": True}])
case("stripped Metaspace first", {"type": "Strip", "strip_left": True, "strip_right": False},
     {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True})
PATTERNS = {
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "possessive": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "cjk": r"[一-龥\u3040-ゟ゠-ヿ]+",
    "scripts": r"\p{Han}+|\p{Hiragana}+|\p{Katakana}|\p{Cyrillic}+|[[:alpha:]]+|[[:punct:]]+|\p{^L}",
    "anchors": r"^.|.$|\bw|\Aa|\h\z",
    "atomic": r"(?>a+|ab)b?|[\w&&[^a-e]]+|(?<=\n)\s",
}
for name, pattern in PATTERNS.items():
    case(f"pattern {name}", None, {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
case("sequence", None, sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}))

# Added tokens: which of those that overlap is found, and what is taken with it.
NORMALIZERS = [None, {"type": "Lowercase"}, {"type": "NFKC"}, {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
               sequence("normalizers", {"type": "NFD"}, {"type": "StripAccents"}, {"type": "Strip", "strip_left": True, "strip_right": True})]
for n in range(36):
    tokens = [{"id": 500 + i, "content": content, **{flag: draw.random() < share for flag, share in
               [("single_word", 0.25), ("lstrip", 0.3), ("rstrip", 0.3), ("normalized", 0.5), ("special", 0.4)]}}
              for i, content in enumerate(draw.sample([c for c in ADDED_POOL if c not in ("b", "e\u0301")], 10))]  # of two that normalise alike the library takes either
    if NORMALIZERS[n % 6] == NORMALIZERS[5]:
        # A token that normalises to nothing matches everywhere, and the library then never ends.
        tokens = [token for token in tokens if token["content"].strip() and token["content"] != "\u0301"]
    case(f"added {n}", NORMALIZERS[n % 6], None if n % 4 else {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}, tokens, texts="added")

# Models.
LETTERS = ["a", "b", "c", "d", "e", " ", "é", "▁"]


def bpe(name, prefix="", suffix="", letters=LETTERS, bytes_=False, **options):
    forms = dict.fromkeys(form for c in letters for form in (c, prefix + c, c + suffix, prefix + c + suffix))
    vocab = {token: i for i, token in enumerate(["<unk>", *forms, *([f"<0x{byte:02X}>" for byte in range(256)] if bytes_ else [])])}
    merges, seen = [], set()
    for _ in range(4000):
        if len(merges) == 60:
            break
        a, b = draw.choice(list(forms)), draw.choice(list(forms))
        if (a, b) in seen or (prefix and not b.startswith(prefix)) or (suffix and a.endswith(suffix)) or len(a + b) > 9:
            continue
        seen.add((a, b))
        merges.append([a, b])
        forms[a + b[len(prefix):]] = None
        vocab.setdefault(a + b[len(prefix):], len(vocab))
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": prefix or None, "end_of_word_suffix": suffix or None,
             "fuse_unk": False, "byte_fallback": bytes_, "ignore_merges": False, "vocab": vocab, "merges": merges, **options}
    return case(f"BPE {name}", None, None, (), model, "model")


bpe("unknown", unk_token="<unk>")
bpe("unknown fused", unk_token="<unk>", fuse_unk=True)
bpe("bytes", bytes_=True, unk_token="<unk>")
bpe("prefix", prefix="##", unk_token="<unk>")
bpe("suffix", suffix="</w>", unk_token="<unk>", fuse_unk=True)
bpe("ignore merges", unk_token="<unk>", ignore_merges=True)


def pieces(count):
    joined = "".join(TEXTS["model"])
    starts = [draw.randrange(len(joined) - 5) for _ in range(count)]
    return list(dict.fromkeys(["a", "b", "c", " ", "é", *(joined[s:s + draw.randint(1, 5)] for s in starts)]))


for name, options in {"": {}, " bytes": {"byte_fallback": True}}.items():
    scored = [["<unk>", 0.0], *([token, draw.choice([-1.0, -2.0, -2.5, -3.0, -4.75])] for token in pieces(90))]
    if options:
        scored += [[f"<0x{byte:02X}>", -9.0] for byte in range(256)]
    case(f"Unigram{name}", None, None, (), {"type": "Unigram", "unk_id": 0, "vocab": scored, "byte_fallback": False, **options}, "model")
for longest in (100, 7):
    tokens = pieces(80)
    vocab = {token: i for i, token in enumerate(dict.fromkeys(["[UNK]", *tokens, *("##" + token for token in tokens)]))}
    case(f"WordPiece {longest}", None, {"type": "WhitespaceSplit"}, (), {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": longest, "vocab": vocab}, "model")
case("WordLevel", None, {"type": "WhitespaceSplit"}, (), {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {t: i for i, t in enumerate(["[UNK]", *pieces(80)])}}, "model")


def sha(value):
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()[:16]


for entry in cases:
    spec = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None, "decoder": None, **entry,
            "model": PROBE if entry["model"] == "probe" else entry["model"]}
    spec["added_tokens"] = [{"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False, **token}
                            for token in entry["added_tokens"]]
    for key in ("name", "texts"):
        del spec[key]
    if len(sys.argv) > 1:
        out = pathlib.Path(sys.argv[1]) / "".join(c if c.isalnum() else "_" for c in entry["name"])
        out.mkdir(parents=True, exist_ok=True)
        (out / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    ids, offsets, panics = [], [], []
    for i, text in enumerate(TEXTS[entry["texts"]]):
        places = units(text)
        try:
            encoding = tokenizer.encode(text, add_special_tokens=False)
        except BaseException:  # the library panics where a token's white space reaches into the next token
            panics.append(i)
            continue
        ids.append(encoding.ids)
        # The library counts the probe's own "##" as text where it falls back to bytes: only ASCII has true offsets there.
        if entry["model"] != "probe" or text.isascii():
            offsets.append([[places[min(a, len(text))], places[min(b, len(text))]] for a, b in encoding.offsets])
    if panics:
        entry["panics"] = panics
    entry["ids"] = sha(ids)
    # Composing characters makes one place of several: ours is all of them, the library's the first or the last.
    if not re.search(r"NFK?[CD]|Precompiled|Bert|\\u2581|ByteLevel", json.dumps([entry["normalizer"], entry["pre_tokenizer"]])):
        entry["offsets"] = sha(offsets)

lines = ["{", '"about": "written by components.py",']
lines += [f"{json.dumps(name)}: {json.dumps(texts, ensure_ascii=True)}," for name, texts in TEXTS.items()]
lines += ['"cases": [', ",\n".join(json.dumps(entry) for entry in cases), "]", "}"]
(HERE / "components.json").write_text("\n".join(lines) + "\n")
print(len(cases), "cases")
