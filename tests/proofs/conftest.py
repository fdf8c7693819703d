"""A tiny model of random weights as the subject of proofs, through the same door as a user's."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from lorakeet.chat_model import load
from lorakeet.config import resolve_config
from lorakeet.lora.inject import remove
from lorakeet.proofs.passes import answer_logits, draw_adapter
from lorakeet.proofs.subject import opened
from tests.cli.conftest import own_cache, write_tiny_model  # noqa: F401  a fixture


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Write rows of many lengths."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"question": f"What is {i} and {i * i}?", "answer": f"It is {i + i * i}" + " indeed" * (i % 4)} for i in range(24)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """Write the tiny model with weights so large that different contexts give different tokens."""
    directory = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    file = directory / "model.safetensors"
    save_file({name: 8 * tensor if tensor.ndim == 2 else tensor for name, tensor in load_file(file).items()}, file)
    return directory


@pytest.fixture(scope="module")
def opened_subject(model_directory, rows, own_cache):  # noqa: F811
    config = resolve_config(model=str(model_directory), sections={"data": {"train": [str(rows)]}})
    chat_model = load(config.model, bf16=False)
    with opened(chat_model, config, None) as subject:
        yield subject


@pytest.fixture
def subject(opened_subject, tmp_path):
    """Return the subject as if it had just been opened: what a fault changes is measured under the fault."""

    def again():
        model = opened_subject.model
        remove(model)
        base_logits = answer_logits(model, opened_subject.examples)
        draw_adapter(model, opened_subject.config.peft_config)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return replace(opened_subject, base_logits=base_logits, scratch=folder)

    return again
