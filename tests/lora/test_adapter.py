"""Adapter directories: what is written, what is believed, what is refused."""

import json
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lorakeet as lora
from lorakeet.errors import AdapterError
from lorakeet.files import durable, safetensors_file
from lorakeet.lora.adapter import adapter_extra
from lorakeet.lora.inject import injection_of, lora_layers

Build = Callable[[], nn.Module]
Fill = Callable[[nn.Module], nn.Module]
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FIRST = "base_model.model.model.layers.0.qkv_proj.lora_A.weight"


@pytest.fixture
def saved(toy: Build, fill: Fill, tmp_path: Path) -> Path:
    """An adapter directory of the toy model, of rank 2."""
    model = fill(lora.inject(toy(), lora.LoraConfig(r=2, lora_alpha=4)))
    lora.save_adapter(model, tmp_path, extra={"base_hash": "aaaa", "step": 7})
    return tmp_path


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "DROP"}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def refused(model: nn.Module, folder: Path, code: str, text: str = "", **options: Any) -> None:
    """The load stops with the code, in one line, and leaves the model without LoRA."""
    with pytest.raises(AdapterError) as caught:
        lora.load_adapter(model, folder, **options)
    assert str(caught.value).startswith(code + " ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert injection_of(model) is None
    assert not list(lora_layers(model))


def test_saves_only_the_adapter_and_loads_it_back(saved: Path, toy: Build, fill: Fill, ids: Tensor) -> None:
    expected = fill(lora.inject(toy(), lora.LoraConfig(r=2, lora_alpha=4)))(ids)
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]
    assert len(load_file(saved / WEIGHTS)) == 12
    model = toy()
    config = lora.load_adapter(model, saved, base_hash="aaaa")
    assert (config.r, config.lora_alpha) == (2, 4)
    assert torch.equal(model(ids), expected)
    assert adapter_extra(saved) == {"base_hash": "aaaa", "step": 7}


def test_loads_into_merged_layers_without_harm(saved: Path, toy: Build, fill: Fill, ids: Tensor) -> None:
    model = lora.inject(toy(), lora.LoraConfig(r=2, lora_alpha=4))
    plain = model(ids)
    fill(model)
    for _, layer in lora_layers(model):
        layer.merge()
    lora.load_adapter(model, saved)
    other = toy()
    lora.load_adapter(other, saved)
    torch.testing.assert_close(model(ids), other(ids))
    lora.remove(model)
    assert torch.equal(model(ids), plain)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_save_under_the_names_of_what_they_wrap(wrap: Any, saved: Path, toy: Build, tmp_path: Path) -> None:
    wrapped = wrap(lora.inject(toy(), lora.LoraConfig(r=2, lora_alpha=4)))
    lora.load_adapter(wrapped, saved)
    lora.save_adapter(wrapped, tmp_path / "again")
    before, after = load_file(saved / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_saving_over_an_adapter_replaces_it_whole(saved: Path, toy: Build) -> None:
    before = (saved / WEIGHTS).read_bytes()
    lora.save_adapter(lora.inject(toy(), lora.LoraConfig(r=3)), saved)
    assert (saved / WEIGHTS).read_bytes() != before
    assert json.loads((saved / CONFIG).read_text())["r"] == 3
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]


