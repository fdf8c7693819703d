"""A small adapted model that talks through a trained tokenizer, and a few conversations."""

from pathlib import Path

import pytest
import torch

from lorakeet.chat_model import ChatModel
from lorakeet.config import LoraConfig
from lorakeet.data.conversation import Conversation, Message
from lorakeet.data.templates.template import template_for
from lorakeet.lora.inject import inject, lora_layers
from lorakeet.models.config import DecoderConfig
from lorakeet.models.decoder import CausalLM
from tests.data.conftest import trained

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


@pytest.fixture(scope="session")
def tokenizer():
    return trained("bpe")


@pytest.fixture(scope="session")
def template(tokenizer):
    return template_for(tokenizer, name="phi3-mini")


def build_base():
    torch.manual_seed(0)
    model = CausalLM(
        DecoderConfig(
            vocab_size=640,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=200,
            original_max_position_embeddings=200,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def base(tokenizer, template):
    """Build the base model, the same one each time."""
    return ChatModel(build_base(), tokenizer, template, Path())


@pytest.fixture
def tuned(tokenizer, template):
    """Build the base model with an adapter that changes what it says."""
    model = inject(build_base(), LoraConfig(r=4, lora_dropout=0.5))
    torch.manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.normal_(std=0.2)
    return ChatModel(model, tokenizer, template, Path())


@pytest.fixture(scope="session")
def conversations():
    """Rows of different lengths, one of them with several turns, one with a system prompt."""
    rows = []
    for i in range(9):
        messages = [Message("user", " ".join(WORDS[: i + 1])), Message("assistant", " ".join(WORDS[i:]))]
        if i == 3:
            messages = [*messages, Message("user", "and then?"), Message("assistant", "the lazy dog")]
        if i == 5:
            messages = [Message("system", "be quick"), *messages]
        rows.append(Conversation(tuple(messages), place=f"rows.jsonl:{i + 1}"))
    return rows
