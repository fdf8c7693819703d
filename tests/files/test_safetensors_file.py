"""Broken, hostile and plain safetensors files: a clear refusal each, and byte-exact agreement with safetensors."""

import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lorakeet.errors import ModelError
from lorakeet.files.safetensors_file import MAX_HEADER_BYTES, SafetensorsWriter, mapped, read_tensors, write_tensors
from lorakeet.files.safetensors_file import read_header as read_any_header


def read_header(file):
    return read_any_header(file, ModelError).entries


def layout(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


GOOD = layout({"a": tensor(0, 8), "b": tensor(8, 16)}, b"\0" * 16)
REPEATED = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def test_entries_and_bytes_match_safetensors(tmp_path):
    torch.manual_seed(0)
    # An odd number of 2-byte elements, so that what follows is not aligned to 4 bytes.
    state = {
        "z": torch.randn(3, 5).bfloat16(),
        "half": torch.randn(7).half(),
        "a": torch.randn(2, 3, 4),
        "one": torch.tensor(1.5),
    }
    save_file(state, tmp_path / "f", metadata={"note": "x"})
    entries = read_header(tmp_path / "f")
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        name: (value.dtype, tuple(value.shape)) for name, value in state.items()
    }
    with mapped(tmp_path / "f") as mapping:
        for name, entry in entries.items():
            assert torch.equal(mapping.read(entry), state[name])


def test_unaligned_tensor_is_read(tmp_path):
    values = torch.tensor([1.5, -2.0])
    (tmp_path / "f").write_bytes(layout(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   ', values.numpy().tobytes()))
    entries = read_header(tmp_path / "f")
    assert entries["a"].begin % 4
    with mapped(tmp_path / "f") as mapping:
        assert torch.equal(mapping.read(entries["a"]), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_written_file_loads_in_safetensors(tmp_path, dtype):
    state = {"b": torch.randn(3, 5), "a": torch.randn(7, 2).T, "c": torch.tensor(2.0)}
    shapes = {name: (tuple(value.shape), dtype) for name, value in state.items()}
    with SafetensorsWriter(tmp_path / "f", shapes) as writer:
        for name in ("c", "a", "b"):
            writer.write(name, state[name])
    loaded = load_file(tmp_path / "f")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name].to(dtype)) for name in state)


def test_all_types_in_one_file_match_safetensors(tmp_path):
    state = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "view": torch.randn(4, 4)[:, 1],
        "half": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "wide": torch.randn(2, dtype=torch.float64),
    }
    write_tensors(tmp_path / "ours", state, {"note": "x"})
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "theirs", {"note": "x"})
    for found in (load_file(tmp_path / "ours"), read_tensors(tmp_path / "theirs", ModelError)[0]):
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], value) for name, value in state.items())
    assert read_tensors(tmp_path / "ours", ModelError)[1] == {"format": "pt", "note": "x"}


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", "E-MODEL-55", "is empty"),
        (b"\x08\0\0", "E-MODEL-56", "is cut: 3 bytes"),
        (GOOD[:30], "E-MODEL-56", "is cut: 30 bytes"),
        (GOOD[:-1], "E-MODEL-56", "is cut: "),
        (layout(b"{}", length=2**63), "E-MODEL-58", "header too large: 9223372036854775808 bytes"),
        (layout(b"{}", length=MAX_HEADER_BYTES + 1), "E-MODEL-58", "header too large"),
        (layout(b"{}", length=MAX_HEADER_BYTES), "E-MODEL-56", "is cut"),
        (layout({str(i): tensor(0, 0, (0,)) for i in range(20_001)}), "E-MODEL-58", "20001 tensors"),
        (layout({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12), "E-MODEL-59", "bad offsets of tensor b: 4 to 12"),
        (layout({"a": tensor(0, 8), "b": tensor(9, 17)}, b"\0" * 17), "E-MODEL-59", "bad offsets of tensor b: 9 to 17"),
        (layout({"a": tensor(1, 9)}, b"\0" * 9), "E-MODEL-59", "bad offsets of tensor a: 1 to 9, expected 0 to 8"),
        (layout({"a": tensor(0, 4)}, b"\0" * 4), "E-MODEL-59", "bad offsets of tensor a: 0 to 4, expected 0 to 8"),
        (layout({"a": tensor(8, 0)}, b"\0" * 8), "E-MODEL-59", "bad offsets of tensor a: 8 to 0"),
        (layout({"a": tensor(-8, 0)}, b"\0" * 8), "E-MODEL-59", "bad offsets of tensor a"),
        (layout({"a": tensor(0, 8.0)}, b"\0" * 8), "E-MODEL-59", "bad offsets of tensor a"),
        (layout({"a": {"dtype": "F32", "shape": [2]}}), "E-MODEL-59", "bad offsets of tensor a: None"),
        (layout({"a": 5}), "E-MODEL-59", "bad offsets of tensor a: None"),
        (layout({"a": tensor(0, 8, (-2,))}, b"\0" * 8), "E-MODEL-59", r"bad shape of tensor a: \[-2\]"),
        (layout({"a": tensor(0, 8, (True, 2))}, b"\0" * 8), "E-MODEL-59", "bad shape of tensor a"),
        (layout({"a": tensor(0, 8, (2**62, 4))}, b"\0" * 8), "E-MODEL-59", "bad shape of tensor a"),
        (GOOD + b"\0", "E-MODEL-59", "has 1 bytes after its last tensor"),
        (layout({}, b"\0"), "E-MODEL-59", "has 1 bytes after its last tensor"),
        (layout(REPEATED, b"\0" * 8), "E-MODEL-59", "a key is repeated"),
        (layout(b"{"), "E-MODEL-59", "header is not JSON"),
        (layout(b"\xff{}"), "E-MODEL-59", "header is not JSON"),
        (layout(b"[]"), "E-MODEL-59", "header is no JSON object"),
        (layout(b"[" * 100_000), "E-MODEL-59", "header is not JSON"),
        (layout({"a": tensor(0, 2, dtype="F4")}, b"\0" * 2), "E-MODEL-59", "is of the unknown type F4; known: F64"),
        (layout({"a": tensor(0, 2, dtype=["F32"])}, b"\0" * 2), "E-MODEL-59", "is of the unknown type"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "E-MODEL-59", "Git LFS pointer"),
    ],
)
def test_broken_file_is_refused(tmp_path, data, code, said):
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(ModelError, match=f"^{code} .*{said}") as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{code} {file} ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("absent", "pipe", "directory"):
        with pytest.raises(ModelError, match=rf"E-MODEL-121 .*{name} no such file, or not a regular one"):
            read_header(tmp_path / name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(GOOD)))
def test_damaged_file_is_read_or_refused(tmp_path, flips, length):
    data = bytearray(GOOD)
    for place, value in flips:
        data[place] = value
    file = tmp_path / "damaged"
    file.write_bytes(data[:length])
    try:
        entries = read_header(file)
    except ModelError:
        return
    # What is accepted is inside the file.
    with mapped(file) as mapping:
        for entry in entries.values():
            assert mapping.read(entry).shape == entry.shape
