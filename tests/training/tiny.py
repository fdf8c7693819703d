"""A tiny Phi-3 and rows for it, made from seeds: the same in every process."""

import torch

from lorakeet.config import LoraConfig
from lorakeet.data.conversation import Example
from lorakeet.lora.inject import inject
from lorakeet.models.config import DecoderConfig
from lorakeet.models.decoder import CausalLM

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    original_max_position_embeddings=128,
    eos_token_id=2,
    pad_token_id=2,
)


def build_model(dtype=torch.float32, **lora):
    """Build the model, with adapters."""
    torch.manual_seed(0)
    model = CausalLM(CONFIG)
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim > 1:
                param.normal_(0, 0.2)
    model.to(dtype)
    torch.manual_seed(1)
    return inject(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **lora}))


def ragged_rows():
    """Make 24 rows of 5 to 24 tokens, some with two learned spans."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for i in range(24):
        length = 5 + (i * 7) % 20
        ids = torch.randint(3, 61, (length,), generator=generator).tolist()
        spans = ((2, length),) if length < 12 else ((3, 6), (8, length))
        rows.append(Example(ids, spans, f"rows.jsonl:{i + 1}"))
    return rows
