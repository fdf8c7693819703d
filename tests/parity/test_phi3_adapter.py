"""A trained run's adapter in PEFT on transformers' model, and an adapter that PEFT trained on ours."""

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers

from lorakeet.config import LoraConfig
from lorakeet.lora.adapter import load_adapter, save_adapter
from lorakeet.lora.inject import inject
from lorakeet.models.weights import load_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT calls it

LORA = {"r": 4, "lora_alpha": 12, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}


@pytest.fixture
def directory(tmp_path):
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
    )
    transformers.Phi3ForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def randomise(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_" in name:
                param.normal_(0, 0.3, generator=generator)


def our_logits(model, ids):
    borders = torch.tensor([0, len(ids)], dtype=torch.int32)
    return F.linear(model(ids, torch.arange(len(ids)), borders), model.lm_head.weight)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("use_rslora", [False, True])
def test_our_adapter_matches_in_peft(directory, tmp_path, use_rslora):
    ids = torch.arange(3, 40)
    config = LoraConfig(**LORA, use_rslora=use_rslora)
    ours = inject(load_model(directory, dtype=torch.float32), config).eval()
    plain = our_logits(ours, ids)
    randomise(ours)
    save_adapter(ours, tmp_path / "adapter", config=config, base_model_name_or_path=str(directory))
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected = theirs(ids[None]).logits[0]
    assert relative(our_logits(ours, ids), expected) < 1e-5
    assert relative(plain, expected) > 1e-2  # the adapter does something


def test_an_adapter_trained_by_peft_matches_here(directory, tmp_path):
    ids = torch.arange(3, 40)
    base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    theirs = peft.get_peft_model(base, peft.LoraConfig(**LORA, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([param for param in theirs.parameters() if param.requires_grad], lr=1e-2)
    for _ in range(3):
        theirs(ids[None], labels=ids[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.eval().save_pretrained(tmp_path / "adapter")
    ours = load_model(directory, dtype=torch.float32)
    load_adapter(ours, tmp_path / "adapter")
    assert relative(our_logits(ours.eval(), ids), theirs(ids[None]).logits[0]) < 1e-5
