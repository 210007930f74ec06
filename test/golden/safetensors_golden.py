"""Writes test/golden/safetensors with the Python safetensors library, and checks with it the file that ours writes.

Run: python test/golden/safetensors_golden.py          writes python.safetensors, values.json and sharded/
     python test/golden/safetensors_golden.py --check  loads ours.safetensors (written by test/checkpoint/
                                                       safetensors_write.test.ts with LONGSEQ_WRITE_GOLDEN=1)
Needs torch, safetensors and huggingface_hub.
"""

import json
import pathlib
import struct
import sys

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

OUT = pathlib.Path(__file__).parent / "safetensors"


def written_by_python():
    torch.manual_seed(0)
    specials = [0.0, -0.0, 1.0, -1.5, float("inf"), float("-inf"), float("nan"), 65504.0, 6e-8, 1e-5, 0.1]
    return {
        "f64": torch.tensor(specials + [1e300, -1e-300, 3.4028236e38], dtype=torch.float64),
        "f32": torch.tensor(specials + [3.4028235e38, 1e-45], dtype=torch.float32),
        "f16": torch.tensor(specials, dtype=torch.float16),
        "bf16": torch.tensor(specials, dtype=torch.bfloat16),
        "f8_e4m3": torch.tensor([0.0, 1.0, -2.0], dtype=torch.float8_e4m3fn),
        "f8_e5m2": torch.tensor([0.0, 1.0, -2.0], dtype=torch.float8_e5m2),
        "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "i16": torch.tensor([-32768, 32767], dtype=torch.int16),
        "i32": torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32),
        "i64": torch.tensor([-(2**63), 2**63 - 1], dtype=torch.int64),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "u16": torch.tensor([0, 65535], dtype=torch.uint16),
        "u32": torch.tensor([0, 2**32 - 1], dtype=torch.uint32),
        "u64": torch.tensor([0, 2**64 - 1], dtype=torch.uint64),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.25),
        "empty": torch.zeros(0, 7),
        'name "with" \\ ü 機 🙂\n': torch.arange(6, dtype=torch.float32).reshape(1, 2, 3),
        "matrix": torch.randn(5, 7),
    }


def hex_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes().hex() if tensor.numel() else ""


def write():
    OUT.mkdir(exist_ok=True)
    tensors = written_by_python()
    metadata = {"format": "pt", "quote": 'a "b" \\ \u0001 ü 🙂'}
    save_file(tensors, OUT / "python.safetensors", metadata)
    values = {"metadata": metadata, "tensors": {}}
    for name, tensor in tensors.items():
        entry = {"shape": list(tensor.shape), "bytes": hex_of(tensor)}
        if name in ("f32", "f16", "bf16"):
            entry["as_f32"] = hex_of(tensor.float())
            entry["as_bf16"] = hex_of(tensor.bfloat16())
        if name == "f64":
            entry["as_f32"] = hex_of(tensor.float())
        values["tensors"][name] = entry
    (OUT / "values.json").write_text(json.dumps(values, indent=1) + "\n")
    state = {f"model.layers.{i}.weight": torch.full((4, 8), float(i)) for i in range(5)}
    folder = OUT / "sharded"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    save_torch_state_dict(state, folder, max_shard_size=300, metadata={"format": "pt"})


def check():
    path = OUT / "ours.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0, length
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "ü": 'say "hi" \\ \n'}, opened.metadata()
    tensors = load_file(path)
    assert list(tensors["f64"].tolist()) == [0.5, -1e300], tensors["f64"]
    assert tensors["i64"].tolist() == [[-(2**63)], [2**63 - 1]]
    assert tensors["f32"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert tensors['a "b"\n🙂'].dtype == torch.bfloat16 and tensors['a "b"\n🙂'].tolist() == [1.0, -2.0]
    assert tensors["u8"].tolist() == [1, 2, 3]
    assert tensors["empty"].shape == (0, 3) and tensors["scalar"].shape == () and tensors["scalar"].item() == 7
    assert len(tensors) == 7
    print("ours.safetensors: read by Python as intended")


if __name__ == "__main__":
    check() if "--check" in sys.argv[1:] else write()