def test_a_write_that_fails_leaves_the_old_adapter(saved: Path, toy: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        lora.save_adapter(lora.inject(toy(), lora.LoraConfig(r=3)), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_file_that_reads_back_otherwise_is_noticed(toy: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = safetensors_file.write_tensors

    def corrupt(path: Path, *given: Any) -> None:
        write(path, *given)
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(safetensors_file, "write_tensors", corrupt)
    with pytest.raises(AdapterError, match="E-ADPT-110"):
        lora.save_adapter(lora.inject(toy(), lora.LoraConfig(r=2)), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_saved_or_loaded(value: float, saved: Path, toy: Build, tmp_path: Path) -> None:
    model = lora.inject(toy(), lora.LoraConfig(r=2))
    next(lora_layers(model))[1].lora_B.data[0, 0] = value
    with pytest.raises(AdapterError, match=r"E-ADPT-68.*layers\.0\.qkv_proj\.lora_B"):
        lora.save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new" / WEIGHTS).exists()
    change_tensors(saved, lambda tensors: tensors[FIRST].fill_(value))
    refused(toy(), saved, "E-ADPT-68", FIRST)


def test_a_model_without_lora_has_nothing_to_save(toy: Build, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="E-ADPT-106"):
        lora.save_adapter(toy(), tmp_path)


def test_keys_must_agree_exactly(saved: Path, toy: Build) -> None:
    change_tensors(saved, lambda tensors: tensors.update({"base_model.model.x.lora_A.weight": tensors.pop(FIRST)}))
    refused(toy(), saved, "E-ADPT-66", "1 keys missing")
    change_tensors(saved, lambda tensors: tensors.update({FIRST: tensors.pop("base_model.model.x.lora_A.weight")}))
    lora.load_adapter(toy(), saved)
    change_tensors(saved, lambda tensors: tensors.pop(FIRST))
    refused(toy(), saved, "E-ADPT-66", "1 keys missing")


def test_shapes_must_agree_exactly(saved: Path, toy: Build) -> None:
    change_tensors(saved, lambda tensors: tensors.update({FIRST: torch.zeros(1, 8)}))
    refused(toy(), saved, "E-ADPT-65", "(1, 8); expected (2, 8)")
    change_config(saved, r=4)
    refused(toy(), saved, "E-ADPT-65")


def test_another_base_is_refused(saved: Path, toy: Build) -> None:
    refused(toy(), saved, "E-ADPT-64", "aaaa; this base is bbbb", base_hash="bbbb")


def test_another_scale_is_refused(saved: Path, toy: Build) -> None:
    model = lora.inject(toy(), lora.LoraConfig(r=2, lora_alpha=16))
    with pytest.raises(AdapterError, match="E-ADPT-107"):
        lora.load_adapter(model, saved)


class Canary:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "executed"))


def test_pickle_is_refused_and_never_run(saved: Path, toy: Build, tmp_path: Path) -> None:
    (saved / WEIGHTS).unlink()
    (saved / "adapter_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    refused(toy(), saved, "E-ADPT-63", "pickle")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"r": "DROP"}, "E-ADPT-67", "r is required"),
        ({"lora_alpha": None}, "E-ADPT-67", "lora_alpha"),
        ({"target_modules": "DROP"}, "E-ADPT-67", "target_modules"),
        ({"r": 0}, "E-ADPT-67", "r is 0"),
        ({"r": "2; import os"}, "E-ADPT-67", "r is"),
        ({"peft_type": "LOHA"}, "E-ADPT-67", "LOHA"),
        ({"use_dora": True}, "E-ADPT-66", "6 keys missing"),
        ({"lora_bias": True}, "E-ADPT-103", "lora_bias"),
        ({"alora_invocation_tokens": [1]}, "E-ADPT-103", "alora_invocation_tokens"),
        ({"trainable_token_indices": [1]}, "E-ADPT-66", "1 keys missing"),
        ({"brand_new_option": 3}, "E-ADPT-103", "unknown"),
        ({"init_lora_weights": "pissa"}, "E-ADPT-103", "pissa"),
        ({"rank_pattern": {"(.+)+#": 2}}, "E-ADPT-103", "regular expression"),
        ({"target_modules": ["q_proj", "v_proj"]}, "E-ADPT-66", "fused as qkv_proj"),
        ({"target_modules": ["down_proj"]}, "E-ADPT-66", "6 keys too many"),
        ({"modules_to_save": ["nothing"]}, "E-ADPT-66", "matches 0"),
    ],
)
def test_config_fields_are_checked(fields: dict[str, Any], code: str, text: str, saved: Path, toy: Build) -> None:
    change_config(saved, **fields)
    refused(toy(), saved, code, text)


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_mapping": {"base_model_class": "os.system", "parent_library": "os"}},
        {"init_lora_weights": "gaussian"},
        {"use_dora": False, "lora_bias": False, "layer_replication": None, "peft_version": "9.9"},
        {"brand_new_option": None},
    ],
)
def test_fields_that_change_nothing_are_accepted(fields: dict[str, Any], saved: Path, toy: Build) -> None:
    expected = lora.load_adapter(toy(), saved)
    change_config(saved, **fields)
    assert lora.load_adapter(toy(), saved) == expected


