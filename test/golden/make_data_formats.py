"""Writes the small data files of test/data/formats.test.ts: Parquet in every codec, nested rows, zstd of several frames.

    pip install pyarrow zstandard
    python test/golden/make_data_formats.py
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

folder = pathlib.Path(__file__).parent / "data" / "formats"
folder.mkdir(parents=True, exist_ok=True)

# Texts, in row groups of two rows, in each codec.
texts = pa.table({"id": pa.array(range(5)), "text": ["one", "zwei \u00e4\u00df", "three \U0001f600", "line\nbreak", 'quote " and \\']})
for codec in ["none", "snappy", "gzip", "brotli", "zstd"]:
    pq.write_table(texts, folder / f"texts_{codec}.parquet", compression=codec, row_group_size=2)
pq.write_table(texts, folder / "texts_lz4.parquet", compression="lz4")

# Conversations as lists of structs: what a message lacks is null, as a table has it.
message = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("weight", pa.float64()),
        ("tool_calls", pa.list_(pa.struct([("name", pa.string()), ("score", pa.float64())]))),
    ]
)
rows = [
    {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes", "tool_calls": [{"name": "f", "score": 2.0}]},
            {"role": "assistant", "content": "no", "weight": 0.0},
        ],
        "text": None,
        "chosen": None,
    },
    {"messages": None, "text": "plain", "chosen": None},
    {"messages": None, "text": "also", "chosen": "x"},
]
schema = pa.schema([("messages", pa.list_(message)), ("text", pa.string()), ("chosen", pa.string())])
pq.write_table(pa.Table.from_pylist(rows, schema), folder / "messages.parquet", row_group_size=1)

# Ids of every integer type, some with labels.
for name, kind in [("int64", pa.int64()), ("int32", pa.int32()), ("uint16", pa.uint16())]:
    ids = pa.table(
        {
            "input_ids": pa.array([[1, 2, 3], [4, 5], [6]], pa.list_(kind)),
            "labels": pa.array([[-100, 2, 3], None, None], pa.list_(pa.int64())),
            "attention_mask": pa.array([[1, 1, 1], [1, 1], [1]], pa.list_(pa.int8())),
        }
    )
    pq.write_table(ids, folder / f"ids_{name}.parquet")
pq.write_table(pa.table({"content": ["renamed"], "text": ["not this"]}), folder / "renamed.parquet")
pq.write_table(pa.table({"text": pa.array([b"\xff\xfe"], pa.binary())}), folder / "not_utf8.parquet")
pq.write_table(pa.table({"other": [1, 2]}), folder / "no_kind.parquet")

# zstd: frames with and without their sizes and checksums, a frame to be skipped, an empty one, and lines across frames.
lines = "".join(json.dumps({"text": f"row {i} " + "lorem ipsum " * (i % 7)}) + "\n" for i in range(300)).encode()
plain = zstandard.ZstdCompressor(level=3)
checked = zstandard.ZstdCompressor(level=9, write_checksum=True, write_content_size=False)
skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"skip!"
stream = checked.compressobj()
unknown = stream.compress(lines[1000:5000]) + stream.flush()
whole = plain.compress(lines[:1000]) + skippable + unknown + plain.compress(b"") + checked.compress(lines[5000:])
(folder / "rows.jsonl.zst").write_bytes(whole)
(folder / "rows.jsonl").write_bytes(lines)

for file in sorted(folder.iterdir()):
    assert file.stat().st_size < 30_000, file
    print(file.name, file.stat().st_size)