def test_a_hostile_regular_expression_is_never_run(saved: Path, toy: Build) -> None:
    change_config(saved, target_modules="(.+)+#", exclude_modules="(a|a)+$")
    start = time.perf_counter()
    config = lora.load_adapter(toy(), saved)
    assert time.perf_counter() - start < 1
    assert len(config.target_modules) == 6


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "{", '{"r": 2, "r": 3}', '{"r": NaN}', "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")]
)
def test_config_must_be_one_json_object(text: str | bytes, saved: Path, toy: Build) -> None:
    (saved / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(toy(), saved, "E-ADPT-104")


def test_missing_files_are_named(saved: Path, toy: Build, tmp_path: Path) -> None:
    refused(toy(), tmp_path / "nowhere", "E-ADPT-105")
    (saved / CONFIG).unlink()
    refused(toy(), saved, "E-ADPT-105", CONFIG)
    (saved / WEIGHTS).unlink()
    refused(toy(), saved, "E-ADPT-105", WEIGHTS)


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "E-ADPT-55"),
        (b"\0\0\0", "E-ADPT-56"),
        (struct.pack("<Q", 2**63), "E-ADPT-58"),
        (struct.pack("<Q", 17 * 1024**2), "E-ADPT-58"),
        (struct.pack("<Q", 500) + b"{}", "E-ADPT-56"),
        (struct.pack("<Q", 4) + b"[1]]", "E-ADPT-59"),
        (header({"a": entry(0, 8)}, bytes(4)), "E-ADPT-56"),
        (header({"a": entry(0, 8)}, bytes(12)), "E-ADPT-59"),
        (header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "E-ADPT-59"),
        (header({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "E-ADPT-59"),
        (header({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "E-ADPT-59"),
        (header({"a": {**entry(0, 4), "data_offsets": ["0", 4]}}, bytes(4)), "E-ADPT-59"),
        (header({"a": {**entry(0, 4), "dtype": "F31"}}, bytes(4)), "E-ADPT-59"),
        (header({"a": {**entry(0, 4), "shape": [2**62, 4]}}, bytes(4)), "E-ADPT-59"),
        (header({f"t{i}": entry(0, 0) for i in range(20_001)}), "E-ADPT-58"),
    ],
)
def test_damaged_weight_files_are_refused(data: bytes, code: str, saved: Path, toy: Build) -> None:
    (saved / WEIGHTS).write_bytes(data)
    refused(toy(), saved, code)


@pytest.mark.parametrize("keep", [1, 9, 300, -1])
def test_every_truncation_is_refused(keep: int, saved: Path, toy: Build) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(AdapterError, match="E-ADPT-5"):
        lora.load_adapter(toy(), saved)


def test_hand_made_layers_save_in_pefts_form_and_load_back(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            lora.Embedding(6, 4, r=3, lora_alpha=6),
            lora.Linear(4, 12, r=2, merge_weights=False),
            lora.MergedLinear(12, 6, r=2, enable_lora=[True, False, True], lora_alpha=4),
            nn.Unflatten(1, (1, 2, 3)),
            lora.Conv2d(1, 4, (2, 3), r=2, padding=1),
        )

    model, x = build(), torch.arange(6)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    lora.save_adapter(model, tmp_path)
    twin = build()
    lora.load_adapter(twin, tmp_path)
    assert torch.equal(twin(x), model(x))
    # The same file means the same update to plain layers of the same weights.
    plain = lora.remove(build())
    lora.load_adapter(plain, tmp_path)
    torch.testing.assert_close(plain(x), model(x))


def test_an_update_that_a_layer_cannot_hold_is_refused(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(lora.MergedLinear(4, 6, r=2, enable_lora=[True, False]))

    lora.save_adapter(build(), tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors["base_model.model.0.lora_B.weight"].fill_(1.0))
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match="E-ADPT-109"):
        lora.load_adapter(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_numbered_modules_are_named_exactly(tmp_path: Path, fill: Fill) -> None:
    """The name "0" also fits "1.0", so the file must say which one is meant."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    config = lora.LoraConfig(r=2, target_modules=["0"], exclude_modules=["1.0"], task_type=None)
    model = fill(lora.inject(build(), config))
    lora.save_adapter(model, tmp_path)
    fresh = build()
    lora.load_adapter(fresh, tmp_path)
    assert [path for path, _ in lora_layers(fresh)] == ["0"]
    x = torch.randn(2, 4)
    assert torch.equal(fresh(x), model(x))
